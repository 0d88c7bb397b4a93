"""The gateway's own description, ``GET /openapi.json``: what it takes and gives, in OpenAPI 3.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gkt_plugins import __version__
from gkt_plugins.openai_wire.requests import GUIDANCE_HEADER

__all__ = ["openapi_document"]

_Schema = dict[str, Any]

_COUNT: _Schema = {"type": ["integer", "null"], "minimum": 0}
_TEXT: _Schema = {"type": "string"}
_EVENT: _Schema = {"type": "object", "properties": {"data": _TEXT}, "required": ["data"]}
_FLAG: _Schema = {"type": ["boolean", "null"]}
_AMOUNT: _Schema = {
    "type": ["string", "null"],
    "description": "A decimal number, exact; null: unknown.",
    "examples": ["0.000155"],
}


def _number(low: float, high: float, text: str = "") -> _Schema:
    return {"type": ["number", "null"], "minimum": low, "maximum": high} | ({"description": text} if text else {})


def _positive(high: float) -> _Schema:
    return {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": high}


def _integer(low: int, high: int = 2**31 - 1, text: str = "") -> _Schema:
    return {"type": ["integer", "null"], "minimum": low, "maximum": high} | ({"description": text} if text else {})


def _object(properties: Mapping[str, _Schema], required: Sequence[str] = (), text: str = "") -> _Schema:
    schema: _Schema = {"type": "object", "properties": dict(properties), "required": list(required)}
    return schema | ({"description": text} if text else {})


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_SAMPLING: dict[str, _Schema] = {
    "model": {"type": "string", "minLength": 1, "description": "gkt/NAME, or gkt/NAME@g=20 for 20 guidance tokens."},
    "max_tokens": _integer(1, text="Of the whole answer, guidance included."),
    "temperature": _number(0, 2, "Default: 1."),
    "top_p": _positive(1),
    "top_k": _integer(-1),
    "min_p": _number(0, 1),
    "repetition_penalty": _positive(10),
    "frequency_penalty": _number(-2, 2),
    "presence_penalty": _number(-2, 2),
    "stop": {
        "anyOf": [
            {"type": "string", "minLength": 1},
            {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": 16},
            {"type": "null"},
        ]
    },
    "seed": {"type": ["integer", "null"], "minimum": -(2**63), "maximum": 2**63 - 1},
    "n": _integer(1, 128, "Choices; they share one guidance."),
    "stream": _FLAG,
    "stream_options": {"anyOf": [_object({"include_usage": _FLAG}), {"type": "null"}]},
    "gkt": {
        "anyOf": [
            _object({"guidance_tokens": _integer(0, 1_000_000, "0: the student alone.")})
            | {"additionalProperties": False},
            {"type": "null"},
        ]
    },
}

_MESSAGE = {
    "type": "object",
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool", "function"]},
        "content": {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": _object({"type": _TEXT}, ["type"])},
                {"type": "null"},
            ]
        },
    },
    "required": ["role", "content"],
}

_GKT = _object(
    {
        "guidance_tokens": {"type": "integer", "minimum": 0},
        "teacher": {"type": ["string", "null"]},
        "student": _TEXT,
        "route": {"enum": ["guided", "teacher", "student", "forwarded"]},
        "degraded": {"type": "boolean"},
        "cached": {"type": "boolean"},
        "notes": {"type": "array", "items": _TEXT},
        "cost": _AMOUNT,
        "counterfactual_cost": _AMOUNT,
        "currency": {"type": ["string", "null"]},
        "overhead_ms": {"type": ["number", "null"], "minimum": 0},
        "errors": {"type": "array", "items": _object({"index": {"type": "integer"}, "message": _TEXT})},
    },
    ["guidance_tokens", "teacher", "student", "route", "degraded", "cached", "notes", "cost"],
    "Who wrote the answer, what it cost, and what the teacher alone would have cost, estimated.",
)

_SCHEMAS: dict[str, _Schema] = {
    "ChatRequest": _object(
        _SAMPLING
        | {
            "messages": {"type": "array", "items": _MESSAGE, "minItems": 1},
            "max_completion_tokens": _integer(1),
        },
        ["model", "messages"],
        "Further options of the OpenAI API are passed on to the engines as they come; tools, response_format, "
        "logprobs and content that is not text turn guidance off.",
    ),
    "CompletionRequest": _object(
        _SAMPLING
        | {
            "prompt": {
                "anyOf": [
                    {"type": "string"},
                    {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 128},
                    {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
                ]
            }
        },
        ["model", "prompt"],
    ),
    "Usage": _object(
        {"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT},
        ["prompt_tokens", "completion_tokens", "total_tokens"],
        "Of the client's prompt and the whole answers; null: unknown.",
    ),
    "Gkt": _GKT,
    "ChatCompletion": _object(
        {
            "id": _TEXT,
            "object": {"const": "chat.completion"},
            "created": {"type": "integer"},
            "model": _TEXT,
            "choices": {
                "type": "array",
                "items": _object({"index": {"type": "integer"}, "message": _object({"role": _TEXT})}, ["index"]),
            },
            "usage": {"anyOf": [_ref("Usage"), {"type": "null"}]},
            "gkt": _ref("Gkt"),
        },
        ["id", "object", "created", "model", "choices", "gkt"],
    ),
    "TextCompletion": _object(
        {
            "id": _TEXT,
            "object": {"const": "text_completion"},
            "created": {"type": "integer"},
            "model": _TEXT,
            "choices": {
                "type": "array",
                "items": _object({"index": {"type": "integer"}, "text": _TEXT}, ["index", "text"]),
            },
            "usage": {"anyOf": [_ref("Usage"), {"type": "null"}]},
            "gkt": _ref("Gkt"),
        },
        ["id", "object", "created", "model", "choices", "gkt"],
    ),
    "Model": _object(
        {"id": _TEXT, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": _TEXT},
        ["id", "object", "created", "owned_by"],
    ),
    "ModelList": _object(
        {"object": {"const": "list"}, "data": {"type": "array", "items": _ref("Model")}}, ["object", "data"]
    ),
    "Error": _object(
        {
            "error": _object(
                {
                    "message": _TEXT,
                    "type": _TEXT,
                    "param": {"type": ["string", "null"]},
                    "code": {"type": ["string", "null"]},
                },
                ["message", "type", "param", "code"],
            )
        },
        ["error"],
    ),
    "Readiness": _object({"status": _TEXT, "failed": {"type": "array", "items": _TEXT}}, ["status"]),
}

_ERRORS = {
    400: "The request is wrong; error.param names the key.",
    401: "There is no key, or a wrong one.",
    403: "A gateway without keys was called by a name or a page that is not of its machine; or the key may not.",
    404: "There is no such model.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    429: "Too many requests, or the budget of the day is used up; see retry-after.",
    502: "An engine failed, and trying again will not help.",
    503: "An engine or the ledger cannot be used now.",
    504: "An engine was silent for too long.",
}


def openapi_document() -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "GKT gateway",
            "version": __version__,
            "description": "The OpenAI API, answered by a teacher that begins and a student that goes on.",
        },
        "paths": {
            "/v1/chat/completions": {"post": _answering("chat", "ChatRequest", "ChatCompletion")},
            "/v1/completions": {"post": _answering("completions", "CompletionRequest", "TextCompletion")},
            "/v1/models": {"get": _reading("models", "The pipelines that the key may use.", _ref("ModelList"))},
            "/v1/models/{model}": {
                "get": _reading("model", "One of them.", _ref("Model"))
                | {"parameters": [{"name": "model", "in": "path", "required": True, "schema": _TEXT}]}
            },
            "/health": {"get": _open("health", "Whether the process answers.", _ref("Readiness"))},
            "/ready": {"get": _open("ready", "Whether it should be sent requests.", _ref("Readiness"))},
        },
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _answering(name: str, request: str, response: str) -> _Schema:
    override = {"type": "integer", "minimum": 0, "maximum": 1_000_000}
    return {
        "operationId": name,
        "parameters": [{"name": GUIDANCE_HEADER, "in": "header", "required": False, "schema": override}],
        "requestBody": {"required": True, "content": {"application/json": {"schema": _ref(request)}}},
        "responses": {
            "200": {
                "description": "The answer; with stream, server-sent events that end with [DONE].",
                "content": {"application/json": {"schema": _ref(response)}, "text/event-stream": {"schema": _EVENT}},
            }
        }
        | _errors(_ERRORS),
    }


def _reading(name: str, text: str, schema: _Schema) -> _Schema:
    return _open(name, text, schema, codes=(401, 403, 404))


def _open(name: str, text: str, schema: _Schema, codes: Sequence[int] = ()) -> _Schema:
    ok = {"description": text, "content": {"application/json": {"schema": schema}}}
    responses: _Schema = {"200": ok} | _errors({code: _ERRORS[code] for code in codes})
    if name == "ready":
        responses["503"] = ok | {"description": "Something that requests need is not there, or it is shutting down."}
    return {"operationId": name, "summary": text, "responses": responses}


def _errors(texts: Mapping[int, str]) -> _Schema:
    content = {"application/json": {"schema": _ref("Error")}}
    return {str(code): {"description": text, "content": content} for code, text in texts.items()}
