"""The input of a batch: one request a line, as OpenAI's batch files have them.

::

    {"custom_id": "q1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gkt/default", …}}

Source of the format: https://platform.openai.com/docs/api-reference/batch/request-input.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkt_plugins.contracts import Sampling
from gkt_plugins.errors import ConfigError
from gkt_plugins.openai_wire.errors import InvalidRequest
from gkt_plugins.openai_wire.requests import PREFIX, Asked, Route, parse, read_model

__all__ = ["ROUTES", "BatchLine", "read_line", "read_lines"]

ROUTES: Mapping[str, Route] = {"/v1/chat/completions": "chat", "/v1/completions": "completions"}
"""The ``url`` of a line, and what it asks for."""

_LONGEST_ID = 512


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One line: a request for one pipeline, or why it is none."""

    number: int
    """From 1, blank lines counted too."""
    custom_id: str | None
    """None where the line has none that can be used."""
    pipeline: str = ""
    asked: Asked | None = None
    error: InvalidRequest | None = None
    """Set exactly where ``asked`` is None."""
    source: bytes = b""
    """The line as it came, for a worker elsewhere to read again."""


def read_lines(path: Path, pipelines: Mapping[str, Sampling], *, pipeline: str | None = None) -> Iterator[BatchLine]:
    """The lines of ``path``, one at a time, so that a file need not fit into memory; blank lines are left out.

    A second line with the same ``custom_id`` is one with an error.

    :param pipelines: the pipelines that exist, each with what a body is answered with that does not say how. A body's
        ``model`` names one of them, as ``gkt/NAME`` or ``gkt/NAME@g=TOKENS``.
    :param pipeline: answers every line, whatever model it asks for, so that a file written for another endpoint runs
        as it is.
    :raises ConfigError: the file cannot be read, or holds nothing.
    """
    first: dict[str, int] = {}
    empty = True
    try:
        with path.open("rb") as file:
            for number, source in enumerate(file, 1):
                source = source.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else source.strip()
                if not source:
                    continue
                line = read_line(number, source, pipelines, pipeline=pipeline)
                if line.custom_id is not None and line.custom_id in first:
                    line = _repeated(line, first[line.custom_id])
                elif line.custom_id is not None:
                    first[line.custom_id] = number
                empty = False
                yield line
    except OSError as exc:
        raise ConfigError(f"the requests {str(path)!r} cannot be read: {exc}") from exc
    if empty:
        raise ConfigError(f"{str(path)!r} holds no requests; write one a line, in the OpenAI batch format")


def read_line(
    number: int, source: bytes, pipelines: Mapping[str, Sampling], *, pipeline: str | None = None
) -> BatchLine:
    """One line; see :func:`read_lines`."""
    custom_id: str | None = None
    try:
        line = _table(number, source)
        custom_id = _custom_id(number, line)
        route = _route(number, line)
        body = line.get("body")
        name = _pipeline(body, pipelines, pipeline)
        if pipeline is not None and isinstance(body, dict) and "model" not in body:
            body = {"model": PREFIX + pipeline, **body}
        asked = parse(route, body, default_sampling=pipelines[name])
        if asked.stream:
            raise InvalidRequest(
                "a batch answers in one piece, so stream must be false; leave it out",
                param="stream",
                code="invalid_value",
            )
    except InvalidRequest as exc:
        return BatchLine(number, custom_id, error=exc, source=source)
    return BatchLine(number, custom_id, name, asked, source=source)


def _table(number: int, source: bytes) -> Mapping[str, Any]:
    try:
        line = json.loads(source.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise InvalidRequest(
            f"line {number} must be UTF-8, and its byte {exc.start + 1} is not; save the file as UTF-8",
            code="invalid_json_line",
        ) from exc
    except (ValueError, RecursionError) as exc:
        raise InvalidRequest(
            f"line {number} must be a JSON object, and cannot be parsed: {exc}; see docs/batch.md",
            code="invalid_json_line",
        ) from exc
    if not isinstance(line, dict):
        raise InvalidRequest(
            f"line {number} must be a JSON object, got {type(line).__name__}; see docs/batch.md",
            code="invalid_json_line",
        )
    return line


def _custom_id(number: int, line: Mapping[str, Any]) -> str:
    found = line.get("custom_id")
    if not isinstance(found, str) or not 0 < len(found) <= _LONGEST_ID:
        got = "none" if found is None else "an empty one" if found == "" else repr(found)[:40]
        raise InvalidRequest(
            f"line {number} must have a custom_id, a text of at most {_LONGEST_ID} characters, got {got}; give every "
            "line its own",
            param="custom_id",
            code="missing_required_parameter" if found is None else "invalid_value",
        )
    return found


def _route(number: int, line: Mapping[str, Any]) -> Route:
    if line.get("method") != "POST":
        raise InvalidRequest(
            f'line {number}: method must be "POST", got {str(line.get("method"))[:40]!r}; write "method": "POST"',
            param="method",
            code="invalid_method",
        )
    url = line.get("url")
    if not isinstance(url, str) or url not in ROUTES:
        raise InvalidRequest(
            f"line {number}: url must be one of {', '.join(ROUTES)}, got {str(url)[:80]!r}",
            param="url",
            code="invalid_url",
        )
    return ROUTES[url]


def _pipeline(body: object, pipelines: Collection[str], chosen: str | None) -> str:
    if chosen is not None:
        return chosen
    model = read_model(body)
    if model.pipeline is None or model.pipeline not in pipelines:
        known = ", ".join(PREFIX + name for name in pipelines) or "none"
        raise InvalidRequest(
            f"the model {model.text[:100]!r} is no pipeline; those that exist: {known}; or name one with --pipeline",
            param="model",
            code="model_not_found",
        )
    return model.pipeline


def _repeated(line: BatchLine, first: int) -> BatchLine:
    error = InvalidRequest(
        f"line {line.number} has the custom_id {line.custom_id!r} of line {first}; give every line its own",
        param="custom_id",
        code="duplicate_custom_id",
    )
    return BatchLine(line.number, line.custom_id, error=error, source=line.source)
