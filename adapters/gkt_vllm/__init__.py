"""gkt-plugins inside vLLM. This file and what vLLM loads in each of its processes import nothing but Python itself, so
that they cost next to nothing where there is no section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

__all__ = ["SECTION", "has_section"]

SECTION = "gkt"
"""The key of vLLM's ``additional_config`` that is ours."""


def has_section(additional_config: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether it is there, right or wrong; vLLM takes other objects than tables too."""
    return isinstance(additional_config, Mapping) and SECTION in additional_config
