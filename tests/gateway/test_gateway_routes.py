"""The addresses of the OpenAI API: whole answers, models, errors, and what is put on record."""

from __future__ import annotations

import asyncio

import pytest

from gkt_plugins.config import load_config
from gkt_plugins.contracts import Call
from gkt_plugins.errors import ConfigError, EngineError
from gkt_plugins.gateway.app import build_app
from gkt_plugins.testing.engines import Script, ScriptedEngine
from gkt_plugins.testing.plugins import plugins_from

ANSWER = "So it is, and so it was."

TWO = """
[engines.cloud]
adapter = "scripted"
[engines.edge]
adapter = "scripted"
[pipelines.default]
teacher = "cloud"
student = "edge"
guidance.tokens = 3
[pipelines.alone]
student = "edge"
[gateway]
request_timeout_s = 0.05
[retries]
attempts = 1
"""


def scripted(name: str, script, **more) -> ScriptedEngine:
    return ScriptedEngine(script, name=name, model=f"{name}-model", **more)


async def test_a_guided_answer_is_the_teachers_beginning_and_the_students_end(gateway):
    running = await gateway()
    reply = await running.chat()
    assert reply.status == 200
    body = reply.json()
    assert body["choices"][0]["message"]["content"] == ANSWER
    assert body["choices"][0]["finish_reason"] == "stop"
    assert (body["gkt"]["route"], body["gkt"]["guidance_tokens"]) == ("guided", 2)
    assert [call.prefix for call in running.engines["edge"].calls] == ["So it"]


async def test_what_the_gkt_object_says_is_in_the_headers_too(gateway):
    reply = await (await gateway()).chat()
    gkt = reply.json()["gkt"]
    assert reply.headers["x-gkt-pipeline"] == "default"
    assert reply.headers["x-gkt-teacher"] == gkt["teacher"] == "cloud-model"
    assert reply.headers["x-gkt-student"] == gkt["student"] == "edge-model"
    assert reply.headers["x-gkt-route"] == "guided"
    assert reply.headers["x-gkt-guidance-tokens"] == "2"
    assert reply.headers["x-gkt-degraded"] == "false"
    assert reply.headers["x-gkt-cost"] == gkt["cost"]
    assert reply.headers["x-gkt-counterfactual-cost"] == gkt["counterfactual_cost"]
    assert reply.headers["x-gkt-currency"] == "USD"
    assert float(reply.headers["x-gkt-overhead-ms"]) == gkt["overhead_ms"]
    assert reply.headers["x-request-id"] == reply.json()["id"]


@pytest.mark.parametrize(
    ("more", "headers"),
    [
        ({"model": "gkt/default@g=1"}, {}),
        ({"gkt": {"guidance_tokens": 1}}, {}),
        ({}, {"x-gkt-guidance-tokens": "1"}),
    ],
)
async def test_a_request_may_say_how_much_guidance_it_wants(gateway, more, headers):
    running = await gateway()
    await running.client.post("/v1/chat/completions", running.body(**more), headers=headers)
    assert [call.sampling.max_tokens for call in running.engines["cloud"].calls] == [1]


async def test_no_guidance_is_the_student_alone(gateway):
    running = await gateway()
    reply = (await running.chat(model="gkt/default@g=0")).json()
    assert reply["gkt"]["route"] == "student"
    assert reply["choices"][0]["message"]["content"] == ANSWER
    assert not running.engines["cloud"].calls


async def test_a_teacher_that_finishes_within_its_guidance_leaves_the_student_out(gateway):
    running = await gateway(lambda name: scripted(name, "Yes."))
    body = (await running.chat()).json()
    assert (body["gkt"]["route"], body["choices"][0]["message"]["content"]) == ("teacher", "Yes.")
    assert not running.engines["edge"].calls


async def test_a_completion_answers_several_prompts_with_several_choices(gateway):
    running = await gateway()
    body = {"model": "gkt/default", "prompt": ["Why?", "When?"], "n": 2}
    reply = await running.client.post("/v1/completions", body)
    assert [(c["index"], c["text"]) for c in reply.json()["choices"]] == [(i, ANSWER) for i in range(4)]
    assert len(running.engines["cloud"].calls) == 2  # one guidance per prompt, shared by its choices
    assert [record.choices for record in await running.requests()] == [4]


