"""The figures of the dashboard: bounded, quick to refresh, and the same as the ledger's own report."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import event

from gkt_plugins.accounting.ledger import Ledger
from gkt_plugins.accounting.money import parse_nano
from gkt_plugins.accounting.prices import cost_nano
from gkt_plugins.accounting.records import connect_reader, read_records
from gkt_plugins.accounting.report import build_report
from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.contracts import Price, Usage, UsageRecord
from gkt_plugins.gateway.dashboard.figures import Figures
from gkt_plugins.gateway.dashboard.ranges import MOST_SLICES, Range, parse_range
from gkt_plugins.openai_wire.errors import InvalidRequest
from gkt_plugins.testing.ledgers import LARGE, SMALL, invented_traffic, write_traffic

NOON = 1_795_348_800.0
"""2026-11-22 12:00 UTC."""
DAY = 86_400.0


class Prices(dict[str, Price]):
    price = dict.get


PRICES = Prices(large=LARGE, small=SMALL)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/gkt.db"


def figures_of(url: str, prices: Prices = PRICES, **options) -> Figures:
    return Figures(connect_reader(url), prices, **({"clock": lambda: NOON} | options))


def day(figures: Figures, pipeline: str | None = None) -> dict:
    return figures.read(Range.covering(NOON - DAY, NOON), pipeline)


def call(request_id="r", role="teacher", **changes) -> UsageRecord:
    usage = changes.pop("usage", Usage(prompt_tokens=100, completion_tokens=40))
    model = "large" if role == "teacher" else "small"
    made = UsageRecord(request_id, 0, role, 0, "engine", model, "final", usage, started_at=NOON - 60, pipeline="p")
    made = replace(made, cost_nano=cost_nano(usage, PRICES[model]), price_source="config")
    return replace(made, **changes)


def request(request_id="r", **changes) -> RequestRecord:
    return replace(RequestRecord(request_id, "p", "", NOON - 60, "guided", "ok", guidance_tokens=40), **changes)


def test_an_empty_ledger_has_figures_and_what_it_does_not_know_is_null(url):
    write_traffic(url, [])
    figures = day(figures_of(url, pipelines=["default"]))
    assert figures["pipelines"] == ["default"]
    assert figures["money"]["spent"] == figures["money"]["teacher_alone"]["by_currency"] == []
    assert figures["requests"]["share_guided"] is None
    assert figures["latency"]["percentiles_s"]["total"] == {"p50": None, "p95": None, "p99": None, "requests": 0}
    assert figures["latency"]["mean_s"] is None
    assert figures["guidance"]["median"] is None


def test_one_request_is_told_with_its_money_its_parts_and_its_saving(url):
    timed = request(first_token_s=0.2, total_s=1.0, teacher_s=0.3, student_s=0.69, overhead_s=0.01)
    student = call(
        role="student", usage=Usage(prompt_tokens=140, completion_tokens=60, drafted_tokens=9, accepted_tokens=6)
    )
    write_traffic(url, [(timed, [call(), student])])
    figures = day(figures_of(url))
    # the example of docs/accounting.md: 0.00065 + 0.000095 against 100 x 2.50 + 100 x 10 per million
    assert figures["money"]["spent"] == [
        {"currency": "USD", "amount": "0.000745", "by_role": {"teacher": "0.00065", "student": "0.000095"}}
    ]
    [alone] = figures["money"]["teacher_alone"]["by_currency"]
    assert (alone["actual"], alone["estimate"], alone["saved"]) == ("0.000745", "0.00125", "0.000505")
    assert alone["saving"] == pytest.approx(0.404)
    assert figures["requests"]["share_guided"] == 1.0
    assert figures["guidance"]["median"] == 40
    assert figures["acceptance"] == {"drafted": 9, "accepted": 6, "draft_acceptance_rate": pytest.approx(2 / 3)}
    assert figures["latency"]["mean_s"] == {"total": 1.0, "teacher": 0.3, "student": 0.69, "overhead": 0.01}


def test_a_request_that_was_dearer_than_the_teacher_alone_has_a_negative_saving(url):
    long_prompt = Usage(prompt_tokens=9000, completion_tokens=1)
    write_traffic(url, [(request(), [call(usage=long_prompt), call(role="student", usage=long_prompt)])])
    [alone] = day(figures_of(url))["money"]["teacher_alone"]["by_currency"]
    assert alone["saving"] < 0
    assert alone["saved"].startswith("-")


def test_unknown_costs_are_counted_with_their_reason_and_never_as_zero(url):
    no_price = call(cost_nano=None, price_source=None)
    no_tokens = call(role="student", usage=Usage(), cost_nano=None)
    write_traffic(url, [(request(), [no_price, no_tokens])])
    money = day(figures_of(url))["money"]
    assert money["spent"] == []
    assert money["unknown_calls"] == 2
    assert sorted((row["model"], row["why"]) for row in money["unknown"]) == [
        ("large", "price unknown"),
        ("small", "tokens unknown"),
    ]
    assert money["teacher_alone"]["not_compared"] == [{"reason": "cost unknown", "requests": 1}]


def test_currencies_are_never_added(url):
    euro = call("s", role="student", currency="EUR", cost_nano=5)
    write_traffic(url, [(request(), [call()]), (request("s"), [euro])])
    money = day(figures_of(url))["money"]
    assert [(row["currency"], row["amount"]) for row in money["spent"]] == [("EUR", "0.000000005"), ("USD", "0.00065")]


def test_calls_that_are_under_way_are_neither_spent_nor_unknown(url):
    write_traffic(url, [(request(), [call(status="open", cost_nano=None, price_source=None)])])
    money = day(figures_of(url))["money"]
    assert (money["open_calls"], money["unknown_calls"], money["spent"]) == (1, 0, [])


def test_errors_are_counted_by_code_and_a_client_that_went_away_is_no_error(url):
    fates = [("error", "upstream_timeout"), ("error", "upstream_timeout"), ("refused", "insufficient_quota")]
    failed = [(request(str(i), status=status, error=code), []) for i, (status, code) in enumerate(fates)]
    write_traffic(url, [*failed, (request("c", status="cancelled"), [])])
    figures = day(figures_of(url))
    assert figures["errors"]["rows"] == [
        {"status": "error", "code": "upstream_timeout", "requests": 2},
        {"status": "refused", "code": "insufficient_quota", "requests": 1},
    ]
    assert figures["requests"]["cancelled"] == 1
    assert sum(figures["series"]["not_answered"]) == 4


def test_one_pipeline_can_be_asked_for_and_the_others_are_still_listed(url):
    write_traffic(url, invented_traffic(300, since=NOON - DAY, until=NOON))
    figures = figures_of(url)
    everything, one = day(figures), day(figures, "support")
    row = next(row for row in everything["by_pipeline"] if row["pipeline"] == "support")
    assert one["requests"]["total"] == row["requests"] < everything["requests"]["total"] == 300
    assert one["pipelines"] == everything["pipelines"] == ["default", "drafts", "support"]
    assert one["money"]["spent"][0]["amount"] == row["spent"]["USD"]


# ---------------------------------------------------------------------------- the same as the ledger's own report

# amounts of whole nano-units a token, so that one rounding a sum and one a request agree
ANY_PRICES = Prices(
    large=replace(LARGE, max_prompt_tokens=2500),
    cached=Price(input_nano=4_000_000, output_nano=9_000_000, cached_input_nano=1_000_000),
    small=Price(hour_nano=10**9),
)
REASONS = {
    "not finished",
    "several teachers",
    "no price per token known for the teacher",
    "cost unknown",
    "several currencies",
    "tokens unknown",
}


def any_calls(request_id: str, draw: random.Random) -> list[UsageRecord]:
    """Calls of one request: most of them as they should be, each kind of exception now and then."""

    def rarely(usual: object, unusual: object) -> object:
        return unusual if draw.random() < 0.04 else usual

    teacher, calls = draw.choice(["large", "cached"]), []
    roles = ["teacher"] * draw.choice([0, 1, 1, 1, 1, 2]) + ["student"] * draw.choice([0, 1, 1, 1, 2, 3])
    for role, number in Counter(roles).items():
        for index in range(number):
            prompt = draw.randint(1, 3000)
            usage = Usage(
                prompt_tokens=rarely(prompt, None),
                cached_tokens=rarely(draw.choice([None, draw.randint(0, prompt)]), 4000),
                completion_tokens=rarely(draw.randint(0, 400), None),
            )
            model = rarely(teacher, draw.choice(["large", "nameless", "small"])) if role == "teacher" else "small"
            for attempt in range(draw.choice([1, 1, 1, 2, 3])):
                changes = {
                    "status": rarely("final", draw.choice(["failed", "interrupted"])),
                    "currency": rarely("USD", "EUR"),
                    "cost_nano": rarely(draw.randint(0, 10**9), None),
                }
                calls.append(call(request_id, role, call=index, attempt=attempt, model=model, usage=usage, **changes))
    return calls


@pytest.mark.parametrize("seed", range(3))
def test_the_saving_is_the_report_s_own_for_any_ledger(url, seed):
    draw = random.Random(seed)
    write_traffic(url, [(request(f"r{i}"), any_calls(f"r{i}", draw)) for i in range(1500)])
    report = build_report(read_records(url), ["pipeline"], prices=ANY_PRICES)
    money = day(figures_of(url, ANY_PRICES))["money"]

    teachers = {comparison.teacher for comparison in report.teacher_alone.comparisons}
    assert teachers == {"large", "cached"}  # the ledger has something to compare
    expected = added_up(comparison.as_json() for comparison in report.teacher_alone.comparisons)
    assert added_up(money["teacher_alone"]["by_currency"]) == expected

    left_out = {why: n for _, why, n in report.teacher_alone.left_out}
    assert left_out.keys() == REASONS | {"no teacher call"}  # and of every reason not to
    assert {row["reason"]: row["requests"] for row in money["teacher_alone"]["not_compared"]} == left_out
    assert {row["currency"]: parse_nano(row["amount"]) for row in money["spent"]} == report.total.cost_nano
    assert money["unknown_calls"] == report.total.unknown_cost_calls


def added_up(comparisons: Iterable[dict]) -> dict[tuple[str, str], int]:
    sums = Counter[tuple[str, str]]()
    for said in comparisons:
        sums[said["currency"], "requests"] += said["requests"]
        for key in ("actual", "estimate"):
            sums[said["currency"], key] += parse_nano(said[key])
    return dict(sums)


# ------------------------------------------------------------------------------------------- bounded, and quick


def test_percentiles_are_within_two_and_a_half_percent_of_the_exact_ones(url):
    draw = random.Random(1)
    seconds = [draw.lognormvariate(0, 2) for _ in range(2000)]
    write_traffic(url, [(request(str(i), total_s=s), []) for i, s in enumerate(seconds)])
    told = day(figures_of(url))["latency"]["percentiles_s"]["total"]
    for percent in (50, 95, 99):
        exact = float(np.percentile(seconds, percent, method="inverted_cdf"))
        assert told[f"p{percent}"] == pytest.approx(exact, rel=0.025)


@pytest.mark.parametrize("seconds", [0.0, 1e-6, 0.00123, 0.0199999, 1.0, 9_999.0, 4e9])
def test_any_duration_has_a_step(url, seconds):
    write_traffic(url, [(request(total_s=seconds), [])])
    told = day(figures_of(url))["latency"]["percentiles_s"]["total"]["p50"]
    assert told == pytest.approx(min(seconds, 10_000), rel=0.026, abs=6e-6)


def test_a_refresh_reads_what_is_not_over_and_nothing_else(url):
    write_traffic(url, invented_traffic(500, since=NOON - DAY, until=NOON))
    engine = connect_reader(url)
    asked: list[tuple[float, ...]] = []

    @event.listens_for(engine, "before_cursor_execute")
    def listen(connection, cursor, statement, parameters, context, many):
        if "usage_records" in statement or "requests" in statement:
            asked.append(tuple(p for p in parameters if isinstance(p, int | float) and p > NOON - 2 * DAY))

    figures = Figures(engine, PRICES, settled_after_s=900, clock=lambda: NOON)
    first = day(figures)
    assert min(min(times) for times in asked) <= NOON - DAY
    asked.clear()
    again = day(figures)
    # slices of 15 minutes: the one that ends now, and the one that ended less than settled_after_s ago
    assert min(min(times) for times in asked) >= NOON - 1800
    assert again == first


def test_what_happens_later_is_seen_also_where_a_slice_was_read_before(url):
    write_traffic(url, [(request("a"), [call("a", status="open", cost_nano=None, started_at=NOON - 7200)])])
    figures = figures_of(url)
    assert day(figures)["money"]["open_calls"] == 1
    other = call("b", started_at=NOON - 7200)
    write_traffic(url, [(request("b"), [other])])
    money = day(figures)["money"]
    assert money["calls"] == 2


async def test_figures_are_read_while_a_gateway_writes(url):
    ledger = Ledger.open(url)
    figures = figures_of(url)
    assert day(figures)["money"]["calls"] == 0
    await ledger.opened(call(status="open", cost_nano=None, price_source=None))
    assert day(figures)["money"]["open_calls"] == 1
    await ledger.closed(call())
    assert day(figures)["money"]["spent"][0]["amount"] == "0.00065"
    await ledger.aclose()


@pytest.mark.parametrize("days", [0.001, 1 / 24, 0.3, 1, 7, 30, 365, 20_000])
def test_any_range_is_cut_into_a_bounded_number_of_slices_that_cover_it(days):
    asked = Range.covering(NOON - days * DAY, NOON)
    assert asked.last - asked.first + 1 <= MOST_SLICES
    assert asked.since <= NOON - days * DAY
    assert asked.until >= NOON


def test_guidance_lengths_are_told_in_at_most_sixteen_bins_that_hold_every_request(url):
    write_traffic(url, [(request(str(n), guidance_tokens=n), []) for n in range(1, 1234)])
    told = day(figures_of(url))["guidance"]
    assert len(told["bins"]) <= 16
    assert sum(row["requests"] for row in told["bins"]) == told["requests"] == 1233
    assert (told["median"], told["longest"], told["bins"][0]["from"]) == (617, 1233, 1)


def test_ranges_are_given_in_seconds_since_the_epoch_or_before_now():
    assert parse_range({}, NOON) == Range.covering(NOON - DAY, NOON)
    assert parse_range({"since": "-3600"}, NOON) == Range.covering(NOON - 3600, NOON)
    assert parse_range({"since": "1000", "until": "2000.5"}, NOON) == Range.covering(1000, 2000.5)


@pytest.mark.parametrize(
    "query",
    [{"since": "yesterday"}, {"since": "nan"}, {"since": "1e99"}, {"until": "-inf"}, {"since": "5", "until": "5"}],
)
def test_a_range_that_makes_no_sense_is_refused_in_one_sentence(query):
    with pytest.raises(InvalidRequest, match=r"since the epoch, or seconds? before now"):
        parse_range(query, NOON)
