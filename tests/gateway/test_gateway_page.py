"""docs/gateway.md, held against the gateway."""

from __future__ import annotations

import re
from pathlib import Path

from starlette.routing import Route

from gkt_plugins.config import load_config
from gkt_plugins.gateway.app import build_app
from gkt_plugins.openai_wire.provenance import Provenance
from gkt_plugins.openai_wire.requests import parse
from gkt_plugins.testing.plugins import plugins_from

PAGE = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text(encoding="utf-8")


def test_every_key_of_the_gkt_object_is_explained():
    keys = Provenance(0, "large", "small", "guided").as_json().keys()
    shown = re.search(r'```json\n"gkt": \{(.*?)\}', PAGE, re.DOTALL)
    assert shown is not None
    assert set(re.findall(r'"(\w+)":', shown[1])) == set(keys)
    explained = set(re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE))
    assert explained >= keys - {"teacher", "student", "currency"}


async def test_every_header_of_an_answer_is_named(gateway):
    reply = await (await gateway()).chat()
    named = set(re.findall(r"`(x-[a-z-]+)`", PAGE))
    assert {name for name in reply.headers if name.startswith("x-")} <= named


def test_the_configuration_at_the_top_can_be_served():
    toml = re.search(r"```toml\n# gkt.toml\n(.*?)```", PAGE, re.DOTALL)
    assert toml is not None
    plugins = plugins_from()
    app = build_app(load_config(text=toml[1], plugins=plugins), plugins, {})
    addresses = set(re.findall(r"`(?:GET|POST) (/[a-z0-9/._]+)`", PAGE))
    assert addresses <= {route.path for route in app.routes if isinstance(route, Route)}
    assert len(addresses) == 8


def test_the_ways_of_asking_for_guidance_are_as_written():
    body = {"messages": [{"role": "user", "content": "Why?"}]}
    named = re.search(r'`"model": "([^"]+)"`', PAGE)
    header = re.search(r"the header `([a-z-]+): (\d+)`", PAGE)
    assert named is not None
    assert header is not None
    assert parse("chat", body | {"model": named[1]}).guidance_tokens == 20
    assert '`"gkt": {"guidance_tokens": 20}`' in PAGE
    assert parse("chat", body | {"model": "gkt/default"}, headers={header[1]: header[2]}).guidance_tokens == 20
