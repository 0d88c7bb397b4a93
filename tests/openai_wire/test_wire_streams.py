"""Chunks of streamed answers."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkt_plugins.errors import EngineError
from gkt_plugins.openai_wire.requests import parse
from gkt_plugins.openai_wire.streams import DONE, ChunkWriter, event, failure_event


def writer(route: Any = "chat", model: str = "gkt/default", *, usage: bool = False) -> ChunkWriter:
    asked = {"prompt": "Why?"} if route == "completions" else {"messages": [{"role": "user", "content": "Why?"}]}
    body = {"model": model, "stream": True, "stream_options": {"include_usage": usage}, **asked}
    return ChunkWriter(parse(route, body, request_id="it"), created=7)


def chunks(data: bytes) -> list[dict[str, Any]]:
    *events, rest = data.decode().split("\n\n")
    assert rest == ""
    assert all(one.startswith("data: ") and "\n" not in one for one in events)
    return [json.loads(one.removeprefix("data: ")) for one in events]


def test_the_first_chunk_of_a_choice_names_the_role_and_the_others_do_not():
    to = writer()
    [first] = chunks(to.text(0, "So"))
    assert (first["id"], first["object"], first["created"], first["model"]) == (
        "it", "chat.completion.chunk", 7, "gkt/default"
    )  # fmt: skip
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": "So"}, "logprobs": None, "finish_reason": None}
    ]
    assert chunks(to.text(0, " it"))[0]["choices"][0]["delta"] == {"content": " it"}
    assert chunks(to.text(1, "So"))[0]["choices"][0]["delta"] == {"role": "assistant", "content": "So"}


def test_the_end_of_a_choice_has_the_reason_and_the_last_one_says_where_the_answer_comes_from():
    to = writer()
    to.text(0, "So")
    assert chunks(to.finish(0, "length", {"route": "guided"})) == [
        {
            "id": "it",
            "object": "chat.completion.chunk",
            "created": 7,
            "model": "gkt/default",
            "choices": [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}],
            "gkt": {"route": "guided"},
        }
    ]


def test_a_choice_without_any_text_still_names_its_role():
    first, last = chunks(writer().finish(0, "stop"))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert last["choices"][0]["finish_reason"] == "stop"


def test_usage_is_null_in_every_chunk_but_the_last_which_has_no_choices():
    to = writer(usage=True)
    assert [chunk["usage"] for chunk in chunks(to.text(0, "So") + to.finish(0, "stop"))] == [None, None]
    [last] = chunks(to.usage({"total_tokens": 3}, {"route": "guided"}))
    assert (last["choices"], last["usage"], last["gkt"]) == ([], {"total_tokens": 3}, {"route": "guided"})
    assert "usage" not in chunks(writer().text(0, "So"))[0]


def test_completions_have_text_instead_of_a_delta():
    to = writer("completions")
    assert chunks(to.text(0, "So"))[0]["choices"] == [
        {"index": 0, "text": "So", "logprobs": None, "finish_reason": None}
    ]
    assert chunks(to.text(0, " it") + to.finish(0, "stop"))[1]["choices"][0]["text"] == ""


@pytest.mark.parametrize("model", ["gkt/%s%d", 'gkt/"quoted"', "gkt/ü\n"])
def test_a_models_name_is_data_whatever_it_is(model):
    assert chunks(writer(model=model).text(0, "x"))[0]["model"] == model


@given(st.lists(st.text(max_size=20), min_size=1, max_size=5))
def test_every_text_arrives_as_it_was(texts):
    to = writer()
    data = b"".join(to.text(0, text) for text in texts)
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks(data)] == texts


def test_half_a_character_is_shown_as_one_that_is_broken_and_breaks_nothing():
    assert chunks(writer().text(0, "a\ud83d"))[0]["choices"][0]["delta"]["content"] == "a\ufffd"


def test_a_stream_that_fails_ends_with_openais_error_and_without_done():
    [body] = chunks(failure_event(EngineError("the student failed", retryable=True)))
    assert body["error"]["message"] == "the student failed"
    assert DONE == b"data: [DONE]\n\n"
    assert chunks(event({"a": 1})) == [{"a": 1}]
