"""With thousands of streams open a full garbage collection stops every one of them; requests must not call for it."""

import asyncio
import gc

from gkt_plugins.gateway.presence import Presence
from gkt_plugins.gateway.turns import Turn
from gkt_plugins.guidance.exchange import Exchange
from gkt_plugins.guidance.machine import GuidanceMachine


def alive():
    kinds = {Presence, Turn, Exchange, GuidanceMachine}
    return [type(one).__name__ for one in gc.get_objects() if type(one) in kinds]


async def test_a_request_is_gone_when_it_is_over_without_a_garbage_collection(gateway):
    running = await gateway()
    gc.collect()
    gc.disable()
    try:
        await running.chat()
        await running.chat(max_tokens=4)
        await running.chat(stream=True)
        for _ in range(200):  # its record is written after its last byte
            if not alive():
                break
            await asyncio.sleep(0.01)
        assert alive() == []
    finally:
        gc.enable()
