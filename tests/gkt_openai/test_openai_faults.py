"""An endpoint that misbehaves: no text is lost or repeated, no call hangs, and every failure is one sentence."""

from __future__ import annotations

import json

import pytest

from gkt_openai.engine import OpenAIEngine
from gkt_openai.errors import EndpointError
from gkt_openai.reading import StreamReader
from gkt_plugins.contracts import Call, Completion, Prompt, Sampling
from gkt_plugins.errors import EngineError
from gkt_plugins.testing.engines import by_words
from gkt_plugins.testing.openai_upstream import Fault, Reply, Upstream

TEXT = "The cat sat on the mat; no no, 'the mat' – 猫 🐈."
CALLS = {"chat": Call(Prompt.chat("Where?")), "raw prompt": Call(Prompt(text="Where?"))}


async def read(engine: OpenAIEngine, call: Call) -> tuple[str, EndpointError | None]:
    """What text came, and how it ended."""
    text = ""
    try:
        async for delta in engine.stream(call):
            text += delta.text
    except EndpointError as exc:
        return text, exc
    return text, None


@pytest.fixture(params=CALLS)
def call(request) -> Call:
    return CALLS[request.param]


@pytest.mark.parametrize(
    "reply",
    [
        Reply(TEXT, fault=Fault(split=1)),
        Reply(TEXT, fault=Fault(split=7)),
        Reply(TEXT, line_end="\r\n", fault=Fault(split=1)),
        Reply(TEXT, line_end="\r"),
        Reply(TEXT, comments=True),
        Reply(TEXT, multi_line=True, fault=Fault(split=3)),
        Reply(TEXT, fault=Fault(done=False)),
        Reply(TEXT, usage="every_chunk"),
        Reply(TEXT, usage="never", obfuscation=False),
        Reply(TEXT, per_token_s=0.002),
        Reply(TEXT, fault=Fault(duplicate=True)),
        Reply(TEXT, obfuscation=False, event_ids=True, fault=Fault(duplicate=True)),
        Reply(TEXT, obfuscation=False, usage="every_chunk", fault=Fault(duplicate=True)),
        Reply(TEXT, multi_line=True, comments=True, line_end="\r\n", fault=Fault(split=1, duplicate=True)),
    ],
    ids=str,
)  # fmt: skip
async def test_the_text_is_whole_however_the_frames_come(engine_of, call, reply):
    with Upstream(reply) as upstream:
        assert await read(engine_of(upstream), call) == (TEXT, None)


async def test_equal_frames_are_text_where_nothing_says_that_they_are_the_same_frame(engine_of, call):
    with Upstream(Reply(" no no no no", obfuscation=False)) as upstream:
        assert await read(engine_of(upstream), call) == (" no no no no", None)


async def test_a_chat_in_which_every_frame_comes_twice_is_read_once_without_any_other_proof(engine_of):
    reply = Reply("It is 100, no no.", obfuscation=False, fault=Fault(duplicate=True))
    with Upstream(reply) as upstream:
        assert await read(engine_of(upstream), CALLS["chat"]) == (reply.text, None)


def chunks(*texts: str) -> bytes:
    """A chat's stream, whose frames say no more than they must."""
    said = [{"choices": [{"delta": {"content": text}}]} for text in texts]
    return b"".join(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in said)


def test_a_stream_that_only_begins_with_a_frame_twice_is_read_as_it_is():
    assert StreamReader("chat", "cloud").feed(chunks("", "", "a", "b", "b", "c")) == "abbc"


@pytest.mark.parametrize("last", [chunks("1", "2"), chunks("1") + b"data: [DONE]\n\n"])
def test_a_stream_whose_frames_are_partly_doubled_is_an_error_and_loses_nothing_in_silence(last):
    with pytest.raises(EndpointError, match="some frames twice and others once"):
        StreamReader("chat", "cloud").feed(chunks("", "", "0", "0") + last)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(drop_after=4), "upstream_broken"),
        (Fault(truncate_after=4), "upstream_corrupt"),
        (Fault(corrupt_after=4), "upstream_corrupt"),
        (Fault(invalid_utf8_after=4), "upstream_corrupt"),
        (Fault(error_after=4), "upstream_failed"),
        (Fault(hang_after=4), "upstream_timeout"),
        (Fault(drop_after=4, split=1), "upstream_broken"),
    ],
    ids=str,
)
async def test_a_stream_that_breaks_keeps_the_text_before_and_says_what_happened(engine_of, call, fault, code):
    with Upstream(Reply(TEXT, fault=fault)) as upstream:
        text, error = await read(engine_of(upstream, read_timeout_s=0.3), call)
    assert text == "".join(by_words(TEXT)[:4])
    assert error is not None
    assert (error.code, error.retryable, error.refused) == (code, True, False)
    assert "'cloud'" in str(error)
    assert "\n" not in str(error)


