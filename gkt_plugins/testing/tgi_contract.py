"""The part of text-generation-inference's HTTP contract that ``gkt_tgi`` uses, and checks of messages against it.

``tgi_contract.json`` is a reduced copy of the published OpenAPI document: only the routes below, without descriptions,
examples and defaults, which bind nobody. It says which document it was made from. To hold it against that document, or
against a newer one::

    python -m gkt_plugins.testing.tgi_contract openapi.json           # exit code 1 where they differ
    python -m gkt_plugins.testing.tgi_contract openapi.json --write   # make the copy anew

Source: docs/openapi.json of huggingface/text-generation-inference, Apache-2.0.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gkt_plugins.errors import require

__all__ = [
    "COMMIT",
    "CONTRACT",
    "PUBLISHED",
    "ROUTES",
    "Contract",
    "compare",
    "fingerprint",
    "load_contract",
    "reduced",
]

CONTRACT = Path(__file__).with_name("tgi_contract.json")

COMMIT = "db931fcf42da018a3657580c64bf2720f167f9ab"
"""Of the repository that the document was published in."""

PUBLISHED = "6224719a7eecbbd9d6dc0b98b73a5b9be19ee12d12a2144c5dc41da0b96a2e3b"
"""Fingerprint of that document."""

ROUTES = {
    "/generate": "post",
    "/generate_stream": "post",
    "/tokenize": "post",
    "/chat_tokenize": "post",
    "/v1/chat/completions": "post",
    "/info": "get",
}
"""With the method of each."""

_BINDING = {
    "$ref",
    "allOf",
    "enum",
    "exclusiveMinimum",
    "format",
    "items",
    "maxItems",
    "maximum",
    "minimum",
    "nullable",
    "oneOf",
    "properties",
    "required",
    "type",
}


def reduced(document: Mapping[str, Any]) -> dict[str, Any]:
    """The routes that we use, and the schemas that they reach; a reduced document stays as it is.

    :raises KeyError: the document lacks a route or a schema.
    """
    paths = {route: {method: _operation(document["paths"][route][method])} for route, method in ROUTES.items()}
    schemas: dict[str, Any] = {}
    waiting = list(_references(paths))
    while waiting:
        name = waiting.pop().rpartition("/")[2]
        if name not in schemas:
            schemas[name] = _schema(document["components"]["schemas"][name])
            waiting.extend(_references(schemas[name]))
    info = document["info"]
    return {
        "openapi": document["openapi"],
        "info": {
            "title": info["title"],
            "version": info["version"],
            "license": {"name": info["license"]["name"], "url": info["license"]["url"]},
        },
        "paths": paths,
        "components": {"schemas": dict(sorted(schemas.items()))},
    }


def _operation(operation: Mapping[str, Any]) -> dict[str, Any]:
    responses = {status: {"content": _content(said)} for status, said in operation["responses"].items()}
    if "requestBody" not in operation:
        return {"responses": responses}
    return {"requestBody": {"content": _content(operation["requestBody"])}, "responses": responses}


def _content(said: Mapping[str, Any]) -> dict[str, Any]:
    return {kind: {"schema": _schema(content["schema"])} for kind, content in said.get("content", {}).items()}


def _schema(schema: Any) -> Any:
    """Without the keys that bind nobody. The names below ``properties`` are no keys."""
    if isinstance(schema, list):
        return [_schema(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept = {key: value for key, value in schema.items() if key in _BINDING}
    named = kept.pop("properties", None)
    made = {key: _schema(value) for key, value in kept.items()}
    return made if named is None else made | {"properties": {name: _schema(value) for name, value in named.items()}}


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, Mapping):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from _references(value)
    elif isinstance(part, Sequence) and not isinstance(part, str):
        for value in part:
            yield from _references(value)


def fingerprint(document: Mapping[str, Any]) -> str:
    """SHA-256 of the document, however it is laid out."""
    return hashlib.sha256(json.dumps(document, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def load_contract() -> dict[str, Any]:
    """The reduced copy that this package carries."""
    loaded: dict[str, Any] = json.loads(CONTRACT.read_text(encoding="utf-8"))
    return loaded


class Contract:
    """Says what is wrong with a message."""

    def __init__(self, document: Mapping[str, Any] | None = None) -> None:
        """``document``: by default the reduced copy; a whole published one does as well.

        :raises MissingDependencyError: jsonschema is not installed.
        """
        self._document = load_contract() if document is None else document
        self._validators: dict[tuple[str, ...], Any] = {}

    def wrong_request(self, route: str, body: Any) -> str | None:
        """What the contract forbids in a request's ``body``; None where it is allowed."""
        return self._wrong(("paths", route, ROUTES[route], "requestBody", "content", "application/json"), body)

    def wrong_response(self, route: str, body: Any, *, status: int = 200, kind: str = "application/json") -> str | None:
        """What the contract forbids in a response of ``kind``, or in one event of a stream."""
        return self._wrong(("paths", route, ROUTES[route], "responses", str(status), "content", kind), body)

    def _wrong(self, at: tuple[str, ...], body: Any) -> str | None:
        if at not in self._validators:
            part: Any = self._document
            for key in at:
                if key not in part:
                    return f"the contract has nothing at {' '.join(at)}"
                part = part[key]
            whole = {"components": _as_json_schema(self._document["components"]), **_as_json_schema(part["schema"])}
            self._validators[at] = require("jsonschema", extra="testing").Draft202012Validator(whole)
        errors = sorted(self._validators[at].iter_errors(body), key=lambda error: error.json_path)
        return "; ".join(f"{error.json_path}: {error.message}" for error in errors) or None


def _as_json_schema(part: Any) -> Any:
    """OpenAPI 3.0 says ``nullable``; JSON Schema has a type for it."""
    if isinstance(part, list):
        return [_as_json_schema(item) for item in part]
    if not isinstance(part, Mapping):
        return part
    made = {key: _as_json_schema(value) for key, value in part.items() if key not in ("nullable", "discriminator")}
    return {"anyOf": [{"type": "null"}, made]} if part.get("nullable") is True else made


def compare(arguments: Sequence[str]) -> int:
    """The command line: a path, and perhaps ``--write``; the exit code."""
    published = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    if "--write" in arguments:
        CONTRACT.write_text(json.dumps(reduced(published), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    same = reduced(published) == load_contract()
    print(f"the copy is {'' if same else 'NOT '}what {arguments[0]} says of the routes that it has")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(compare(sys.argv[1:]))
