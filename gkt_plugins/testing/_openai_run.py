"""One scripted reply on its way out, with all that goes wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from gkt_plugins.testing._http_server import Wire
from gkt_plugins.testing._openai_frames import Answering, frame, logprobs_of
from gkt_plugins.testing._openai_script import Received, Reply
from gkt_plugins.testing.engines import by_words

__all__ = ["Run", "refuse"]


class Run:
    """One reply on its way out, with all that goes wrong."""

    def __init__(self, reply: Reply, received: Received, answering: Answering) -> None:
        self._reply = reply
        self._fault = reply.fault
        self._received = received
        self._answering = answering
        self._frames = 0

    async def play(self, wire: Wire) -> None:
        reply, fault = self._reply, self._fault
        if fault.hang_up:
            wire.cut()
            return
        if fault.silent:
            await asyncio.Event().wait()
        if reply.first_token_s:
            await asyncio.sleep(reply.first_token_s)
        if reply.status != 200:
            headers = {} if reply.retry_after_s is None else {"retry-after": f"{reply.retry_after_s:g}"}
            await refuse(wire, reply.status, f"status {reply.status}, as scripted", headers, reply.error)
            return
        wire.split = fault.split
        await (self._stream(wire) if self._received.body.get("stream") else self._whole(wire))

    async def _whole(self, wire: Wire) -> None:
        tokens = self._answering.tokens
        if self._reply.per_token_s:
            await asyncio.sleep(self._reply.per_token_s * max(0, len(tokens) - 1))
        body = self._answering.whole(self._reply.reasoning, dict(self._reply.message or {}))
        if self._reply.usage != "never":
            body |= self._told(len(tokens))
        data = json.dumps(body, ensure_ascii=False).encode()
        fault = self._fault
        if fault.hang_after is not None:
            await asyncio.Event().wait()
        if fault.error_after is not None:
            await refuse(wire, 500, "the engine died")
            return
        if fault.corrupt_after is not None:
            data = data.replace(b'"choices"', b'"choi', 1)
        if fault.invalid_utf8_after is not None:
            data = data.replace(b'"choices"', b'"choices\xff"', 1)
        cut = fault.drop_after is not None or fault.truncate_after is not None
        wire.head(200, {"content-type": "application/json"}, length=len(data))
        await wire.send(data[: len(data) // 2] if cut else data)
        self._received.sent = len(tokens)
        wire.cut() if cut else wire.end()

    async def _stream(self, wire: Wire) -> None:
        reply, fault, answering = self._reply, self._fault, self._answering
        wire.head(200, {"content-type": "text/event-stream"})
        if answering.route == "chat":
            await self._send(wire, answering.chunk({"role": "assistant", "content": ""}, 0))
        for word in by_words(reply.reasoning):
            await self._send(wire, answering.chunk({"reasoning_content": word}, 0))
        for choice in range(answering.n):
            for number, token in enumerate(answering.tokens):
                if await self._broken(wire, number):
                    return
                if reply.per_token_s and number:
                    await asyncio.sleep(reply.per_token_s)
                piece: Any = {"content": token} if answering.route == "chat" else token
                logprobs = logprobs_of(answering.route, [token], answering.top_logprobs)
                await self._send(wire, answering.chunk(piece, choice, logprobs=logprobs, tokens=number + 1), number + 1)
                self._received.sent += 1
            if await self._broken(wire, len(answering.tokens)):
                return
            if fault.reason:
                last: Any = {} if answering.route == "chat" else ""
                chunk = answering.chunk(last, choice, reason=answering.reason)
                await self._send(wire, chunk, len(answering.tokens))
        asked = (self._received.body.get("stream_options") or {}).get("include_usage")
        if asked and reply.usage in ("asked", "wrong"):
            await self._send(wire, answering.head() | {"choices": []} | self._told(len(answering.tokens)))
        if fault.done:
            await self._write(wire, frame("[DONE]", reply.line_end))
        wire.end()

    async def _send(self, wire: Wire, chunk: dict[str, Any], tokens: int = 0) -> None:
        reply = self._reply
        if reply.usage == "every_chunk":
            chunk["usage"] = self._usage(tokens)
        if reply.obfuscation:
            chunk["obfuscation"] = f"{self._frames * 2654435761 % 2**32:x}"
        data = json.dumps(chunk, ensure_ascii=False)
        number = self._frames if reply.event_ids else None
        self._frames += 1
        await self._write(
            wire, frame(data, reply.line_end, number=number, comment=reply.comments, multi_line=reply.multi_line)
        )

    async def _write(self, wire: Wire, data: bytes) -> None:
        await wire.send(data)
        if self._fault.duplicate:
            await wire.send(data)

    async def _broken(self, wire: Wire, number: int) -> bool:
        """Do what the script says goes wrong after ``number`` tokens; True: nothing follows."""
        fault, end = self._fault, self._reply.line_end
        if number == fault.hang_after:
            await asyncio.Event().wait()
        if number == fault.drop_after:
            wire.cut()
            return True
        if number == fault.truncate_after:
            whole = frame(json.dumps(self._answering.chunk({"content": "lost"}, 0)), end)
            await wire.send(whole[: len(whole) // 2])
            wire.end()
            return True
        if number == fault.corrupt_after:
            await wire.send(frame('{"choices": [{"index": 0, "delta": {"content": "los', end))
        if number == fault.invalid_utf8_after:
            await wire.send(frame('{"choices": [{"index": 0, "delta": {"content": "@"}}]}', end).replace(b"@", b"\xff"))
        if number == fault.error_after:
            await wire.send(frame(json.dumps({"error": {"message": "the engine died", "code": 500}}), end))
        return False

    def _told(self, tokens: int) -> dict[str, Any]:
        told: dict[str, Any] = {"usage": self._usage(tokens)}
        return told if self._reply.metrics is None else told | {"metrics": dict(self._reply.metrics)}

    def _usage(self, tokens: int) -> dict[str, Any]:
        if self._reply.usage == "wrong":
            return {"prompt_tokens": -3, "completion_tokens": 10**9, "total_tokens": 1}
        return self._answering.usage(tokens)


async def refuse(
    wire: Wire,
    status: int,
    message: str,
    headers: Mapping[str, str] | None = None,
    error: Mapping[str, Any] | None = None,
) -> None:
    kind = "server_error" if status >= 500 else "invalid_request_error"
    await wire.json(status, {"error": {"message": message, "type": kind, "param": None, "code": None, **(error or {})}},
                    headers)  # fmt: skip
