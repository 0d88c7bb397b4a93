"""A guided request reaches the student in its client's own words, as it would without guidance."""

from __future__ import annotations

import json
from typing import Any

import pytest

CHAT: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "How many?"}]}


async def test_what_a_request_does_not_say_is_left_to_vllm_and_its_model(guided):
    server, teacher = await guided()
    reply = await server.client.post("/v1/chat/completions", {**CHAT, "model": None})
    assert reply.headers["x-gkt-route"] == "guided"
    assert reply.json()["model"] == "small"
    [asked] = server.vllm.bodies
    assert not {"temperature", "top_p", "top_k", "max_tokens", "max_completion_tokens"} & set(asked)
    assert teacher.received[0].body["max_tokens"] == 4


@pytest.mark.parametrize(("said", "sent"), [({}, 16 - 4), ({"max_tokens": None}, None), ({"max_tokens": 9}, 9 - 4)])
async def test_a_raw_prompt_has_vllm_s_own_bound_which_guidance_is_a_part_of(guided, said, sent):
    server, _ = await guided()
    reply = await server.client.post("/v1/completions", {"model": "small", "prompt": "How many?", **said})
    assert reply.headers["x-gkt-guidance-tokens"] == "4"
    assert server.vllm.bodies[0].get("max_tokens") == sent


async def test_what_a_request_says_reaches_vllm_as_it_was_said_although_it_is_our_default(guided):
    server, teacher = await guided()
    said = {
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "vllm_xargs": {"mine": 1},
        "priority": 3,
        "cache_salt": "salt",
        "ignore_eos": True,
    }
    await server.client.post("/v1/chat/completions", {**CHAT, **said, "max_tokens": 32})
    [asked] = server.vllm.bodies
    assert {key: asked[key] for key in said} == said
    assert asked["max_tokens"] == 32 - 4
    assert not {"vllm_xargs", "priority", "cache_salt", "ignore_eos"} & set(teacher.received[0].body)


async def test_the_chat_reaches_vllm_as_it_came_with_the_answer_so_far(guided):
    server, _ = await guided()
    parts = [{"type": "text", "text": "How"}, {"type": "text", "text": "many?"}]
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts, "name": "ann"}]
    await server.client.post("/v1/chat/completions", {**CHAT, "messages": messages})
    *chat, begun = server.vllm.bodies[0]["messages"]
    assert chat == messages
    assert begun == {"role": "assistant", "content": "Ten and twenty"}


async def test_the_least_that_is_to_be_written_is_never_more_than_guidance_leaves(guided):
    server, _ = await guided()
    await server.client.post("/v1/chat/completions", {**CHAT, "max_tokens": 32, "min_tokens": 32})
    assert [(asked["min_tokens"], asked["max_tokens"]) for asked in server.vllm.bodies] == [(28, 28)]


async def test_a_preset_decides_what_a_request_does_not_say(guided):
    server, _ = await guided(guidance='guidance.preset = "paper-gsm8k"')
    await server.client.post("/v1/chat/completions", {**CHAT, "temperature": 0.9, "top_p": 0.7})
    [asked] = server.vllm.bodies
    assert (asked["temperature"], asked["max_tokens"], asked["top_p"]) == (0.0, 340 - 4, 0.7)


def thinking(key: str, text: str, *, stream: bool) -> dict[str, Any]:
    """What a server with a reasoning parser answers."""
    said = {"delta" if stream else "message": {"role": "assistant", "content": None, key: text}}
    return {"choices": [{"index": 0, **said, "finish_reason": None if stream else "stop"}]}


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
async def test_what_vllm_takes_for_thoughts_is_text_where_an_answer_goes_on(guided, key):
    server, _ = await guided()
    server.vllm.whole = thinking(key, " are thirty.", stream=False)
    answer = (await server.client.post("/v1/chat/completions", CHAT)).json()
    assert answer["choices"][0]["message"]["content"] == "Ten and twenty are thirty."
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    server.vllm.events = [thinking(key, text, stream=True) for text in (" are", " thirty.")] + [end]
    async with server.client.stream("/v1/chat/completions", {**CHAT, "stream": True}) as reply:
        chunks = [json.loads(event) for event in [event async for event in reply.events()][:-1]]
    texts = [choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]]
    assert "".join(texts) == "Ten and twenty are thirty."


async def test_thoughts_are_no_text_where_the_student_answers_alone(guided):
    server, _ = await guided()
    server.vllm.whole = thinking("reasoning", "Hm.", stream=False)
    body = {**CHAT, "gkt": {"guidance_tokens": 0}}
    answer = (await server.client.post("/v1/chat/completions", body)).json()
    assert answer["choices"][0]["message"]["content"] == ""
