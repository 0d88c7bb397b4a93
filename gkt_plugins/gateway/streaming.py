"""An answer in pieces, each sent when the guidance machine releases it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from gkt_plugins.errors import EngineError
from gkt_plugins.gateway.turns import Turn
from gkt_plugins.guidance.events import Emit, Finish
from gkt_plugins.guidance.exchange import Exchange, Parts
from gkt_plugins.guidance.request import Piece, run_exchange
from gkt_plugins.openai_wire.replies import usage_of
from gkt_plugins.openai_wire.streams import DONE, ChunkWriter

__all__ = ["stream_answer"]


async def stream_answer(turn: Turn) -> None:
    """Answer ``turn``. The head goes out with the first text, so that what fails before has a status of its own.

    A choice that fails ends the stream with an error, once the other choices are complete.

    :raises GktError: the answer cannot be completed; ``turn.begun`` tells whether some of it is out.
    """
    asked = turn.asked
    turn.exchanges = [Exchange(request, turn.served.parts) for request in turn.admission.requests]
    writer = ChunkWriter(asked, created=turn.created)
    left = sum(request.n for request in asked.requests)
    failed: EngineError | None = None
    async with aclosing(_pieces(turn.exchanges, turn.served.parts, asked.requests[0].n)) as pieces:
        async for first, piece in pieces:
            if isinstance(piece, Emit):
                if not turn.begun:
                    await turn.begin_stream()
                await turn.write(writer.text(first + piece.choice, piece.text))
                continue
            left -= 1
            if not isinstance(piece, Finish):
                failed = failed or piece.error
                continue
            if not turn.begun:
                await turn.begin_stream()
            index = first + piece.choice
            if left or failed is not None:
                await turn.write(writer.finish(index, piece.finish_reason))
                continue
            answers = turn.answers()
            gkt = turn.provenance(answers).as_json()
            if asked.include_usage:
                last = writer.finish(index, piece.finish_reason) + writer.usage(usage_of(answers), gkt)
            else:
                last = writer.finish(index, piece.finish_reason, gkt)
            await turn.write(last + DONE, more=False)
    if failed is not None:
        raise failed


def _pieces(exchanges: Sequence[Exchange], parts: Parts, choices: int) -> AsyncGenerator[tuple[int, Piece], None]:
    """The pieces of every exchange as they come, each with the index of its exchange's first choice."""
    return _numbered(0, exchanges[0], parts) if len(exchanges) == 1 else _together(exchanges, parts, choices)


async def _together(
    exchanges: Sequence[Exchange], parts: Parts, choices: int
) -> AsyncGenerator[tuple[int, Piece], None]:
    queue: asyncio.Queue[tuple[int, Piece] | Exception | None] = asyncio.Queue()

    async def read(position: int, exchange: Exchange) -> None:
        try:
            async with aclosing(_numbered(position * choices, exchange, parts)) as pieces:
                async for item in pieces:
                    queue.put_nowait(item)
        except Exception as exc:  # noqa: BLE001 - raised below, where the answer is written
            queue.put_nowait(exc)
        else:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(read(position, exchange)) for position, exchange in enumerate(exchanges)]
    try:
        running = len(tasks)
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _numbered(first: int, exchange: Exchange, parts: Parts) -> AsyncGenerator[tuple[int, Piece]]:
    async with aclosing(run_exchange(exchange, parts)) as pieces:
        async for piece in pieces:
            yield first, piece
