"""What Prometheus is told.

Labels take their values from the configuration and from fixed lists alone, never from a request, so the number of
series is bounded. What each metric means, and what to do about it, is told in docs/operations.md.

Where several workers share a port, any of them may be scraped and must answer for all; prometheus_client then keeps the
values in the folder that :data:`SHARED` names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.gc_collector import GCCollector
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from gkt_plugins import __version__
from gkt_plugins.accounting.money import NANO
from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.contracts import GUIDANCE_CACHE, UsageRecord
from gkt_plugins.gateway.budgeting import Step
from gkt_plugins.gateway.workers import SHARED

__all__ = ["ERROR_CODES", "Metrics"]

ERROR_CODES = frozenset(
    {
        "admin_required",
        "backend_unavailable",
        "host_not_allowed",
        "insufficient_quota",
        "internal_error",
        "invalid_api_key",
        "invalid_json",
        "invalid_request",
        "invalid_value",
        "method_not_allowed",
        "missing_key",
        "model_not_found",
        "not_found",
        "origin_not_allowed",
        "price_unknown",
        "rate_limit_exceeded",
        "request_timeout",
        "request_too_large",
        "unknown_key",
        "unsupported_feature",
        "upstream_broken",
        "upstream_corrupt",
        "upstream_error",
        "upstream_failed",
        "upstream_key_refused",
        "upstream_quota",
        "upstream_rate_limited",
        "upstream_refused",
        "upstream_stopped",
        "upstream_timeout",
        "upstream_truncated",
        "upstream_unavailable",
        "upstream_unreachable",
    }
)
"""Values of the label ``code``; everything else counts as ``other``."""

_DURATIONS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_OVERHEADS_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.015, 0.025, 0.05, 0.1, 0.25, 1)
_TOKENS = (0, 5, 10, 20, 30, 40, 60, 80, 120, 200, 400)


class Metrics:
    """The metrics of one gateway."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """``registry``: a host's own, which it exposes itself; None makes one, with what is to be known of the
        process."""
        self._shared = SHARED in os.environ
        self._now = _Now()
        self._registry = CollectorRegistry(auto_describe=True) if registry is None else registry
        self._families = _Families(self._registry)
        if registry is None and not self._shared:
            self._registry.register(self._now)
            for of_the_process in (ProcessCollector, PlatformCollector, GCCollector):
                of_the_process(registry=self._registry)
        self._by_pipeline: dict[tuple[str, str, str], _Requests] = {}
        self._by_engine: dict[tuple[str, str, str], _Calls] = {}

    def observe(self, record: RequestRecord, calls: Sequence[UsageRecord] = ()) -> None:
        """Count one request that is over, and its engine calls: ``exchange.answer.records``."""
        key = (record.pipeline, record.route, record.status)
        counted = self._by_pipeline.get(key)
        if counted is None:
            counted = self._by_pipeline[key] = _Requests(self._families, record)
        counted.observe(record)
        if record.error:
            self.refused(record.error)
        for call in calls:
            self._observe_call(call)

    def refused(self, code: str) -> None:
        """Count an error answer. :meth:`observe` does so itself; this is for requests that never belonged to a
        pipeline: no key, too large, malformed."""
        self._families.errors.labels(code if code in ERROR_CODES else "other").inc()

    def request_began(self, *, streamed: bool) -> None:
        """One more request in flight; each is answered by :meth:`request_ended`."""
        self._families.in_flight[streamed].inc()

    def request_ended(self, *, streamed: bool) -> None:
        """One request in flight less."""
        self._families.in_flight[streamed].dec()

    def budget_step(self, step: Step) -> None:
        """Count a request that a budget applies to, by how far down the ladder it went."""
        self._families.budget_steps[step].inc()

    def watch_breakers(self, states: Callable[[], Mapping[str, bool]]) -> None:
        """``states``: engine name → its circuit is open; asked at every scrape."""
        self._now.circuits = states

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type. ``accept``: what the scraper takes, of its header."""
        encode, content_type = choose_encoder(accept)
        registry = self._registry
        if self._shared:
            registry = CollectorRegistry()
            MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
            registry.register(self._now)
        return encode(registry), content_type

    def _observe_call(self, call: UsageRecord) -> None:
        if call.price_source == GUIDANCE_CACHE:
            return  # nobody was called
        key = (call.engine, call.role, call.currency)
        counted = self._by_engine.get(key)
        if counted is None:
            counted = self._by_engine[key] = _Calls(self._families, call)
        counted.observe(call)


