"""Padding of a vocabulary is fine; another vocabulary is not."""

from __future__ import annotations

import pytest

from gkt_plugins.errors import ConfigError
from gkt_plugins.speculation.vocabulary import check_vocabularies

TOKENS = {f"t{i}": i for i in range(1000)}


@pytest.mark.parametrize(("target", "draft"), [(152_064, 151_936), (151_936, 152_064), (50_304, 50_257), (64, 64)])
def test_sizes_that_differ_by_padding_pass(target, draft):
    check_vocabularies(target, draft)


@pytest.mark.parametrize(("target", "draft"), [(32_000, 128_256), (50_257, 32_000), (1000, 1500)])
def test_sizes_that_differ_by_more_are_refused_and_both_named(target, draft):
    with pytest.raises(
        ConfigError, match=f"the draft's vocabulary has {draft} entries, the target's {target}.*more than padding"
    ):
        check_vocabularies(target, draft)


def test_equal_tokenizers_pass_whatever_the_padding():
    check_vocabularies(4096, 1000, TOKENS, dict(TOKENS))


def test_a_few_special_tokens_of_one_side_pass():
    check_vocabularies(1024, 1024, TOKENS | {"<a>": 1000}, TOKENS | {"<b>": 1001})


def test_the_same_size_with_other_tokens_is_refused_with_the_first_difference():
    swapped = TOKENS | {"t5": 6, "t6": 5}
    with pytest.raises(
        ConfigError, match=r"token 6 is 't5' for the draft and 't6' for the target.*has 1000 entries, the target's 1000"
    ):
        check_vocabularies(1000, 1000, TOKENS, swapped)


def test_a_tokenizer_that_knows_only_a_part_is_refused():
    part = {token: i for token, i in TOKENS.items() if i < 500}
    with pytest.raises(ConfigError, match="shares only 500 of 1000 tokens"):
        check_vocabularies(1000, 500, TOKENS, part)
