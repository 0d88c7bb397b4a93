import json
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from gkt_plugins.accounting.counterfactual import Comparison, token_ratio
from gkt_plugins.accounting.export import as_json
from gkt_plugins.accounting.prices import ConfigPrices, cost_nano
from gkt_plugins.accounting.report import DIMENSIONS, Group, Report, build_report
from gkt_plugins.accounting.tables import show
from gkt_plugins.contracts import GUIDANCE_CACHE, Usage, UsageRecord

PRICES = ConfigPrices(
    {
        "large": {"input_per_million": "2.50", "output_per_million": "10.00"},
        "small": {"input_per_million": "0.25", "output_per_million": "1.00"},
    }
)
MORNING = 1_795_248_000.0  # 2026-11-21 08:00 UTC


def call(request_id: str, role: str, prompt: int | None, completion: int | None, **fields: Any) -> UsageRecord:
    model = fields.pop("model", "large" if role == "teacher" else "small")
    usage = Usage(prompt, None, completion, seconds=0.5)
    defaults: dict[str, Any] = {"call": 0, "attempt": 0, "status": "final", "pipeline": "default"}
    values = defaults | {"cost_nano": cost_nano(usage, PRICES.price(model)), "started_at": MORNING} | fields
    return UsageRecord(request_id, role=role, engine="any", model=model, usage=usage, **values)  # type: ignore[arg-type]


# By hand: 100 × 2.5 + 40 × 10 = 650 for the teacher, 140 × 0.25 + 60 × 1 = 95 for the student, in micro-dollars.
ONE = [call("a", "student", 140, 60), call("a", "teacher", 100, 40)]
# 200 × 2.5 + 30 × 10 = 800; 230 × 0.25 + 50 = 107.5; 230 × 0.25 + 70 = 127.5.
TWO_CHOICES = [call("b", "student", 230, 50), call("b", "student", 230, 70, call=1), call("b", "teacher", 200, 30)]


def teacher_alone(records: list[UsageRecord], **options: Any) -> tuple[list[Comparison], list[tuple[str, str, int]]]:
    estimate = build_report(records, [], prices=options.pop("prices", PRICES), **options).teacher_alone
    return estimate.comparisons, estimate.left_out


def text_of(report: Report, width: int = 200) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        show(report, console)
    return capture.get()


def test_a_report_adds_up_to_what_was_computed_by_hand() -> None:
    report = build_report(ONE + TWO_CHOICES, ["model"])
    large, small = report.groups
    assert (large.key, large.calls) == (("large",), 2)
    assert (large.prompt_tokens.known, large.completion_tokens.known) == (300, 70)
    assert (small.key, small.calls) == (("small",), 3)
    assert (small.prompt_tokens.known, small.completion_tokens.known) == (600, 180)
    assert (large.cost_nano, small.cost_nano) == ({"USD": 1_450_000}, {"USD": 330_000})
    assert report.total.cost_nano == {"USD": 1_780_000}
    assert report.total.duration_ns.known == 2_500_000_000


def test_the_teacher_alone_would_have_cost_what_was_computed_by_hand() -> None:
    [comparison], left_out = teacher_alone(ONE)
    assert left_out == []
    assert (comparison.requests, comparison.actual_nano) == (1, 745_000)
    assert comparison.estimate_nano == 1_250_000  # 100 × 2.5 + (40 + 60) × 10
    assert comparison.saving == pytest.approx(0.404)


def test_choices_that_share_one_guidance_would_each_have_begun_with_it() -> None:
    [comparison], _ = teacher_alone(TWO_CHOICES)
    assert comparison.actual_nano == 1_035_000
    assert comparison.estimate_nano == 2_300_000  # 200 × 2.5 + (2 × 30 + 50 + 70) × 10


def test_a_measured_token_ratio_weighs_the_student_s_tokens_and_is_said_to_be_measured() -> None:
    [comparison], _ = teacher_alone(ONE, token_ratios={("large", "small"): Fraction(5, 4)})
    assert comparison.estimate_nano == 1_400_000  # 100 × 2.5 + (40 + 1.25 × 60) × 10
    assert comparison.token_ratios == {"small": (Fraction(5, 4), True)}
    assert teacher_alone(ONE)[0][0].token_ratios == {"small": (Fraction(1), False)}


def test_an_answer_that_the_teacher_finished_saves_nothing() -> None:
    [comparison], _ = teacher_alone([ONE[1]])
    assert comparison.actual_nano == comparison.estimate_nano == 650_000
    assert comparison.saving == 0


