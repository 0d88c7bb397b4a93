"""Streamed answers: order, ends, failures, and clients that leave."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gkt_plugins.contracts import Call
from gkt_plugins.errors import EngineError
from gkt_plugins.testing.engines import Script, ScriptedEngine, by_characters

ANSWER = "So it is, and so it was."


def scripted(name: str, script, **more) -> ScriptedEngine:
    return ScriptedEngine(script, name=name, model=f"{name}-model", **more)


def only(broken: str, script: Script):
    """Engines that answer, but for one."""

    def make(name: str) -> ScriptedEngine:
        return scripted(
            name, script if name == broken else lambda call: ANSWER.removeprefix(call.prefix), chunks=by_characters
        )

    return make


async def streamed(running, path: str = "/v1/chat/completions", **more: Any) -> tuple[int, list[str]]:
    body = {**running.body(), "stream": True, **more}
    async with running.client.stream(path, body) as reply:
        return reply.status, [event async for event in reply.events()]


def texts(events: list[str], index: int = 0) -> str:
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    choices = [choice for chunk in chunks for choice in chunk.get("choices", ()) if choice["index"] == index]
    return "".join(choice["delta"].get("content", "") if "delta" in choice else choice["text"] for choice in choices)


async def test_the_stream_is_the_whole_answer_and_ends_with_its_reason_its_origin_and_done(gateway):
    status, events = await streamed(await gateway())
    assert (status, texts(events), events[-1]) == (200, ANSWER, "[DONE]")
    last = json.loads(events[-2])
    assert last["choices"][0]["finish_reason"] == "stop"
    assert last["gkt"]["route"] == "guided"
    assert [json.loads(event)["choices"][0]["finish_reason"] for event in events[:-2]] == [None] * (len(events) - 2)
    assert not any("gkt" in json.loads(event) for event in events[:-2])


async def test_streams_and_whole_answers_are_the_same_text_character_by_character(gateway):
    running = await gateway(only("nobody", Script("")))
    _, events = await streamed(running)
    whole = (await running.chat()).json()
    assert texts(events) == whole["choices"][0]["message"]["content"] == ANSWER


async def test_usage_comes_in_a_last_chunk_where_it_was_asked_for(gateway):
    _, events = await streamed(await gateway(), stream_options={"include_usage": True})
    *others, last = [json.loads(event) for event in events[:-1]]
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"]
    assert last["gkt"]["route"] == "guided"
    assert all(chunk["usage"] is None for chunk in others)


async def test_the_head_names_the_models_and_keeps_proxies_from_collecting(gateway):
    running = await gateway()
    async with running.client.stream("/v1/chat/completions", running.body(stream=True)) as reply:
        events = [event async for event in reply.events()]
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert (reply.headers["cache-control"], reply.headers["x-accel-buffering"]) == ("no-cache", "no")
    assert (reply.headers["x-gkt-teacher"], reply.headers["x-gkt-student"]) == ("cloud-model", "edge-model")
    assert reply.headers["x-request-id"] == json.loads(events[0])["id"]


async def test_guidance_streams_while_the_teacher_is_still_writing(gateway):
    running = await gateway(only("cloud", Script(ANSWER, hangs_after=6)))
    async with running.client.stream("/v1/chat/completions", running.body(stream=True)) as reply:
        events = reply.events()
        seen = ""
        while not seen.startswith("So"):
            seen += texts([await anext(events)])
        assert not running.engines["edge"].calls


async def test_choices_share_the_guidance_and_each_has_an_end_of_its_own(gateway):
    running = await gateway()
    _, events = await streamed(running, n=3)
    assert [texts(events, index) for index in range(3)] == [ANSWER] * 3
    ends = [
        choice["index"]
        for event in events[:-1]
        for choice in json.loads(event)["choices"]
        if choice["finish_reason"] is not None
    ]
    assert sorted(ends) == [0, 1, 2]
    assert len(running.engines["cloud"].calls) == 1


async def test_several_prompts_stream_beside_each_other(gateway):
    running = await gateway()
    _, events = await streamed(running, "/v1/completions", prompt=["Why?", "When?"], n=2)
    assert [texts(events, index) for index in range(4)] == [ANSWER] * 4
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["gkt"]["guidance_tokens"] == 4
    assert [record.status for record in await running.requests()] == ["ok"]


async def test_one_prompt_of_several_that_cannot_be_answered_ends_the_others(gateway):
    def make(name: str) -> ScriptedEngine:
        return scripted(name, Script(ANSWER, hangs_after=0))

    running = await gateway(make)
    body = {"model": "gkt/default", "prompt": ["Why?", " "], "stream": True}
    assert (await running.client.post("/v1/completions", body)).status == 400
    assert len(running.engines["cloud"].cancelled) == len(running.engines["cloud"].calls)


# ---------------------------------------------------------------------------------------------------------- failures


async def test_what_fails_before_any_text_has_a_status_of_its_own(gateway):
    error = EngineError("nobody is there", retryable=True)
    running = await gateway(lambda name: scripted(name, Script(ANSWER, fails_after=0, error=error)))
    body = running.body(stream=True)
    reply = await running.client.post("/v1/chat/completions", body)
    assert (reply.status, reply.headers["content-type"]) == (503, "application/json")
    assert reply.json()["error"]["code"] == "upstream_unavailable"


async def test_what_fails_after_some_text_ends_the_stream_with_an_error_and_without_done(gateway):
    running = await gateway(only("edge", Script(ANSWER, fails_after=10)))
    status, events = await streamed(running)
    assert status == 200
    assert texts(events[:-1]) == "So it" + ANSWER[:10]
    error = json.loads(events[-1])["error"]
    assert error["code"] == "upstream_error"
    assert error["message"].startswith("the student failed after 15 characters of the answer were released")
    [record] = await running.requests()
    assert (record.status, record.error) == ("error", "upstream_error")
    assert record.first_token_s is not None


async def test_a_choice_that_fails_lets_the_others_finish_first(gateway):
    def make(name: str) -> ScriptedEngine:
        broken = Script(ANSWER, fails_after=0)
        return scripted(
            name,
            lambda call: broken if name == "edge" and call.sampling.seed == 1 else ANSWER.removeprefix(call.prefix),
        )

    _, events = await streamed(await gateway(make), n=2, seed=0)
    assert texts(events[:-1], 0) == ANSWER
    assert "error" in json.loads(events[-1])


async def test_a_teacher_that_dies_mid_stream_loses_and_repeats_nothing(gateway):
    def student(call: Call) -> str:
        assert ANSWER.startswith(call.prefix)
        return ANSWER.removeprefix(call.prefix)

    def make(name: str) -> ScriptedEngine:
        script = Script(ANSWER, fails_after=7) if name == "cloud" else student
        return scripted(name, script, chunks=by_characters)

    status, events = await streamed(await gateway(make))
    assert (status, texts(events), events[-1]) == (200, ANSWER, "[DONE]")
    gkt = json.loads(events[-2])["gkt"]
    assert gkt["degraded"]
    assert gkt["notes"][0].startswith("degraded: the student continued after 5 characters of guidance")


# ------------------------------------------------------------------------------------------------- clients that leave


@pytest.mark.parametrize("hanging", ["cloud", "edge"])
async def test_a_client_that_leaves_cancels_whoever_is_writing_and_what_was_used_is_on_record(gateway, hanging):
    running = await gateway(only(hanging, Script(ANSWER, hangs_after=8)))
    async with running.client.stream("/v1/chat/completions", running.body(stream=True)) as reply:
        async for _ in reply.pieces():
            if len(running.engines[hanging].calls) == 1:
                break
        reply.disconnect()
    assert [len(running.engines[name].cancelled) for name in ("cloud", "edge")] == [
        int(name == hanging) for name in ("cloud", "edge")
    ]
    [record] = await running.requests()
    assert record.status == "cancelled"
    assert (await running.calls())[-1].status in ("cancelled", "final")
    assert {call.status for call in await running.calls() if call.engine == hanging} == {"cancelled"}
    assert all(call.usage.completion_tokens is not None for call in await running.calls())


async def test_a_client_that_leaves_lets_others_go_on(gateway):
    def make(name: str) -> ScriptedEngine:
        return scripted(name, lambda call: Script(ANSWER, hangs_after=4 if call.sampling.seed == 0 else None))

    running = await gateway(make)
    async with running.client.stream("/v1/chat/completions", running.body(stream=True, seed=0)) as leaving:
        await anext(leaving.pieces())
        leaving.disconnect()
        status, events = await streamed(running, seed=1)
        assert (status, events[-1]) == (200, "[DONE]")


async def test_a_request_that_is_cancelled_from_within_is_on_record(gateway):
    called = asyncio.Event()

    def student(call: Call) -> Script:
        called.set()
        return Script(ANSWER, hangs_after=8)

    running = await gateway(lambda name: scripted(name, ANSWER if name == "cloud" else student))
    asking = asyncio.create_task(streamed(running))
    await called.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert [record.status for record in await running.requests()] == ["cancelled"]
