"""The error tree.

::

    GktError                    everything we raise on purpose; one clear sentence; exit code 2 on the command line
    ├── ConfigError             gkt.toml, an override or an option: names the key, the file and the line
    ├── MissingDependencyError  an extra is not installed: says which
    ├── PluginLoadError         a plugin failed, or two claim one name: names the distributions
    └── BackendError            something outside us failed
        └── EngineError         one call of one engine failed; says whether a retry may help

A message says what was expected, what came, and what to do. Errors are raised ``from`` their cause.
"""

from __future__ import annotations

import importlib
from types import ModuleType

__all__ = [
    "BackendError",
    "ConfigError",
    "EngineError",
    "GktError",
    "MissingDependencyError",
    "PluginLoadError",
    "require",
]


class GktError(Exception):
    """Base of every error raised on purpose."""


class ConfigError(GktError):
    """A configuration that cannot be used."""


class MissingDependencyError(GktError):
    """An optional package is not installed."""


class PluginLoadError(GktError):
    """A plugin failed to load, or claims a name that another distribution provides."""


class BackendError(GktError):
    """An engine, a database or an endpoint failed."""


class EngineError(BackendError):
    """One call failed."""

    def __init__(
        self,
        message: str,
        *,
        retryable: bool = False,
        retry_after_s: float | None = None,
        refused: bool = False,
    ) -> None:
        """``retryable``: the same call may succeed later; ``retry_after_s``: not before so many seconds, at least 0.

        ``refused``: the engine turned the call away before any work (no connection, an error status), so that it used
        no tokens; otherwise what a failed call used is estimated.
        """
        super().__init__(message)
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.refused = refused


def require(module: str, *, extra: str) -> ModuleType:
    """Import ``module``, or say which extra installs it.

    :raises MissingDependencyError: the package is not installed. A package that is installed but broken inside
        raises its own error.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as exc:
        if exc.name != module.partition(".")[0]:
            raise
        raise MissingDependencyError(f"{module!r} is not installed; run: pip install 'gkt-plugins[{extra}]'") from exc
