"""The official OpenAI clients, unmodified, against ``gkt serve``: only ``base_url`` is another."""

import asyncio
import hashlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from gkt_plugins.accounting.records import read_records, read_requests
from gkt_plugins.testing.gateway_process import GatewayProcess
from gkt_plugins.testing.openai_upstream import Received, Reply, Upstream

NODE = Path(__file__).parent / "node"
ANSWER = "The cat sat on the mat and slept."
KEY = "gkt-" + "k" * 43
ASKED: Any = [{"role": "user", "content": "Where?"}]

TOML = """
[engines.cloud]
adapter = "openai"
base_url = "{teacher}"
model = "large"
[engines.edge]
adapter = "openai"
base_url = "{student}"
model = "small"
[prices.large]
input_per_million = "2.00"
output_per_million = "10.00"
[prices.small]
input_per_million = "0.20"
output_per_million = "1.00"
[pipelines.default]
teacher = "cloud"
student = "edge"
guidance.tokens = 3
[gateway.keys.tests]
sha256 = "{digest}"
"""


def said(received: Received) -> Reply:
    tools = {"tool_calls": [{"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}]}
    return Reply(ANSWER, message=tools if received.body.get("tools") else None)


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with Upstream(said, model="large") as teacher, Upstream(said, model="small") as student:
        digest = hashlib.sha256(KEY.encode()).hexdigest()
        toml = TOML.format(teacher=teacher.url, student=student.url, digest=digest)
        with GatewayProcess(toml, tmp_path_factory.mktemp("gateway")) as running:
            yield running


@pytest.fixture
def client(gateway: GatewayProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0)


# -------------------------------------------------------------------------------------------------------- in Python


def test_a_chat_comes_whole(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="gkt/default", messages=ASKED, seed=1, max_tokens=50)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    gkt: Any = answer.gkt  # type: ignore[attr-defined]
    assert (gkt["route"], gkt["teacher"], gkt["student"]) == ("guided", "large", "small")
    assert gkt["cost"] is not None
    assert gkt["counterfactual_cost"] is not None


def test_a_chat_comes_in_pieces_with_its_usage_at_the_end(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="gkt/default", messages=ASKED, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-1].gkt["route"] == "guided"  # type: ignore[attr-defined]


def test_the_helper_that_puts_a_stream_together_again_works(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="gkt/default", messages=ASKED) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.content == ANSWER


def test_a_completion_takes_several_prompts_and_choices(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="gkt/default", prompt=["Where?", "When?"], n=2)
    assert [(choice.index, choice.text) for choice in answer.choices] == [(index, ANSWER) for index in range(4)]
    pieces = client.completions.create(model="gkt/default", prompt=["Where?", "When?"], stream=True)
    texts = {0: "", 1: ""}
    for chunk in pieces:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {0: ANSWER, 1: ANSWER}


def test_stop_and_max_tokens_bound_the_whole_answer_wherever_they_fall(client: openai.OpenAI) -> None:
    def text(**more: Any) -> str | None:
        return client.chat.completions.create(model="gkt/default", messages=ASKED, **more).choices[0].message.content

    for end in ("cat", "cat sat", "sat on", "mat", "and"):
        assert text(stop=[end]) == text(stop=end) == ANSWER.split(end)[0]
    assert text(max_tokens=2) == "The cat"
    assert text(max_tokens=5) == "The cat sat on the"


def test_guidance_can_be_asked_for_by_name_body_and_header(client: openai.OpenAI) -> None:
    def tokens(model: str = "gkt/default", **more: Any) -> Any:
        answer = client.chat.completions.create(model=model, messages=ASKED, **more)
        return answer.gkt["guidance_tokens"]  # type: ignore[attr-defined]

    assert tokens("gkt/default@g=5") == 4  # the last word of five may go on, so it is not handed over
    assert tokens(extra_body={"gkt": {"guidance_tokens": 5}}) == 4
    assert tokens(extra_headers={"x-gkt-guidance-tokens": "5"}) == 4
    assert tokens("gkt/default@g=0") == 0


def test_tools_and_logprobs_go_to_the_student_and_the_answer_says_so(client: openai.OpenAI) -> None:
    look: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    answer = client.chat.completions.create(model="gkt/default", messages=ASKED, tools=[look])
    assert answer.choices[0].message.tool_calls is not None
    assert answer.gkt["route"] == "forwarded"  # type: ignore[attr-defined]
    chunks = list(client.chat.completions.create(model="gkt/default", messages=ASKED, logprobs=True, stream=True))
    logprobs = [chunk.choices[0].logprobs for chunk in chunks if chunk.choices[0].delta.content]
    assert all(one is not None and one.content for one in logprobs)
    assert chunks[-1].gkt["route"] == "forwarded"  # type: ignore[attr-defined]


def test_errors_are_the_clients_own_classes_with_our_sentences(client: openai.OpenAI, gateway: GatewayProcess) -> None:
    with pytest.raises(openai.NotFoundError, match="the models that do: gkt/default"):
        client.chat.completions.create(model="gpt-4", messages=ASKED)
    with pytest.raises(openai.BadRequestError, match="max_tokens must be a whole number") as caught:
        client.chat.completions.create(model="gkt/default", messages=ASKED, max_tokens=0)
    assert (caught.value.param, caught.value.code) == ("max_tokens", "invalid_value")
    with pytest.raises(openai.AuthenticationError, match="is not one of this gateway's"):
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="wrong", max_retries=0).models.list()


def test_pipelines_are_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["gkt/default"]
    assert client.models.retrieve("gkt/default").id == "gkt/default"


def wait_for_rows(ledger: Path, ids: set[str]) -> None:
    """A request's row is written after its last byte went out."""
    while not ids <= {record.request_id for record in read_requests(ledger)}:
        time.sleep(0.02)


async def test_many_at_once_each_get_their_own_answer_and_row(gateway: GatewayProcess) -> None:
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client:
        answers = await asyncio.gather(
            *(client.chat.completions.create(model="gkt/default", messages=ASKED) for _ in range(40))
        )
    assert {answer.choices[0].message.content for answer in answers} == {ANSWER}
    ids = {answer.id for answer in answers}
    assert len(ids) == 40
    ledger = gateway.folder / "gkt.db"
    wait_for_rows(ledger, ids)
    calls = [record for record in read_records(ledger) if record.request_id in ids]
    assert sorted({(call.role, call.status) for call in calls}) == [("student", "final"), ("teacher", "final")]
    assert len(calls) == 80


# ---------------------------------------------------------------------------------------------------------- in Node


@pytest.fixture(scope="module")
def from_node(gateway: GatewayProcess) -> Any:
    assert (NODE / "node_modules").is_dir(), (
        "the Node client is not installed; run: npm ci --prefix integration_tests/node"
    )
    run = subprocess.run(
        ["node", "client.mjs", f"{gateway.url}/v1", KEY], cwd=NODE, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_node_gets_whole_answers_choices_and_completions(from_node: Any) -> None:
    assert from_node["models"] == ["gkt/default"]
    for name in ("whole", "override", "suffix", "choices"):
        assert {choice["message"]["content"] for choice in from_node[name]["choices"]} == {ANSWER}
    assert len(from_node["choices"]["choices"]) == 2
    assert from_node["stopped"]["choices"][0]["message"]["content"] == "The cat sat on the "
    assert [choice["text"] for choice in from_node["completion"]["choices"]] == [ANSWER, ANSWER]
    assert (from_node["override"]["gkt"]["route"], from_node["header"]) == ("student", "guided")


def test_node_gets_streams_with_usage_and_can_put_them_together(from_node: Any) -> None:
    assert from_node["stream"]["texts"] == {"0": ANSWER}
    assert from_node["stream"]["last"]["usage"]["total_tokens"] > 0
    assert from_node["stream"]["last"]["gkt"]["route"] == "guided"
    assert from_node["streamedCompletion"]["texts"] == {"0": ANSWER}
    assert from_node["helper"]["final"] == ANSWER


def test_node_gets_its_own_error_classes(from_node: Any) -> None:
    found = {
        name: (from_node[name]["name"], from_node[name]["status"]) for name in ("unknownModel", "wrong", "wrongKey")
    }
    assert found == {
        "unknownModel": ("NotFoundError", 404),
        "wrong": ("BadRequestError", 400),
        "wrongKey": ("AuthenticationError", 401),
    }
