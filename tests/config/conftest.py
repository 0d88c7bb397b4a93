"""A plugin whose options have every kind of type, and configurations that are read with it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Annotated

import pytest
from pydantic import BaseModel, Field, NonNegativeInt

from gkt_plugins.config import Config, load_config
from gkt_plugins.contracts import Factory, Options
from gkt_plugins.errors import ConfigError
from gkt_plugins.hookspecs import hookimpl
from gkt_plugins.plugins import Plugins
from gkt_plugins.testing.plugins import plugins_from


class Retry(BaseModel, extra="forbid"):
    attempts: NonNegativeInt = 0


class FakeOptions(Options):
    model: str
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    api_key_env: str | None = None
    retry: Retry = Retry()
    retries: tuple[Retry, ...] = ()
    either: int | bool = 0


class FakePlugin:
    """An engine, a source of prices and a cutting policy with keys of their own."""

    GKT_CONTRACT = 1

    @hookimpl
    def gkt_engines(self):
        return {"fake": Factory(lambda options, context: SimpleNamespace(options=options), FakeOptions)}

    @hookimpl
    def gkt_price_sources(self):
        return {"catalogue": Factory(lambda options, context: None, FakeOptions)}

    @hookimpl
    def gkt_cutting_policies(self):
        return {
            "lines": Factory(
                lambda options, context: None, type("Lines", (Options,), {"__annotations__": {"least": int}})
            )
        }


@pytest.fixture(scope="session")
def fake_options() -> type[FakeOptions]:
    """The options of everything that the plugin provides."""
    return FakeOptions


@pytest.fixture(scope="module")
def plugins() -> Plugins:
    return plugins_from(FakePlugin())


@pytest.fixture
def load(plugins):
    def load(text: str, *overrides: str) -> Config:
        return load_config(text=text, overrides=overrides, env={}, plugins=plugins)

    return load


@pytest.fixture
def refusal(load):
    """The lines of the error that a text is refused with."""

    def refusal(text: str, *overrides: str) -> list[str]:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides)
        return str(caught.value).splitlines()

    return refusal
