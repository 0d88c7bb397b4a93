"""Work that goes on beside the requests of a server, for as long as it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager

__all__ = ["beside"]


@asynccontextmanager
async def beside(work: Iterable[Coroutine[object, object, None]]) -> AsyncIterator[None]:
    """Run ``work`` while the block runs, and never wait for it; what is left at the end is cancelled."""
    tasks = [asyncio.create_task(one) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
