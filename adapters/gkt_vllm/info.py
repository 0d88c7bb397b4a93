"""``GET /gkt/info``: what of gkt-plugins runs in this server, and by which configuration."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import gkt_plugins
from gkt_vllm.patching import replaced
from gkt_vllm.serving import Serving

__all__ = ["ADDRESS", "About", "Keys", "info"]

ADDRESS = "/gkt/info"


@dataclass(frozen=True)
class About:
    """What does not change while the server runs."""

    vllm: str
    runner: str
    """``V1`` or ``V2``, vLLM's first or second model runner."""
    active: tuple[str, ...]
    notes: tuple[str, ...]
    """What is done differently from the configuration, one sentence each."""
    replaced: Mapping[str, str]
    """Functions of vLLM that were replaced in workers: dotted name → why."""


class Keys:
    """Those that vLLM's own authentication takes. It guards no addresses but vLLM's own."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [sha256(key.encode()).digest() for key in keys if key]

    def admit(self, authorization: str) -> bool:
        """Whether the header ``authorization`` has one of them, or none is needed."""
        scheme, _, key = authorization.partition(" ")
        given = sha256(key.encode("utf-8", "surrogateescape")).digest()
        right = [hmac.compare_digest(given, digest) for digest in self._digests]
        return not right or (scheme.lower() == "bearer" and any(right))


async def info(request: Request) -> Response:
    """The page."""
    state = request.app.state
    if not state.gkt_keys.admit(request.headers.get("authorization", "")):
        return JSONResponse({"error": "Unauthorized"}, 401, {"www-authenticate": "Bearer"})
    serving: Serving = state.gkt
    await serving.watch.look()
    return JSONResponse(_page(serving, state.gkt_about))


def _page(serving: Serving, about: About) -> dict[str, Any]:
    bounds, served = serving.bounds, serving.served
    missing = serving.state.teachers.missing
    teacher = None if served.parts.teacher is None else served.parts.teacher.name
    leniency = {"rule": bounds.rule, "epsilon": bounds.epsilon, "least": bounds.least} if bounds.rule else None
    return {
        "gkt_plugins": gkt_plugins.__version__,
        "vllm": about.vllm,
        "model_runner": about.runner,
        "active": list(about.active),
        "notes": list(about.notes),
        "replaced": {**replaced(), **about.replaced},
        "config": {"digest": serving.watch.digest, "changed": serving.watch.changed},
        "pipeline": served.name,
        "teacher": None if teacher is None else {"model": served.teacher, "missing": missing.get(teacher)},
        "student" if serving.role == "student" else "target": served.student,
        "leniency": leniency,
        "gamma_by_request": bounds.own_drafter,
    }
