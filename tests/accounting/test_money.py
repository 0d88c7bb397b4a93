from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkt_plugins.accounting.money import (
    NANO,
    divide_half_even,
    format_money,
    format_nano,
    nanoseconds,
    parse_nano,
    split,
    split_seconds,
)

AMOUNTS = st.decimals(min_value=0, max_value=10**6, places=9)


@given(AMOUNTS)
def test_an_amount_reads_back_exactly_as_it_was_written(amount: Decimal) -> None:
    nano = parse_nano(f"{amount:f}")
    assert nano == amount * NANO
    assert Decimal(format_nano(nano)) == amount


@pytest.mark.parametrize("text", ["", "-1", "1e-3", "0.1234567891", ".5", "1.", "NaN", "1,50", " 1", "١"])
def test_what_is_no_exact_decimal_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a decimal string"):
        parse_nano(text)


def test_a_float_is_refused_even_when_it_looks_exact() -> None:
    with pytest.raises(ValueError, match=r"must be a decimal string .* got 2\.5"):
        parse_nano(2.5)  # type: ignore[arg-type]


def test_unknown_money_is_never_shown_as_zero() -> None:
    assert format_money(None, "USD") == "unknown"
    assert format_money(0, "USD") == "USD 0.00"
    assert format_money(1, "EUR") == "EUR 0.000000001"
    assert format_money(-1_500_000_000, "EUR") == "EUR -1.50"


@given(st.integers(0, 10**30), st.integers(1, 10**20))
def test_division_rounds_as_decimal_does(numerator: int, denominator: int) -> None:
    quotient = divide_half_even(numerator, denominator)
    error = 2 * abs(numerator - quotient * denominator)
    assert error <= denominator
    assert error < denominator or quotient % 2 == 0


@given(st.integers(0, 10**18), st.lists(st.integers(0, 10**9), min_size=1, max_size=50))
def test_shares_add_up_to_the_whole_and_are_within_one_of_their_due(total: int, weights: list[int]) -> None:
    shares = split(total, weights)
    assert sum(shares) == total
    assert all(isinstance(share, int) for share in shares)
    whole = sum(weights) or len(weights)
    for share, weight in zip(shares, weights if sum(weights) else [1] * len(weights), strict=True):
        assert abs(share * whole - total * weight) < whole


@given(st.floats(0, 10**6), st.lists(st.integers(0, 4096), min_size=1, max_size=128))
def test_a_batch_s_seconds_add_up_to_its_wall_time_exactly(wall_s: float, tokens: list[int]) -> None:
    assert sum(nanoseconds(share) for share in split_seconds(wall_s, tokens)) == nanoseconds(wall_s)


def test_a_row_that_generated_nothing_pays_for_no_time_unless_all_did() -> None:
    assert split_seconds(1.0, [30, 0, 10]) == [0.75, 0.0, 0.25]
    assert split_seconds(1.0, [0, 0]) == [0.5, 0.5]


@pytest.mark.parametrize("weights", [[], [1, -1]])
def test_weights_that_share_nothing_out_are_refused(weights: list[int]) -> None:
    with pytest.raises(ValueError, match="weight"):
        split(10, weights)
