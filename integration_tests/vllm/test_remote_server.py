"""vLLM servers elsewhere, through the adapter for OpenAI's API: a plain one, and one that our section guides.

Whatever is asked of them is compared with the same models in this process, by transformers.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gkt_plugins.cli import main
from gkt_plugins.config import load_config
from gkt_plugins.contracts import Call, Prompt, Sampling
from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import problems
from gkt_plugins.errors import EngineError
from gkt_plugins.guidance.pipeline import Pipeline

QUESTIONS = [problem.question for problem in problems(0, 6, split="test")]
GUIDANCE = "guidance.tokens = 8\n"
ENGINES = """
[engines.plain]
adapter = "openai"
base_url = "{plain}/v1"
model = "large"
[engines.guided]
adapter = "openai"
base_url = "{guided}/v1"
model = "small"
[engines.quiet]
adapter = "openai"
base_url = "{guided}/v1"
model = "small"
headers = {{ x-gkt-guidance-tokens = "0" }}
[engines.large]
adapter = "transformers"
model = "{large}"
device = "cpu"
dtype = "float32"
[engines.small]
adapter = "transformers"
model = "{small}"
device = "cpu"
dtype = "float32"
[prices.large]
input_per_million = "2.50"
output_per_million = "10.00"
[prices.small]
input_per_million = "0.10"
output_per_million = "0.40"
"""
SERVER = """
[engines.large]
adapter = "openai"
base_url = "{plain}/v1"
model = "large"
prefix = "continue_final_message"
[engines.here]
adapter = "vllm"
model = "small"
[pipelines.default]
teacher = "large"
student = "here"
guidance.tokens = 8
[speculation]
drafter = "prompt_lookup"
gamma = 3
"""


@pytest.fixture(scope="module")
def engines(
    serving: Callable[..., Any], free_port: Callable[[], int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """``[engines]`` that names both servers and both models: ``plain`` serves the teacher, ``guided`` the student."""
    folder = tmp_path_factory.mktemp("servers")
    ports = [free_port(), free_port()]
    plain, guided = (f"http://127.0.0.1:{port}" for port in ports)
    (folder / "gkt.toml").write_text(SERVER.format(plain=plain))
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "16"]
    binaries = Path(sys.executable).parent
    commands = [
        [str(binaries / "vllm"), "serve", str(model_dir("teacher")), "--served-model-name", "large", *options],
        [str(binaries / "gkt"), "vllm", "serve", str(model_dir("student")), "--served-model-name", "small", *options],
    ]
    with serving(folder, dict(zip(ports, commands, strict=True))):
        yield ENGINES.format(plain=plain, guided=guided, large=model_dir("teacher"), small=model_dir("student"))


@pytest.fixture
def opened(engines: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Pipeline]:
    """``opened(teacher, student)``: a pipeline of two of the engines; teacher None: the student alone."""
    monkeypatch.setenv("GKT_CACHE_DIR", str(tmp_path / "cache"))

    def opened(teacher: str | None, student: str) -> Pipeline:
        guided = "" if teacher is None else f'teacher = "{teacher}"\n{GUIDANCE}'
        ledger = f'[ledger]\nurl = "sqlite:///{tmp_path}/ledger.db"\n'
        return Pipeline.from_config(
            load_config(text=f'{engines}[pipelines.default]\nstudent = "{student}"\n{guided}{ledger}')
        )

    return opened


def running(url: str) -> tuple[float, float]:
    """Requests that a server works on, and the tokens that it has written."""
    page = httpx2.get(f"{url}/metrics").text
    names = ("num_requests_running", "generation_tokens_total")
    requests, tokens = (re.findall(rf"^vllm:{name}{{[^}}]*}} (\S+)$", page, re.MULTILINE) for name in names)
    return sum(map(float, requests)), sum(map(float, tokens))


def test_the_doctor_finds_out_how_both_servers_continue_an_answer(engines, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GKT_CACHE_DIR", str(tmp_path / "cache"))
    pipelines = '[pipelines.default]\nteacher = "plain"\nstudent = "guided"\n[pipelines.other]\nstudent = "plain"\n'
    (tmp_path / "gkt.toml").write_text(engines + pipelines)
    with pytest.raises(SystemExit) as done:
        main(["doctor", "plain", "guided", "--config", str(tmp_path / "gkt.toml"), "--json"])
    assert done.value.code in (0, None)
    parts = {part["name"]: part for part in json.loads(capsys.readouterr().out)["parts"]}
    for name in ("plain", "guided"):
        found = {finding["name"]: finding["value"] for finding in parts[name]["findings"]}
        assert found["answers"] == "chat, raw prompts"
        assert found["prefix route"] == "chat with continue_final_message"
        assert found["usage on streams"].startswith("yes")
        assert found["log-probabilities"] == "of the top 20 in chat and 20 in raw prompts"
        assert found["model listed"] == "yes"


@pytest.mark.parametrize(
    ("served", "here"),
    [
        (("plain", "guided"), ("large", "small")),
        (("plain", "plain"), ("large", "large")),
        ((None, "plain"), (None, "large")),
    ],
)
async def test_servers_answer_as_the_same_models_in_this_process_do(opened, served, here):
    samplings = [Sampling(max_tokens=48), Sampling(max_tokens=48, stop=("*",)), Sampling(max_tokens=400)]
    answers = []
    for names in (served, here):
        async with opened(*names) as pipeline:
            asked = [pipeline.answer(one, sampling=sampling, n=2) for sampling in samplings for one in QUESTIONS[:2]]
            answers.append(await asyncio.gather(*asked))
    for remote, local in zip(*answers, strict=True):
        assert remote.guidance == local.guidance
        assert bool(remote.guidance) == (served[0] is not None)
        assert not any(choice.notes for choice in remote.choices)
        for one, other in zip(remote.choices, local.choices, strict=True):
            # Of an answer that is cut, the guidance's tokens are its share of those that were reported.
            shorter, longer = sorted((one.text, other.text), key=len)
            assert longer.startswith(shorter)
            assert one.finish_reason == other.finish_reason
            assert len(longer) - len(shorter) <= (8 if one.finish_reason == "length" else 0)
        assert remote.usage.keys() == local.usage.keys()  # no student, where the guidance is the whole answer
        for role, usage in remote.usage.items():
            assert usage.prompt_tokens == local.usage[role].prompt_tokens
            assert not usage.estimated
    assert {choice.finish_reason for answer in answers[0] for choice in answer.choices} == {"stop", "length"}


async def test_a_server_that_guides_is_a_teacher_like_any_other(opened):
    async with opened("guided", "plain") as pipeline:
        answers = [await pipeline.answer(question, sampling=Sampling(max_tokens=32)) for question in QUESTIONS[:3]]
    async with opened(None, "large") as pipeline:
        alone = [await pipeline.answer(question, sampling=Sampling(max_tokens=32)) for question in QUESTIONS[:3]]
    # Its own teacher, whose guidance it hands on, is the model that finishes the answer here.
    for answer, own in zip(answers, alone, strict=True):
        assert answer.guidance
        assert own.text.startswith(answer.guidance)
        assert answer.text[: len(own.text)] == own.text[: len(answer.text)]


async def test_a_raw_prompt_is_guided_once_where_the_student_s_server_is_told_not_to_guide(opened):
    """Nothing else tells it that a raw prompt has guidance at its end already."""
    prompt = Prompt(text=f"{QUESTIONS[0]}\n")
    answers = []
    for names in (("plain", "quiet"), ("large", "small")):
        async with opened(*names) as pipeline:
            answers.append(await pipeline.answer(prompt, sampling=Sampling(max_tokens=40)))
    remote, local = answers
    assert remote.guidance == local.guidance != ""
    assert remote.text[: len(local.text)] == local.text[: len(remote.text)]
    assert len(remote.text) > len(remote.guidance)


@pytest.mark.parametrize("names", [("plain", "guided"), ("plain", "plain"), (None, "guided")])
async def test_a_stream_brings_the_whole_answer_in_pieces(opened, names):
    sampling = Sampling(max_tokens=48)
    async with opened(*names) as pipeline:
        whole = await pipeline.answer(QUESTIONS[0], sampling=sampling)
        pieces = []
        async with aclosing(pipeline.stream(QUESTIONS[0], sampling=sampling)) as streamed:
            pieces = [piece.text async for piece in streamed if getattr(piece, "text", "")]
    assert "".join(pieces) == whole.text
    assert len(pieces) > 5


@pytest.mark.parametrize("name", ["plain", "guided"])
async def test_a_stream_that_is_closed_early_stops_the_server(opened, name):
    sampling = Sampling(max_tokens=400, extra={"ignore_eos": True})
    async with opened(None, name) as pipeline:
        engine = pipeline.parts.student
        url = engine._options.base_url.removesuffix("/v1")
        _, before = await asyncio.to_thread(running, url)
        async with aclosing(engine.stream(Call(Prompt.chat(QUESTIONS[0]), sampling=sampling))) as deltas:
            assert (await anext(deltas)).text
        deadline = time.monotonic() + 60
        while (state := await asyncio.to_thread(running, url))[0]:
            assert time.monotonic() < deadline
        assert state[1] - before < sampling.max_tokens


async def test_what_a_server_refuses_is_one_sentence_and_hurts_its_own_row_only(opened):
    async with opened(None, "plain") as pipeline:
        long = Call(Prompt.chat("x " * 600), sampling=Sampling(max_tokens=4))
        good = Call(Prompt.chat("x"), sampling=Sampling(max_tokens=4))
        [refused, fine] = await pipeline.parts.student.generate([long, good])
    assert isinstance(refused, EngineError)
    assert not refused.retryable
    assert fine.usage.completion_tokens == 4


def test_a_file_of_requests_is_answered_by_the_servers(engines, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GKT_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "gkt.toml").write_text(
        f'{engines}[pipelines.default]\nteacher = "plain"\nstudent = "guided"\n{GUIDANCE}'
    )
    lines = [
        {"custom_id": f"{number}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": "gkt/default", "messages": [{"role": "user", "content": question}], "max_tokens": 32}}
        for number, question in enumerate(QUESTIONS)
    ]  # fmt: skip
    Path("in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SystemExit) as done:
        main(["run", "-i", "in.jsonl", "-o", "out.jsonl", "--json"])
    assert done.value.code == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["answered"] == summary["guided"] == len(QUESTIONS)
    answered = [json.loads(line)["response"]["body"] for line in Path("out.jsonl").read_text().splitlines()]
    assert all(body["gkt"]["route"] == "guided" and body["gkt"]["cost"] for body in answered)