async def test_stop_seed_and_max_tokens_reach_the_engines(gateway):
    running = await gateway()
    body = (await running.chat(stop="was", seed=7, max_tokens=20)).json()
    assert body["choices"][0]["message"]["content"] == "So it is, and so it "
    [call] = running.engines["edge"].calls
    assert (call.sampling.seed, call.sampling.stop) == (7, ("was",))


async def test_what_a_request_became_is_on_record_with_its_calls(gateway):
    running = await gateway()
    identity = (await running.chat()).json()["id"]
    [record] = await running.requests()
    assert (record.request_id, record.pipeline, record.route, record.status) == (identity, "default", "guided", "ok")
    assert (record.guidance_tokens, record.streamed, record.choices, record.error) == (2, False, 1, "")
    assert None not in (record.total_s, record.teacher_s, record.student_s, record.overhead_s)
    assert record.total_s >= record.overhead_s
    calls = await running.calls()
    assert sorted((call.request_id, call.role, call.status) for call in calls) == [
        (identity, "student", "final"), (identity, "teacher", "final")
    ]  # fmt: skip


async def test_a_dead_teacher_leaves_a_degraded_answer_that_says_so(gateway):
    def make(name: str) -> ScriptedEngine:
        return scripted(name, Script(ANSWER, fails_after=0) if name == "cloud" else ANSWER)

    running = await gateway(make)
    reply = await running.chat()
    assert reply.status == 200
    assert reply.headers["x-gkt-degraded"] == "true"
    [note] = reply.json()["gkt"]["notes"]
    assert note.startswith("degraded: the student answered alone, because the teacher failed")
    [record] = await running.requests()
    assert (record.degraded, record.status) == (True, "ok")


async def test_what_a_preset_fixes_cannot_be_asked_for_and_the_answer_says_so(gateway):
    running = await gateway(toml=TWO.replace("guidance.tokens = 3", 'guidance.preset = "paper-gsm8k"'))
    body = (await running.chat(temperature=0.3, gkt={"guidance_tokens": 3})).json()
    assert body["gkt"]["notes"] == ["left out: temperature, which the pipeline's preset fixes"]
    assert (await running.chat(gkt={"guidance_tokens": 3})).json()["gkt"]["notes"] == []


# ------------------------------------------------------------------------------------------------------------ errors


async def test_a_dead_student_is_an_error_with_the_status_of_its_cause(gateway):
    def make(name: str) -> ScriptedEngine:
        error = EngineError("the endpoint is asked too often", retryable=True, retry_after_s=2.0)
        return scripted(name, Script(ANSWER, fails_after=0, error=error) if name == "edge" else ANSWER)

    running = await gateway(make)
    reply = await running.chat()
    assert (reply.status, reply.headers["retry-after"]) == (503, "2")
    assert reply.json()["error"]["code"] == "upstream_unavailable"
    assert "the endpoint is asked too often" in reply.json()["error"]["message"]
    [record] = await running.requests()
    assert (record.status, record.error) == ("error", "upstream_unavailable")
    assert {(call.role, call.status) for call in await running.calls()} == {("teacher", "final"), ("student", "failed")}


async def test_one_failed_choice_beside_others_is_named_and_harms_none(gateway):
    broken = Script(ANSWER, fails_after=2)

    def make(name: str) -> ScriptedEngine:
        return scripted(name, lambda call: broken if name == "edge" and call.sampling.seed == 1 else ANSWER)

    running = await gateway(make, TWO)
    body = (await running.chat(model="gkt/alone", n=2, seed=0)).json()
    assert [choice["finish_reason"] for choice in body["choices"]] == ["stop", None]
    assert [error["index"] for error in body["gkt"]["errors"]] == [1]
    assert [(record.status, record.error) for record in await running.requests()] == [("error", "upstream_error")]


