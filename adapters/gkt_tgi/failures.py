"""What goes wrong at a TGI server, as one sentence that says whether a retry may help."""

from __future__ import annotations

from typing import Any

import httpx2
from huggingface_hub.errors import (
    GenerationError,
    HfHubHTTPError,
    IncompleteGenerationError,
    InferenceTimeoutError,
    OverloadedError,
    TextGenerationError,
    ValidationError,
)

from gkt_plugins.errors import EngineError

__all__ = ["EXPECTED", "engine_error"]

EXPECTED = (TextGenerationError, HfHubHTTPError, httpx2.HTTPError, ValueError, TypeError, LookupError, AttributeError)
"""What the client raises: TGI's own errors, HTTP's, and what comes of an answer that is none of TGI's."""

_BY_STATUS = {422: ValidationError, 424: GenerationError, 429: OverloadedError, 500: IncompleteGenerationError}
"""What TGI's contract says that a status means; its native routes say it in the body too, and the client reads that."""

_GATEWAYS = {408, 502, 503, 504}


def engine_error(engine: str, cause: Exception) -> EngineError:
    """``cause`` as an :class:`EngineError` of the engine with this name."""
    made = _told(engine, cause)
    made.__cause__ = cause
    return made


def _told(engine: str, cause: Exception) -> EngineError:
    named = f"the engine {engine!r}"
    response = _response(cause)
    status = None if response is None else response.status_code
    kind = type(cause) if status is None else _BY_STATUS.get(status, HfHubHTTPError)
    if issubclass(kind, OverloadedError):
        sentence = f"{named} is overloaded ({_said(cause, response)}); try again later, or lower its concurrency"
        return EngineError(sentence, retryable=True, retry_after_s=_retry_after_s(response), refused=True)
    if issubclass(kind, ValidationError):
        return EngineError(f"{named} refused the call: {_said(cause, response)}; change the request", refused=True)
    if issubclass(kind, TextGenerationError):
        sentence = f"{named} failed while it wrote: {_said(cause, response)}; see its server's log"
        return EngineError(sentence, retryable=True)
    if status is not None:
        sentence = (
            f"{named} answered with status {status} ({_said(cause, response)}); check its base_url and its server"
        )
        after = _retry_after_s(response)
        return EngineError(sentence, retryable=status in _GATEWAYS, retry_after_s=after, refused=True)
    if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
        sentence = f"{named} cannot be reached ({_one_line(str(cause))}); check its base_url, and that the server runs"
        return EngineError(sentence, retryable=True, refused=True)
    if isinstance(cause, InferenceTimeoutError | httpx2.TimeoutException):
        sentence = f"{named} was silent for longer than its read_timeout_s; raise it, or look at the server"
        return EngineError(sentence, retryable=True)
    if isinstance(cause, httpx2.HTTPError):
        return EngineError(f"{named} lost its connection ({_said(cause, None)}); try again", retryable=True)
    return EngineError(f"{named} answered with what is no TGI response ({_one_line(repr(cause))}); check its base_url")


def _response(cause: BaseException | None) -> Any:
    """The HTTP response that the error, or the one that it was raised from, is about."""
    while cause is not None:
        found = getattr(cause, "response", None)
        if found is not None:
            return found
        cause = cause.__cause__
    return None


def _retry_after_s(response: Any) -> float | None:
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (AttributeError, KeyError, ValueError):
        return None


def _said(cause: Exception, response: Any) -> str:
    """The server's own words, where there are any."""
    try:
        return _one_line(str(response.json()["error"]))
    except (httpx2.ResponseNotRead, AttributeError, ValueError, TypeError, LookupError):
        return _one_line(str(cause)) or type(cause).__name__


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 200 else line[:199] + "…"
