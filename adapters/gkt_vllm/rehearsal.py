"""Before vLLM loads a model: can what its API servers will have open be opened? Ledger, cache and engines are opened
once and closed again, which finds a missing key too; a teacher is not waited for."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry

from gkt_vllm.serving import open_serving

if TYPE_CHECKING:
    from gkt_vllm.frontend import Start

__all__ = ["rehearse"]


def rehearse(start: Start, model: str) -> None:
    """:param model: its name, as vLLM will serve it. :raises GktError: something cannot be opened."""
    with ThreadPoolExecutor(1) as thread:  # in this one vLLM may run an event loop of its own
        thread.submit(asyncio.run, _open_and_close(start, model)).result()


async def _open_and_close(start: Start, model: str) -> None:
    opened = await open_serving(start.section, start.frozen, [model], max_tokens=1, registry=CollectorRegistry())
    await opened.stack.aclose()
