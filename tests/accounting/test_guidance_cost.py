"""The arithmetic of guidance's cost, through prices, records and report: when it saves, and when it is dearer.

With P prompt, g guidance and L answer tokens, t and s the prices of teacher and student, in and out:
guided P·t_in + g·t_out + (P + g)·s_in + (L − g)·s_out, the teacher alone P·t_in + L·t_out, so guidance saves exactly
where (P + g)·s_in < (L − g)·(t_out − s_out).
"""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkt_plugins.accounting.counterfactual import Comparison
from gkt_plugins.accounting.prices import ConfigPrices, cost_nano
from gkt_plugins.accounting.report import build_report
from gkt_plugins.contracts import Usage, UsageRecord

prices_per_million = st.integers(0, 200).map(lambda cents: f"{cents / 100:.2f}")


def compared(prompt: int, guidance: int, answer: int, prices: ConfigPrices) -> Comparison:
    """What the report says of one guided request."""
    calls = []
    for role, model, usage in (
        ("teacher", "large", Usage(prompt, 0, guidance)),
        ("student", "small", Usage(prompt + guidance, 0, answer - guidance)),
    ):
        cost = cost_nano(usage, prices.price(model))
        calls.append(UsageRecord("r", 0, role, 0, "e", model, "final", usage, "USD", cost, "config", 1.0, "p"))  # type: ignore[arg-type]
    [comparison] = build_report(calls, [], prices=prices).teacher_alone.comparisons
    return comparison


def priced(t_in: str, t_out: str, s_in: str, s_out: str) -> ConfigPrices:
    return ConfigPrices(
        {
            "large": {"input_per_million": t_in, "output_per_million": t_out},
            "small": {"input_per_million": s_in, "output_per_million": s_out},
        }
    )


@given(
    prompt=st.integers(0, 100_000),
    guidance=st.integers(0, 500),
    tail=st.integers(0, 5_000),
    t_in=prices_per_million,
    t_out=prices_per_million,
    s_in=prices_per_million,
    s_out=prices_per_million,
)
def test_guidance_saves_exactly_where_the_formula_says_so(
    prompt: int, guidance: int, tail: int, t_in: str, t_out: str, s_in: str, s_out: str
) -> None:
    comparison = compared(prompt, guidance, guidance + tail, priced(t_in, t_out, s_in, s_out))
    ti, to, si, so = (Fraction(price) * 1000 for price in (t_in, t_out, s_in, s_out))  # nano-units a token: whole
    assert comparison.actual_nano == prompt * ti + guidance * to + (prompt + guidance) * si + tail * so
    assert comparison.estimate_nano == prompt * ti + (guidance + tail) * to
    saves = (prompt + guidance) * si < tail * (to - so)
    assert (comparison.actual_nano < comparison.estimate_nano) == saves


@pytest.mark.parametrize(
    ("prompt", "guidance", "answer", "saving"),
    [
        (100, 40, 300, 1 - 945 / 3_250),  # a short question and a long answer
        (3_000, 40, 100, 1 - 8_720 / 8_500),  # worked examples before a short answer: dearer, for they are read twice
        (1_000, 100, 100, 1 - 3_775 / 3_500),  # the teacher wrote all of it, and the student read it all the same
    ],
    ids=["cheaper", "long prompt", "nothing left to write"],
)
def test_a_short_question_saves_and_a_long_prompt_or_a_short_answer_makes_guidance_dearer(
    prompt: int, guidance: int, answer: int, saving: float
) -> None:
    comparison = compared(prompt, guidance, answer, priced("2.50", "10", "0.25", "1"))
    assert comparison.saving == pytest.approx(saving, abs=1e-12)


def test_at_the_break_even_prompt_both_cost_the_same() -> None:
    # (P + 40) · 0.25 = (100 − 40) · (10 − 1)  ⇔  P = 2,120
    prices = priced("2.50", "10", "0.25", "1")
    assert compared(2_120, 40, 100, prices).saving == 0
    assert (compared(2_119, 40, 100, prices).saving or 0) > 0
    assert (compared(2_121, 40, 100, prices).saving or 0) < 0
