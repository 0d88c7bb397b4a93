"""Answers say when their verifier may accept more than the target would, and only then."""

from __future__ import annotations

import pytest

from gkt_plugins.config import load_config
from gkt_plugins.speculation.factories import LOSSLESS_VERIFIERS, VERIFIERS
from gkt_transformers._speculator import lenient_note


def note(verifier: str) -> tuple[str, ...]:
    text = f'[speculation]\ndrafter = "prompt_lookup"\nverifier = "{verifier}"'
    return lenient_note(load_config(text=text).speculation)


@pytest.mark.parametrize("verifier", sorted(LOSSLESS_VERIFIERS))
def test_lossless_verification_is_not_worth_a_note(verifier):
    assert note(verifier) == ()


@pytest.mark.parametrize("verifier", sorted(VERIFIERS.keys() - LOSSLESS_VERIFIERS))
def test_every_other_verifier_is_declared(verifier):
    assert note(verifier)[0].startswith("lenient: ")
