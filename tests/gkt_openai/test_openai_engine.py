"""An endpoint as an engine: what is sent, what comes back, what it used."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from gkt_openai.engine import OpenAIEngine
from gkt_plugins.contracts import Call, Completion, Engine, Examinable, Forwarder, Message, Prompt, Sampling
from gkt_plugins.errors import ConfigError
from gkt_plugins.testing.openai_upstream import Fault, Reply, Upstream

CHAT = Call(Prompt.chat("Where did the cat sit?"))
RAW = Call(Prompt(text="The cat"))


async def streamed(engine: OpenAIEngine, call: Call) -> Completion:
    """The deltas of a stream as one answer."""
    deltas = [delta async for delta in engine.stream(call)]
    last = deltas[-1]
    assert last.finish_reason is not None
    assert last.usage is not None
    return Completion("".join(delta.text for delta in deltas), last.finish_reason, last.usage, last.notes)


async def whole(engine: OpenAIEngine, call: Call) -> Completion:
    [completion] = await engine.generate([call])
    assert isinstance(completion, Completion), completion
    return completion


@pytest.mark.parametrize("ask", [streamed, whole])
@pytest.mark.parametrize("call", [CHAT, RAW], ids=["chat", "raw prompt"])
async def test_streamed_or_whole_the_answer_is_the_same(engine_of, ask, call):
    with Upstream("It sat on the mat, naïvely. 猫 🐈") as upstream:
        completion = await ask(engine_of(upstream), call)
    assert completion.text == "It sat on the mat, naïvely. 猫 🐈"
    assert completion.finish_reason == "stop"
    assert (completion.usage.completion_tokens, completion.usage.estimated, completion.notes) == (8, False, ())
    assert completion.usage.prompt_tokens == (7 if call is CHAT else 2)  # <user> and <assistant> are tokens too


@pytest.mark.parametrize("ask", [streamed, whole])
async def test_the_budget_and_stop_strings_are_the_endpoints_to_keep(engine_of, ask):
    with Upstream("one two three four five") as upstream:
        engine = engine_of(upstream)
        assert (await ask(engine, Call(CHAT.prompt, sampling=Sampling(max_tokens=2)))).finish_reason == "length"
        cut = await ask(engine, Call(CHAT.prompt, sampling=Sampling(stop=(" three",))))
    assert (cut.text, cut.finish_reason) == ("one two", "stop")


async def test_sampling_options_go_out_under_the_api_s_names_and_defaults_stay_at_home(engine_of):
    sampling = Sampling(
        max_tokens=7,
        temperature=0.5,
        top_k=3,
        top_p=0.9,
        min_p=0.1,
        repetition_penalty=1.1,
        stop=("x",),
        seed=4,
        extra={"logit_bias": {"5": 1}},
    )
    with Upstream("fine") as upstream:
        engine = engine_of(upstream, body={"user": "me"}, headers={"X-Team": "blue"})
        await streamed(engine, Call(CHAT.prompt, sampling=sampling))
        await whole(engine, RAW)
    chat, raw = upstream.received
    assert chat.body == {
        "model": "upstream-model",
        "messages": [{"role": "user", "content": "Where did the cat sit?"}],
        "max_tokens": 7,
        "temperature": 0.5,
        "top_k": 3,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "stop": ["x"],
        "seed": 4,
        "logit_bias": {"5": 1},
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "me",
    }
    assert raw.body == {
        "model": "upstream-model", "prompt": "The cat", "max_tokens": 256, "temperature": 0.0, "user": "me",
    }  # fmt: skip
    assert chat.headers["x-team"] == "blue"
    assert chat.headers["user-agent"].startswith("gkt-plugins/")


async def test_all_turns_of_a_chat_go_out_in_order(engine_of):
    turns = (Message("system", "Be brief."), Message("user", "A?"), Message("assistant", "B."), Message("user", "C?"))
    with Upstream("D.") as upstream:
        await whole(engine_of(upstream), Call(Prompt(messages=turns)))
    [received] = upstream.received
    assert [(turn["role"], turn["content"]) for turn in received.body["messages"]] == [
        (turn.role, turn.content) for turn in turns
    ]


async def test_text_that_no_utf_8_has_is_sent_as_question_marks(engine_of):
    with Upstream("fine") as upstream:
        await whole(engine_of(upstream), Call(Prompt.chat("half \ud83d an emoji")))
    assert upstream.received[0].body["messages"][0]["content"] == "half ? an emoji"


# ----------------------------------------------------------------------------------------------------------------- keys


async def test_the_key_comes_from_the_environment_and_reaches_the_endpoint(engine_of):
    with Upstream("fine", key="s3cret-key") as upstream:
        engine = engine_of(upstream, api_key_env="CLOUD_KEY", env={"CLOUD_KEY": "s3cret-key"})
        assert (await whole(engine, CHAT)).text == "fine"


@pytest.mark.parametrize("env", [{}, {"CLOUD_KEY": ""}, {"CLOUD_KEY": "  "}])
def test_a_key_that_is_not_there_is_told_by_the_variable_s_name(engine_of, env):
    with pytest.raises(ConfigError, match=r"api_key_env names CLOUD_KEY, and that environment variable is not set"):
        engine_of(Upstream("unused"), base_url="http://127.0.0.1:9/v1", api_key_env="CLOUD_KEY", env=env)


def test_a_key_with_a_line_end_inside_is_refused_and_not_shown(engine_of):
    with pytest.raises(ConfigError, match=r"^the environment variable CLOUD_KEY must hold a key") as caught:
        engine_of(Upstream("unused"), base_url="http://127.0.0.1:9/v1", api_key_env="CLOUD_KEY",
                  env={"CLOUD_KEY": "abc\r\nx-evil: 1"})  # fmt: skip
    assert "abc" not in str(caught.value)


async def test_no_error_and_no_repr_ever_holds_the_key(engine_of, caplog):
    key = "verysecretvalue123"
    scold = Reply("", status=400, error={"message": f"your key {key} and sk-abcdef123456 may not do this"})
    with Upstream([scold, Reply("", status=401, error={"message": f"bad key {key}"})]) as upstream:
        engine = engine_of(upstream, api_key_env="CLOUD_KEY", env={"CLOUD_KEY": key})
        errors = await engine.generate([CHAT]) + await engine.generate([CHAT])
    told = " ".join([*map(repr, errors), *map(str, errors), repr(engine), repr(vars(engine)["_endpoint"]), caplog.text])
    assert key not in told
    assert "sk-abcdef123456" not in told
    assert "may not do this" in told
    assert "check the key in CLOUD_KEY" in told


# ---------------------------------------------------------------------------------------------------------------- usage


@pytest.mark.parametrize("ask", [streamed, whole])
async def test_counts_that_cannot_be_true_are_estimated_and_marked(engine_of, ask):
    with Upstream(Reply("eight letters here", usage="wrong")) as upstream:
        completion = await ask(engine_of(upstream), CHAT)
    assert completion.usage.estimated
    assert completion.usage.completion_tokens == 5  # 18 bytes, four to a token
    assert completion.notes == ("usage estimated: the endpoint's own token counts cannot be true",)


@pytest.mark.parametrize("ask", [streamed, whole])
async def test_counts_that_are_not_told_are_estimated_and_marked(engine_of, ask):
    with Upstream(Reply("eight letters here", usage="never")) as upstream:
        completion = await ask(engine_of(upstream), CHAT)
    assert completion.usage.estimated
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (6, 5)
    assert completion.notes == ()


@pytest.mark.parametrize("ask", [streamed, whole])
async def test_drafts_that_the_endpoint_tells_of_are_part_of_the_usage(engine_of, ask):
    drafts = {"num_draft_tokens": 12, "num_accepted_draft_tokens": 5}
    with Upstream(Reply("one two three", metrics={"speculative_decoding": drafts})) as upstream:
        usage = (await ask(engine_of(upstream), CHAT)).usage
    assert (usage.drafted_tokens, usage.accepted_tokens, usage.completion_tokens) == (12, 5, 3)


async def test_usage_in_every_chunk_is_a_running_count_and_not_a_sum(engine_of):
    with Upstream(Reply("one two three four", usage="every_chunk")) as upstream:
        completion = await streamed(engine_of(upstream), CHAT)
    assert completion.usage.completion_tokens == 4
    assert not completion.usage.estimated


async def test_seconds_of_calls_at_once_add_up_to_the_time_that_passed(engine_of):
    with Upstream(Reply("one two three", per_token_s=0.05)) as upstream:
        engine = engine_of(upstream)
        started = asyncio.get_running_loop().time()
        completions = await engine.generate([CHAT] * 4)
        passed = asyncio.get_running_loop().time() - started
    total = sum(one.usage.seconds for one in completions if isinstance(one, Completion) and one.usage.seconds)
    assert 0.1 <= total <= passed


async def test_hidden_reasoning_is_no_answer_and_is_said(engine_of):
    with Upstream([Reply("", reasoning="let me think"), Reply("Yes.", reasoning="let me think")]) as upstream:
        engine = engine_of(upstream)
        nothing, something = await streamed(engine, CHAT), await streamed(engine, CHAT)
    assert nothing.text == ""
    assert "hidden reasoning" in nothing.notes[0]
    assert (something.text, something.notes) == ("Yes.", ())


# ------------------------------------------------------------------------------------------------------ many, and going


async def test_a_batch_has_no_more_calls_under_way_than_it_may_and_keeps_their_order(engine_of):
    with Upstream(lambda asked: Reply(asked.body["messages"][0]["content"], first_token_s=0.01)) as upstream:
        engine = engine_of(upstream, batch_concurrency=3)
        completions = await engine.generate([Call(Prompt.chat(f"number {i}")) for i in range(12)])
        assert upstream.connections <= 3
    assert [one.text for one in completions if isinstance(one, Completion)] == [f"number {i}" for i in range(12)]


async def test_one_bad_row_of_a_batch_harms_no_other(engine_of):
    def script(asked):
        bad = "2" in asked.body["messages"][0]["content"]
        return Reply("", status=400) if bad else Reply("fine")

    with Upstream(script) as upstream:
        results = await engine_of(upstream).generate([Call(Prompt.chat(f"number {i}")) for i in range(4)])
    assert [isinstance(result, Completion) for result in results] == [True, True, False, True]


async def test_calls_beyond_concurrency_wait_for_a_place(engine_of):
    with Upstream(Reply("one two", per_token_s=0.02)) as upstream:
        engine = engine_of(upstream, concurrency=2)
        await asyncio.gather(*(streamed(engine, CHAT) for _ in range(6)))
        assert upstream.connections <= 2


async def test_a_reader_that_goes_away_ends_the_request_at_the_endpoint(engine_of):
    with Upstream(Reply("one two three", fault=Fault(hang_after=2))) as upstream:
        async with aclosing(engine_of(upstream).stream(CHAT)) as deltas:
            assert (await anext(deltas)).text == "one"
        gone = await asyncio.to_thread(upstream.wait_until, lambda up: up.received[0].disconnected is not None)
    assert gone


async def test_a_cancelled_batch_ends_its_requests_at_the_endpoint(engine_of):
    with Upstream(Reply("one", fault=Fault(silent=True))) as upstream:
        task = asyncio.create_task(engine_of(upstream).generate([CHAT] * 3))
        assert await asyncio.to_thread(upstream.wait_until, lambda up: len(up.received) == 3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gone = await asyncio.to_thread(
            upstream.wait_until, lambda up: all(one.disconnected is not None for one in up.received)
        )
    assert gone


async def test_an_engine_can_be_closed_twice(engine_of):
    with Upstream("fine") as upstream:
        engine = engine_of(upstream)
        await whole(engine, CHAT)
        await engine.aclose()
        await engine.aclose()


def test_it_is_an_engine_that_forwards_and_can_be_examined(engine_of):
    engine = engine_of(Upstream("unused"), base_url="http://127.0.0.1:9/v1")
    assert isinstance(engine, Engine)
    assert isinstance(engine, Forwarder)
    assert isinstance(engine, Examinable)
    assert (engine.name, engine.model) == ("cloud", "upstream-model")
