"""The endpoint plugin: nothing without a section, and no start where a part of it did not load."""

from __future__ import annotations

import sys
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette

from gkt_vllm import started
from gkt_vllm.endpoint import GktEndpoint
from gkt_vllm.frontend import Start, decide
from gkt_vllm.info import ADDRESS
from gkt_vllm.section import GktSection


class FakeClient:
    """vLLM's client of its engine."""

    def __init__(self, told: list[dict[str, str]] | Exception) -> None:
        self._told = told
        model = SimpleNamespace(max_model_len=512)
        self.vllm_config = SimpleNamespace(use_v2_model_runner=False, model_config=model, additional_config={})

    async def collective_rpc(self, method: str) -> Any:
        assert method == "gkt_replaced"
        if isinstance(self._told, Exception):
            raise self._told
        return self._told


@pytest.fixture
def start(tmp_path, monkeypatch) -> Start:
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(__version__="0.32.0"))
    monkeypatch.setattr(started, "_last", [])
    (tmp_path / "gkt.toml").write_text('[ledger]\nurl = "sqlite:///missing/folder/ledger.db"\n')
    return decide(GktSection(config=str(tmp_path / "gkt.toml")), "model", None, "0.32.0")


def arguments(additional_config: Any) -> Namespace:
    return Namespace(additional_config=additional_config, served_model_name=None, model="small", api_key=None)


def attached(additional_config: Any) -> Starlette:
    app = Starlette()
    app.state.args = arguments(additional_config)
    GktEndpoint().attach_router(app)
    return app


@pytest.mark.parametrize("given", [None, {}, {"other": 1}])
async def test_without_a_section_a_server_is_as_it_was(given):
    app = attached(given)
    assert not app.user_middleware
    assert not app.routes
    await GktEndpoint().init_state(FakeClient(RuntimeError("must not be asked")), app.state, app.state.args)
    assert not hasattr(app.state, "gkt")


def test_with_one_it_has_a_layer_and_a_page():
    app = attached({"gkt": {"config": "gkt.toml"}})
    assert len(app.user_middleware) == 1
    assert [route.path for route in app.routes] == [ADDRESS]


async def test_a_server_without_an_engine_has_nothing_to_open(start):
    await GktEndpoint().init_state(None, SimpleNamespace(), arguments({"gkt": {"config": "gkt.toml"}}))


async def test_a_plugin_that_a_worker_or_the_frontend_skipped_stops_the_start(start):
    given = arguments({"gkt": {"config": "gkt.toml"}})
    with pytest.raises(SystemExit, match="gkt-plugins: this server did not load gkt-plugins"):
        await GktEndpoint().init_state(FakeClient([{}]), SimpleNamespace(), given)
    started.remember(start)
    with pytest.raises(SystemExit, match="gkt-plugins: a worker of vLLM did not load gkt-plugins"):
        await GktEndpoint().init_state(FakeClient(NotImplementedError("no such method")), SimpleNamespace(), given)


async def test_what_cannot_be_opened_stops_the_start_with_one_sentence(start):
    started.remember(start)
    client, given = FakeClient([{"vllm.one": "a"}, {"vllm.two": "b"}]), arguments({"gkt": {"config": "gkt.toml"}})
    state = SimpleNamespace()
    with pytest.raises(SystemExit) as stopped:
        await GktEndpoint().init_state(client, state, given)
    [line] = str(stopped.value).splitlines()
    assert line.startswith("gkt-plugins: ")
    assert "ledger" in line
    assert state.gkt_about.replaced == {"vllm.one": "a", "vllm.two": "b"}