class _Families:
    """Every metric by name, type and help."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=registry)

        flight = Gauge(
            "gkt_requests_in_flight",
            "Requests being answered now.",
            ("mode",),
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.in_flight = {True: flight.labels("stream"), False: flight.labels("whole")}
        self.requests = counter(
            "gkt_requests_total", "Requests that are over, by who answered and how.", "pipeline", "route", "status"
        )
        self.errors = counter("gkt_errors_total", "Error answers, by code.", "code")
        self.duration = histogram(
            "gkt_request_duration_seconds", "From a request's arrival to its end.", _DURATIONS_S, "pipeline"
        )
        self.first_token = histogram(
            "gkt_first_token_seconds", "From a request's arrival to its first text.", _DURATIONS_S, "pipeline"
        )
        self.overhead = histogram(
            "gkt_overhead_seconds", "Part of a request in which no engine was at work.", _OVERHEADS_S, "pipeline"
        )
        self.teacher = histogram(
            "gkt_teacher_seconds", "Part of a request in which the teacher was at work.", _DURATIONS_S, "pipeline"
        )
        self.student = histogram(
            "gkt_student_seconds", "Part of a request in which the student was at work.", _DURATIONS_S, "pipeline"
        )
        self.guidance = histogram(
            "gkt_guidance_tokens", "Teacher tokens handed over, per request.", _TOKENS, "pipeline"
        )
        self.degraded = counter(
            "gkt_degraded_requests_total", "Requests that had less than their pipeline promises.", "pipeline"
        )
        self.cache_hits = counter(
            "gkt_guidance_cache_hits_total", "Requests whose guidance came from the cache.", "pipeline"
        )
        self.retries = counter("gkt_retries_total", "Engine calls beyond the first attempt.", "pipeline")
        self.calls = counter("gkt_engine_calls_total", "Engine calls that are over.", "engine", "role", "status")
        self.prompt = counter("gkt_prompt_tokens_total", "Tokens read, cached ones included.", "engine", "role")
        self.cached = counter("gkt_cached_prompt_tokens_total", "Tokens read that the engine had.", "engine", "role")
        self.completion = counter("gkt_completion_tokens_total", "Tokens written.", "engine", "role")
        self.drafted = counter("gkt_drafted_tokens_total", "Draft tokens proposed.", "engine", "role")
        self.accepted = counter("gkt_accepted_tokens_total", "Draft tokens kept.", "engine", "role")
        self.cost = counter("gkt_cost_total", "Money, in units of the currency.", "engine", "role", "currency")
        self.unpriced = counter("gkt_unpriced_calls_total", "Calls whose cost is unknown.", "engine", "role")
        budgets = counter("gkt_budget_requests_total", "Requests under a budget, by what it left them.", "step")
        self.budget_steps: dict[Step, Counter] = {step: budgets.labels(step) for step in get_args(Step)}


class _Requests:
    """The series of one pipeline, route and status, found once."""

    def __init__(self, families: _Families, record: RequestRecord) -> None:
        pipeline = record.pipeline
        self._total = families.requests.labels(pipeline, record.route, record.status)
        self._seconds = (
            (families.duration.labels(pipeline), "total_s"),
            (families.first_token.labels(pipeline), "first_token_s"),
            (families.overhead.labels(pipeline), "overhead_s"),
            (families.teacher.labels(pipeline), "teacher_s"),
            (families.student.labels(pipeline), "student_s"),
        )
        self._guidance = families.guidance.labels(pipeline)
        self._degraded = families.degraded.labels(pipeline)
        self._cache_hits = families.cache_hits.labels(pipeline)
        self._retries = families.retries.labels(pipeline)

    def observe(self, record: RequestRecord) -> None:
        self._total.inc()
        if record.status == "refused":
            return  # nothing was called, so there is nothing to measure
        for histogram, name in self._seconds:
            seconds = getattr(record, name)
            if seconds is not None:
                histogram.observe(seconds)
        self._guidance.observe(record.guidance_tokens)
        if record.degraded:
            self._degraded.inc()
        if record.cached:
            self._cache_hits.inc()
        if record.retries:
            self._retries.inc(record.retries)


class _Calls:
    """The series of one engine in one role, found once."""

    def __init__(self, families: _Families, call: UsageRecord) -> None:
        self._families = families
        self._labels = (call.engine, call.role)
        self._by_status: dict[str, Counter] = {}
        self._prompt, self._cached, self._completion, self._drafted, self._accepted = (
            family.labels(*self._labels)
            for family in (families.prompt, families.cached, families.completion, families.drafted, families.accepted)
        )
        self._cost = families.cost.labels(*self._labels, call.currency)
        self._unpriced = families.unpriced.labels(*self._labels)

    def observe(self, call: UsageRecord) -> None:
        ended = self._by_status.get(call.status)
        if ended is None:
            ended = self._by_status[call.status] = self._families.calls.labels(*self._labels, call.status)
        ended.inc()
        usage = call.usage
        self._prompt.inc(usage.prompt_tokens or 0)
        self._cached.inc(usage.cached_tokens or 0)
        self._completion.inc(usage.completion_tokens or 0)
        self._drafted.inc(usage.drafted_tokens)
        self._accepted.inc(usage.accepted_tokens)
        if call.cost_nano is None:
            self._unpriced.inc()
        else:
            self._cost.inc(call.cost_nano / NANO)


class _Now:
    """What is so at the moment of the scrape, in the worker that is asked."""

    def __init__(self) -> None:
        self.circuits: Callable[[], Mapping[str, bool]] = dict

    def collect(self) -> Iterator[Metric]:
        yield InfoMetricFamily("gkt_build", "What runs.", value={"version": __version__})
        family = GaugeMetricFamily("gkt_circuit_open", "1 while an engine is left alone.", labels=("engine",))
        for engine, is_open in sorted(self.circuits().items()):
            family.add_metric((engine,), float(is_open))
        yield family
