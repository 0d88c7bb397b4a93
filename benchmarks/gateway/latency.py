"""What a request costs in time: open loop, 50 requests/s beside 50 concurrent streams of 10 seconds, sides in turns.

The upstream answers after 50 ms, and each of its streams writes a token every 200 ms. Guided answers cost two calls of
the upstream, and are held against a client that makes both calls itself.

- ``added_p50_ms``, ``added_p99_ms``    quantile through the gateway − quantile of the direct path; ``guided_added_…``
- ``first_byte_ms``                     from the upstream writing a stream's first releasable character to the client
                                        having it, median; ``guided_first_byte_ms``; ``…_direct_ms`` without a gateway
- ``token_ms``                          the same of all further tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from benchmarks._report import Report
from benchmarks.gateway._load import Job, Seen, generate
from benchmarks.gateway._quantiles import quantile_estimate, quantile_of
from benchmarks.gateway._setting import Setting, Side, gateway, upstream

__all__ = ["run"]

RATE = 50.0
STREAMS = 50
SECONDS = 10.0
WARM_S = 1.0
"""Until all streams have begun."""
FIXED = "fixed-50"
PACED = "paced-200"
TOKENS = 50
"""A stream's: 10 seconds."""


def run(setting: Setting) -> Report:
    """Both ways of answering."""
    report = Report("latency", setting.quick)
    with ExitStack() as stack:
        direct = stack.enter_context(upstream(setting))
        ours = stack.enter_context(gateway(setting, direct, [FIXED, PACED]))
        sides = {
            "direct": (direct, False),
            "passthrough": (ours, False),
            "direct_guided": (direct, True),
            "guided": (ours, True),
        }
        seen: dict[str, list[Seen]] = {name: [] for name in sides}
        for side, guided in sides.values():
            generate(Job("closed", seconds=1.0, clients=20, journey=side.journey(FIXED, 16, guided=guided)))  # warm
        for turn in range(2 if setting.quick else 5):
            names = list(sides)[turn % 4 :] + list(sides)[: turn % 4]
            for name in names:
                seen[name].append(generate(_job(*sides[name], turn)))
    for name, prefix in (("passthrough", ""), ("guided", "guided_")):
        base = "direct_guided" if prefix else "direct"
        for quantile, bound in ((50, 3.0), (99, 15.0)):
            added = quantile_estimate(_of(seen[name], "answers_ms"), quantile, less=_of(seen[base], "answers_ms"))
            report.put_estimate(f"{prefix}added_p{quantile}_ms", added)
            report.goal(f"{prefix}added_p{quantile}_ms", "<=", bound)
        report.put_estimate(f"{prefix}first_byte_ms", quantile_estimate(_of(seen[name], "first_ms"), 50))
        report.goal(f"{prefix}first_byte_ms", "<=", 2.0)
        report.put(f"{prefix}first_byte_p99_ms", quantile_of(_of(seen[name], "first_ms"), 99))
        report.put(f"{prefix}first_byte_direct_ms", quantile_of(_of(seen[base], "first_ms"), 50))
        for quantile in (50, 99):
            report.put(f"{prefix}token_p{quantile}_ms", quantile_of(_of(seen[name], "delays_ms"), quantile))
            report.put(f"{prefix}answer_p{quantile}_ms", quantile_of(_of(seen[name], "answers_ms"), quantile))
            report.put(f"{prefix}answer_direct_p{quantile}_ms", quantile_of(_of(seen[base], "answers_ms"), quantile))
    report.put("generator_late_p99_ms", quantile_of([found.late_ms for turns in seen.values() for found in turns], 99))
    report.setup.update(rate=RATE, streams=STREAMS, seconds=SECONDS, turns=len(seen["direct"]), upstream_ms=50,
                        requests=sum(len(found.answers_ms) for found in seen["direct"]))  # fmt: skip
    return report


def _job(side: Side, guided: bool, seed: int) -> Job:
    return Job(
        "open",
        seconds=SECONDS,
        journey=side.journey(FIXED, 16, guided=guided),
        rate=RATE,
        warm_s=WARM_S,
        stream=side.journey(PACED, TOKENS, guided=guided, stream=True),
        streams=STREAMS,
        ramp_s=WARM_S,
        seed=seed,
    )


def _of(seen: Sequence[Seen], what: str) -> list[list[float]]:
    return [getattr(found, what) for found in seen]
