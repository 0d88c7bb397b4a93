"""A batch that a test kills: rows go through an accountant, 8 at a time; a row is printed once its closing is durable.

Row 0 never ends, so that there is always a call to cut off. Run as ``python killed_batch.py LEDGER SEED``.
"""

import asyncio
import json
import random
import sys

from gkt_plugins.accounting.accountant import Accountant
from gkt_plugins.accounting.ledger import Ledger
from gkt_plugins.accounting.prices import ConfigPrices
from gkt_plugins.contracts import Usage

PROMPT = "a prompt that nobody else may read"


async def main(url: str, seed: int) -> None:
    rng = random.Random(seed)
    prices = ConfigPrices({"small": {"input_per_million": "1", "output_per_million": "2"}})
    accountant = Accountant(prices, Ledger.open(url))
    slots = asyncio.Semaphore(8)

    async def row(number: int) -> None:
        async with slots:
            async with accountant.call(f"row-{number}", "student", "edge", "small") as account:
                await asyncio.sleep(3600 if number == 0 else rng.random() / 200)
                account.usage = Usage(prompt_tokens=len(PROMPT), completion_tokens=number)
            print(json.dumps({"row": number, "text": PROMPT}), flush=True)

    await asyncio.gather(*(row(number) for number in range(10_000)))


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
