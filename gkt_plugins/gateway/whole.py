"""An answer in one piece."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from gkt_plugins.errors import GktError
from gkt_plugins.gateway.turns import Turn
from gkt_plugins.guidance.exchange import Exchange, Parts
from gkt_plugins.guidance.request import run_exchange
from gkt_plugins.openai_wire.errors import error_code
from gkt_plugins.openai_wire.replies import failure, reply

__all__ = ["whole_answer"]


async def whole_answer(turn: Turn) -> None:
    """Answer ``turn``.

    :raises GktError: there is nothing to answer with.
    """
    parts = turn.served.parts
    turn.exchanges = [Exchange(request, parts) for request in turn.admission.requests]
    if len(turn.exchanges) == 1:
        await _run(turn.exchanges[0], parts)
    else:
        await _run_all(turn.exchanges, parts)
    answers = turn.answers()
    if error := failure(answers):
        raise error
    turn.failed_choice = next((error_code(error) for answer in answers for error in answer.errors), "")
    told = turn.provenance(answers)
    await turn.answer(reply(turn.asked, answers, told, created=turn.created), told)


async def _run(exchange: Exchange, parts: Parts) -> None:
    async with aclosing(run_exchange(exchange, parts, whole=True)) as pieces:
        async for _ in pieces:
            pass


async def _run_all(exchanges: list[Exchange], parts: Parts) -> None:
    """All at once; the first that cannot be answered ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            for exchange in exchanges:
                group.create_task(_run(exchange, parts))
    except* GktError as failed:
        raise failed.exceptions[0] from None
