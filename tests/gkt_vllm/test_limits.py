"""What vLLM cannot do of a file is refused, or said, in one sentence."""

import json
from types import SimpleNamespace

import pytest

from gkt_plugins.config import load_config
from gkt_plugins.demo.models import model_dir
from gkt_plugins.errors import ConfigError
from gkt_vllm.limits import differences, refuse_dropped, refuse_idle, refuse_second_runner

DRAFT = f'[speculation]\ndrafter = "model"\ndraft = {json.dumps(str(model_dir("draft")))}\n'
FIRST = SimpleNamespace(use_v2_model_runner=False, speculative_config=SimpleNamespace())
SECOND = SimpleNamespace(use_v2_model_runner=True, speculative_config=SimpleNamespace())


@pytest.mark.parametrize(("key", "value"), [("max_leniency", "0.5"), ("largest_batch", "8"), ("drafts_by", '"gkt"')])
def test_a_key_about_drafts_is_refused_where_none_are_configured(key, value):
    with pytest.raises(ConfigError, match=rf"vllm\.{key} is about drafts, and the file has no \[speculation\]"):
        refuse_idle(load_config(text=f"[vllm]\n{key} = {value}"))
    refuse_idle(load_config(text=f"{DRAFT}[vllm]\n{key} = {value}"))


def test_a_key_that_says_what_holds_anyway_is_no_mistake():
    refuse_idle(load_config(text='[vllm]\nmax_leniency = 1.0\ndrafts_by = "vllm"'))


@pytest.mark.parametrize(
    ("method", "version", "refused"),
    [
        ("draft_model", "0.28.1", True),
        ("draft_model", "0.31.0+cpu", False),
        ("draft_model", "0.32.0", False),
        ("ngram", "0.28.0", True),
        ("ngram", "0.31.0", True),
        ("ngram", "0.32.0+cpu", False),
    ],
)
def test_the_second_runner_is_refused_where_it_has_not_the_drafts(method, version, refused):
    refuse_second_runner(method, version, {})
    refuse_second_runner(method, version, {"VLLM_USE_V2_MODEL_RUNNER": "0"})
    asked = {"VLLM_USE_V2_MODEL_RUNNER": "1"}
    if refused:
        with pytest.raises(ConfigError, match=f"the method '{method}' from 0.3[12] on, and this is {version[:6]}"):
            refuse_second_runner(method, version, asked)
    else:
        refuse_second_runner(method, version, asked)


def test_an_argument_that_vllm_leaves_out_is_an_error():
    config = load_config(text=f"{DRAFT}[vllm]\nlargest_batch = 8")
    filled = {"num_speculative_tokens_per_batch_size": [[1, 8, 4], [9, 9, 0]]}
    kept = SimpleNamespace(speculative_config=SimpleNamespace(num_speculative_tokens_per_batch_size=[(1, 8, 4)]))
    left_out = SimpleNamespace(speculative_config=SimpleNamespace(num_speculative_tokens_per_batch_size=None))
    refuse_dropped(config, filled, kept)
    refuse_dropped(config, {"method": "ngram"}, left_out)
    refuse_dropped(config, None, left_out)
    with pytest.raises(ConfigError, match=r"remove vllm\.largest_batch = 8, or --data-parallel-size"):
        refuse_dropped(config, filled, left_out)


@pytest.mark.parametrize(
    ("text", "filled", "engine", "words"),
    [
        ('verifier = "block"', {}, FIRST, "token by token instead of by block"),
        ('verifier = "block"', {}, SECOND, None),
        ('dtype = "bfloat16"', {"method": "draft_model"}, FIRST, "dtype = 'bfloat16' has no effect"),
        ('dtype = "bfloat16"', {"method": "custom_class"}, FIRST, None),
        ("expected_acceptance = 0.6", {}, FIRST, "expected_acceptance is not watched"),
        ("[vllm]\nlargest_batch = 4", None, FIRST, "--speculative-config goes before vllm.largest_batch too"),
        ("[vllm]\nlargest_batch = 4", {}, FIRST, None),
        ("gamma = 4", {}, FIRST, None),
    ],
)
def test_what_has_no_effect_is_said(text, filled, engine, words):
    found = differences(load_config(text=DRAFT + text), filled, engine)
    assert len(found) == (words is not None)
    assert words is None or words in found[0]


def test_without_drafts_nothing_is_said():
    assert differences(load_config(text=""), None, FIRST) == []
