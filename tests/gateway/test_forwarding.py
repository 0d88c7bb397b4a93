"""Requests that guidance cannot serve, passed on untouched: accounted for, tried again, and said to be unguided."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from gkt_plugins.errors import EngineError
from gkt_plugins.testing.engines import ScriptedEngine

TOML = """
[engines.cloud]
adapter = "scripted"
[engines.edge]
adapter = "scripted"
[pipelines.default]
teacher = "cloud"
student = "edge"
guidance.tokens = 3
[prices.edge-model]
input_per_million = "1.00"
output_per_million = "2.00"
[retries]
attempts = 2
wait_s = 0.001
"""

TOOLS = [{"type": "function", "function": {"name": "look"}}]
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
WHOLE = {
    "id": "theirs",
    "object": "chat.completion",
    "model": "edge-model",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]},
            "finish_reason": "tool_calls",
        }
    ],
    "usage": USAGE,
}


def chunk(delta: dict[str, Any], reason: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "theirs", "model": "edge-model", **more,
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}  # fmt: skip


CHUNKS = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "So"}),
    chunk({}, "stop"),
    {"id": "theirs", "model": "edge-model", "choices": [], "usage": USAGE},
]

Said = Callable[[int], list[Any]]


class Forwarding(ScriptedEngine):
    """A student that speaks the API itself: what ``said(attempt)`` lists is yielded, raised, or waited for."""

    def __init__(self, said: Said, name: str) -> None:
        super().__init__("So it is.", name=name, model=f"{name}-model")
        self.bodies: list[Mapping[str, Any]] = []
        self.ended = 0
        self._said = said

    async def forward(self, route: str, body: Mapping[str, Any]) -> AsyncIterator[Mapping[str, Any]]:
        self.bodies.append(body)
        try:
            for item in self._said(len(self.bodies) - 1):
                if isinstance(item, Exception):
                    raise item
                if item == "hang":
                    await asyncio.Event().wait()
                yield item
        finally:
            self.ended += 1


@pytest.fixture
def forwarded(gateway):
    async def start(*said: Any, by_attempt: Said | None = None):
        running = await gateway(lambda name: Forwarding(by_attempt or (lambda _: list(said)), name), TOML)
        return running, running.engines["edge"]

    return start


async def streamed(running, **more: Any) -> list[str]:
    body = running.body(tools=TOOLS, stream=True, **more)
    async with running.client.stream("/v1/chat/completions", body) as reply:
        return [event async for event in reply.events()]


async def test_the_student_gets_the_request_as_it_came_and_the_client_its_answer(forwarded):
    running, edge = await forwarded(WHOLE)
    reply = await running.chat(tools=TOOLS, user="me", gkt={"guidance_tokens": 3})
    assert edge.bodies == [running.body(tools=TOOLS, user="me")]
    body = reply.json()
    assert body["choices"] == WHOLE["choices"]
    assert (body["usage"], body["model"]) == (USAGE, "gkt/default")
    assert not running.engines["cloud"].bodies + edge.calls


async def test_the_answer_says_that_it_was_not_guided_and_what_it_cost(forwarded):
    running, _ = await forwarded(WHOLE)
    reply = await running.chat(tools=TOOLS)
    gkt = reply.json()["gkt"]
    assert (gkt["route"], gkt["guidance_tokens"]) == ("forwarded", 0)
    assert gkt["notes"] == ["guidance off: the request asks for tools, which text from two models cannot give"]
    # 10 tokens at 1 per million, and 5 at 2
    assert (gkt["cost"], gkt["counterfactual_cost"]) == ("0.00002", None)
    assert reply.headers["x-gkt-route"] == "forwarded"


async def test_it_is_on_record_like_any_call(forwarded):
    running, _ = await forwarded(WHOLE)
    await running.chat(tools=TOOLS)
    [call] = await running.calls()
    assert (call.role, call.engine, call.status, call.attempt) == ("student", "edge", "final", 0)
    assert (call.usage.prompt_tokens, call.usage.completion_tokens, call.usage.estimated) == (10, 5, False)
    [record] = await running.requests()
    assert (record.route, record.status, record.guidance_tokens) == ("forwarded", "ok", 0)
    assert record.student_s is not None


@pytest.mark.parametrize("streams", [False, True])
async def test_drafts_that_the_students_engine_tells_of_are_on_record(forwarded, streams):
    told = {"metrics": {"speculative_decoding": {"num_draft_tokens": 12, "num_accepted_draft_tokens": 5}}}
    running, _ = await forwarded(*([*CHUNKS[:-1], CHUNKS[-1] | told] if streams else [WHOLE | told]))
    await (streamed(running) if streams else running.chat(tools=TOOLS))
    [call] = await running.calls()
    assert (call.usage.drafted_tokens, call.usage.accepted_tokens) == (12, 5)


async def test_a_stream_is_passed_on_and_its_end_says_where_it_comes_from(forwarded):
    running, edge = await forwarded(*CHUNKS)
    *chunks, done = await streamed(running)
    assert done == "[DONE]"
    decoded = [json.loads(one) for one in chunks]
    assert [one["choices"] for one in decoded] == [one["choices"] for one in CHUNKS[:3]]
    assert [one["model"] for one in decoded] == ["gkt/default"] * 3
    assert decoded[-1]["gkt"]["route"] == "forwarded"
    assert edge.bodies[0]["stream_options"] == {"include_usage": True}


async def test_usage_that_the_gateway_asked_for_is_not_shown_to_a_client_that_did_not(forwarded):
    running, _ = await forwarded(*CHUNKS)
    assert all("usage" not in json.loads(one) for one in (await streamed(running))[:-1])
    last = json.loads((await streamed(running, stream_options={"include_usage": True}))[-2])
    assert (last["usage"], last["gkt"]["route"]) == (USAGE, "forwarded")


async def test_usage_that_never_came_is_estimated_and_marked(forwarded):
    running, _ = await forwarded(*CHUNKS[:3])
    await streamed(running)
    [call] = await running.calls()
    assert call.usage.estimated
    assert call.usage.completion_tokens == 1


async def test_a_call_that_fails_before_anything_came_is_tried_again(forwarded):
    broken = EngineError("once", retryable=True)
    running, _ = await forwarded(by_attempt=lambda attempt: [WHOLE] if attempt else [broken])
    reply = await running.chat(tools=TOOLS)
    assert (reply.status, reply.json()["choices"]) == (200, WHOLE["choices"])
    assert [(call.attempt, call.status) for call in await running.calls()] == [(0, "failed"), (1, "final")]
    assert [record.retries for record in await running.requests()] == [1]


async def test_a_call_that_fails_for_good_is_an_error(forwarded):
    running, _ = await forwarded(EngineError("no such field"))
    reply = await running.chat(tools=TOOLS)
    assert (reply.status, reply.json()["error"]["message"]) == (502, "no such field")
    assert [call.status for call in await running.calls()] == ["failed"]


async def test_a_stream_that_breaks_ends_with_an_error_and_is_not_tried_again(forwarded):
    running, edge = await forwarded(*CHUNKS[:2], EngineError("gone", retryable=True))
    *_, last = await streamed(running)
    assert json.loads(last)["error"]["message"] == "gone"
    assert len(edge.bodies) == 1
    [call] = await running.calls()
    assert (call.status, call.usage.estimated) == ("failed", True)


async def test_an_answer_without_an_end_is_an_error_and_never_taken_for_whole(forwarded):
    running, _ = await forwarded(*CHUNKS[:2])
    *_, last = await streamed(running)
    assert json.loads(last)["error"]["message"] == (
        "the engine 'edge' ended a forwarded request without a finish_reason"
    )


async def test_what_an_engine_should_not_have_raised_is_a_sentence(forwarded):
    running, _ = await forwarded(ValueError("oops"))
    reply = await running.chat(tools=TOOLS)
    assert reply.status == 502
    assert reply.json()["error"]["message"].startswith("the engine 'edge' failed unexpectedly")


async def test_an_engine_that_keeps_failing_is_left_alone(forwarded):
    running, edge = await forwarded(EngineError("down", retryable=True))
    replies = [await running.chat(tools=TOOLS) for _ in range(4)]
    assert [reply.status for reply in replies] == [503] * 4
    assert len(edge.bodies) == 5  # the breaker's limit
    assert "left alone" in replies[-1].json()["error"]["message"]


async def test_a_client_that_leaves_ends_the_call_and_what_was_used_is_on_record(forwarded):
    running, edge = await forwarded(*CHUNKS[:2], "hang")
    body = running.body(tools=TOOLS, stream=True)
    async with running.client.stream("/v1/chat/completions", body) as reply:
        pieces = reply.pieces()
        await anext(pieces)
        await anext(pieces)
        reply.disconnect()
    assert edge.ended == 1
    [call] = await running.calls()
    assert (call.status, call.usage.completion_tokens) == ("cancelled", 1)
    assert [record.status for record in await running.requests()] == ["cancelled"]
