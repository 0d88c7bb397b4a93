"""A process that claims a prompt in the cache of the given folder, and whose teacher never answers."""

import asyncio
import sys
from pathlib import Path

from gkt_plugins.config.sections import CacheSection
from gkt_plugins.contracts import Call, Prompt
from gkt_plugins.guidance.cache import open_cache
from gkt_plugins.guidance.events import Request, Rules
from gkt_plugins.guidance.exchange import Parts
from gkt_plugins.guidance.policies import FixedLength, WordCut
from gkt_plugins.guidance.request import run_request
from gkt_plugins.testing.engines import EchoEngine, Script, ScriptedEngine


def hang(call: Call) -> Script:
    print("asking", flush=True)
    return Script("", hangs_after=0)


async def main() -> None:
    cache = open_cache(CacheSection(), Path(sys.argv[1]))
    await cache.check()
    parts = Parts(Rules(FixedLength(4), WordCut()), EchoEngine(name="edge"), ScriptedEngine(hang), cache=cache)
    async for _ in run_request(Request(Prompt(text="the cat sat on the mat")), parts):
        pass


asyncio.run(main())
