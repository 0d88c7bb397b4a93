"""Requests that guidance cannot serve reach the endpoint untouched, and so does what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import pytest

from gkt_openai.errors import EndpointError
from gkt_plugins.propagation import trace_headers
from gkt_plugins.testing.openai_upstream import Fault, Reply, Upstream

BODY = {
    "model": "gkt/default",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "What is this?"}]}],
    "tools": [{"type": "function", "function": {"name": "look"}}],
    "n": 2,
    "logprobs": True,
    "top_logprobs": 2,
}


async def rest(chunks: AsyncIterator[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [chunk async for chunk in chunks]


async def test_the_body_is_the_clients_own_but_for_the_models_name(engine_of):
    with Upstream("A cat.") as upstream:
        engine = engine_of(upstream, body={"user": "me"})
        [response] = [chunk async for chunk in engine.forward("chat", BODY)]
    assert upstream.received[0].body == BODY | {"model": "upstream-model", "user": "me"}
    assert [choice["message"]["content"] for choice in response["choices"]] == ["A cat.", "A cat."]
    assert response["choices"][0]["logprobs"]["content"][0]["token"] == "A"


async def test_tool_calls_come_back_as_they_are(engine_of):
    calls = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
    reply = Reply("", finish_reason="tool_calls", message={"content": None, "tool_calls": calls})
    with Upstream(reply) as upstream:
        [response] = [chunk async for chunk in engine_of(upstream).forward("chat", BODY)]
    assert response["choices"][0]["message"]["tool_calls"] == calls
    assert response["choices"][0]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("route", ["chat", "completions"])
async def test_the_chunks_of_a_stream_come_one_by_one_and_each_once(engine_of, route):
    reply = Reply("one two", line_end="\r\n", comments=True, fault=Fault(split=1, duplicate=True))
    body = {"prompt": "Count."} if route == "completions" else {"messages": [{"role": "user", "content": "Count."}]}
    with Upstream(reply) as upstream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        chunks = [chunk async for chunk in engine_of(upstream).forward(route, body)]
    *said, usage = chunks
    pieces = [chunk["choices"][0].get("text", chunk["choices"][0].get("delta", {}).get("content")) for chunk in said]
    assert [piece for piece in pieces if piece] == ["one", " two"]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 2


async def test_a_stream_that_breaks_off_is_an_error_and_not_an_end(engine_of):
    for fault in (Fault(drop_after=1), Fault(truncate_after=1), Fault(reason=False, done=False)):
        with Upstream(Reply("one two three", fault=fault)) as upstream:
            chunks = engine_of(upstream).forward("chat", {"messages": [{"role": "user"}], "stream": True})
            assert await anext(chunks)
            with pytest.raises(EndpointError):
                await rest(chunks)


async def test_a_refusal_keeps_its_status_and_the_field_it_is_about(engine_of):
    with Upstream("unused", refuses=["tools"]) as upstream, pytest.raises(EndpointError) as caught:
        await rest(engine_of(upstream).forward("chat", BODY))
    assert "Unsupported parameter: 'tools'" in str(caught.value)
    assert (caught.value.status, caught.value.param) == (400, "tools")


async def test_a_client_that_goes_away_ends_the_forwarded_request(engine_of):
    with Upstream(Reply("one two", fault=Fault(hang_after=1))) as upstream:
        async with aclosing(engine_of(upstream).forward("chat", BODY | {"stream": True})) as chunks:
            await anext(chunks)
        gone = await asyncio.to_thread(upstream.wait_until, lambda up: up.received[0].disconnected is not None)
    assert gone


async def test_a_trace_is_carried_on_and_only_then(engine_of):
    with Upstream("fine") as upstream:
        engine = engine_of(upstream)
        token = trace_headers.set({"traceparent": "00-1-2-01"})
        await anext(engine.forward("chat", BODY))
        trace_headers.reset(token)
        await anext(engine.forward("chat", BODY))
    assert [received.headers.get("traceparent") for received in upstream.received] == ["00-1-2-01", None]
