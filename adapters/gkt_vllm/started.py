"""What the last start of vLLM in this process decided: an API server serves by it, and tells it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gkt_vllm.frontend import Start

__all__ = ["last_start", "remember"]

_last: list[Start] = []


def remember(start: Start) -> None:
    """``start``: of the engine that is made next in this process."""
    _last[:] = [start]


def last_start() -> Start | None:
    """None where no vLLM with a section was started here."""
    return _last[0] if _last else None
