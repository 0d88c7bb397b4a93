"""A process with one open call, and a reservation of 60 for it, of which it spends 7.

It says when both are made, then waits to be told how to end: ``finish``, ``leave`` or a kill.

Run as ``python open_call.py LEDGER REQUEST_ID``.
"""

import asyncio
import sys
from dataclasses import replace

from gkt_plugins.accounting.budgets import Budget
from gkt_plugins.accounting.ledger import Ledger
from gkt_plugins.contracts import Usage, UsageRecord


async def main(url: str, request_id: str) -> None:
    ledger = Ledger.open(url)
    record = UsageRecord(request_id, 0, "student", 0, "edge", "small", "open", started_at=1_795_000_000.0)
    await ledger.opened(record)
    await ledger.reserve(request_id, [Budget("all", 1000)], 60, "2026-11-22")
    print("open", flush=True)
    if sys.stdin.readline() == "finish\n":
        await ledger.closed(replace(record, status="final", usage=Usage(1, None, 1)))
        await ledger.settle(request_id, 7)
    await ledger.aclose()


asyncio.run(main(sys.argv[1], sys.argv[2]))
