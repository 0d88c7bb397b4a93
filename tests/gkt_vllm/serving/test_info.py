"""``GET /gkt/info``."""

from __future__ import annotations

from typing import Any

import pytest

from gkt_plugins import __version__
from gkt_vllm.frozen import FrozenFile

CHAT: dict[str, Any] = {"model": "small", "messages": [{"role": "user", "content": "How many?"}]}


async def test_the_page_says_what_runs_what_was_replaced_and_what_is_done_differently(serve, tmp_path):
    server = await serve(leniency=(0.8, 0.5))
    page = (await server.client.get("/gkt/info")).json()
    assert (page["gkt_plugins"], page["vllm"], page["model_runner"]) == (__version__, "0.0", "V1")
    assert page["active"] == ["drafts"]
    assert page["notes"] == ["a note"]
    assert page["replaced"]["vllm.function"] == "a reason"
    assert page["leniency"] == {"rule": "linear", "epsilon": 0.8, "least": 0.5}
    text = (tmp_path / "gkt.toml").read_text()
    assert page["config"] == {"digest": FrozenFile(tmp_path, text).digest, "changed": False}
    assert (page["pipeline"], page["teacher"], page["target"]) == ("vllm", None, "small")


async def test_an_edited_file_is_told_and_the_server_goes_on_as_before(serve, tmp_path):
    server = await serve(leniency=(1.0, 0.5))
    before = (await server.client.get("/gkt/info")).json()["config"]["digest"]
    (tmp_path / "gkt.toml").write_text("this is no TOML")
    page = (await server.client.get("/gkt/info")).json()
    assert page["config"] == {"digest": before, "changed": True}
    assert server.metric("gkt_config_changed") == 1
    assert (await server.client.post("/v1/chat/completions", CHAT)).status == 200


@pytest.mark.parametrize(
    ("header", "status"),
    [("Bearer the-key", 200), ("bearer the-key", 200), ("Basic the-key", 401), ("Bearer another", 401), ("", 401)],
)
async def test_the_page_is_for_those_who_have_vllm_s_key(serve, header, status):
    server = await serve(key="the-key")
    reply = await server.client.get("/gkt/info", headers={"authorization": header})
    assert reply.status == status
    if status == 401:
        assert reply.json() == {"error": "Unauthorized"}