def test_a_retry_that_cost_money_counts_as_spent_and_not_in_the_estimate() -> None:
    retried = [replace(ONE[0], status="failed"), replace(ONE[0], attempt=1), ONE[1]]
    [comparison], _ = teacher_alone(retried)
    assert (comparison.actual_nano, comparison.estimate_nano) == (745_000 + 95_000, 1_250_000)


def test_guidance_from_the_cache_cost_nothing_in_any_currency_and_the_teacher_alone_would_have_been_paid() -> None:
    cached = replace(ONE[1], cost_nano=0, currency="EUR", price_source=GUIDANCE_CACHE)
    [comparison], left_out = teacher_alone([ONE[0], cached])
    assert left_out == []
    assert (comparison.actual_nano, comparison.estimate_nano) == (95_000, 1_250_000)


def test_guidance_that_was_dearer_shows_a_negative_saving() -> None:
    [comparison], _ = teacher_alone([call("a", "student", 10_040, 2), call("a", "teacher", 10_000, 40)])
    assert comparison.saving is not None
    assert comparison.saving < 0


@pytest.mark.parametrize(
    ("request_calls", "reason"),
    [
        ([replace(ONE[0], request_id="x")], "no teacher call"),
        ([replace(ONE[0], status="interrupted"), ONE[1]], "not finished"),
        ([replace(ONE[0], cost_nano=None), ONE[1]], "cost unknown"),
        ([replace(ONE[0], currency="EUR"), ONE[1]], "several currencies"),
        ([call("x", "student", 1, None, cost_nano=0), ONE[1]], "tokens unknown"),
        ([ONE[0], call("a", "teacher", None, 40, cost_nano=0)], "tokens unknown"),
        ([call("a", "teacher", 1, 1, model="unheard-of", cost_nano=0)], "no price per token known for the teacher"),
        ([ONE[1], call("a", "teacher", 1, 1, model="small", call=1)], "several teachers"),
    ],
)
def test_a_request_that_cannot_be_compared_is_left_out_with_its_reason(
    request_calls: list[UsageRecord], reason: str
) -> None:
    request_calls = [replace(record, request_id="x") for record in request_calls]
    comparisons, left_out = teacher_alone(ONE + request_calls)
    assert [comparison.requests for comparison in comparisons] == [1]
    assert left_out == [("default", reason, 1)]


def test_without_prices_the_estimate_is_missing_and_says_why() -> None:
    assert teacher_alone(ONE, prices=None) == ([], [("default", "no price per token known for the teacher", 1)])


def test_pipelines_without_a_teacher_are_not_compared() -> None:
    assert teacher_alone([call("a", "student", 1, 1)]) == ([], [])


RECORDS = st.builds(
    lambda role, prompt, cached, completion, seconds, cost, currency, status: replace(
        call("r", role, prompt, completion, status=status, cost_nano=cost, currency=currency),
        usage=Usage(prompt, cached, completion, seconds=seconds),
    ),
    st.sampled_from(["teacher", "student", "target", "draft"]),
    st.none() | st.integers(0, 9999), st.none() | st.integers(0, 9999), st.none() | st.integers(0, 9999),
    st.none() | st.integers(0, 10**12).map(lambda ns: ns / 10**9),
    st.none() | st.integers(0, 10**15), st.sampled_from(["USD", "EUR"]),
    st.sampled_from(["open", "final", "failed", "cancelled", "interrupted"]),
)  # fmt: skip


@given(st.lists(RECORDS, max_size=20), st.lists(st.sampled_from(DIMENSIONS), unique=True))
def test_what_is_unknown_is_counted_and_never_adds_a_zero(records: list[UsageRecord], by: list[Any]) -> None:
    report = build_report(records, by, prices=PRICES)
    assert sum(group.calls for group in report.groups) == report.total.calls == len(records)
    unknown = sum(record.cost_nano is None for record in records)
    assert sum(group.unknown_cost_calls for group in report.groups) == report.total.unknown_cost_calls == unknown
    for currency in ("USD", "EUR"):
        known = [r.cost_nano for r in records if r.currency == currency and r.cost_nano is not None]
        assert report.total.cost_nano.get(currency) == (sum(known) if known else None)
    for name, tally in report.total.as_json(()).items():
        if isinstance(tally, dict) and "unknown_calls" in tally:
            all_unknown = tally["unknown_calls"] == len(records)
            assert (tally["known"] is None) == all_unknown, name


