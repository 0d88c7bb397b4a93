"""What Prometheus is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as classic

from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.contracts import GUIDANCE_CACHE, Usage, UsageRecord
from gkt_plugins.gateway.metrics import ERROR_CODES, Metrics

REQUEST = RequestRecord(
    request_id="r1", pipeline="default", key="team", started_at=1.0, route="guided", status="ok", streamed=True,
    guidance_tokens=40, first_token_s=0.2, total_s=3.0, teacher_s=0.7, student_s=2.2, overhead_s=0.002, retries=1,
)  # fmt: skip
CALL = UsageRecord(
    "r1", 0, "teacher", 0, "cloud", "large", "final", Usage(100, 60, 40, 8, 6), "USD", 1_500_000_000, "config"
)


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Name and label values, in the order of the labels' names → value; without the process's own metrics."""
    page, _ = metrics.page()
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in classic(page.decode())
        for sample in family.samples
        if family.name.startswith("gkt_")
    }


def test_a_request_is_counted_by_who_answered_and_how_with_its_seconds_and_tokens():
    metrics = Metrics()
    metrics.observe(replace(REQUEST, degraded=True, cached=True), [CALL])
    seen = samples(metrics)
    assert seen["gkt_requests_total", "default", "guided", "ok"] == 1
    assert seen["gkt_request_duration_seconds_sum", "default"] == 3.0
    assert seen["gkt_first_token_seconds_sum", "default"] == 0.2
    assert seen["gkt_teacher_seconds_sum", "default"] == 0.7
    assert seen["gkt_student_seconds_sum", "default"] == 2.2
    assert seen["gkt_overhead_seconds_bucket", "0.002", "default"] == 1
    assert seen["gkt_overhead_seconds_bucket", "0.001", "default"] == 0
    assert seen["gkt_guidance_tokens_sum", "default"] == 40
    assert seen["gkt_degraded_requests_total", "default"] == 1
    assert seen["gkt_guidance_cache_hits_total", "default"] == 1
    assert seen["gkt_retries_total", "default"] == 1
    assert seen["gkt_engine_calls_total", "cloud", "teacher", "final"] == 1
    assert seen["gkt_prompt_tokens_total", "cloud", "teacher"] == 100
    assert seen["gkt_cached_prompt_tokens_total", "cloud", "teacher"] == 60
    assert seen["gkt_completion_tokens_total", "cloud", "teacher"] == 40
    assert seen["gkt_drafted_tokens_total", "cloud", "teacher"] == 8
    assert seen["gkt_accepted_tokens_total", "cloud", "teacher"] == 6
    assert seen["gkt_cost_total", "USD", "cloud", "teacher"] == 1.5


def test_an_unknown_cost_is_counted_as_unknown_and_not_as_zero_money():
    metrics = Metrics()
    metrics.observe(REQUEST, [replace(CALL, cost_nano=None)])
    assert samples(metrics)["gkt_unpriced_calls_total", "cloud", "teacher"] == 1
    assert samples(metrics)["gkt_cost_total", "USD", "cloud", "teacher"] == 0


def test_seconds_that_were_not_measured_are_not_observed_as_zero():
    metrics = Metrics()
    metrics.observe(replace(REQUEST, teacher_s=None, first_token_s=None))
    assert samples(metrics)["gkt_teacher_seconds_count", "default"] == 0
    assert samples(metrics)["gkt_first_token_seconds_count", "default"] == 0
    assert samples(metrics)["gkt_request_duration_seconds_count", "default"] == 1


def test_a_refused_request_is_counted_and_not_measured():
    metrics = Metrics()
    metrics.observe(replace(REQUEST, status="refused", error="insufficient_quota"))
    assert samples(metrics)["gkt_requests_total", "default", "guided", "refused"] == 1
    assert samples(metrics)["gkt_errors_total", "insufficient_quota"] == 1
    assert samples(metrics)["gkt_request_duration_seconds_count", "default"] == 0


def test_guidance_from_the_cache_is_no_call_of_an_engine():
    metrics = Metrics()
    metrics.observe(REQUEST, [replace(CALL, price_source=GUIDANCE_CACHE, cost_nano=0)])
    assert ("gkt_engine_calls_total", "cloud", "teacher", "final") not in samples(metrics)


def test_an_error_code_that_nobody_foresaw_makes_no_series_of_its_own():
    metrics = Metrics()
    for number in range(50):
        metrics.refused(f"surprise_{number}")
    metrics.refused("request_too_large")
    series = {key: value for key, value in samples(metrics).items() if key[0] == "gkt_errors_total"}
    assert series == {("gkt_errors_total", "other"): 50, ("gkt_errors_total", "request_too_large"): 1}


def test_series_do_not_grow_with_requests():
    metrics = Metrics()
    metrics.observe(REQUEST, [CALL])
    before = len(samples(metrics))
    for number in range(200):
        name = f"r{number}"
        metrics.observe(replace(REQUEST, request_id=name, key=name), [replace(CALL, request_id=name, model=name)])
    assert len(samples(metrics)) == before


def test_requests_in_flight_rise_and_fall_by_mode():
    metrics = Metrics()
    for streamed in (True, True, False):
        metrics.request_began(streamed=streamed)
    metrics.request_ended(streamed=True)
    assert samples(metrics)["gkt_requests_in_flight", "stream"] == 1
    assert samples(metrics)["gkt_requests_in_flight", "whole"] == 1


def test_steps_of_the_budget_ladder_are_there_before_the_first_of_them():
    metrics = Metrics()
    assert samples(metrics)["gkt_budget_requests_total", "refused"] == 0
    metrics.budget_step("refused")
    assert samples(metrics)["gkt_budget_requests_total", "refused"] == 1


def test_circuits_are_shown_as_they_are_at_the_moment_of_the_scrape():
    metrics = Metrics()
    states = {"cloud": True, "edge": False}
    metrics.watch_breakers(lambda: states)
    assert samples(metrics)["gkt_circuit_open", "cloud"] == 1
    states["cloud"] = False
    assert samples(metrics)["gkt_circuit_open", "cloud"] == 0


@pytest.mark.parametrize(
    ("accept", "parse", "content_type"),
    [
        ("", classic, "text/plain"),
        ("application/openmetrics-text;version=1.0.0", openmetrics, "application/openmetrics"),
    ],
)
def test_the_page_is_what_the_scraper_takes_and_parses(accept, parse, content_type):
    metrics = Metrics()
    metrics.observe(REQUEST, [CALL])
    page, said = metrics.page(accept)
    assert said.startswith(content_type)
    names = {family.name for family in parse(page.decode())}
    assert {"gkt_overhead_seconds", "gkt_build", "process_resident_memory_bytes"} <= {
        n.removesuffix("_info") for n in names
    }


def test_names_follow_the_conventions_of_prometheus():
    page, _ = Metrics().page()
    for family in classic(page.decode()):
        if not family.name.startswith("gkt_") or family.name.endswith("_created"):
            continue
        assert family.documentation.endswith(".")
        ends = {"counter": (), "histogram": ("_seconds", "_tokens"), "gauge": ("_in_flight", "_open", "_info")}[
            family.type
        ]
        assert not ends or family.name.endswith(ends), family.name
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)


def test_every_code_that_counts_by_its_own_name_is_a_plain_word():
    assert all(code.replace("_", "").isalpha() and code.islower() for code in ERROR_CODES)
