"""Keys, limits and budgets where they meet requests: at the gateway's own addresses."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from hashlib import sha256

import pytest

from gkt_plugins.cli.keys import new_key
from gkt_plugins.testing.gateway_process import GatewayProcess

TEAM, BOSS = new_key(), new_key()
GUIDED = """
[engines.cloud]
adapter = "scripted"
[engines.edge]
adapter = "scripted"
[pipelines.default]
teacher = "cloud"
student = "edge"
guidance.tokens = 8
[pipelines.private]
student = "edge"
[prices.cloud-model]
input_per_million = "1000000"
output_per_million = "1000000"
[prices.edge-model]
input_per_million = "1000000"
output_per_million = "1000000"
"""

OPEN = """
[engines.edge]
adapter = "openai"
base_url = "http://127.0.0.1:9/v1"
model = "small"
[pipelines.default]
student = "edge"
"""


def digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()


KEYS = f"""
[gateway.keys.team]
sha256 = "{digest(TEAM)}"
pipelines = ["default"]
[gateway.keys.boss]
sha256 = "{digest(BOSS)}"
admin = true
"""


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def error(reply) -> tuple[int, str]:
    return reply.status, reply.json()["error"]["code"]


async def test_a_request_without_a_key_calls_nobody(gateway):
    running = await gateway(toml=GUIDED + KEYS)
    for key in ("", "gkt-" + "x" * 43, digest(TEAM)):
        reply = await running.client.post("/v1/chat/completions", running.body(), headers=bearer(key))
        assert error(reply) == (401, "invalid_api_key")
        assert reply.headers["www-authenticate"] == "Bearer"
    assert await running.calls() == []


async def test_a_key_opens_its_own_pipelines_and_is_on_record_by_name(gateway):
    running = await gateway(toml=GUIDED + KEYS, headers=bearer(TEAM))
    assert (await running.chat()).status == 200
    assert error(await running.chat(model="gkt/private")) == (404, "model_not_found")
    listed = (await running.client.get("/v1/models")).json()["data"]
    assert [model["id"] for model in listed] == ["gkt/default"]
    assert [record.key for record in await running.requests()] == ["team"]


async def test_a_pipeline_that_is_not_open_to_a_key_looks_like_one_that_does_not_exist(gateway):
    running = await gateway(toml=GUIDED + KEYS, headers=bearer(TEAM))
    closed, missing = [(await running.chat(model=f"gkt/{name}")).json() for name in ("private", "nowhere")]
    assert json.dumps(closed).replace("private", "nowhere") == json.dumps(missing)


@pytest.mark.parametrize("path", ["/metrics", "/dashboard/figures"])
async def test_figures_are_for_admins(gateway, path):
    running = await gateway(toml=GUIDED + KEYS)
    ask = running.client.get
    assert error(await ask(path)) == (401, "invalid_api_key")
    assert error(await ask(path, headers=bearer(TEAM))) == (403, "admin_required")
    assert (await ask(path, headers=bearer(BOSS))).status == 200
    password = base64.b64encode(f"boss:{BOSS}".encode()).decode()
    assert (await ask(path, headers={"authorization": f"Basic {password}"})).status == 200


async def test_a_browser_that_opens_the_metrics_is_asked_for_a_key(gateway):
    running = await gateway(toml=GUIDED + KEYS)
    reply = await running.client.get("/metrics", headers={"authorization": "Basic eDp4"})
    assert error(reply) == (401, "invalid_api_key")
    assert reply.headers["www-authenticate"].startswith("Basic ")


@pytest.mark.parametrize("path", ["/health", "/ready"])
async def test_health_and_readiness_ask_for_no_key(gateway, path):
    running = await gateway(toml=GUIDED + KEYS)
    assert (await running.client.get(path, headers={"host": "10.0.0.7"})).status == 200


async def test_beyond_its_rate_a_key_is_told_when_to_come_back_and_others_are_not_held_up(gateway):
    limited = KEYS.replace('pipelines = ["default"]', "requests_per_minute = 2")
    running = await gateway(toml=GUIDED + limited)
    ask = running.client.post
    statuses = [(await ask("/v1/chat/completions", running.body(), headers=bearer(TEAM))).status for _ in range(3)]
    assert statuses == [200, 200, 429]
    reply = await ask("/v1/completions", {"model": "gkt/default", "prompt": "x"}, headers=bearer(TEAM))
    assert error(reply) == (429, "rate_limit_exceeded")
    assert 1 <= int(reply.headers["retry-after"]) <= 30
    assert int(reply.headers["retry-after-ms"]) <= 30_000
    assert (await ask("/v1/chat/completions", running.body(), headers=bearer(BOSS))).status == 200


async def test_a_budget_shortens_the_guidance_then_leaves_the_teacher_out_then_refuses(gateway):
    # "Why?" is one token of four bytes and eight for its message; the answer at most 20. One token is one unit, so a
    # request is held as 9 + 8 for the teacher, 9 + 8 + 20 for the student; each answer really costs less.
    running = await gateway(toml=GUIDED + '[budget]\nper_day = "60"')
    seen = []
    for _ in range(5):
        reply = await running.chat(max_tokens=20)
        if reply.status != 200:
            break
        told = reply.json()["gkt"]
        spent = float(told["cost"])
        seen.append((told["route"], told["degraded"], any("budget" in note for note in told["notes"]), spent))
    assert seen[0][:3] in [("guided", False, False), ("teacher", False, False)]
    assert ("student", True, True) in [one[:3] for one in seen]
    assert error(reply) == (429, "insufficient_quota")
    assert reply.headers["x-should-retry"] == "false"
    assert sum(spent for *_, spent in seen) <= 60
    requests = await running.requests()
    assert [record.status for record in requests] == ["ok"] * len(seen) + ["refused"]
    assert requests[-1].error == "insufficient_quota"


async def test_a_budget_of_one_key_leaves_the_others_theirs(gateway):
    limited = KEYS.replace('pipelines = ["default"]', 'budget_per_day = "1"')
    running = await gateway(toml=GUIDED + limited)
    ask = running.client.post
    reply = await ask("/v1/chat/completions", running.body(), headers=bearer(TEAM))
    assert error(reply) == (429, "insufficient_quota")
    assert "of the key 'team'" in reply.json()["error"]["message"]
    assert (await ask("/v1/chat/completions", running.body(), headers=bearer(BOSS))).status == 200


async def test_what_was_held_for_a_client_that_left_is_given_back(gateway):
    running = await gateway(toml=GUIDED + '[budget]\nper_day = "300"')
    async with running.client.stream("/v1/chat/completions", running.body(stream=True, max_tokens=200)) as reply:
        await anext(reply.pieces())
    assert (await running.chat(max_tokens=200)).status == 200


async def test_the_metrics_count_refusals_by_code_and_budget_steps(gateway):
    running = await gateway(toml=GUIDED + KEYS + '[budget]\nper_day = "60"')
    await running.client.post("/v1/chat/completions", running.body(max_tokens=20))
    await running.client.post("/v1/chat/completions", running.body(max_tokens=20), headers=bearer(BOSS))
    await running.client.post("/v1/chat/completions", running.body(max_tokens=99), headers=bearer(BOSS))
    page = (await running.client.get("/metrics", headers=bearer(BOSS))).body.decode()
    assert 'gkt_errors_total{code="invalid_api_key"} 1.0' in page
    assert 'gkt_errors_total{code="insufficient_quota"} 1.0' in page
    assert 'gkt_budget_requests_total{step="full"} 1.0' in page
    assert 'gkt_budget_requests_total{step="refused"} 1.0' in page
    assert "gkt_requests_in_flight" in page
    assert BOSS not in page


async def test_no_key_is_ever_in_the_ledger_or_the_answers(gateway, tmp_path):
    running = await gateway(toml=GUIDED + KEYS, headers=bearer(TEAM))
    reply = await running.chat()
    bad = await running.chat(model="gkt/private")
    await running.requests()
    kept = b"".join(path.read_bytes() for path in tmp_path.glob("gkt.db*") if path.is_file())
    for key in (TEAM, digest(TEAM)):
        assert key.encode() not in kept + reply.body + bad.body + str(reply.headers).encode()


@pytest.mark.parametrize("arguments", [["--host", "0.0.0.0"], ["--host", "::"], ["--set", 'gateway.host="0.0.0.0"']])
def test_without_keys_the_gateway_does_not_start_beyond_loopback(tmp_path, arguments):
    (tmp_path / "gkt.toml").write_text(OPEN)
    command = [sys.executable, "-m", "gkt_plugins.cli", "serve", "--port", "0", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "gateway.host must be loopback" in done.stderr
    assert "gkt keys new NAME" in done.stderr
    assert not (tmp_path / "gkt.db").exists()


def test_with_keys_the_gateway_starts_beyond_loopback(tmp_path):
    with GatewayProcess(OPEN + KEYS, tmp_path, arguments=("--host", "0.0.0.0")) as gateway:
        gateway.url = gateway.url.replace("0.0.0.0", "127.0.0.1")
        assert gateway.get("/v1/models").status == 401
        assert gateway.get("/v1/models", headers=bearer(BOSS)).status == 200