@settings(max_examples=20)
@given(st.lists(RECORDS, min_size=1, max_size=5))
def test_a_table_shows_unknown_where_nothing_is_known(records: list[UsageRecord]) -> None:
    lost = [replace(record, usage=Usage(), cost_nano=None) for record in records]
    shown = text_of(build_report(lost, []))
    assert shown.count(f"{len(lost)} unknown") == 4  # prompt, completion, seconds, cost
    assert "USD" not in shown


def test_the_tables_name_the_estimate_its_assumptions_and_every_digit_of_the_money() -> None:
    odd = call("c", "student", 1, 1, cost_nano=1, status="interrupted")
    shown = text_of(build_report([*ONE, *TWO_CHOICES, odd], ["model"], prices=PRICES))
    assert "Against the teacher alone (estimate)" in shown
    assert "Assumed: the teacher alone would have written an answer of the same length" in shown
    assert "1 large tokens per small token (not measured)" in shown
    assert "USD 0.00178" in shown  # spent on what is compared
    assert "USD 0.001780001" in shown  # spent in all
    assert "1 interrupted" in shown
    assert "Left out of the comparison: 1 requests of default: no teacher call." in shown


def test_no_amount_is_cut_in_two_on_a_narrow_terminal() -> None:
    dear = call("c", "student", 123_456_789, 98_765_432, cost_nano=1_234_567_890_123_456_789)
    drafted = replace(dear, usage=replace(dear.usage, cached_tokens=5, drafted_tokens=40, accepted_tokens=31))
    shown = text_of(build_report([drafted], []), width=30)
    for whole in ("USD 1234567890.123456789", "123,456,789", "98,765,432", "31/40"):
        assert whole in shown


def test_an_empty_ledger_says_so() -> None:
    assert "no calls" in text_of(build_report([], ["model"]))


def test_days_are_told_apart_in_utc() -> None:
    late = replace(ONE[0], started_at=MORNING + 16 * 3600)
    assert [group.key for group in build_report([ONE[0], late], ["day"]).groups] == [("2026-11-21",), ("2026-11-22",)]


def test_the_report_as_json_is_plain_and_marks_the_estimate() -> None:
    report = json.loads(json.dumps(build_report(ONE, ["pipeline", "role"], prices=PRICES).as_json()))
    assert [group["role"] for group in report["groups"]] == ["student", "teacher"]
    assert report["total"]["cost"] == {"USD": "0.000745"}
    assert report["teacher_alone"]["estimate"] is True
    assert report["teacher_alone"]["comparisons"][0]["estimate"] == "0.00125"
    assert len(report["teacher_alone"]["assumptions"]) == 3


def test_an_exported_record_has_null_for_what_is_unknown() -> None:
    exported = as_json(replace(ONE[0], usage=Usage(), cost_nano=None))
    assert (exported["prompt_tokens"], exported["duration_ns"], exported["cost"], exported["currency"]) == (None,) * 4
    assert exported["started_at"] == "2026-11-21T08:00:00.000000+00:00"
    assert as_json(ONE[0])["cost"] == "0.000095"


def test_the_token_ratio_counts_the_same_texts_with_both_tokenizers() -> None:
    assert token_ratio(["abcd", "ef"], len, lambda text: len(text) // 2) == 2
    with pytest.raises(ValueError, match="at least one student token"):
        token_ratio([], len, len)


def test_a_fresh_group_knows_nothing() -> None:
    assert Group(()).as_json(())["cost"] == {}
    assert Group(()).as_json(())["prompt_tokens"] == {"known": None, "unknown_calls": 0}


def test_guidance_that_was_asked_for_ahead_of_time_is_spent_and_is_no_answer() -> None:
    # 100 × 2.5 + 40 × 10 = 650 ahead; later the same request costs the student's 95, and the teacher nothing.
    ahead = [call("x", "teacher", 100, 40, pipeline="default (ahead)")]
    later = [call("y", "student", 140, 60), call("y", "teacher", 100, 40, cost_nano=0, price_source=GUIDANCE_CACHE)]
    [answered, asked_ahead], left_out = teacher_alone(ahead + later)
    assert (answered.requests, answered.actual_nano, answered.estimate_nano) == (1, 95_000, 1_250_000)
    assert (asked_ahead.requests, asked_ahead.actual_nano, asked_ahead.estimate_nano) == (0, 650_000, 0)
    assert asked_ahead.saving is None
    assert left_out == []
