"""What the guidance cache tells apart, and what it does not keep."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gkt_plugins.contracts import Call, Message, Prompt, Sampling
from gkt_plugins.guidance.cache import cache_key
from gkt_plugins.testing.engines import EchoEngine, ScriptedEngine

CLOUD = EchoEngine(name="cloud")
CALL = Call(Prompt(text="Why?"), sampling=Sampling(max_tokens=20, stop=("\n",)))


def key(call: Call = CALL, engine: ScriptedEngine = CLOUD, cutting: str = "word {}") -> str | None:
    return cache_key(engine, call, cutting)


def sampled(**changes: object) -> Call:
    return replace(CALL, sampling=replace(CALL.sampling, **changes))  # type: ignore[arg-type]


def test_the_same_call_has_the_same_key_whatever_request_it_is_of():
    assert key() == key(replace(CALL, request_id="another"))


@pytest.mark.parametrize(
    "other",
    [
        key(replace(CALL, prompt=Prompt(text="Why not?"))),
        key(replace(CALL, prompt=Prompt.chat("Why?"))),
        key(replace(CALL, prompt=Prompt(messages=(Message("system", "Be brief."), Message("user", "Why?"))))),
        key(replace(CALL, prefix="Because")),
        key(sampled(max_tokens=21)),
        key(sampled(stop=("\n", "."))),
        key(sampled(repetition_penalty=1.1)),
        key(sampled(extra={"logit_bias": {"5": 1}})),
        key(sampled(temperature=0.5, seed=1)),
        key(engine=EchoEngine(name="other")),
        key(engine=ScriptedEngine("", name="cloud", model="larger")),
        key(cutting="sentence {}"),
    ],
)
def test_whatever_may_change_the_text_changes_the_key(other):
    assert other is not None
    assert other != key()


def test_a_sampled_call_is_kept_only_with_a_seed_and_each_seed_is_its_own():
    assert key(sampled(temperature=0.7)) is None
    first, second = key(sampled(temperature=0.7, seed=1)), key(sampled(temperature=0.7, seed=2))
    assert None not in (first, second)
    assert first != second


def test_at_temperature_0_nothing_is_drawn_so_seeds_do_not_matter():
    assert key(sampled(seed=1)) == key(sampled(seed=2)) == key()


def test_the_order_of_options_does_not_matter():
    assert key(sampled(extra={"a": 1, "b": 2})) == key(sampled(extra={"b": 2, "a": 1}))


def test_a_whole_number_is_the_same_with_and_without_its_point():
    assert key(sampled(temperature=1, top_p=1, seed=3)) == key(sampled(temperature=1.0, top_p=1.0, seed=3))


def test_an_option_that_is_no_json_is_not_kept():
    assert key(sampled(extra={"processor": object()})) is None


def test_half_a_surrogate_pair_has_a_key_too():
    assert key(replace(CALL, prompt=Prompt(text="\ud83d"))) is not None
