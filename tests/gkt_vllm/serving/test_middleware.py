"""Our layer of vLLM's server: who is guided, who is not, and what an answer says of leniency."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gkt_plugins.testing.openai_upstream import Upstream

CHAT: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "How many?"}], "max_tokens": 32}


async def test_a_guided_answer_is_on_record_with_both_models_and_once_each(guided):
    server, teacher = await guided()
    reply = await server.client.post("/v1/chat/completions", CHAT, headers={"x-request-id": "mine"})
    answer = reply.json()
    assert answer["choices"][0]["message"]["content"].startswith("Ten and twenty")
    assert answer["gkt"]["route"] == reply.headers["x-gkt-route"] == "guided"
    assert set(answer["usage"]["gkt"]) == {"teacher", "student"}
    assert answer["id"].startswith("chatcmpl-mine-")
    assert sorted((record.role, record.request_id) for record in server.records()) == [
        ("student", answer["id"]),
        ("teacher", answer["id"]),
    ]
    assert [request.route for request in server.requests()] == ["guided"]
    assert [one.headers["x-request-id"] for one in server.vllm.received] == [f"{answer['id']}-0"]
    assert len(teacher.received) == 1


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({**CHAT, "logprobs": True}, "logprobs"),
        ({**CHAT, "model": "another"}, "another model"),
        ({**CHAT, "use_beam_search": True}, "use_beam_search"),
        ({**CHAT, "return_token_ids": True}, "return_token_ids"),
        ({**CHAT, "kv_transfer_params": {"do_remote_decode": True}}, "kv_transfer_params"),
        ({**CHAT, "bad_words": ["thirty"]}, "bad_words"),
        (
            {**CHAT, "stream_options": {"include_usage": True, "continuous_usage_stats": True}, "stream": True},
            "continuous_usage_stats",
        ),
        ({**CHAT, "messages": [*CHAT["messages"], {"role": "assistant", "content": "Ten"}]}, "the answer has begun"),
        ({**CHAT, "max_tokens": "many"}, "left to vLLM"),
        (b"[]", "not a JSON object"),
    ],
)
async def test_what_is_not_guided_says_why_costs_no_teacher_and_is_on_record(guided, body, why):
    server, teacher = await guided()
    reply = await server.client.post("/v1/chat/completions", body)
    assert reply.headers["x-gkt-route"] == "bypassed"
    assert reply.headers["x-gkt-bypass"].startswith(why)
    assert not teacher.received
    assert [(record.role, record.pipeline) for record in server.records()] == [("student", "default")]
    assert [request.route for request in server.requests()] == ["forwarded"]


async def test_an_address_that_is_not_guided_is_on_record_and_says_so(guided):
    server, teacher = await guided()
    reply = await server.client.post("/v1/responses", {"model": "small", "input": "x"})
    assert reply.headers["x-gkt-bypass"] == "this address is not guided"
    assert not teacher.received
    assert len(server.records()) == 1


async def test_other_addresses_and_methods_are_none_of_our_business(guided):
    server, _ = await guided()
    assert (await server.client.get("/v1/chat/completions")).status == 405
    assert (await server.client.post("/v1/embeddings", {})).status == 404
    assert not server.records()


@pytest.mark.parametrize("wishes", [{"gkt_epsilon": 0.1}, {"gkt_epsilon": "much"}, {"gkt_gamma": 2}])
@pytest.mark.parametrize("with_teacher", [False, True])
async def test_what_the_operator_does_not_allow_is_refused_with_and_without_guidance(
    guided, serve, wishes, with_teacher
):
    server = (await guided(leniency=(1.0, 0.5)))[0] if with_teacher else await serve(leniency=(1.0, 0.5))
    reply = await server.client.post("/v1/chat/completions", {**CHAT, "vllm_xargs": wishes})
    assert reply.status == 400
    error = reply.json()["error"]
    assert (error["param"], error["code"]) == ("vllm_xargs", "invalid_value")
    assert next(iter(wishes)) in error["message"]
    assert not server.vllm.received
    assert not server.records()
    assert server.metric("gkt_errors_total", code="invalid_value") == 1


async def test_a_lenient_answer_is_marked_and_counted_and_an_exact_one_is_not(serve):
    server = await serve(leniency=(0.8, 0.5))
    reply = await server.client.post("/v1/chat/completions", CHAT)
    assert reply.headers["x-gkt-leniency"] == "linear 0.8"
    reply = await server.client.post("/v1/chat/completions", {**CHAT, "vllm_xargs": {"gkt_epsilon": 0.5}})
    assert reply.headers["x-gkt-leniency"] == "linear 0.5"
    assert server.vllm.bodies[-1]["vllm_xargs"] == {"gkt_epsilon": 0.5}
    reply = await server.client.post("/v1/chat/completions", {**CHAT, "vllm_xargs": {"gkt_epsilon": 1}})
    assert "x-gkt-leniency" not in reply.headers
    assert server.metric("gkt_lenient_requests_total", rule="linear") == 2


@pytest.mark.parametrize("stream", [False, True])
async def test_a_guided_answer_says_that_it_is_lenient_in_header_and_notes(guided, stream):
    server, _ = await guided(leniency=(1.0, 0.5))
    body = {**CHAT, "vllm_xargs": {"gkt_epsilon": 0.5}, "stream": stream}
    reply = await server.client.post("/v1/chat/completions", body)
    assert reply.headers["x-gkt-leniency"] == "linear 0.5"
    gkt = json.loads(reply.body.decode().split("data: ")[-2])["gkt"] if stream else reply.json()["gkt"]
    assert gkt["route"] == "guided"
    assert any(note.startswith("lenient: ") and "0.5" in note for note in gkt["notes"])
    assert server.vllm.bodies[-1]["vllm_xargs"] == {"gkt_epsilon": 0.5}


async def test_a_draft_length_reaches_our_own_drafter_and_none_is_exact(serve):
    server = await serve(leniency=(0.8, 0.8), own_drafter=True)
    reply = await server.client.post("/v1/chat/completions", {**CHAT, "vllm_xargs": {"gkt_gamma": 0}})
    assert reply.status == 200
    assert "x-gkt-leniency" not in reply.headers


async def test_a_server_starts_without_its_teacher_serves_and_says_so(serve, guided_config, caplog):
    with Upstream("Ten and twenty are thirty.", model="large") as teacher:
        url = teacher.url
    server = await serve(guided_config.format(url=url))
    answer = (await server.client.post("/v1/chat/completions", CHAT)).json()
    assert answer["gkt"]["degraded"] is True
    assert answer["gkt"]["route"] == "student"
    assert answer["choices"][0]["message"]["content"] == "One and two are three."
    assert "the teacher 'large' is not there yet" in caplog.text
    page = (await server.client.get("/gkt/info")).json()
    assert "cannot be reached" in page["teacher"]["missing"]


@pytest.mark.parametrize(
    ("body", "headers", "param"),
    [
        ({"gkt": {"guidance_tokens": -1}}, {}, "guidance_tokens"),
        ({"gkt": "much"}, {}, "gkt"),
        ({}, {"x-gkt-guidance-tokens": "many"}, "the header x-gkt-guidance-tokens"),
    ],
)
async def test_a_request_that_is_wrong_about_guidance_is_told_so_for_vllm_would_not(guided, body, headers, param):
    server, teacher = await guided()
    reply = await server.client.post("/v1/chat/completions", {**CHAT, **body}, headers=headers)
    assert (reply.status, reply.json()["error"]["param"]) == (400, param)
    assert not server.vllm.received
    assert not teacher.received


@pytest.mark.parametrize("kind", ["text/plain", "", "application/x-www-form-urlencoded"])
async def test_what_a_web_page_of_another_site_may_post_unasked_costs_no_teacher(guided, kind):
    server, teacher = await guided()
    reply = await server.client.post("/v1/chat/completions", CHAT, headers={"content-type": kind})
    assert reply.headers["x-gkt-bypass"] == "left to vLLM"
    assert server.vllm.received[0].headers["content-type"] == kind
    assert not teacher.received


async def test_where_vllm_tells_usage_unasked_a_guided_stream_has_it_too(guided):
    server, _ = await guided(usage_unasked=True)
    reply = await server.client.post("/v1/chat/completions", {**CHAT, "stream": True})
    last = json.loads(reply.body.decode().split("data: ")[-2])
    assert last["choices"] == []
    assert set(last["usage"]["gkt"]) == {"teacher", "student"}


@pytest.mark.parametrize(("by_vllm", "named"), [(False, True), (True, False)])
async def test_an_answer_has_one_request_id_s_header(guided, by_vllm, named):
    server, _ = await guided(request_id_headers=by_vllm)
    reply = await server.client.post("/v1/chat/completions", CHAT)
    assert ("x-request-id" in reply.headers) is named
    assert reply.headers["x-gkt-route"] == "guided"


async def test_a_server_that_is_too_busy_for_guided_requests_is_not_left_alone_by_itself(guided):
    server, _ = await guided()
    server.vllm.status = 503
    for _ in range(8):
        assert (await server.client.post("/v1/chat/completions", CHAT)).status == 503
    server.vllm.status = 200
    assert (await server.client.post("/v1/chat/completions", CHAT)).status == 200


async def test_what_is_open_is_closed_before_the_server_is_told_to_be_over(serve):
    server = await serve()
    received = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    told = []

    async def receive() -> Any:
        return received.pop(0)

    async def send(message: Any) -> None:
        try:
            is_open = bool(server.serving.state.opened)
        except RuntimeError:
            is_open = False
        told.append((message["type"], is_open))

    await server.app({"type": "lifespan", "asgi": {"version": "3.0"}}, receive, send)
    assert told == [("lifespan.startup.complete", True), ("lifespan.shutdown.complete", False)]
