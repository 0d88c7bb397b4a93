"""What this distribution provides: an engine and a leniency rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import PositiveInt

from gkt_plugins.contracts import BuildContext, Engine, Factory, LeniencyRule, Options
from gkt_plugins.hookspecs import hookimpl

GKT_CONTRACT = 1


class DummyOptions(Options):
    """Keys of ``adapter = "dummy"``."""

    greeting: str = "hello"
    """What every answer begins with."""
    repeat: PositiveInt = 1
    """How often, at least once."""


def _build(options: DummyOptions, context: BuildContext) -> Engine:
    from gkt_dummy.engine import DummyEngine

    return DummyEngine(context.name, options.greeting * options.repeat)


def _cube(p: Any, epsilon: float) -> Any:
    return p / epsilon**3


@hookimpl
def gkt_engines() -> Mapping[str, Factory[Engine]]:
    return {"dummy": Factory(_build, DummyOptions, "answers with a greeting")}


@hookimpl
def gkt_leniency_rules() -> Mapping[str, Factory[LeniencyRule]]:
    return {"cube": Factory(lambda options, context: _cube, summary="p / epsilon cubed")}
