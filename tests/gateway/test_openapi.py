"""The gateway's description of itself, held against what it does."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from starlette.routing import Route

from gkt_plugins.config import load_config
from gkt_plugins.gateway.app import build_app
from gkt_plugins.gateway.openapi import openapi_document
from gkt_plugins.testing.plugins import plugins_from

TOML = """
[engines.edge]
adapter = "openai"
base_url = "http://127.0.0.1:9/v1"
model = "small"
[pipelines.default]
student = "edge"
"""

DOCUMENT = openapi_document()
ROUTES = {
    "/v1/chat/completions": ("ChatRequest", "ChatCompletion"),
    "/v1/completions": ("CompletionRequest", "TextCompletion"),
}


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator({"$ref": f"#/components/schemas/{name}", **DOCUMENT})


def test_every_schema_is_one():
    for schema in DOCUMENT["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_every_address_of_the_gateway_is_described():
    plugins = plugins_from()
    config = load_config(text=TOML, plugins=plugins)
    paths = {route.path for route in build_app(config, plugins, {}).routes if isinstance(route, Route)}
    described = {path.replace("{model}", "{model:path}") for path in DOCUMENT["paths"]}
    assert {path for path in paths if not path.startswith("/dashboard")} == described | {"/metrics", "/openapi.json"}


@pytest.mark.parametrize("more", [{}, {"n": 2}, {"gkt": {"guidance_tokens": 0}}, {"stop": "was"}, {"max_tokens": 2}])
async def test_answers_are_as_described(gateway, more):
    running = await gateway()
    for path, (asked, answered) in ROUTES.items():
        body = {**running.body(**more), "prompt": "Why?"}
        body.pop("messages" if path == "/v1/completions" else "prompt")
        validator(asked).validate(body)
        reply = await running.client.post(path, body)
        assert reply.status == 200
        validator(answered).validate(reply.json())


async def test_models_readiness_and_errors_are_as_described(gateway):
    client = (await gateway()).client
    validator("ModelList").validate((await client.get("/v1/models")).json())
    validator("Model").validate((await client.get("/v1/models/gkt/default")).json())
    validator("Readiness").validate((await client.get("/ready")).json())
    validator("Readiness").validate((await client.get("/health")).json())
    for path in ("/v1/models/none", "/none"):
        validator("Error").validate((await client.get(path)).json())
    validator("Error").validate((await client.post("/v1/completions", b"{")).json())


WRONG: list[dict[str, Any]] = [
    {"model": ""}, {"messages": []}, {"messages": "Why?"}, {"messages": [{"role": "king", "content": "x"}]},
    {"max_tokens": 0}, {"temperature": 3}, {"top_p": 0}, {"stop": [""]}, {"n": 129}, {"seed": 2**63}, {"stream": "yes"},
    {"gkt": {"guidance_tokens": -1}}, {"gkt": {"tokens": 1}}, {"frequency_penalty": 3}, {"stream_options": []},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=str)
async def test_what_the_description_forbids_is_refused(gateway, wrong):
    running = await gateway()
    body = running.body(**wrong)
    assert not validator("ChatRequest").is_valid(body)
    reply = await running.client.post(
        "/v1/chat/completions", body | ({"stream": True} if "stream_options" in wrong else {})
    )
    assert reply.status in (400, 404)
