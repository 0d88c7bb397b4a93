"""``enable`` and ``disable``: one line that makes a model's own ``generate`` speculate, and one that undoes it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gkt_plugins.config import Config, load_config
from gkt_plugins.errors import ConfigError
from gkt_transformers._attachment import attachment_of
from gkt_transformers._generate import call_generate
from gkt_transformers._speculator import Speculator
from gkt_transformers.report import Report

__all__ = ["disable", "enable", "last_report"]

_ABSENT = object()


def enable(model: Any, config: str | Path | Config = "gkt.toml") -> None:
    """From now on ``model.generate``, and every pipeline over ``model``, speculates as ``[speculation]`` says.

    Calling it again takes the new configuration. The state dict, pickles and copies of the model are as before.

    :raises ConfigError: the configuration is wrong, has no ``[speculation]``, or does not fit the model.
    """
    loaded = config if isinstance(config, Config) else load_config(Path(config))
    attachment_of(model).enabled = Speculator.for_model(model, loaded)
    if not isinstance(model.__dict__.get("generate"), _SpeculatingGenerate):
        model.__dict__["generate"] = _SpeculatingGenerate(model, model.__dict__.get("generate", _ABSENT))


def disable(model: Any) -> None:
    """Undo :func:`enable`, and free the draft. Nothing happens to a model that was not enabled."""
    attachment_of(model).enabled = None
    own = model.__dict__.get("generate")
    if isinstance(own, _SpeculatingGenerate):
        own.restore()


def last_report(model: Any) -> Report:
    """What speculation did in the last call of ``model.generate``, whichever way it came.

    :raises ConfigError: there was no such call.
    """
    report = attachment_of(model).report
    if report is None:
        raise ConfigError(f"this {type(model).__name__} has not speculated yet; enable it, then call generate")
    return report


class _SpeculatingGenerate:
    """Stands in for ``model.generate``. Copies and pickles of the model get their class's own method back."""

    def __init__(self, model: Any, before: Any) -> None:
        self._model = model
        self._before = before
        functools.update_wrapper(self, model.generate)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        speculator = attachment_of(self._model).enabled
        assert speculator is not None, "enable() sets it, disable() takes both away"
        return call_generate(self._model, speculator, *args, **kwargs)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, str]]:
        return getattr, (self._model, "generate")

    def restore(self) -> None:
        """Put back what was there before."""
        if self._before is _ABSENT:
            del self._model.__dict__["generate"]
        else:
            self._model.__dict__["generate"] = self._before
