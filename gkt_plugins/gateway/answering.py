"""From a request that has been read to its answer and its record, whatever becomes of it."""

from __future__ import annotations

import asyncio
import logging

from gkt_plugins.gateway.forwarding import forward_answer, refuse_unserved
from gkt_plugins.gateway.presence import ClientGoneError, Presence
from gkt_plugins.gateway.streaming import stream_answer
from gkt_plugins.gateway.turns import Turn
from gkt_plugins.gateway.whole import whole_answer
from gkt_plugins.openai_wire.errors import ApiError, error_body

__all__ = ["finish"]

_log = logging.getLogger(__name__)


async def finish(turn: Turn) -> None:
    """Answer, and put on record what became of it."""
    code = ""
    try:
        async with (
            Presence(turn.receive, lambda: turn.complete),
            asyncio.timeout(turn.state.config.gateway.request_timeout_s),
        ):
            await _answer(turn)
    except ClientGoneError:
        await turn.over("cancelled")
        return
    except asyncio.CancelledError:
        await turn.over("cancelled")
        raise
    except Exception as exc:  # noqa: BLE001 - whatever it was, the client is told, and the ledger
        error = _timed_out(turn) if isinstance(exc, TimeoutError) else exc
        status = error_body(error)[0]
        if status >= 500:
            _log.warning("request %s failed with %d: %s", turn.asked.request_id, status, error)
        code = await turn.fail(error)
        await turn.over("error" if turn.called or status >= 500 else "refused", code)
        return
    await turn.over("error" if turn.failed_choice else "ok", turn.failed_choice)


async def _answer(turn: Turn) -> None:
    asked = turn.asked
    forwarded = bool(asked.features)
    if forwarded:
        refuse_unserved(turn)
    turn.admission = await turn.state.opened.ladder.admit(
        turn.client, asked.requests, turn.served.parts, forwarded=forwarded
    )
    if forwarded:
        await forward_answer(turn)
    elif asked.stream:
        await stream_answer(turn)
    else:
        await whole_answer(turn)


def _timed_out(turn: Turn) -> ApiError:
    seconds = turn.state.config.gateway.request_timeout_s
    return ApiError(
        f"an answer may take {seconds:g} s, and this one took longer; ask for fewer max_tokens, or raise "
        "gateway.request_timeout_s",
        status=504,
        kind="api_error",
        code="upstream_timeout",
    )
