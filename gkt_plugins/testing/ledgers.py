"""Ledgers to try reports and pages on: traffic that never was, the same each time for the same seed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from itertools import islice
from math import pi, sin
from typing import Any

from sqlalchemy import Connection, Table, create_engine, insert, make_url

from gkt_plugins.accounting._rows import call_row, request_row
from gkt_plugins.accounting.ledger import Ledger
from gkt_plugins.accounting.prices import cost_nano
from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.accounting.schema import RECORDS, REQUESTS
from gkt_plugins.contracts import GUIDANCE_CACHE, Price, Usage, UsageRecord

__all__ = ["LARGE", "SMALL", "Traffic", "invented_traffic", "write_traffic"]

Traffic = Iterable[tuple[RequestRecord, list[UsageRecord]]]

LARGE = Price(input_nano=2_500_000_000, output_nano=10_000_000_000)
"""USD 2.50 and 10.00 per million tokens."""
SMALL = Price(input_nano=250_000_000, output_nano=1_000_000_000)

_ERRORS = ("upstream_timeout", "upstream_unavailable", "upstream_error")


def invented_traffic(
    requests: int, *, since: float, until: float, seed: int = 0
) -> Iterator[tuple[RequestRecord, list[UsageRecord]]]:
    """A working day's ups and downs, three pipelines, some failures: enough to see every figure of a report.

    ``since``, ``until``: seconds since the epoch.
    """
    draw = random.Random(seed)
    for number in range(requests):
        started_at = _moment(since, until, (number + draw.random()) / requests)
        yield _request(f"invented-{seed}-{number}", started_at, draw)


def _moment(since: float, until: float, share: float) -> float:
    """When ``share`` of the traffic has come: most of it by day, around 13:00 UTC, least around 01:00."""
    wave = 2 * pi / 86_400
    first, last, moment = (
        even - 0.5 / wave * sin(wave * (even - 46_800)) for even in (since, until, since + (until - since) * share)
    )
    return since + (until - since) * (moment - first) / (last - first)


def write_traffic(url: str, traffic: Traffic) -> None:
    """Put ``traffic`` into the ledger at ``url``, which is made where there is none; many rows to a commit."""
    Ledger.open(url).close()
    parsed = make_url(url)
    if parsed.get_backend_name() == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    engine = create_engine(parsed)
    try:
        for chunk in _chunks(traffic):
            with engine.begin() as connection:
                _insert(connection, REQUESTS, [request_row(request) for request, _ in chunk])
                _insert(connection, RECORDS, [call_row(call, "invented") for _, calls in chunk for call in calls])
    finally:
        engine.dispose()


def _chunks(traffic: Traffic) -> Iterator[list[tuple[RequestRecord, list[UsageRecord]]]]:
    remaining = iter(traffic)
    while chunk := list(islice(remaining, 5000)):
        yield chunk


def _insert(connection: Connection, table: Table, rows: list[tuple[Any, ...]]) -> None:
    if rows:
        connection.execute(insert(table), [dict(zip(table.c.keys(), row, strict=True)) for row in rows])


def _request(request_id: str, started_at: float, draw: random.Random) -> tuple[RequestRecord, list[UsageRecord]]:
    pipeline = draw.choices(("default", "support", "drafts"), (6, 3, 1))[0]
    fate = draw.random()
    if fate < 0.006:
        refused = RequestRecord(
            request_id, pipeline, "web", started_at, "student", "refused", "insufficient_quota", total_s=0.001
        )
        return refused, []
    prompt, answer = draw.randint(60, 900), draw.randint(40, 320)
    guidance = 0 if pipeline == "drafts" or draw.random() < 0.06 else max(1, min(answer, round(draw.gauss(34, 12))))
    cached, retried = guidance > 0 and draw.random() < 0.12, draw.random() < 0.015
    student_tokens = answer - guidance
    teacher_s = 0.0 if cached or not guidance else 0.18 + 0.011 * guidance * draw.lognormvariate(0, 0.3)
    student_s = 0.05 + 0.004 * student_tokens * draw.lognormvariate(0, 0.25)
    overhead_s = 0.0012 * draw.lognormvariate(0, 0.4)
    failed = fate < 0.018
    calls: list[UsageRecord] = []

    def call(role: str, model: str, price: Price, attempt: int, tokens: tuple[int, int], seconds: float) -> None:
        usage = Usage(prompt_tokens=tokens[0], completion_tokens=tokens[1], seconds=seconds)
        kept = cached and role == "teacher"
        calls.append(
            UsageRecord(
                request_id,
                0,
                role,  # type: ignore[arg-type]  # a Role; the caller below says which
                attempt,
                "cloud" if role == "teacher" else "edge",
                model,
                "final",
                usage,
                cost_nano=0 if kept else cost_nano(usage, price),
                price_source=GUIDANCE_CACHE if kept else price.source,
                started_at=started_at + (teacher_s if role == "student" else 0.0),
                pipeline=pipeline,
            )
        )

    if guidance:
        if retried:
            call("teacher", "large", LARGE, 0, (prompt, 0), 0.1)
        call("teacher", "large", LARGE, int(retried), (prompt, guidance), teacher_s)
    if student_tokens:
        call("student", "small", SMALL, 0, (prompt + guidance, student_tokens), student_s)
    total_s = teacher_s + student_s + overhead_s
    first_s = overhead_s / 2 + (0.02 if cached else 0.24 if guidance else 0.08) * draw.lognormvariate(0, 0.35)
    record = RequestRecord(
        request_id=request_id,
        pipeline=pipeline,
        key=draw.choice(("web", "app", "nightly")),
        started_at=started_at,
        route="student" if not guidance else "guided" if student_tokens else "teacher",
        status="error" if failed else "cancelled" if fate < 0.022 else "ok",
        error=draw.choice(_ERRORS) if failed else "",
        streamed=draw.random() < 0.8,
        guidance_tokens=guidance,
        degraded=draw.random() < 0.008,
        cached=cached,
        first_token_s=None if failed else min(first_s, total_s),
        total_s=total_s,
        teacher_s=teacher_s if guidance else None,
        student_s=student_s if student_tokens else None,
        overhead_s=overhead_s,
        retries=int(retried),
    )
    return record, calls
