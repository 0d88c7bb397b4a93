"""What an endpoint's failure becomes: one sentence, without the key, and whether another try may help."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping
from typing import Any

from gkt_plugins.errors import EngineError

__all__ = ["EndpointError", "refusal"]

_SHOWN = 300
_RETRYABLE = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
_SECRET = re.compile(r"(?i)\b(?:bearer\s+|(?:sk|pk|hf|gsk|xai|key|api)[-_])[\w\-*.]{6,}")
"""What looks like a key in an endpoint's own message."""


class EndpointError(EngineError):
    """One call of an endpoint failed."""

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int | None = None,
        param: str | None = None,
        retryable: bool = False,
        retry_after_s: float | None = None,
        refused: bool = False,
    ) -> None:
        """``code``: a word for tables, such as ``upstream_timeout``. ``status``: the endpoint's own, where it gave
        one. ``param``: the field of the request that it is about, where it named one."""
        super().__init__(message, retryable=retryable, retry_after_s=retry_after_s, refused=refused)
        self.code = code
        self.status = status
        self.param = param


def refusal(engine: str, status: int, headers: Mapping[str, str], body: bytes, *, key: str | None,
            key_env: str | None) -> EndpointError:  # fmt: skip
    """The error for a response whose status is not 200. ``headers``: names in lower case."""
    said = _error_object(body)
    message = _message(said, key)
    code = str(said.get("code") or said.get("type") or "")
    param = said.get("param") if isinstance(said.get("param"), str) else None
    where = f"the endpoint of engine {engine!r}"
    if status in (401, 403):
        asked = f"check the key in {key_env}" if key_env else f"set engines.{engine}.api_key_env"
        return EndpointError(f"{where} refused the key with status {status}; {asked}", code="upstream_key_refused",
                             status=status, refused=True)  # fmt: skip
    if status == 429 or code == "insufficient_quota":
        spent = code == "insufficient_quota"
        what = "says that its quota is spent" if spent else "is asked too often"
        return EndpointError(
            f"{where} {what}, with status {status}{message}; {'top it up' if spent else 'ask it less often'}",
            code="upstream_quota" if spent else "upstream_rate_limited",
            status=status,
            retryable=not spent,
            retry_after_s=_retry_after_s(headers),
            refused=True,
        )
    retryable = status in _RETRYABLE
    advice = "try again later" if retryable else "see its documentation, or 'gkt doctor'"
    return EndpointError(
        f"{where} answered with status {status}{message}; {advice}",
        code="upstream_failed" if status >= 500 else "upstream_refused",
        status=status,
        param=param,
        retryable=retryable,
        retry_after_s=_retry_after_s(headers) if retryable else None,
        refused=True,
    )


def _error_object(body: bytes) -> Mapping[str, Any]:
    """OpenAI's error object, or what others answer in its place."""
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    if not isinstance(found, dict):
        return {}
    error = found.get("error", found.get("detail", found))
    if isinstance(error, dict):
        return error
    return {"message": error if isinstance(error, str) else json.dumps(error, ensure_ascii=False)}


def _message(said: Mapping[str, Any], key: str | None) -> str:
    """What the endpoint said, on one line, bounded, with nothing in it that looks like a key."""
    text = said.get("message")
    if not isinstance(text, str) or not text.strip():
        return ""
    if key:
        text = text.replace(key, "***")
    text = _SECRET.sub("***", " ".join(text.split()))
    return f": {text[:_SHOWN].rstrip('.; ')}"


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds from now, at least 0, as RFC 9110 has it, or in milliseconds as OpenAI does."""
    try:
        if "retry-after-ms" in headers:
            return max(0.0, float(headers["retry-after-ms"]) / 1000)
        value = headers.get("retry-after", "")
        if value.replace(".", "", 1).isdigit():
            return float(value)
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time()) if value else None
    except (ValueError, OverflowError):
        return None
