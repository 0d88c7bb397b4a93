"""The dashboard over HTTP: who sees what, what the browser is told, and where everything comes from."""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.applications import Starlette

from gkt_plugins.config import load_config
from gkt_plugins.gateway import dashboard
from gkt_plugins.gateway.access import Access
from gkt_plugins.testing.asgi import AsgiClient
from gkt_plugins.testing.ledgers import invented_traffic, write_traffic
from gkt_plugins.testing.plugins import plugins_from

STATIC = Path(str(files("gkt_plugins.gateway.dashboard") / "static"))
MODULES = {f"dashboard/{path.name}" for path in STATIC.glob("*.js")}
ADMIN, GUEST = "an admin's key of more than 32 characters", "a guest's key of more than 32 characters, too"
NOON = 1_795_348_800

CONFIG = """
[engines.small]
adapter = "openai"
base_url = "http://127.0.0.1:9/v1"
model = "small"
[pipelines.default]
student = "small"
"""


def keys() -> str:
    return "".join(
        f'[gateway.keys.{name}]\nsha256 = "{hashlib.sha256(key.encode()).hexdigest()}"\nadmin = {admin}\n'
        for name, key, admin in (("admin", ADMIN, "true"), ("guest", GUEST, "false"))
    )


def client_of(folder: Path, text: str = CONFIG) -> AsgiClient:
    plugins = plugins_from()
    config = load_config(text=f'{text}\n[ledger]\nurl = "sqlite:///{folder}/gkt.db"\n', plugins=plugins, env={})
    state = SimpleNamespace(config=config, plugins=plugins, env={}, access=Access.from_config(config))
    return AsgiClient(Starlette(routes=dashboard.routes(state)))


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    write_traffic(f"sqlite:///{tmp_path}/gkt.db", invented_traffic(50, since=NOON - 3600, until=NOON))
    return tmp_path


async def test_figures_are_given_for_a_time_range_and_a_pipeline(ledger):
    client = client_of(ledger)
    reply = await client.get(f"/dashboard/figures?since={NOON - 3600}&until={NOON}&pipeline=support")
    assert reply.status == 200
    assert reply.json()["pipeline"] == "support"
    assert 0 < reply.json()["requests"]["total"] < 50
    assert reply.headers["cache-control"] == "no-store"


async def test_a_range_that_makes_no_sense_is_a_400_in_openai_s_shape(ledger):
    reply = await client_of(ledger).get("/dashboard/figures?since=yesterday")
    assert reply.status == 400
    assert reply.json()["error"]["param"] == "since"


async def test_a_ledger_that_is_not_there_is_a_503_that_says_so_and_is_found_once_it_is(tmp_path):
    client = client_of(tmp_path)
    reply = await client.get("/dashboard/figures")
    assert reply.status == 503
    assert "there is no ledger" in reply.json()["error"]["message"]
    write_traffic(f"sqlite:///{tmp_path}/gkt.db", [])
    assert (await client.get("/dashboard/figures")).status == 200


async def test_a_ledger_that_breaks_is_a_503_that_says_so(ledger):
    client = client_of(ledger)
    assert (await client.get("/dashboard/figures")).status == 200
    for file in ledger.glob("gkt.db*"):
        if file.is_file():
            file.write_bytes(b"no database at all" * 100)
    reply = await client.get("/dashboard/figures")
    assert reply.status == 503
    assert "the ledger could not be read" in reply.json()["error"]["message"]


async def test_with_keys_the_page_is_open_and_the_figures_are_for_admins(ledger):
    client = client_of(ledger, CONFIG + keys())
    assert (await client.get("/dashboard")).status == 200
    without = await client.get("/dashboard/figures")
    guest = await client.get("/dashboard/figures", headers={"authorization": f"Bearer {GUEST}"})
    admin = await client.get("/dashboard/figures", headers={"authorization": f"Bearer {ADMIN}"})
    assert (without.status, guest.status, admin.status) == (401, 403, 200)
    assert "www-authenticate" not in without.headers  # the browser's own dialog would keep the key


async def test_without_keys_only_this_machine_gets_figures(ledger):
    reply = await client_of(ledger).get("/dashboard/figures", headers={"host": "rebound.example"})
    assert reply.status == 403


async def test_the_policy_lets_the_browser_load_nothing_from_elsewhere_and_run_nothing_inline(ledger):
    reply = await client_of(ledger).get("/dashboard")
    policy = dict(part.strip().split(" ", 1) for part in reply.headers["content-security-policy"].split(";"))
    assert policy.pop("default-src") == "'none'"
    assert set(policy.values()) <= {"'self'", "'none'"}
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert reply.headers["x-content-type-options"] == "nosniff"


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.files: list[str] = []
        self.inline: list[str] = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        if tag in ("script", "link"):
            self.files.append(given.get("src") or given.get("href") or "")
        self.inline += [name for name in given if name == "style" or name.startswith("on")]


async def test_every_file_that_the_page_names_is_there(ledger):
    client = client_of(ledger)
    links = Links()
    links.feed((await client.get("/dashboard")).body.decode())
    assert not links.inline
    modules = MODULES | {"dashboard/vendor/uPlot.esm.js"}
    for file in {*links.files, *modules}:
        reply = await client.get(f"/{file}")
        assert reply.status == 200, file
        for imported in re.findall(r'^import .*? from "\./(.*)";', reply.body.decode(), re.M):
            assert f"dashboard/{imported}" in modules, imported


async def test_a_file_that_the_browser_has_is_not_sent_again(ledger):
    client = client_of(ledger)
    first = await client.get("/dashboard/main.js")
    again = await client.get("/dashboard/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")


async def test_nothing_outside_the_page_s_folder_is_served(ledger):
    client = client_of(ledger)
    for path in ("/dashboard/../figures.py", "/dashboard/%2e%2e/figures.py", "/dashboard/vendor/", "/dashboard/x.js"):
        assert (await client.get(path)).status == 404, path


def test_uplot_is_the_file_that_npm_gives_with_its_licence():
    script = (STATIC / "vendor" / "uPlot.esm.js").read_bytes()
    assert b"(v1.6.32)" in script[:400]
    assert hashlib.sha256(script).hexdigest() == "5dd9b3281aa64b461b42d9945f6adb2649d346502b12281a9ae0d46599a80eba"
    assert "MIT License" in (STATIC / "vendor" / "uPlot.LICENSE").read_text()
