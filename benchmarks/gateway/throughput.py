"""How much one process answers: closed loop, 50 clients, an upstream that takes 50 ms, all sides in turns.

LiteLLM's proxy runs without a database and keeps no record; ours keeps three rows on disk per plain request.

- ``vs_litellm_rps``           requests/s, gateway / LiteLLM, one process each
- ``vs_litellm_added_p50``     median time over the direct path, gateway / LiteLLM
- ``vs_litellm_best_rps``      the same with two processes each, LiteLLM with the server that was fastest here; the
                               upstream's 50 ms leave at most 1,000 requests/s to 50 clients; not with ``--quick``
- ``guided_…``                 two calls of the upstream per request, which LiteLLM is not asked for
"""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median

from benchmarks._report import Report
from benchmarks.gateway._load import Ask, Job, Seen, generate
from benchmarks.gateway._quantiles import quantile_of
from benchmarks.gateway._setting import Setting, gateway, litellm, upstream
from gkt_plugins.evaluation.statistics import median_estimate

__all__ = ["run"]

CLIENTS = 50
FIXED = "fixed-50"
TOKENS = 16
PROCESSES = 2
OUR_BEST = ["--workers", str(PROCESSES)]
THEIR_BEST = ["--run_granian", "--num_workers", str(PROCESSES)]
"""Of uvicorn, gunicorn and granian with two workers none was clearly faster than another here."""


def run(setting: Setting) -> Report:
    """All sides."""
    report = Report("throughput", setting.quick)
    turns, seconds, warm_s = (3, 4.0, 1.0) if setting.quick else (5, 6.0, 1.0)
    with ExitStack() as stack:
        direct = stack.enter_context(upstream(setting))
        ours = stack.enter_context(gateway(setting, direct, [FIXED]))
        theirs = stack.enter_context(litellm(setting, direct, [FIXED]))
        sides = {
            "direct": direct.journey(FIXED, TOKENS),
            "gateway": ours.journey(FIXED, TOKENS),
            "litellm": theirs.journey(FIXED, TOKENS),
            "gateway_guided": ours.journey(FIXED, TOKENS, guided=True),
        }
        programs = {"gateway": ours, "litellm": theirs}
        if not setting.quick:
            programs["gateway_best"] = stack.enter_context(
                gateway(setting, direct, [FIXED], name="gateway_best", arguments=OUR_BEST)
            )
            programs["litellm_best"] = stack.enter_context(
                litellm(setting, direct, [FIXED], name="litellm_best", arguments=THEIR_BEST)
            )
            sides["direct_guided"] = direct.journey(FIXED, TOKENS, guided=True)
            for name in ("gateway_best", "litellm_best"):
                sides[name] = programs[name].journey(FIXED, TOKENS)
        seen: dict[str, list[Seen]] = {name: [] for name in sides}
        for turn in range(-1, turns):  # the first is not counted: everything gets warm
            names = list(sides)[turn % len(sides) :] + list(sides)[: turn % len(sides)]
            for name in names:
                found = generate(_job(sides[name], 2.0 if turn < 0 else seconds, warm_s))
                if turn >= 0:
                    seen[name].append(found)
        for name, side in programs.items():
            report.put(f"{name}_rss_mb", round(side.program.rss_mb()))
    rates = {name: [found.rate for found in turns] for name, turns in seen.items()}
    middle = {name: [median(found.answers_ms) for found in turns] for name, turns in seen.items()}
    report.put_ratio("vs_litellm_rps", rates["gateway"], rates["litellm"], at_least=4.0)
    shares = [
        (through - plain) / (theirs - plain)
        for through, theirs, plain in zip(middle["gateway"], middle["litellm"], middle["direct"], strict=True)
    ]
    report.put_estimate("vs_litellm_added_p50", median_estimate(shares))
    report.goal("vs_litellm_added_p50", "<=", 0.25)
    if not setting.quick:
        report.put_ratio("vs_litellm_best_rps", rates["gateway_best"], rates["litellm_best"])
    for name in sides:
        report.put(f"{name}_rps", round(median(rates[name]), 1))
        for quantile in (50, 99):
            report.put(f"{name}_p{quantile}_ms", quantile_of([found.answers_ms for found in seen[name]], quantile))
    report.setup.update(clients=CLIENTS, upstream_ms=50, turns=turns, seconds_each=seconds,
                        processes=PROCESSES, litellm_best=" ".join(THEIR_BEST))  # fmt: skip
    return report


def _job(journey: list[Ask], seconds: float, warm_s: float) -> Job:
    return Job("closed", seconds=seconds, warm_s=min(warm_s, seconds / 2), clients=CLIENTS, journey=journey)
