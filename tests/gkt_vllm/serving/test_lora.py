"""LoRA adapters of one server: each is a model of its own, also where a request for it is guided."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "How many?"}], "max_tokens": 32}
PRICE = '[prices.priced]\ninput_per_million = "3.00"\noutput_per_million = "5.00"\n'


@pytest.fixture
async def server(guided):
    """One with a teacher and two adapters; one of them has a price."""
    server, _ = await guided(PRICE)
    server.app.state.openai_serving_models = SimpleNamespace(lora_requests={"priced": 1, "unpriced": 2})
    return server


@pytest.mark.parametrize("options", [{}, {"stream": True}, {"logprobs": True}, {"logprobs": True, "stream": True}])
@pytest.mark.parametrize(
    ("model", "cost_nano"),
    [("priced", 7 * 3000 + 5 * 5000), ("unpriced", 7 * 1000 + 5 * 2000), ("small", 7 * 1000 + 5 * 2000)],
)
async def test_an_adapter_is_on_record_by_its_name_at_its_price_or_else_its_base_s(server, model, cost_nano, options):
    reply = await server.client.post("/v1/chat/completions", {**CHAT, "model": model, **options})
    assert reply.headers.get("x-gkt-bypass") == ("logprobs" if "logprobs" in options else None)
    assert reply.headers.get("x-gkt-student", model) == model
    [record] = [record for record in server.records() if record.role == "student"]
    assert (record.status, record.engine, record.model, record.cost_nano) == ("final", "here", model, cost_nano)
    assert server.vllm.bodies[0]["model"] == model


async def test_requests_for_several_adapters_at_once_are_told_apart(server):
    for model in ("priced", "small", "unpriced", "priced"):
        answer = (await server.client.post("/v1/chat/completions", {**CHAT, "model": model})).json()
        assert answer["model"] == model
    students = [record.model for record in server.records() if record.role == "student"]
    assert sorted(students) == ["priced", "priced", "small", "unpriced"]
    assert {record.model for record in server.records() if record.role == "teacher"} == {"large"}


async def test_an_adapter_that_is_not_loaded_is_another_model_which_vllm_refuses_at_no_cost(server):
    server.vllm.status = 404
    reply = await server.client.post("/v1/chat/completions", {**CHAT, "model": "nobody"})
    assert reply.headers["x-gkt-bypass"] == "another model"
    assert [(record.model, record.cost_nano) for record in server.records()] == [("small", 0)]


async def test_other_apis_have_adapters_too(server):
    await server.client.post("/v1/responses", {"model": "priced", "input": "x"})
    assert [record.model for record in server.records()] == ["priced"]
