"""Requests of OpenAI's API: what they become, and what is said of those that are wrong."""

from __future__ import annotations

from typing import Any

import pytest

from gkt_plugins.contracts import Message, Prompt, Sampling
from gkt_plugins.openai_wire.errors import InvalidRequest
from gkt_plugins.openai_wire.requests import Asked, parse, read_model


def chat(**more: Any) -> dict[str, Any]:
    return {"model": "gkt/default", "messages": [{"role": "user", "content": "Why?"}], **more}


def asked(**more: Any) -> Asked:
    return parse("chat", chat(**more))


def refused(body: object, route: Any = "chat", **more: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(route, body, **more)
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_chat_is_one_request_with_the_defaults_of_openai():
    [request] = asked().requests
    assert request.prompt == Prompt(messages=(Message("user", "Why?"),))
    assert request.sampling == Sampling(temperature=1.0)
    assert (request.n, request.features, request.guidance_tokens) == (1, frozenset(), None)
    assert request.request_id.startswith("chatcmpl-")
    assert (asked().stream, asked().include_usage, asked().pipeline) == (False, False, "default")


def test_every_option_of_sampling_arrives():
    [request] = asked(
        max_tokens=7,
        temperature=0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        repetition_penalty=1.2,
        stop=["a", "b"],
        seed=-4,
        n=2,
    ).requests
    assert request.n == 2
    assert request.sampling == Sampling(
        max_tokens=7, top_p=0.5, top_k=3, min_p=0.1, repetition_penalty=1.2, stop=("a", "b"), seed=-4
    )


def test_null_is_as_good_as_absent():
    empty = dict.fromkeys(["max_tokens", "temperature", "stop", "seed", "n", "stream", "tools", "logprobs", "user"])
    assert asked(**empty).requests[0].sampling == asked().requests[0].sampling


def test_max_tokens_are_the_pipelines_where_the_request_names_none():
    def tokens(**more: Any) -> int:
        return parse("chat", chat(**more), default_sampling=Sampling(max_tokens=40)).requests[0].sampling.max_tokens

    assert tokens() == 40
    assert tokens(max_tokens=9) == 9
    assert tokens(max_completion_tokens=8) == 8
    assert tokens(max_completion_tokens=8, max_tokens=8) == 8
    assert refused(chat(max_completion_tokens=8, max_tokens=9)).param == "max_tokens"


def test_a_stop_may_be_one_string():
    assert asked(stop="END").requests[0].sampling.stop == ("END",)


def test_top_k_of_minus_one_keeps_all_as_in_vllm():
    assert asked(top_k=-1).requests[0].sampling.top_k == 0


def test_options_of_other_engines_go_along_and_penalties_of_zero_are_none():
    extra = asked(min_tokens=3, frequency_penalty=0, presence_penalty=0.5, ignore_eos=True).requests[0].sampling.extra
    assert extra == {"min_tokens": 3, "presence_penalty": 0.5, "ignore_eos": True}


def test_what_is_between_a_client_and_its_provider_is_left_out_and_said():
    given = asked(user="me", metadata={"a": "b"}, store=False)
    assert given.requests[0].sampling.extra == {}
    assert given.notes == ("left out: metadata, user, which is between a client and one provider",)
    assert given.body["user"] == "me"


def test_usage_in_a_stream_is_asked_for_by_stream_options():
    assert asked(stream=True, stream_options={"include_usage": True}).include_usage
    assert not asked(stream=True, stream_options={"include_usage": False}).include_usage
    assert not asked(stream_options={"include_usage": True}).include_usage


@pytest.mark.parametrize(
    ("options", "feature"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": True, "top_logprobs": 3}, "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "structured_output"),
        ({"guided_json": {"type": "object"}}, "structured_output"),
        ({"modalities": ["text", "audio"]}, "content_parts"),
        ({"logit_bias": {"17": 3}}, "token_ids"),
    ],
)
def test_what_text_from_two_models_cannot_give_is_a_feature_and_never_refused(options, feature):
    given = asked(**options)
    assert given.features == given.requests[0].features == {feature}
    assert options.items() <= given.body.items()


