"""How the gateway says no: one sentence for a person, a status and a code for a program."""

from __future__ import annotations

from collections.abc import Mapping

from gkt_plugins.errors import GktError

__all__ = ["RefusedError"]


class RefusedError(GktError):
    """A request that is not served. Nothing was called and nothing was spent for it."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """``status``: of HTTP, 400 to 599. ``code``, ``kind``: ``error.code`` and ``error.type`` of the OpenAI API.

        ``headers``: what the answer carries besides, such as ``retry-after``.
        """
        super().__init__(message)
        self.status = status
        self.code = code
        self.kind = kind
        self.headers = dict(headers or {})
