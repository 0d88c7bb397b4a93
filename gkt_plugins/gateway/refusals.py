"""How the gateway says no: one sentence for a person, a status and a code for a program."""

from __future__ import annotations

from collections.abc import Mapping

from gkt_plugins.openai_wire.errors import ApiError

__all__ = ["RefusedError"]


class RefusedError(ApiError):
    """A request that is not served. Nothing was called and nothing was spent for it."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str,
        kind: str = "invalid_request_error",
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """``status``: of HTTP, 400 to 599. ``code``, ``kind``: ``error.code`` and ``error.type`` of the OpenAI API.

        ``retry_after_s``: when to come back. ``headers``: what the answer carries besides.
        """
        super().__init__(message, status=status, kind=kind, code=code, retry_after_s=retry_after_s)
        self.headers = dict(headers or {})
