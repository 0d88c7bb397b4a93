"""A process that spends as much of a budget as it is given: reserves, and settles for less, until there is no room.

Prints what it spent. Run as ``python spender.py LEDGER NAME LIMIT_NANO``.
"""

import asyncio
import random
import sys

from gkt_plugins.accounting.budgets import Budget
from gkt_plugins.accounting.ledger import Ledger

DAY = "2026-11-22"


async def main(url: str, name: str, limit_nano: int) -> None:
    rng = random.Random(name)
    ledger = Ledger.open(url)
    budgets = [Budget("all", limit_nano), Budget(f"key:{name}", limit_nano)]
    print("ready", flush=True)
    sys.stdin.readline()

    async def spend(number: int) -> int:
        asked = rng.randrange(1, 100)
        if await ledger.reserve(f"{name}-{number}", budgets, asked, DAY) is not None:
            return 0
        await asyncio.sleep(rng.random() / 500)
        spent = rng.randrange(asked + 1)
        await ledger.settle(f"{name}-{number}", spent)
        return spent

    total = 0
    for begin in range(0, 2000, 20):
        total += sum(await asyncio.gather(*(spend(number) for number in range(begin, begin + 20))))
    print(total, flush=True)
    await ledger.aclose()


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
