"""Replacing a function of vLLM: refused where it is not the function that was tried, never done twice, always named."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from gkt_plugins.errors import BackendError

__all__ = ["replace", "replaced"]

_MARK = "__gkt_replaces__"

_done: dict[str, str] = {}


def replaced() -> dict[str, str]:
    """What has been replaced in this process: dotted name → why."""
    return dict(_done)


def replace(
    owner: Any, name: str, parameters: Sequence[str], wrap: Callable[[Callable[..., Any]], Callable[..., Any]], why: str
) -> None:
    """Put ``wrap(original)`` in the place of ``owner.name``; nothing is done where that has been done before.

    :param parameters: how the original's parameters must begin, for the wrapper to be right.
    :raises BackendError: they begin otherwise, or there is no such function: this vLLM is not one that was tried.
    """
    where = f"{getattr(owner, '__module__', '') or ''}.{owner.__name__}.{name}".removeprefix(".")
    if inspect.ismodule(owner):
        where = f"{owner.__name__}.{name}"
    original = getattr(owner, name, None)
    if original is None:
        raise BackendError(f"this vLLM has no {where}, which is needed for {why}; install a version that was tried")
    if hasattr(original, _MARK):
        return
    found = list(inspect.signature(original).parameters)
    if found[: len(parameters)] != list(parameters):
        raise BackendError(
            f"{where} takes ({', '.join(found)}) in this vLLM, expected ({', '.join(parameters)}, …), which is needed "
            f"for {why}; install a version that was tried"
        )
    wrapper = wrap(original)
    setattr(wrapper, _MARK, original)
    setattr(owner, name, wrapper)
    _done[where] = why