async def test_a_stream_that_ends_without_a_reason_is_not_taken_for_whole(engine_of, call):
    with Upstream(Reply(TEXT, fault=Fault(reason=False))) as upstream:
        text, error = await read(engine_of(upstream), call)
    assert text == TEXT
    assert error is not None
    assert error.code == "upstream_truncated"


@pytest.mark.parametrize("fault", [Fault(silent=True), Fault(hang_after=0)], ids=str)
async def test_silence_ends_with_the_read_time_out(engine_of, call, fault):
    with Upstream(Reply(TEXT, fault=fault)) as upstream:
        engine = engine_of(upstream, read_timeout_s=0.2)
        text, error = await read(engine, call)
        [completion] = await engine.generate([call])
    assert text == ""
    for failed in (error, completion):
        assert isinstance(failed, EndpointError)
        assert failed.code == "upstream_timeout"
        assert "silent for 0.2 s" in str(failed)
        assert "engines.cloud.read_timeout_s" in str(failed)


@pytest.mark.parametrize(
    "fault",
    [Fault(**{f"{name}_after": 0}) for name in ("drop", "truncate", "corrupt", "invalid_utf8", "error")],
    ids=str,
)  # fmt: skip
async def test_a_whole_response_that_breaks_is_an_error_and_the_next_call_is_well(engine_of, call, fault):
    with Upstream([Reply(TEXT, fault=fault), Reply(TEXT)]) as upstream:
        engine = engine_of(upstream)
        [failed] = await engine.generate([call])
        [completion] = await engine.generate([call])
    assert isinstance(failed, EndpointError)
    assert failed.retryable
    assert isinstance(completion, Completion)
    assert completion.text == TEXT


@pytest.mark.parametrize(
    ("reply", "retryable", "retry_after_s", "code"),
    [
        (Reply("", status=429, retry_after_s=1.5), True, 1.5, "upstream_rate_limited"),
        (Reply("", status=429, error={"code": "insufficient_quota"}), False, None, "upstream_quota"),
        (Reply("", status=500), True, None, "upstream_failed"),
        (Reply("", status=503, retry_after_s=20), True, 20.0, "upstream_failed"),
        (Reply("", status=400, error={"message": "no such option"}), False, None, "upstream_refused"),
        (Reply("", status=404), False, None, "upstream_refused"),
    ],
    ids=lambda value: str(getattr(value, "status", value)),
)
async def test_a_refusal_says_whether_and_when_to_come_back(engine_of, call, reply, retryable, retry_after_s, code):
    with Upstream(reply) as upstream:
        text, error = await read(engine_of(upstream), call)
    assert text == ""
    assert error is not None
    assert (error.retryable, error.retry_after_s, error.code) == (retryable, retry_after_s, code)
    assert error.status == reply.status
    assert error.refused
    assert f"status {reply.status}" in str(error)


async def test_an_endpoint_that_is_not_there_is_named_with_its_address(engine_of):
    with Upstream("gone") as upstream:
        engine = engine_of(upstream)
    _, error = await read(engine, CALLS["chat"])
    assert error is not None
    assert (error.code, error.retryable, error.refused) == ("upstream_unreachable", True, True)
    assert upstream.url in str(error)


@pytest.mark.parametrize(
    ("reason", "says"),
    [("tool_calls", "called a tool"), ("content_filter", "content filter"), ("odd", "unknown reason, 'odd'")],
)
async def test_an_answer_that_is_no_whole_text_is_an_error(engine_of, call, reason, says):
    with Upstream(Reply(TEXT, finish_reason=reason)) as upstream:
        engine = engine_of(upstream)
        _, error = await read(engine, call)
        [completion] = await engine.generate([call])
    assert says in str(error)
    assert isinstance(completion, EngineError)
    assert says in str(completion)


@pytest.mark.parametrize("field", ["max_tokens", "stream_options"])
async def test_a_field_that_an_endpoint_does_not_know_is_said_in_its_words_from_then_on(engine_of, field):
    with Upstream("one two three", refuses=[field]) as upstream:
        engine = engine_of(upstream)
        call = Call(Prompt.chat("Count."), sampling=Sampling(max_tokens=2))
        assert await read(engine, call) == ("one two", None)
        assert await read(engine, call) == ("one two", None)
    assert [field in received.body for received in upstream.received] == [True, False, False]


async def test_another_field_that_is_refused_is_an_error_at_once(engine_of):
    with Upstream("one", refuses=["seed"]) as upstream:
        _, error = await read(engine_of(upstream), Call(Prompt.chat("Count."), sampling=Sampling(seed=1)))
    assert error is not None
    assert error.param == "seed"
    assert len(upstream.received) == 1
