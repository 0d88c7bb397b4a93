"""How many calls per second the ledger puts on disk, and what streams notice of it.

A call is a row that is inserted when the call opens and updated when it ends, both durable before anyone goes on. First
the ledger alone, with many calls at once. Then inside a gateway that serves streams: the same event loop, the same
interpreter, a call every half millisecond beside them, off and on by turns.

- ``ledger_inserts_per_s``               alone, 64 calls at a time, a file on this disk
- ``ledger_token_added_p50_ms``, ``…p99_ms``    what is added to the way of a token while the calls are written
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import replace
from uuid import uuid4

from benchmarks._report import Report
from benchmarks.gateway._load import Job, Seen, generate
from benchmarks.gateway._processes import free_port, running
from benchmarks.gateway._quantiles import quantile_estimate, quantile_of
from benchmarks.gateway._setting import Setting, Side, configuration, new_key, upstream
from gkt_plugins.accounting.accountant import Keeper
from gkt_plugins.accounting.ledger import Ledger
from gkt_plugins.contracts import Usage, UsageRecord
from gkt_plugins.evaluation.statistics import median_estimate

__all__ = ["a_call", "run"]

AT_ONCE = 64
BESIDE_PER_S = 2000
PACED = "paced-100"
STREAMS = 100


def a_call() -> UsageRecord:
    """An opening record as the gateway writes it."""
    return UsageRecord(uuid4().hex, 0, "student", 0, "engine", "model", "open", started_at=time.time(), pipeline="load")


async def write_call(ledger: Keeper) -> None:
    """Open and close a call."""
    call = a_call()
    await ledger.opened(call)
    await ledger.closed(replace(call, status="final", usage=Usage(16, 0, 16, seconds=0.05), cost_nano=20_000))


def run(setting: Setting) -> Report:
    """The ledger alone, then beside streams."""
    report = Report("ledger", setting.quick)
    rates = asyncio.run(_alone(setting, 3 if setting.quick else 7, 4_000))
    report.put_estimate("ledger_inserts_per_s", median_estimate(rates), at_least=2000.0)
    tokens = 30 if setting.quick else 60
    with ExitStack() as stack:
        direct = stack.enter_context(upstream(setting))
        key = new_key()
        config = configuration(setting, "writing", direct.url, [PACED], key)
        port = free_port()
        command = [sys.executable, "-m", "benchmarks.gateway._writing_gateway", str(config), str(port)]
        url = f"http://127.0.0.1:{port}"
        program = stack.enter_context(running(command, f"{url}/health", setting.work / "writing.log"))
        ours = Side("writing", f"{url}/v1", program, {"authorization": f"Bearer {key}"})
        seen: dict[int, list[Seen]] = {0: [], BESIDE_PER_S: []}
        written = []
        for turn in range(-1, 2 if setting.quick else 5):  # the first is not counted: everything gets warm
            for per_s in sorted(seen, reverse=bool(turn % 2)):
                _write(url, per_s)
                found = generate(
                    Job("hold", stream=ours.journey(PACED, tokens, stream=True), streams=STREAMS, ramp_s=1.0)
                )
                rate = _write(url, 0)
                if turn >= 0:
                    seen[per_s].append(found)
                    written += [rate] if per_s else []
    report.put_estimate("ledger_inserts_beside_per_s", median_estimate(written), at_least=0.95 * BESIDE_PER_S)
    beside, without = ([found.delays_ms for found in seen[per_s]] for per_s in (BESIDE_PER_S, 0))
    for quantile, bound in ((50, 0.5), (99, 5.0)):
        report.put(f"ledger_token_p{quantile}_ms", quantile_of(without, quantile))
        report.put_estimate(f"ledger_token_added_p{quantile}_ms", quantile_estimate(beside, quantile, less=without))
        report.goal(f"ledger_token_added_p{quantile}_ms", "<=", bound)
    report.setup.update(at_once=AT_ONCE, streams=STREAMS, tokens_per_s_each=10, beside_per_s=BESIDE_PER_S)
    return report


def _write(url: str, per_s: int) -> float:
    """Let so many calls be written per second from now on; how many were since the last time."""
    with urllib.request.urlopen(f"{url}/writing/{per_s}") as response:
        return float(json.load(response)["rows_per_s"])


async def _alone(setting: Setting, turns: int, calls: int) -> list[float]:
    ledger = Ledger.open("sqlite:///alone.db", base_dir=setting.work)

    async def write(count: int) -> None:
        for _ in range(count):
            await write_call(ledger)

    rates = []
    for _ in range(turns):
        began = time.perf_counter()
        await asyncio.gather(*(write(calls // AT_ONCE) for _ in range(AT_ONCE)))
        rates.append(calls // AT_ONCE * AT_ONCE / (time.perf_counter() - began))
    await ledger.aclose()
    return rates
