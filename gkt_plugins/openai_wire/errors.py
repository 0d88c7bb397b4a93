"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``, with a status and headers.

::

    ApiError            answered with its own status; what the gateway refuses derives from it
    └── InvalidRequest  the request itself is wrong: 400, 404, 413, 422
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gkt_plugins.errors import BackendError, EngineError, GktError

__all__ = ["ApiError", "InvalidRequest", "error_body", "error_code"]


class ApiError(GktError):
    """A request that is refused, with the words that OpenAI's clients know."""

    status = 400
    kind = "invalid_request_error"

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        kind: str | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        """``kind``: the error's ``type``. ``param``: the key it is about. ``retry_after_s``: when to come back."""
        super().__init__(message)
        self.status = self.status if status is None else status
        self.kind = self.kind if kind is None else kind
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers: dict[str, str] = {}
        """What the answer carries besides ``retry-after``."""


class InvalidRequest(ApiError):  # noqa: N818 - as OpenAI's own type of error is called
    """The request cannot be understood, or asks for what cannot be."""


def error_body(error: BaseException) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers for ``error``.

    An engine's failure is 400 where its endpoint blames the request, 504 for silence, 503 where a retry may help, else
    502; a ledger or another backend 503; a sentence of the core about the request 400. Anything else is our own fault:
    500, and the message says nothing of it.
    """
    cause = _endpoint_error(error)
    retry_after_s: float | None = getattr(cause, "retry_after_s", None)
    headers: dict[str, str] = dict(error.headers) if isinstance(error, ApiError) else {}
    if retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(retry_after_s)))
    match error:
        case ApiError():
            status, kind, code = error.status, error.kind, error.code
        case EngineError():
            status, kind, code = _of_engine(error, cause)
        case BackendError():
            status, kind, code = 503, "api_error", "backend_unavailable"
        case GktError():
            status, kind, code = 400, "invalid_request_error", "invalid_request"
        case _:
            status, kind, code = 500, "server_error", "internal_error"
    message = str(error) if isinstance(error, GktError) else "the gateway failed; its log says why"
    return status, _body(message, kind, code, getattr(cause, "param", None)), headers


def error_code(error: BaseException) -> str:
    """The ``code`` of ``error``: for records and metrics, which never have its text."""
    return error_body(error)[1]["error"]["code"] or "invalid_request"


def _endpoint_error(error: BaseException) -> BaseException:
    """The engine's own error, where the core put a sentence around it."""
    cause = error
    seen = {id(cause)}  # "raise error from error" makes a circle
    while isinstance(cause, EngineError) and isinstance(cause.__cause__, EngineError):
        if id(cause.__cause__) in seen:
            break
        cause = cause.__cause__
        seen.add(id(cause))
    return cause


def _of_engine(error: EngineError, cause: BaseException) -> tuple[int, str, str]:
    """Status, type and code. ``cause`` may know its endpoint's ``status`` and a ``code``."""
    code: str | None = getattr(cause, "code", None)
    if getattr(cause, "status", None) in (400, 413, 422):
        return 400, "invalid_request_error", code or "upstream_refused"
    if code == "upstream_timeout":
        return 504, "api_error", code
    if error.retryable:
        return 503, "api_error", code or "upstream_unavailable"
    return 502, "api_error", code or "upstream_error"


def _body(message: str, kind: str, code: str | None, param: str | None) -> dict[str, Mapping[str, Any]]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}
