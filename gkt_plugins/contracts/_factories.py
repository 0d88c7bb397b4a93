"""Factories: a name's promise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CONTRACT_VERSION", "BuildContext", "Factory", "Options"]

CONTRACT_VERSION = 1
"""Version of this package. A plugin states the one it was written for as ``GKT_CONTRACT = 1`` in its module."""

Built = TypeVar("Built", covariant=True)


class Options(BaseModel):
    """Base of a factory's own configuration keys: frozen, unknown keys are errors, docstrings describe the keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True, slots=True)
class BuildContext:
    """What a factory may use besides its own options."""

    name: str = ""
    """The name that the configuration gives to what is built, e.g. ``edge`` of ``[engines.edge]``."""
    base_dir: Path | None = None
    """Folder of the configuration file; relative paths start here."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Where secrets are looked up by name."""
    resources: Mapping[str, Any] = field(default_factory=dict)
    """Objects that the host lends: ``config``, ``plugins``, a loaded model, a mock transport in tests."""


@dataclass(frozen=True)
class Factory(Generic[Built]):
    """A name's promise: its typed options, and how to build it. Making one imports nothing heavy."""

    build: Callable[[Any, BuildContext], Built]
    options: type[Options] = Options
    summary: str = ""
    """One line for listings."""
