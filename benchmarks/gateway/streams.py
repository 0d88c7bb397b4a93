"""How many slow streams one gateway holds at the same time, and what they weigh.

Each stream writes a token per second. All of them are open for some seconds; one that breaks, loses a token or says an
error counts as not held.

- ``streams_held``, ``streams_rss_mb``          plain; ``guided_streams_…`` guided
- ``streams_token_p50_ms``, ``…_p99_ms``        from the upstream writing a token to the client having it
"""

from __future__ import annotations

from contextlib import ExitStack

from benchmarks._report import Report
from benchmarks.gateway._load import Job, generate
from benchmarks.gateway._quantiles import quantile_of
from benchmarks.gateway._setting import Setting, gateway, upstream

__all__ = ["run"]

STREAMS = 2000
PACED = "paced-1000"


def run(setting: Setting) -> Report:
    """Plain, then guided, each with a gateway of its own."""
    report = Report("streams", setting.quick)
    ramp_s, tokens = (6.0, 14) if setting.quick else (10.0, 40)
    for guided in (False, True):
        prefix = "guided_" if guided else ""
        with ExitStack() as stack:
            direct = stack.enter_context(upstream(setting))
            ours = stack.enter_context(gateway(setting, direct, [PACED], name=f"{prefix}gateway"))
            report.put(f"{prefix}streams_idle_rss_mb", ours.program.rss_mb())
            asked = ours.journey(PACED, tokens, guided=guided, stream=True)
            before = ours.program.cpu_s()
            with ours.program.weighed() as weights:
                seen = generate(Job("hold", stream=asked, streams=STREAMS, ramp_s=ramp_s), count_errors=True)
            used = ours.program.cpu_s() - before
        report.put(f"{prefix}streams_held", min(seen.streams_ok, seen.most_streams))
        report.goal(f"{prefix}streams_held", ">=", 2000)
        report.put(f"{prefix}streams_errors", seen.num_errors)
        report.goal(f"{prefix}streams_errors", "<=", 0)
        report.put(f"{prefix}streams_lost_tokens", STREAMS * tokens - seen.tokens)
        report.goal(f"{prefix}streams_lost_tokens", "<=", 0)
        report.put(f"{prefix}streams_rss_mb", max(weights))
        report.goal(f"{prefix}streams_rss_mb", "<=", 600.0)
        report.put(f"{prefix}streams_cpu_s", used)
        for quantile in (50, 99) if seen.delays_ms else ():
            report.put(f"{prefix}streams_token_p{quantile}_ms", quantile_of([seen.delays_ms], quantile))
        if seen.errors:
            report.setup[f"{prefix}errors"] = seen.errors
    report.setup.update(streams=STREAMS, tokens_per_s_each=1, tokens=tokens, ramp_s=ramp_s)
    return report