def test_options_that_ask_for_nothing_are_no_feature():
    assert not asked(
        logprobs=False, top_logprobs=0, tools=[], tool_choice="none", functions=[], parallel_tool_calls=True,
        response_format={"type": "text"}, modalities=["text"], logit_bias={},
    ).features  # fmt: skip


@pytest.mark.parametrize(
    ("message", "feature"),
    [
        ({"role": "tool", "content": "4", "tool_call_id": "c"}, "tools"),
        ({"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}, "tools"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}, "content_parts"),
    ],
)
def test_messages_that_are_more_than_text_are_a_feature(message, feature):
    body = chat(messages=[{"role": "user", "content": "Why?"}, message])
    assert parse("chat", body).features == {feature}


def test_parts_of_text_are_joined_and_developers_are_the_system():
    body = chat(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Why "}, {"type": "text", "text": "so?"}]},
            {"role": "assistant", "content": None, "refusal": "No."},
            {"role": "user", "content": "Please."},
        ]
    )
    given = parse("chat", body)
    assert not given.features
    assert given.requests[0].prompt.messages == (
        Message("system", "Be brief."), Message("user", "Why so?"), Message("assistant", "No."),
        Message("user", "Please."),
    )  # fmt: skip


def test_completions_take_one_prompt_or_several_each_a_request_with_its_own_id():
    given = parse("completions", {"model": "gkt/default", "prompt": ["a", "b"], "n": 2}, request_id="it")
    assert [request.prompt for request in given.requests] == [Prompt("a"), Prompt("b")]
    assert [request.request_id for request in given.requests] == ["it-0", "it-1"]
    assert [request.n for request in given.requests] == [2, 2]
    [alone] = parse("completions", {"model": "gkt/default", "prompt": "a"}, request_id="it").requests
    assert (alone.prompt, alone.request_id) == (Prompt("a"), "it")


@pytest.mark.parametrize(
    ("options", "feature"),
    [
        ({"prompt": [1, 2, 3]}, "token_ids"),
        ({"prompt": [[1, 2], [3]]}, "token_ids"),
        ({"prompt": "a", "echo": True}, "echo"),
        ({"prompt": "a", "logprobs": 0}, "logprobs"),
        ({"prompt": "a", "best_of": 3}, "logprobs"),
        ({"prompt": "a", "suffix": "end"}, "suffix"),
    ],
)
def test_completions_have_features_of_their_own(options, feature):
    assert parse("completions", {"model": "gkt/default", **options}).features == {feature}


def test_best_of_no_more_than_n_is_no_feature():
    assert not parse("completions", {"model": "gkt/default", "prompt": "a", "best_of": 2, "n": 2}).features


# ------------------------------------------------------------------------------------------------- guidance tokens


def test_guidance_tokens_come_from_the_models_name_our_own_key_or_the_header():
    header = {"x-gkt-guidance-tokens": "20"}
    assert asked(model="gkt/default@g=20").guidance_tokens == 20
    assert asked(gkt={"guidance_tokens": 20}).guidance_tokens == 20
    assert parse("chat", chat(), headers=header).guidance_tokens == 20
    both = parse("chat", chat(model="gkt/default@g=20", gkt={"guidance_tokens": 20}), headers=header)
    assert both.requests[0].guidance_tokens == 20
    assert both.pipeline == "default"
    assert asked(model="gkt/default@g=0").guidance_tokens == 0


def test_our_own_key_is_not_passed_on():
    assert asked(gkt={"guidance_tokens": 20}).body == chat()


def test_guidance_tokens_that_contradict_each_other_are_refused_with_both_places():
    error = refused(chat(model="gkt/default@g=20", gkt={"guidance_tokens": 30}))
    assert str(error) == (
        "guidance tokens are asked for more than once, 20 by the model's name and 30 by gkt.guidance_tokens; "
        "keep one of them"
    )


@pytest.mark.parametrize("suffix", ["", "g", "g=", "g=x", "g=-1", "g=1.5", "20", "g=99999999999", "g=٣"])
def test_what_follows_the_at_sign_is_a_number_of_tokens(suffix):
    assert refused(chat(model=f"gkt/default@{suffix}")).param == "model"


@pytest.mark.parametrize("header", ["", "x", "-1", "1e3", "99999999"])
def test_the_header_is_a_number_of_tokens(header):
    error = refused(chat(), headers={"x-gkt-guidance-tokens": header})
    assert str(error).startswith("the header x-gkt-guidance-tokens must be a whole number")


def test_an_unknown_key_of_ours_is_answered_with_the_nearest():
    error = refused(chat(gkt={"guidance_token": 3}))
    assert str(error) == "gkt.guidance_token is not a known key; did you mean 'guidance_tokens'?"


def test_a_model_that_is_no_pipeline_of_ours_is_left_to_the_caller():
    assert read_model({"model": "gpt-4@home"}).pipeline is None
    assert asked(model="gpt-4").pipeline is None


# -------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [{"role": "user", "content": "x"}]}, "model"),
        (chat(model=3), "model"),
        (chat(model=""), "model"),
        ({"model": "gkt/default"}, "messages"),
        (chat(messages="Why?"), "messages"),
        (chat(messages=[]), "messages"),
        (chat(messages=["Why?"]), "messages[0]"),
        (chat(messages=[{"role": "king", "content": "x"}]), "messages[0].role"),
        (chat(messages=[{"role": ["user"], "content": "x"}]), "messages[0].role"),
        (chat(messages=[{"role": "user"}]), "messages[0].content"),
        (chat(messages=[{"role": "user", "content": 3}]), "messages[0].content"),
        (chat(messages=[{"role": "user", "content": [3]}]), "messages[0].content[0]"),
        (chat(messages=[{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
        (chat(max_tokens=0), "max_tokens"),
        (chat(max_tokens=True), "max_tokens"),
        (chat(max_tokens="12"), "max_tokens"),
        (chat(max_tokens=1.5), "max_tokens"),
        (chat(max_tokens=10**30), "max_tokens"),
        (chat(temperature=-0.1), "temperature"),
        (chat(temperature=float("nan")), "temperature"),
        (chat(temperature=float("inf")), "temperature"),
        (chat(temperature="warm"), "temperature"),
        (chat(top_p=0), "top_p"),
        (chat(min_p=2), "min_p"),
        (chat(frequency_penalty=3), "frequency_penalty"),
        (chat(stop=""), "stop"),
        (chat(stop=["a", ""]), "stop"),
        (chat(stop=["a"] * 17), "stop"),
        (chat(stop={"a": 1}), "stop"),
        (chat(seed=2**63), "seed"),
        (chat(n=0), "n"),
        (chat(n=129), "n"),
        (chat(stream="yes"), "stream"),
        (chat(stream=True, stream_options=[]), "stream_options"),
        (chat(logprobs=3), "logprobs"),
        (chat(response_format="json"), "response_format"),
        (chat(gkt=20), "gkt"),
        (chat(gkt={"guidance_tokens": -1}), "guidance_tokens"),
        (chat(continue_final_message=True), "continue_final_message"),
    ],
)
def test_a_key_that_is_wrong_is_named(body, param):
    error = refused(body)
    assert error.param == param
    assert param.partition("[")[0].partition(".")[0] in str(error)
    assert error.status == 400


@pytest.mark.parametrize("prompt", [None, [], 3, {"a": 1}, ["a", 3], [[]], ["a"] * 129, [1, -1], [True]])
def test_a_prompt_is_text_or_token_ids(prompt):
    error = refused({"model": "gkt/default", "prompt": prompt}, "completions")
    assert error.param is not None
    assert error.param.startswith("prompt")


@pytest.mark.parametrize(
    ("body", "came"), [([], "an array"), ("x", "a string"), (3, "a number"), (None, "null"), (True, "true or false")]
)
def test_a_request_is_an_object(body, came):
    assert str(refused(body)).startswith(f"a request must be a JSON object, got {came}")


def test_prompts_times_choices_are_bounded():
    error = refused({"model": "gkt/default", "prompt": ["a"] * 100, "n": 2}, "completions")
    assert str(error).startswith("a request takes at most 128 answers, got 100 prompts with n = 2")


def test_messages_of_errors_are_short_whatever_came():
    assert len(str(refused(chat(temperature="x" * 100_000)))) < 200
    assert len(str(refused(chat(model="gkt/default@" + "x" * 100_000)))) < 200
