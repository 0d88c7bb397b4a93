"""Requests that reach vLLM as they came: what they used is on record all the same."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gkt_plugins.errors import BackendError
from gkt_plugins.testing.asgi import AsgiClient

CHAT: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "How many?"}], "max_tokens": 9}
PROMPT: dict[str, Any] = {"model": "small", "prompt": "How many?", "max_tokens": 9}
BOTH = [("/v1/chat/completions", CHAT), ("/v1/completions", PROMPT)]
COST_NANO = 7 * 1000 + 5 * 2000


async def streamed(client: Any, path: str, body: dict[str, Any]) -> list[str]:
    async with client.stream(path, {**body, "stream": True}) as reply:
        assert reply.status == 200
        return [event async for event in reply.events()]


@pytest.mark.parametrize(("path", "body"), BOTH)
async def test_an_answer_is_vllm_s_own_to_the_last_byte_and_is_on_record_once(serve, path, body):
    server = await serve()
    reply = await server.client.post(path, body)
    assert server.vllm.bodies == [body]
    assert reply.json()["choices"][0]["finish_reason"] == "stop"
    [record] = server.records()
    assert record.request_id == reply.json()["id"]
    assert (record.role, record.status, record.model, record.pipeline) == ("target", "final", "small", "vllm")
    assert (record.usage.prompt_tokens, record.usage.completion_tokens) == (7, 5)
    assert not record.usage.estimated
    assert record.cost_nano == COST_NANO
    [request] = server.requests()
    assert (request.route, request.status, request.streamed) == ("forwarded", "ok", False)
    assert server.metric("gkt_requests_total", pipeline="vllm", route="forwarded", status="ok") == 1
    assert server.metric("gkt_completion_tokens_total", engine="vllm", role="target") == 5


@pytest.mark.parametrize(("path", "body"), BOTH)
@pytest.mark.parametrize("options", [None, {}, {"include_usage": False, "continuous_usage_stats": True}])
async def test_a_stream_that_asks_for_no_usage_gets_none_and_vllm_s_counts_are_on_record(serve, path, body, options):
    server = await serve()
    events = await streamed(server.client, path, body if options is None else {**body, "stream_options": options})
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert len(chunks) == 5
    assert all(chunk["choices"] and "usage" not in chunk for chunk in chunks)
    assert chunks[-1]["system_fingerprint"] == "fp"
    assert server.vllm.bodies[0]["stream_options"] == {"include_usage": True, "continuous_usage_stats": False}
    [record] = server.records()
    assert (record.usage.prompt_tokens, record.usage.completion_tokens, record.usage.estimated) == (7, 5, False)
    assert record.cost_nano == COST_NANO
    [request] = server.requests()
    assert request.streamed
    assert request.first_token_s is not None


async def test_a_stream_that_asks_for_usage_gets_it(serve):
    server = await serve()
    body = {**CHAT, "stream_options": {"include_usage": True}}
    events = await streamed(server.client, "/v1/chat/completions", body)
    assert json.loads(events[-2])["usage"]["completion_tokens"] == 5
    assert server.vllm.bodies == [{**body, "stream": True}]
    assert [record.usage.completion_tokens for record in server.records()] == [5]


async def test_where_vllm_tells_usage_unasked_nothing_is_hidden(serve):
    server = await serve(usage_unasked=True)
    server.vllm.events = [
        {"id": "x", "choices": [{"index": 0, "delta": {"content": "One"}, "finish_reason": "length"}]},
        {"id": "x", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 1}},
    ]
    events = await streamed(server.client, "/v1/chat/completions", CHAT)
    assert json.loads(events[-2])["usage"] == {"prompt_tokens": 3, "completion_tokens": 1}
    assert "stream_options" not in server.vllm.bodies[0]
    assert [record.usage.prompt_tokens for record in server.records()] == [3]


async def test_the_record_is_closed_before_the_last_of_an_answer_goes_out(serve, monkeypatch):
    server = await serve()
    accounts, order = server.serving.state.opened.accounts, []
    closed = accounts.closed

    async def closing(record: Any) -> Any:
        order.append("closed")
        return await closed(record)

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        async def noted(message: Any) -> None:
            order.extend(line for line in message.get("body", b"").decode().splitlines() if line)
            await send(message)

        await server.app(scope, receive, noted)

    monkeypatch.setattr(accounts, "closed", closing)
    await streamed(AsgiClient(watched), "/v1/chat/completions", CHAT)
    *texts, record, last, done = order
    assert record == "closed"
    assert '"finish_reason":"stop"' in last.replace(" ", "")
    assert done == "data: [DONE]"
    assert len(texts) == 4
    order.clear()
    await AsgiClient(watched).post("/v1/chat/completions", CHAT)
    assert order[0] == "closed"
    assert len(order) == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_while_the_ledger_cannot_be_written_vllm_is_not_asked(serve, monkeypatch, stream):
    server = await serve()

    async def full(record: Any) -> None:
        raise BackendError("the disk is full")

    monkeypatch.setattr(server.serving.state.opened.accounts, "opened", full)
    reply = await server.client.post("/v1/chat/completions", {**CHAT, "stream": stream})
    assert (reply.status, reply.json()["error"]["code"]) == (503, "backend_unavailable")
    assert not server.vllm.received


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_cannot_be_put_on_record_is_not_completed(serve, monkeypatch, stream):
    server = await serve()

    async def full(record: Any) -> None:
        raise BackendError("the disk is full")

    monkeypatch.setattr(server.serving.state.opened.accounts, "closed", full)
    reply = await server.client.post("/v1/chat/completions", {**CHAT, "stream": stream})
    assert b"the disk is full" in reply.body
    assert b"three" not in reply.body
    assert reply.status == (200 if stream else 503)


async def test_a_client_that_leaves_ends_vllm_s_work_and_what_it_did_is_estimated(serve):
    server = await serve()
    server.vllm.stalls.set()
    async with server.client.stream("/v1/chat/completions", {**CHAT, "stream": True}) as reply:
        await anext(reply.events())
        assert server.metric("gkt_requests_in_flight", mode="stream") == 1
        reply.disconnect()
        await asyncio.wait_for(server.vllm.left.wait(), 5)
    assert server.metric("gkt_requests_in_flight", mode="stream") == 0
    [record] = server.records()
    assert (record.status, record.usage.estimated) == ("cancelled", True)
    assert record.usage.completion_tokens in (1, 2)
    assert [request.status for request in server.requests()] == ["cancelled"]


async def test_a_comment_that_keeps_a_connection_alive_is_no_first_text(serve):
    server = await serve()
    server.vllm.silent = True
    async with server.client.stream("/v1/completions", {**PROMPT, "stream": True}) as reply:
        assert await anext(reply.pieces()) == b": keep-alive\n\n"
    assert server.vllm.left.is_set()
    assert [(request.status, request.first_token_s) for request in server.requests()] == [("cancelled", None)]


async def test_a_stream_of_one_token_has_a_first_text(serve):
    server = await serve()
    server.vllm.events = [{"id": "x", "choices": [{"index": 0, "text": "One", "finish_reason": "length"}]}]
    await streamed(server.client, "/v1/completions", PROMPT)
    assert [request.first_token_s is None for request in server.requests()] == [False]


@pytest.mark.parametrize(("status", "outcome"), [(400, "refused"), (404, "refused"), (500, "error"), (503, "error")])
async def test_vllm_s_own_refusal_is_passed_on_as_it_is(serve, status, outcome):
    server = await serve()
    server.vllm.status = status
    reply = await server.client.post("/v1/chat/completions", CHAT)
    assert reply.status == status
    assert reply.json() == {"error": {"message": "vLLM says no", "code": status}}
    [record] = server.records()
    assert record.status == "failed"
    assert [request.status for request in server.requests()] == [outcome]
    if status < 500:
        assert (record.usage.prompt_tokens, record.usage.completion_tokens, record.cost_nano) == (0, 0, 0)


async def test_a_server_that_fails_again_and_again_is_never_left_alone_by_itself(serve):
    server = await serve()
    server.vllm.status = 500
    for _ in range(20):
        await server.client.post("/v1/chat/completions", CHAT)
    server.vllm.status = 200
    assert (await server.client.post("/v1/chat/completions", CHAT)).status == 200


@pytest.mark.parametrize("data", [b"{", b'"text"', b"", b"\xff"])
async def test_what_is_no_object_reaches_vllm_which_answers_it(serve, data):
    server = await serve()
    server.vllm.status = 400
    assert (await server.client.post("/v1/chat/completions", data)).status == 400
    assert len(server.vllm.received) == 1


async def test_a_failure_within_a_stream_is_on_record_as_one(serve):
    server = await serve()
    server.vllm.events = [
        {"id": "x", "choices": [{"index": 0, "delta": {"content": "One"}, "finish_reason": None}]},
        {"error": {"message": "out of memory", "code": 500}},
    ]
    events = await streamed(server.client, "/v1/chat/completions", CHAT)
    assert json.loads(events[1])["error"]["message"] == "out of memory"
    assert [record.status for record in server.records()] == ["failed"]
    assert [(request.status, request.error) for request in server.requests()] == [("error", "upstream_failed")]


async def test_several_choices_and_an_integer_beyond_64_bits_reach_vllm_as_they_are(serve):
    server = await serve()
    await streamed(server.client, "/v1/chat/completions", {**CHAT, "n": 3, "seed": 2**70})
    assert server.vllm.bodies[0]["seed"] == 2**70
    assert [request.choices for request in server.requests()] == [3]


async def test_a_client_s_own_id_is_vllm_s_too_and_may_be_sent_twice(serve):
    server = await serve()
    for _ in range(2):
        reply = await server.client.post("/v1/chat/completions", CHAT, headers={"x-request-id": "mine"})
        assert reply.json()["id"] == "chatcmpl-mine"
    first, second = (record.request_id for record in server.records())
    assert first != second
    assert first.startswith("chatcmpl-mine-")


WHOLE_RESPONSE = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "usage": {"input_tokens": 11, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 4}},
}
RESPONSE_EVENTS = [
    {"type": "response.created", "response": {"id": "resp_1", "object": "response", "status": "in_progress"}},
    {"type": "response.output_text.delta", "delta": "One"},
    {"type": "response.completed", "response": WHOLE_RESPONSE},
]
WHOLE_MESSAGE = {
    "id": "m",
    "type": "message",
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 7, "output_tokens": 3, "cache_read_input_tokens": 4},
}
MESSAGE_EVENTS = [
    {"type": "message_start", "message": {"type": "message", "usage": {"input_tokens": 11, "output_tokens": 0}}},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "One"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": WHOLE_MESSAGE["usage"]},
    {"type": "message_stop"},
]


@pytest.mark.parametrize(
    ("path", "whole", "events"),
    [("/v1/responses", WHOLE_RESPONSE, RESPONSE_EVENTS), ("/v1/messages", WHOLE_MESSAGE, MESSAGE_EVENTS)],
)
async def test_vllm_s_other_apis_are_on_record_whole_and_streamed(serve, path, whole, events):
    server = await serve()
    server.vllm.whole, server.vllm.events = whole, events
    assert (await server.client.post(path, {"model": "small", "input": "x"})).json() == whole
    said = await streamed(server.client, path, {"model": "small", "input": "x"})
    assert [json.loads(event) for event in said] == events
    for record in server.records():
        assert record.status == "final"
        usage = record.usage
        assert (usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens) == (11, 4, 3)


async def test_a_budget_holds_for_requests_that_nobody_guides(serve):
    prices = '[prices.small]\ninput_per_million = "1.00"\noutput_per_million = "2.00"\n'
    server = await serve(f'{prices}[ledger]\nurl = "sqlite:///ledger.db"\n[budget]\nper_day = "0.0001"\n')
    assert (await server.client.post("/v1/completions", PROMPT)).status == 200
    refused = await server.client.post("/v1/completions", {**PROMPT, "max_tokens": 500})
    assert refused.status == 429
    assert refused.json()["error"]["code"] == "insufficient_quota"
    assert len(server.vllm.received) == 1


async def test_a_pipeline_without_a_teacher_gives_its_name_and_its_student(serve):
    text = '[engines.here]\nadapter = "vllm"\nmodel = "priced"\n[pipelines.default]\nstudent = "here"\n'
    server = await serve(text + '[ledger]\nurl = "sqlite:///ledger.db"\n')
    reply = await server.client.post("/v1/chat/completions", CHAT)
    assert "x-gkt-route" not in reply.headers
    [record] = server.records()
    assert (record.role, record.engine, record.model, record.pipeline) == ("student", "here", "priced", "default")
