"""Our layer of vLLM's server: who is guided, who is not, and what an answer says of leniency."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gkt_plugins.testing.openai_upstream import Upstream

CHAT: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "How many?"}], "max_tokens": 32}
GUIDED = """
[engines.large]
adapter = "openai"
base_url = "{url}"
model = "large"
prefix = "continue_final_message"
[engines.here]
adapter = "vllm"
model = "small"
[prices.large]
input_per_million = "2.00"
output_per_million = "10.00"
[prices.small]
input_per_million = "1.00"
output_per_million = "2.00"
[pipelines.default]
teacher = "large"
student = "here"
guidance.tokens = 4
[retries]
attempts = 1
[ledger]
url = "sqlite:///ledger.db"
"""


@pytest.fixture
async def guided(serve):
    """``await guided(**options)``: a server with a teacher, and the teacher."""
    with Upstream("Ten and twenty are thirty, so the answer is 30.", model="large") as teacher:

        async def guided(**options: Any) -> tuple[Any, Upstream]:
            return await serve(GUIDED.format(url=teacher.url), **options), teacher

        yield guided


async def test_a_guided_answer_is_on_record_with_both_models_and_once_each(guided):
    server, teacher = await guided()
    reply = await server.client.post("/v1/chat/completions", CHAT, headers={"x-request-id": "mine"})
    answer = reply.json()
    assert answer["choices"][0]["message"]["content"].startswith("Ten and twenty")
    assert answer["gkt"]["route"] == reply.headers["x-gkt-route"] == "guided"
    assert set(answer["usage"]["gkt"]) == {"teacher", "student"}
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
        ({**CHAT, "use_beam_search": True}, "beam search"),
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


async def test_a_server_starts_without_its_teacher_serves_and_says_so(serve, caplog):
    with Upstream("Ten and twenty are thirty.", model="large") as teacher:
        url = teacher.url
    server = await serve(GUIDED.format(url=url))
    answer = (await server.client.post("/v1/chat/completions", CHAT)).json()
    assert answer["gkt"]["degraded"] is True
    assert answer["gkt"]["route"] == "student"
    assert answer["choices"][0]["message"]["content"] == "One and two are three."
    assert "the teacher 'large' is not there yet" in caplog.text
    page = (await server.client.get("/gkt/info")).json()
    assert "cannot be reached" in page["teacher"]["missing"]
