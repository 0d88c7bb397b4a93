"""What Prometheus is told. Labels take their values from the configuration and from fixed lists alone, never from a
request, so the number of series is bounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gkt_plugins.accounting.requests import RequestRecord

from gkt_plugins.contracts import UsageRecord

__all__ = ["Metrics"]


class Metrics:
    """The counters of one gateway process."""

    def observe(self, record: RequestRecord, calls: Sequence[UsageRecord] = ()) -> None:
        """Count one request that is over, and its engine calls: ``exchange.answer.records``."""

    def refused(self, code: str) -> None:
        """Count a request that was refused before it belonged to a pipeline: no key, too large, malformed."""

    def request_began(self, *, streamed: bool) -> None:
        """One more request in flight; each is answered by :meth:`request_ended`."""

    def request_ended(self, *, streamed: bool) -> None:
        """One request in flight less."""

    def watch_breakers(self, states: Callable[[], Mapping[str, bool]]) -> None:
        """``states``: engine name → its circuit is open; asked at every scrape."""

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """The exposition and its content type; ``accept``: what the scraper takes."""
        raise NotImplementedError
