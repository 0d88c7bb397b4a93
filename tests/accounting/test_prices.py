from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gkt_plugins.accounting.prices import ConfigPrices, FirstKnown, cost_nano, parse_price
from gkt_plugins.contracts import Price, Usage
from gkt_plugins.errors import ConfigError

COUNTS = st.integers(0, 10**7)
NANOS = st.integers(0, 10**13)
TOKEN_PRICES = st.builds(Price, input_nano=NANOS, output_nano=NANOS, cached_input_nano=st.none() | NANOS)
USAGES = st.builds(
    lambda prompt, cached, completion, seconds: Usage(prompt, min(cached, prompt), completion, seconds=seconds),
    COUNTS, COUNTS, COUNTS, st.floats(0, 10**5),
)  # fmt: skip


def test_a_call_costs_what_the_price_list_says() -> None:
    prices = ConfigPrices({"large": {"input_per_million": "2.50", "output_per_million": "10.00"}})
    usage = Usage(prompt_tokens=1000, completion_tokens=40)
    assert cost_nano(usage, prices.price("large")) == 2_900_000  # 1000 × $2.50/M + 40 × $10/M = $0.0029


def test_cached_tokens_have_their_own_price() -> None:
    price = parse_price("m", {"input_per_million": "2", "output_per_million": "8", "cached_input_per_million": "0.5"})
    usage = Usage(prompt_tokens=1000, cached_tokens=600, completion_tokens=0)
    assert cost_nano(usage, price) == 400 * 2_000 + 600 * 500


def test_own_hardware_is_paid_by_the_hour() -> None:
    price = parse_price("m", {"per_hour": "1.20", "currency": "EUR"})
    assert price.currency == "EUR"
    assert cost_nano(Usage(seconds=3.0), price) == 1_000_000  # 1.20 / 3600 × 3 = 0.001


def test_a_model_with_both_prices_costs_the_sum() -> None:
    price = parse_price("m", {"input_per_million": "1", "output_per_million": "1", "per_hour": "3.6"})
    assert cost_nano(Usage(10, 0, 10, seconds=1.0), price) == 20 * 1_000 + 1_000_000


@given(USAGES, TOKEN_PRICES, st.none() | NANOS)
def test_the_cost_is_the_exact_one_rounded_once(usage: Usage, price: Price, hour_nano: int | None) -> None:
    price = replace(price, hour_nano=hour_nano)
    assert None not in (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens, usage.seconds)
    cached_nano = price.input_nano if price.cached_input_nano is None else price.cached_input_nano
    exact = Fraction(
        (usage.prompt_tokens - usage.cached_tokens) * price.input_nano
        + usage.cached_tokens * cached_nano
        + usage.completion_tokens * price.output_nano,
        10**6,
    ) + Fraction(round(usage.seconds * 10**9) * (hour_nano or 0), 3600 * 10**9)
    assert cost_nano(usage, price) == round(exact)  # Fraction rounds half to even, too


@given(USAGES, TOKEN_PRICES, st.sampled_from(["prompt_tokens", "cached_tokens", "completion_tokens", "seconds"]))
def test_an_unknown_count_makes_the_cost_unknown_where_the_price_depends_on_it(
    usage: Usage, price: Price, missing: str
) -> None:
    price = replace(price, hour_nano=1)
    if missing == "cached_tokens":
        assume(price.cached_input_nano is not None and price.cached_input_nano != price.input_nano)
    assert cost_nano(replace(usage, **{missing: None}), price) is None


@given(USAGES, TOKEN_PRICES, st.sampled_from(["input_nano", "output_nano"]))
def test_half_a_price_is_no_price(usage: Usage, price: Price, missing: str) -> None:
    assert cost_nano(usage, replace(price, **{missing: None})) is None
    assert cost_nano(usage, None) is None
    assert cost_nano(usage, Price()) is None


@given(USAGES, NANOS)
def test_uncounted_cached_tokens_do_not_matter_where_they_cost_the_same(usage: Usage, nano: int) -> None:
    uncounted = replace(usage, cached_tokens=None)
    for cached_nano in (None, nano):
        price = Price(input_nano=nano, output_nano=1, cached_input_nano=cached_nano)
        assert cost_nano(uncounted, price) == cost_nano(usage, price) is not None


@pytest.mark.parametrize(
    "usage",
    [Usage(-1, 0, 1), Usage(1, 2, 1), Usage(1, -1, 1), Usage(1, 0, -1), Usage(1, 0, 1, seconds=-1.0),
     Usage(1, 0, 1, seconds=float("nan")), Usage(1, 0, 1, seconds=float("inf"))],
)  # fmt: skip
def test_counts_that_contradict_each_other_cost_something_unknown(usage: Usage) -> None:
    assert cost_nano(usage, Price(input_nano=1, output_nano=1, hour_nano=1)) is None


def test_a_price_of_zero_is_known() -> None:
    price = parse_price("own", {"input_per_million": "0", "output_per_million": "0"})
    assert cost_nano(Usage(10, None, 10), price) == 0


def test_the_first_source_that_knows_a_model_gives_its_whole_price() -> None:
    trusted = ConfigPrices({"a": {"per_hour": "1"}})
    other = ConfigPrices({"a": {"per_hour": "2", "input_per_million": "1", "output_per_million": "1"},
                          "b": {"per_hour": "3"}})  # fmt: skip
    merged = FirstKnown([trusted, other])
    assert merged.price("a") == trusted.price("a")
    assert merged.price("b") == other.price("b")
    assert merged.price("c") is None


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"input_per_million": 2.5, "output_per_million": "1"}, r"prices\.m\.input_per_million must be a decimal"),
        ({"per_hour": "cheap"}, r"prices\.m\.per_hour must be a decimal string .* got 'cheap'"),
        ({"output_per_million": "1"}, r"prices\.m is half a price .* give both"),
        ({"cached_input_per_million": "1", "per_hour": "1"}, r"prices\.m is half a price"),
        ({}, r"prices\.m names no price; give"),
        ({"per_minute": "1"}, r"prices\.m has no key 'per_minute'; it takes currency, input_per_million"),
        ({"per_hour": "1", "currency": ""}, r"prices\.m\.currency must be a name"),
    ],
)
def test_a_section_that_is_no_price_is_refused_with_its_key(section: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConfigPrices({"m": section})
