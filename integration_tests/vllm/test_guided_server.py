"""A real ``gkt vllm serve`` with two API servers, a key, and a teacher elsewhere, driven by the official client."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import problems
from gkt_plugins.testing.openai_upstream import Received, Reply, Upstream

KEY = "a-key-of-this-server"
[PROBLEM] = problems(7, 1, split="test")
CHAT: list[Any] = [{"role": "user", "content": PROBLEM.question}]
ASKED = b'{"model": "small", "messages": [{"role": "user", "content": "x"}]'
FAILING = "The teacher is down for this question: how many?"
SLOW = "The teacher takes its time for this question: how many?"
BEGINNING = "Plan: 22 *3 *2 +6 +12.\nThe first number is 22. Left: *3"

CONFIG = """
[engines.large]
adapter = "openai"
base_url = "{url}"
model = "large"
prefix = "continue_final_message"
[engines.here]
adapter = "vllm"
model = "small"
[prices.large]
input_per_million = "2.50"
output_per_million = "10.00"
[prices.small]
input_per_million = "0.10"
output_per_million = "0.40"
[pipelines.default]
teacher = "large"
student = "here"
[pipelines.default.guidance]
tokens = 8
[retries]
attempts = 1
breaker_failures = 1000
[speculation]
drafter = "prompt_lookup"
gamma = 3
[vllm]
max_leniency = 0.5
[ledger]
url = "sqlite:///{ledger}"
"""


def content_of(received: Received) -> str:
    """Of the last turn, or the raw prompt."""
    messages = received.body.get("messages")
    return str(messages[-1]["content"] if messages else received.body["prompt"])


def teacher_says(received: Received) -> Reply:
    asked = content_of(received)
    if asked == FAILING:
        return Reply("", status=503)
    return Reply(BEGINNING, per_token_s=0.2 if asked == SLOW else 0.0)


@pytest.fixture(scope="module")
def teacher() -> Iterator[Upstream]:
    with Upstream(teacher_says, model="large") as upstream:
        yield upstream


@pytest.fixture(scope="module")
def server(teacher: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the server; its configuration and ledger are in one folder."""
    folder = tmp_path_factory.mktemp("server", numbered=False)
    (folder / "gkt.toml").write_text(CONFIG.format(url=teacher.url, ledger=folder / "ledger.db"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ["--served-model-name", "small", "--port", str(port), "--host", "127.0.0.1", "--dtype", "float32"]
    options += ["--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "16", "--api-key", KEY]
    options += ["--api-server-count", "2"]
    command = [sys.executable, "-m", "gkt_plugins.cli", "vllm", "serve", str(model_dir("student")), *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    log = (folder / "server.log").open("w")
    process = subprocess.Popen(
        [*command, "--gkt", str(folder / "gkt.toml")], env=environment, stdout=log, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 240
        while True:
            assert process.poll() is None, (folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < deadline, (folder / "server.log").read_text()[-3000:]
            try:
                if httpx2.get(f"{url}/health", timeout=2).status_code == 200:
                    break
            except httpx2.TransportError:
                time.sleep(1)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()


@pytest.fixture
def client(server: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server}/v1", api_key=KEY, max_retries=0, timeout=60)


def ask(client: openai.OpenAI, content: str = PROBLEM.question, **options: Any) -> Any:
    """Headers and answer of a greedy chat."""
    options = {"max_tokens": 32, "temperature": 0} | options
    raw = client.chat.completions.with_raw_response.create(
        model="small", messages=[{"role": "user", "content": content}], **options
    )
    return raw.headers, raw.parse()


def test_the_answer_begins_with_the_teacher_and_the_student_finishes_it(client, teacher):
    before = len(teacher.received)
    headers, answer = ask(client)
    text = answer.choices[0].message.content
    assert text.startswith("Plan: 22 *3 *2")
    assert len(text) > len(BEGINNING)
    assert headers["x-gkt-route"] == "guided"
    assert answer.gkt["teacher"] == "large"
    assert 0 < answer.gkt["guidance_tokens"] <= 8
    assert len(teacher.received) == before + 1
    assert teacher.received[-1].body["max_tokens"] == 8


def test_a_stream_says_the_same_and_several_choices_share_one_guidance(client, teacher):
    _, whole = ask(client)
    before = len(teacher.received)
    texts = ["", ""]
    usage = None
    stream = client.chat.completions.create(
        model="small", messages=CHAT, max_tokens=32, temperature=0, n=2, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
        usage = chunk.usage or usage
    assert texts == [whole.choices[0].message.content] * 2
    assert usage is not None
    assert usage.completion_tokens > 0
    assert usage.gkt["teacher"]["completion_tokens"] > 0
    assert usage.gkt["student"]["prompt_tokens"] > usage.prompt_tokens  # it reads the guidance too
    assert len(teacher.received) == before + 1


def test_completions_are_guided_too(client):
    raw = client.completions.with_raw_response.create(model="small", prompt="One and one is", max_tokens=24)
    assert raw.headers["x-gkt-route"] == "guided"


@pytest.mark.parametrize("stop", ["*3 *2", "22 *3 *2 +6 +12.\nThe"])
def test_a_stop_string_ends_the_answer_whichever_model_wrote_it(client, stop):
    _, answer = ask(client, stop=[stop])
    assert answer.choices[0].finish_reason == "stop"
    assert stop not in answer.choices[0].message.content


@pytest.mark.parametrize(
    "options",
    [
        {"logprobs": True},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}], "tool_choice": "none"},
        {"response_format": {"type": "json_object"}},
        {"messages": [*CHAT, {"role": "assistant", "content": "Plan:"}]},
    ],
)
def test_what_two_models_cannot_give_goes_to_vllm_untouched_and_is_marked(client, teacher, options):
    before = len(teacher.received)
    request: dict[str, Any] = {"model": "small", "messages": CHAT, "max_tokens": 8, **options}
    raw = client.chat.completions.with_raw_response.create(**request)
    assert raw.headers["x-gkt-route"] == "bypassed"
    assert raw.headers["x-gkt-bypass"]
    assert len(teacher.received) == before


def test_a_wrong_key_costs_no_teacher_call(server, teacher):
    before = len(teacher.received)
    stranger = openai.OpenAI(base_url=f"{server}/v1", api_key="not-the-key", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.chat.completions.create(model="small", messages=CHAT, max_tokens=8)
    assert len(teacher.received) == before


def test_when_the_teacher_is_down_the_student_answers_and_says_so(client):
    headers, answer = ask(client, FAILING)
    assert answer.choices[0].message.content
    assert headers["x-gkt-degraded"] == "true"
    assert any(note.startswith("degraded:") for note in answer.gkt["notes"])


def test_a_client_that_leaves_cancels_the_teacher_within_a_second(server, teacher):
    body = {"model": "small", "messages": [{"role": "user", "content": SLOW}], "max_tokens": 32, "stream": True}
    headers = {"authorization": f"Bearer {KEY}"}
    with (
        httpx2.Client(timeout=60) as http,
        http.stream("POST", f"{server}/v1/chat/completions", json=body, headers=headers) as response,
    ):
        next(response.iter_lines())
        left = time.perf_counter()
    slow = [one for one in teacher.received if content_of(one) == SLOW][-1]
    assert teacher.wait_until(lambda _: slow.disconnected is not None or slow.finished is not None)
    assert slow.disconnected is not None
    assert slow.disconnected - left < 1.0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'"text"', 400),
        (b'{"model": "small", "messages": []}', 400),
        (b'{"model": "small", "messages": "text"}', 400),
        (b'{"model": "nobody", "messages": [{"role": "user", "content": "x"}]}', 404),
        (b'{"model": "small", "messages": [{"role": "user", "content": "x"}], "max_tokens": "many"}', 400),
        (
            b'{"model": "small", "messages": [{"role": "user", "content": "x"}], "vllm_xargs": {"gkt_epsilon": 0.1}}',
            400,
        ),
        (b'{"model": "small", "messages": [{"role": "user", "content": "x"}], "vllm_xargs": {"gkt_gamma": -1}}', 400),
    ],
)
def test_a_malformed_request_is_answered_and_the_server_stays_up(server, body, status):
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}
    response = httpx2.post(f"{server}/v1/chat/completions", content=body, headers=headers, timeout=60)
    assert response.status_code in (status, 422)
    assert response.json()["error"]["message"]
    assert httpx2.get(f"{server}/health").status_code == 200


def test_leniency_within_the_bound_is_served(client):
    _, answer = ask(client, extra_body={"vllm_xargs": {"gkt_epsilon": 0.5}})
    assert answer.choices[0].message.content


def test_the_ledger_has_every_call_and_both_servers_keep_one(client, server, tmp_path_factory):
    from gkt_plugins.accounting.records import read_records

    ledger = tmp_path_factory.getbasetemp() / "server" / "ledger.db"
    answers = [ask(client, f"{PROBLEM.question} ({number})")[1] for number in range(6)]
    records = list(read_records(f"sqlite:///{ledger}"))
    for answer in answers:
        own = [record for record in records if record.request_id == answer.id]
        assert {(record.role, record.status) for record in own} == {("teacher", "final"), ("student", "final")}
        assert all(record.cost_nano for record in own)


def test_vllms_own_metrics_page_shows_ours_of_both_servers(client, server):
    ask(client)
    page = httpx2.get(f"{server}/metrics").text
    lines = [line for line in page.splitlines() if line.startswith("gkt_requests_total{")]
    assert any('pipeline="default"' in line and 'route="guided"' in line for line in lines)
    assert "vllm:num_requests_running" in page
