"""A request of OpenAI's API, read once: what the guidance machine takes, and what only an engine itself can serve.

Options that text from two models cannot honour become a :data:`~gkt_plugins.guidance.events.Feature`; ``body`` is for
an engine that speaks this API itself. Options that every engine may know (``frequency_penalty``, …) go along in
``Sampling.extra``; what only tells a provider who asks (``user``, ``metadata``) is left out, and a note says so.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from gkt_plugins._wording import suggestion
from gkt_plugins.contracts import Sampling
from gkt_plugins.guidance.events import Feature, Request
from gkt_plugins.openai_wire import _sampling
from gkt_plugins.openai_wire._fields import flag, integer, refuse, table
from gkt_plugins.openai_wire._prompts import read_messages, read_prompts
from gkt_plugins.openai_wire.errors import InvalidRequest

__all__ = ["GUIDANCE_HEADER", "PREFIX", "Asked", "ModelName", "Route", "parse", "read_model"]

Route: TypeAlias = Literal["chat", "completions"]

PREFIX = "gkt/"
"""A pipeline NAME is the model ``gkt/NAME``."""

GUIDANCE_HEADER = "x-gkt-guidance-tokens"

_MOST_CHOICES = 128
_MOST_GUIDANCE = 1_000_000
_NO_NOTES: tuple[str, ...] = ()
_DEFAULTS = Sampling()


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model as asked for: ``gkt/NAME``, or ``gkt/NAME@g=20``."""

    text: str
    pipeline: str | None
    """NAME; None where the model is no pipeline of ours."""
    guidance_tokens: int | None = None
    """What ``@g=`` says; 0 is the student alone."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request."""

    route: Route
    model: str
    """As asked for."""
    pipeline: str | None
    """The pipeline that ``model`` names; None where it is no pipeline of ours."""
    requests: tuple[Request, ...]
    """One for a chat; one per prompt for completions. They share everything but prompt and request id."""
    stream: bool
    include_usage: bool
    features: frozenset[Feature]
    body: Mapping[str, Any]
    """The request without our own key ``gkt``: what a :class:`~gkt_plugins.contracts.Forwarder` gets."""
    request_id: str
    """Id of the answer; the requests' own ids begin with it."""
    guidance_tokens: int | None = None
    """What the request asks for; None leaves it to the pipeline."""
    notes: tuple[str, ...] = _NO_NOTES
    """What of the request reaches no engine."""


def parse(
    route: Route,
    body: object,
    *,
    headers: Mapping[str, str] | None = None,
    default_sampling: Sampling | None = None,
    request_id: str | None = None,
) -> Asked:
    """Read ``body``, decoded JSON.

    :param headers: lower-case names; only :data:`GUIDANCE_HEADER` is looked at.
    :param default_sampling: for ``max_tokens``, where the request has none. The temperature is then 1, as OpenAI's is.
    :param request_id: by default a fresh one.
    :raises InvalidRequest: the request is wrong; ``param`` names the key.
    """
    if not isinstance(body, Mapping):
        raise InvalidRequest(
            f"a request must be a JSON object, got {_kind(body)}; see /openapi.json", code="invalid_json"
        )
    model = read_model(body)
    asked_guidance = _guidance_tokens(model, body, headers)
    read = read_messages(body.get("messages")) if route == "chat" else read_prompts(body.get("prompt"))
    features = frozenset(read.features | _sampling.features(route, body))
    n = integer(body, "n", low=1, high=_MOST_CHOICES) or 1
    if n * len(read.prompts) > _MOST_CHOICES:
        raise InvalidRequest(
            f"a request takes at most {_MOST_CHOICES} answers, got {len(read.prompts)} prompts with n = {n}; "
            "send several requests",
            param="n",
            code="invalid_value",
        )
    sampling = _sampling.sampling(body, default_sampling or _DEFAULTS)
    identity = request_id or ("chatcmpl-" if route == "chat" else "cmpl-") + uuid.uuid4().hex
    alone = len(read.prompts) == 1
    requests = [
        Request(prompt, sampling, n, features, identity if alone else f"{identity}-{position}", asked_guidance)
        for position, prompt in enumerate(read.prompts)
    ]
    stream = flag(body, "stream")
    include_usage = stream and flag(table(body, "stream_options"), "include_usage")
    return Asked(
        route=route,
        model=model.text,
        pipeline=model.pipeline,
        requests=tuple(requests),
        stream=stream,
        include_usage=include_usage,
        features=features,
        body={key: value for key, value in body.items() if key != "gkt"} if "gkt" in body else body,
        request_id=identity,
        guidance_tokens=asked_guidance,
        notes=(*read.notes, *_sampling.left_out(body)),
    )


def read_model(body: object) -> ModelName:
    """The model that ``body`` asks for.

    :raises InvalidRequest: there is none, or what follows its ``@`` is no number of tokens.
    """
    text = body.get("model") if isinstance(body, Mapping) else None
    if text is None:
        raise InvalidRequest("model is missing; /v1/models lists what there is", param="model", code="missing_key")
    if not isinstance(text, str) or not text:
        refuse("model", "the name of a model", text)
    name, at, suffix = text.partition("@")
    pipeline = name.removeprefix(PREFIX) if name.startswith(PREFIX) else None
    if not at or pipeline is None:
        return ModelName(text, pipeline)
    digits = suffix.removeprefix("g=")
    if digits == suffix or not (digits.isascii() and digits.isdigit() and int(digits[:8]) <= _MOST_GUIDANCE):
        raise InvalidRequest(
            f"after its @ a model takes g= and a number of guidance tokens, as in {name}@g=20, got {suffix[:40]!r}",
            param="model",
            code="invalid_value",
        )
    return ModelName(text, pipeline, int(digits[:8]))


def _guidance_tokens(model: ModelName, body: Mapping[str, Any], headers: Mapping[str, str] | None) -> int | None:
    """What model name, ``gkt`` and header say, who must not contradict each other."""
    said: dict[str, int] = {}
    if model.guidance_tokens is not None:
        said["the model's name"] = model.guidance_tokens
    if "gkt" in body:
        own = table(body, "gkt")
        for key in own:
            if key != "guidance_tokens":
                hint = suggestion(str(key), ["guidance_tokens"])
                raise InvalidRequest(f"gkt.{key} is not a known key; {hint}", param=f"gkt.{key}", code="unknown_key")
        value = integer(own, "guidance_tokens", high=_MOST_GUIDANCE)
        if value is not None:
            said["gkt.guidance_tokens"] = value
    header = headers.get(GUIDANCE_HEADER) if headers else None
    if header is not None:
        if not (header.isascii() and header.isdigit() and int(header[:8]) <= _MOST_GUIDANCE):
            refuse(f"the header {GUIDANCE_HEADER}", f"a whole number from 0 to {_MOST_GUIDANCE}", header)
        said[f"the header {GUIDANCE_HEADER}"] = int(header[:8])
    if len(set(said.values())) > 1:
        both = " and ".join(f"{value} by {where}" for where, value in said.items())
        raise InvalidRequest(
            f"guidance tokens are asked for more than once, {both}; keep one of them",
            param="gkt.guidance_tokens",
            code="invalid_value",
        )
    return next(iter(said.values()), None)


def _kind(value: object) -> str:
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