async def test_an_unknown_model_is_answered_with_those_that_exist(gateway):
    reply = await (await gateway(toml=TWO)).chat(model="gpt-4")
    assert reply.status == 404
    assert reply.json()["error"] == {
        "message": "the model 'gpt-4' does not exist here; the models that do: gkt/default, gkt/alone",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


async def test_an_empty_prompt_is_refused_and_no_engine_is_called(gateway):
    running = await gateway()
    reply = await running.chat(messages=[{"role": "user", "content": " "}])
    assert reply.status == 400
    assert reply.json()["error"]["message"] == "the prompt is empty; give it at least one word"
    [record] = await running.requests()
    assert (record.status, record.error, record.overhead_s) == ("refused", "invalid_request", None)


async def test_an_answer_that_takes_too_long_is_cancelled_and_on_record(gateway):
    running = await gateway(lambda name: scripted(name, Script(ANSWER, hangs_after=0)), TWO)
    reply = await running.chat(model="gkt/alone")
    assert (reply.status, reply.json()["error"]["code"]) == (504, "upstream_timeout")
    assert len(running.engines["edge"].cancelled) == 1
    [record] = await running.requests()
    assert (record.status, record.error) == ("error", "upstream_timeout")
    assert [call.status for call in await running.calls()] == ["cancelled"]


async def test_a_client_that_leaves_before_its_answer_is_there_cancels_every_call(gateway):
    called = asyncio.Event()

    def teacher(call: Call) -> Script:
        called.set()
        return Script(ANSWER, hangs_after=0)

    running = await gateway(lambda name: scripted(name, teacher if name == "cloud" else ANSWER))
    asking = asyncio.create_task(running.chat())
    await called.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert len(running.engines["cloud"].cancelled) == 1
    [record] = await running.requests()
    assert (record.status, record.error) == ("cancelled", "")
    assert [call.status for call in await running.calls()] == ["cancelled"]


async def test_features_that_the_student_cannot_serve_are_refused_and_named(gateway):
    reply = await (await gateway()).chat(tools=[{"type": "function"}], logprobs=True)
    assert (reply.status, reply.json()["error"]["code"]) == (400, "unsupported_feature")
    assert reply.json()["error"]["message"].startswith(
        "the pipeline 'default' cannot serve logprobs, tools, because its student's engine 'edge' takes text only"
    )


# ---------------------------------------------------------------------------------------------- the other addresses


async def test_pipelines_are_models(gateway):
    client = (await gateway(toml=TWO)).client
    listed = (await client.get("/v1/models")).json()
    assert [model["id"] for model in listed["data"]] == ["gkt/default", "gkt/alone"]
    assert (await client.get("/v1/models/gkt/alone")).json() == listed["data"][1]
    assert (await client.get("/v1/models/gkt/other")).status == 404


async def test_a_gateway_is_alive_and_ready(gateway):
    client = (await gateway()).client
    assert (await client.get("/health")).json() == {"status": "ok"}
    assert (await client.get("/ready")).json() == {"status": "ready", "failed": []}


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", "/v1/completions", 405)])
async def test_what_is_not_there_is_said_in_openais_words(gateway, method, path, status):
    reply = await (await gateway()).client.send(method, path, b"")
    assert reply.status == status
    assert path in reply.json()["error"]["message"]
    assert reply.headers["content-type"] == "application/json"


async def test_metrics_count_what_was_answered(gateway):
    running = await gateway()
    await running.chat()
    page = (await running.client.get("/metrics")).body.decode()
    assert 'gkt_requests_total{pipeline="default",route="guided",status="ok"} 1.0' in page


async def test_the_description_names_every_address_of_the_api(gateway):
    document = (await (await gateway()).client.get("/openapi.json")).json()
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models", "/health", "/ready"} <= document["paths"].keys()


async def test_engines_are_closed_with_the_gateway(gateway):
    running = await gateway()
    await running.requests()
    assert all(engine.closed for engine in running.engines.values())


def test_a_gateway_without_a_pipeline_is_refused():
    plugins = plugins_from()
    with pytest.raises(ConfigError, match="the configuration has none"):
        build_app(load_config(text="", plugins=plugins), plugins, {})
