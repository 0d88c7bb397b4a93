"""The TGI adapter against a server that holds every message against TGI's published contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing

import pytest

from gkt_plugins.contracts import (
    BuildContext,
    Call,
    Completion,
    Delta,
    Engine,
    Forwarder,
    Message,
    Prompt,
    Sampling,
)
from gkt_plugins.errors import ConfigError, EngineError
from gkt_plugins.guidance.events import Rules
from gkt_plugins.guidance.exchange import Parts
from gkt_plugins.guidance.pipeline import Pipeline
from gkt_plugins.guidance.policies import FixedLength, WordCut
from gkt_plugins.propagation import trace_headers
from gkt_plugins.testing.tgi_server import TGIReply
from gkt_tgi.engine import TGIEngine
from gkt_tgi.options import TGIOptions

TEXT = "The cat sat on the mat and slept."
RAW = Prompt(text="Q: What did the cat do?\nA: ")
CHAT = Prompt(messages=(Message("system", "Be brief."), Message("user", "What did the cat do?")))


def engine_at(url: str, **options: object) -> TGIEngine:
    made = TGIOptions.model_validate({"base_url": url, "model": "served", **options})
    return TGIEngine(made, BuildContext(name="edge", env={"TGI_KEY": "secret-key-1"}))


async def whole(engine: TGIEngine, call: Call) -> Completion:
    [result] = await engine.generate([call])
    assert isinstance(result, Completion), result
    return result


async def pieces(engine: TGIEngine, call: Call) -> list[Delta]:
    async with aclosing(engine.stream(call)) as deltas:  # type: ignore[type-var]
        return [delta async for delta in deltas]


async def failed(engine: TGIEngine, call: Call, *, streamed: bool) -> EngineError:
    if not streamed:
        [result] = await engine.generate([call])
        assert isinstance(result, EngineError)
        return result
    with pytest.raises(EngineError) as caught:
        await pieces(engine, call)
    return caught.value


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - what happens, happens on the server's thread
            await asyncio.sleep(0.01)


def test_it_is_an_engine_that_continues_prefixes_and_forwards():
    engine = engine_at("http://127.0.0.1:1")
    assert isinstance(engine, Engine)
    assert isinstance(engine, Forwarder)
    assert (engine.name, engine.model, engine.capabilities.prefix) == ("edge", "served", "completion")


@pytest.mark.parametrize("prompt", [RAW, CHAT])
@pytest.mark.parametrize("prefix", ["", "The cat sat"])
async def test_streamed_and_whole_answers_have_the_same_text_reason_and_reported_tokens(serve, prompt, prefix):
    server = serve()
    engine = engine_at(server.url)
    call = Call(prompt, prefix, Sampling(max_tokens=40))
    completion = await whole(engine, call)
    deltas = await pieces(engine, call)
    assert completion.text == TEXT.removeprefix(prefix)
    assert "".join(delta.text for delta in deltas) == completion.text
    assert deltas[-1].finish_reason == completion.finish_reason == "stop"
    assert deltas[-1].usage == completion.usage
    assert not completion.usage.estimated
    assert completion.usage.completion_tokens == len(completion.text.split()) + 1  # the end of the answer is a token
    await engine.aclose()


async def test_raw_prompts_take_the_native_routes_and_plain_chats_the_openai_route(serve):
    server = serve()
    engine = engine_at(server.url)
    for call in (Call(RAW), Call(CHAT), Call(CHAT, "The cat")):
        await whole(engine, call)
        await pieces(engine, call)
    routes = [request.route for request in server.received]
    assert sorted(routes[:2]) == ["/generate", "/tokenize"]
    assert routes[2:5] == ["/generate_stream", "/v1/chat/completions", "/v1/chat/completions"]
    assert set(routes[5:]) == {"/chat_tokenize", "/tokenize", "/generate", "/generate_stream"}
    await engine.aclose()


@pytest.mark.parametrize("adds_bos", [True, False])
@pytest.mark.parametrize("template_bos", [True, False])
async def test_a_continued_chat_reads_as_the_chat_route_would_with_the_prefix_at_its_end(serve, adds_bos, template_bos):
    server = serve(adds_bos=adds_bos, template_bos=template_bos)
    engine = engine_at(server.url)
    await whole(engine, Call(CHAT))
    for _ in range(2):
        await pieces(engine, Call(CHAT, "The cat"))
    read = {request.route: request.token_texts for request in server.received}
    chat, continued = read["/v1/chat/completions"], read["/generate_stream"]
    own_bos = () if template_bos or not adds_bos else ("<s>",)  # /generate always puts the tokenizer's own first
    assert continued == (*own_bos, *chat, "The", " cat")
    await engine.aclose()


async def test_a_pipeline_with_tgi_on_both_sides_joins_the_text_without_a_gap(serve):
    teacher, student = engine_at(serve().url), engine_at(serve().url)
    parts = Parts(Rules(FixedLength(4), WordCut()), student, teacher)
    for prompt in (RAW, CHAT):
        async with Pipeline.of(parts) as pipeline:
            answer = await pipeline.answer(prompt)
            [batched] = [answer async for answer in pipeline.batch([prompt])]
        assert answer.text == batched.text == TEXT
        assert answer.guidance == batched.guidance == "The cat sat"
        assert answer.choices[0].notes == ()
    await teacher.aclose()
    await student.aclose()


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("prompt", [RAW, CHAT])
async def test_a_stop_string_ends_the_answer_and_is_not_part_of_it_although_tgi_sends_it(serve, prompt, streamed):
    engine = engine_at(serve().url)
    for stop in (("mat",), (" on the",), ("x", "y", "z", "w", "mat")):  # the fifth is more than TGI takes
        call = Call(prompt, "", Sampling(stop=stop))
        if streamed:
            deltas = await pieces(engine, call)
            text, reason = "".join(delta.text for delta in deltas), deltas[-1].finish_reason
        else:
            completion = await whole(engine, call)
            text, reason = completion.text, completion.finish_reason
        assert (text, reason) == (TEXT[: TEXT.index(stop[-1])], "stop")
    await engine.aclose()


@pytest.mark.parametrize("prompt", [RAW, CHAT])
async def test_the_token_budget_ends_an_answer_with_reason_length(serve, prompt):
    engine = engine_at(serve().url)
    completion = await whole(engine, Call(prompt, sampling=Sampling(max_tokens=3)))
    assert (completion.text, completion.finish_reason) == ("The cat sat", "length")
    assert completion.usage.completion_tokens == 3
    await engine.aclose()


@pytest.mark.parametrize("prompt", [RAW, CHAT])
async def test_every_call_carries_the_trace_on(serve, prompt):
    server = serve()
    link = f"00-{'a' * 32}-{'b' * 16}-01"
    set_before = trace_headers.set({"traceparent": link})
    try:
        async with aclosing(engine_at(server.url)) as engine:
            await whole(engine, Call(prompt))
            await pieces(engine, Call(prompt))
    finally:
        trace_headers.reset(set_before)
    assert [request.headers["traceparent"] for request in server.received] == [link] * len(server.received)
    assert server.received


async def test_greedy_calls_send_no_sampling_options_and_sampled_ones_send_what_the_contract_allows(serve):
    server = serve()
    engine = engine_at(server.url)
    await whole(engine, Call(RAW, sampling=Sampling(seed=3)))
    sampled = Sampling(temperature=0.7, top_p=0.9, top_k=20, seed=0, repetition_penalty=1.2, stop=("a",) * 6)
    await whole(engine, Call(RAW, sampling=sampled))
    await whole(engine, Call(CHAT, sampling=Sampling(temperature=0.7, seed=7, extra={"presence_penalty": 0.5})))
    await whole(engine, Call(RAW, sampling=Sampling(extra={"typical_p": 0.9})))
    greedy, native, chat, extra = (r.body for r in server.received if r.route != "/tokenize")
    assert greedy["parameters"].keys() == {"max_new_tokens", "details"}
    wanted = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.2}
    assert native["parameters"].items() >= wanted.items()
    assert native["parameters"]["seed"] == 2**63 - 1  # the contract has no 0
    assert native["parameters"]["stop"] == ["a"] * 4
    assert chat.items() >= {"temperature": 0.7, "seed": 7, "presence_penalty": 0.5, "model": "served"}.items()
    assert extra["parameters"]["typical_p"] == 0.9
    await engine.aclose()


async def test_a_chat_with_options_that_only_the_native_routes_have_takes_those(serve):
    server = serve()
    engine = engine_at(server.url)
    await pieces(engine, Call(CHAT, sampling=Sampling(temperature=1.0, top_k=5)))
    assert server.received[-1].route == "/generate_stream"
    assert server.received[-1].body["parameters"]["top_k"] == 5
    await engine.aclose()


@pytest.mark.parametrize("prompt", [RAW, CHAT])
@pytest.mark.parametrize(
    ("sampling", "named"),
    [(Sampling(min_p=0.1), "min_p"), (Sampling(extra={"logit_bias": {"1": 2}, "dry": 1}), "dry, logit_bias")],
)
async def test_an_option_that_tgi_does_not_have_fails_the_call_and_is_named(serve, prompt, sampling, named):
    server = serve()
    engine = engine_at(server.url)
    error = await failed(engine, Call(prompt, sampling=sampling), streamed=False)
    assert str(error) == f"the engine 'edge' cannot honour {named}, which TGI does not have; leave it out"
    assert (error.retryable, error.refused, server.received) == (False, True, [])
    await engine.aclose()


@pytest.mark.parametrize("streamed", [True, False])
@pytest.mark.parametrize("prompt", [RAW, CHAT])
@pytest.mark.parametrize(
    ("error_type", "retryable", "refused", "sentence"),
    [
        ("overloaded", True, True, "is overloaded (overloaded, as the script says); try again later, or lower its con"),
        ("validation", False, True, "refused the call: validation, as the script says; change the request"),
        ("generation", True, False, "failed while it wrote: generation, as the script says; see its server's log"),
        ("incomplete_generation", True, False, "failed while it wrote: incomplete_generation, as the script says; see"),
    ],
)
async def test_tgi_s_own_errors_say_whether_to_try_again(
    serve, streamed, prompt, error_type, retryable, refused, sentence
):
    engine = engine_at(serve(TGIReply(TEXT, fails_after=0, error_type=error_type)).url)
    error = await failed(engine, Call(prompt), streamed=streamed)
    assert str(error).startswith(f"the engine 'edge' {sentence}")
    assert (error.retryable, error.refused) == (retryable, refused)
    await engine.aclose()


@pytest.mark.parametrize("prompt", [RAW, CHAT])
@pytest.mark.parametrize(
    "fault", [{"fails_after": 3}, {"drops_after": 3}, {"ends": False}], ids=["error", "drop", "no end"]
)
async def test_a_stream_that_breaks_gives_what_it_gave_and_then_an_error_that_may_be_tried_again(serve, prompt, fault):
    engine = engine_at(serve(TGIReply(TEXT, **fault)).url)
    got: list[str] = []

    async def read() -> None:
        async for delta in engine.stream(Call(prompt)):
            got.append(delta.text)  # noqa: PERF401 - what came before the error counts

    with pytest.raises(EngineError) as caught:
        await read()
    assert "".join(got)
    assert TEXT.startswith("".join(got))
    assert caught.value.retryable
    assert not caught.value.refused
    await engine.aclose()


@pytest.mark.parametrize("prompt", [RAW, CHAT])
async def test_closing_the_iterator_closes_the_connection_so_that_the_server_stops(serve, prompt):
    server = serve(TGIReply(TEXT, hangs_after=2))
    engine = engine_at(server.url)
    deltas = engine.stream(Call(prompt))
    assert isinstance(deltas, AsyncIterator)
    assert (await anext(deltas)).text
    await deltas.aclose()  # type: ignore[attr-defined]
    await eventually(lambda: server.cancelled == 1)
    await engine.aclose()


async def test_a_silent_server_is_given_up_after_read_timeout_s(serve):
    engine = engine_at(serve(TGIReply(TEXT, hangs_after=0)).url, read_timeout_s=0.1)
    for streamed in (True, False):
        for prompt in (RAW, CHAT):
            error = await failed(engine, Call(prompt), streamed=streamed)
            assert "was silent for longer than its read_timeout_s" in str(error)
            assert error.retryable
    await engine.aclose()


async def test_a_server_that_is_no_tgi_is_said_to_be_none(serve):
    engine = engine_at(serve().url + "/elsewhere")
    for streamed in (True, False):
        for prompt in (RAW, CHAT):
            error = await failed(engine, Call(prompt), streamed=streamed)
            assert "answered with status 404 (no route POST /elsewhere/" in str(error)
            assert not error.retryable
    await engine.aclose()


async def test_no_server_is_said_in_one_sentence_and_used_no_tokens():
    engine = engine_at("http://127.0.0.1:9")  # the discard port: nobody listens
    for streamed in (True, False):
        for prompt in (RAW, CHAT):
            error = await failed(engine, Call(prompt), streamed=streamed)
            assert "cannot be reached" in str(error)
            assert "\n" not in str(error)
            assert error.retryable
            assert error.refused
    await engine.aclose()


async def test_one_bad_row_of_a_batch_harms_no_other(serve):
    server = serve(lambda inputs: TGIReply("", fails_after=0) if "bad" in inputs else "fine")
    engine = engine_at(server.url)
    results = await engine.generate([Call(Prompt(text=text)) for text in ("good", "bad", "good too")])
    assert [type(result) for result in results] == [Completion, EngineError, Completion]
    await engine.aclose()


async def test_prompt_tokens_that_the_server_does_not_tell_are_an_estimate_never_zero(serve):
    engine = engine_at(serve(counts_chat_prompts=False, fast_tokenizer=False).url)
    for prompt in (RAW, CHAT):
        completion = await whole(engine, Call(prompt))
        assert completion.usage.estimated
        assert completion.usage.prompt_tokens
        assert completion.usage.completion_tokens == 9
    await engine.aclose()


async def test_a_chat_cannot_be_continued_without_a_tokenizer_and_says_so(serve):
    engine = engine_at(serve(fast_tokenizer=False).url)
    error = await failed(engine, Call(CHAT, "The cat"), streamed=True)
    assert "cannot continue an answer in a chat" in str(error)
    assert "give it raw prompts" in str(error)
    await engine.aclose()


async def test_text_of_any_script_comes_through_streams_unharmed(serve):
    text = "Ναι 猫が\u00a0座る 🐈‍⬛ e\u0301 – “ok” one\u2028two\u0085 \u2029 three\x0b\x1c \n\n four"
    engine = engine_at(serve(text).url)
    for prompt in (RAW, CHAT):
        assert "".join(delta.text for delta in await pieces(engine, Call(prompt))) == text
    await engine.aclose()


async def test_only_the_configured_key_is_sent_and_no_error_shows_it(serve, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 30)  # what huggingface_hub would send by itself
    server = serve(lambda inputs: TGIReply("", fails_after=0))
    keyed, bare = engine_at(server.url, api_key_env="TGI_KEY"), engine_at(server.url)
    asked = [(engine, prompt) for engine in (keyed, bare) for prompt in (RAW, CHAT)]
    errors = [await failed(engine, Call(prompt), streamed=True) for engine, prompt in asked]
    await keyed.aclose()
    await bare.aclose()
    assert [request.headers.get("authorization") for request in server.received] == [
        *["Bearer secret-key-1"] * 2,
        *[None] * 2,
    ]
    assert not any("secret-key-1" in str(error) or "secret-key-1" in repr(error.__cause__) for error in errors)


def test_a_key_that_is_not_set_is_refused_when_the_engine_is_built():
    with pytest.raises(ConfigError, match=r"engines\.edge\.api_key_env names NO_SUCH_KEY, and that environment"):
        engine_at("http://127.0.0.1:1", api_key_env="NO_SUCH_KEY")


async def test_no_more_calls_are_under_way_than_concurrency_says(serve):
    server = serve(TGIReply(TEXT, hangs_after=1))
    engine = engine_at(server.url, concurrency=2)
    tasks = [asyncio.create_task(pieces(engine, Call(RAW))) for _ in range(4)]
    await eventually(lambda: len(server.received) == 2)
    for _ in range(5):
        await asyncio.sleep(0.01)
    assert len(server.received) == 2
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await engine.aclose()
