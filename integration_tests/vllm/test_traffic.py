"""What our drafter records inside vLLM: whole answers, as they were given, from which a better draft is distilled."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import problems
from gkt_plugins.distill.traffic import engine_file, read_traffic
from gkt_plugins.evaluation.statistics import sums_estimate
from gkt_plugins.testing.plugins import write_distribution

MAIN = Path(__file__).parents[2] / ".venv" / "bin" / "python"
"""Distillation has its own dependencies, which vLLM's environment does without."""
OWN = """
[speculation]
drafter = "model"
draft = "{draft}"
gamma = 4
[vllm]
drafts_by = "gkt"
"""
TRACE = """
[trace]
path = "{folder}/traffic.jsonl"
"""
LIVE, UNSEEN, STEPS = 200, 96, 40
"""Of the distillation below: recorded answers, questions to compare the drafts on, and steps."""
PRESSURE = {"max_num_batched_tokens": 64, "block_size": 32, "num_gpu_blocks_override": 32, "max_model_len": 256}
OBSERVER = """
from gkt_plugins.hookspecs import hookimpl

GKT_CONTRACT = 1
told = []

@hookimpl
def gkt_trace(event):
    told.append(event)
"""


@pytest.fixture
def observer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An installed third party's plugin that keeps every event it is told of."""
    monkeypatch.syspath_prepend(str(write_distribution(tmp_path, "gkt-watching", "gkt_watching", OBSERVER)))
    return importlib.import_module("gkt_watching")


@pytest.fixture(scope="module")
def recorded() -> Callable[[Path, int], list[dict[str, Any]]]:
    """``recorded(file, n)``: its lines, once there are ``n`` of them; requests do not wait for them."""

    def recorded(file: Path, n: int) -> list[dict[str, Any]]:
        deadline = time.monotonic() + 30
        while True:
            lines = file.read_text().splitlines() if file.exists() else []
            if len(lines) >= n or time.monotonic() > deadline:
                return [json.loads(line) for line in lines]
            time.sleep(0.1)

    return recorded


def own(draft: str = "draft") -> str:
    return OWN.format(draft=model_dir(draft))


def asked(**options: Any) -> Any:
    from vllm import SamplingParams

    return SamplingParams(**options)


def test_every_answer_is_recorded_as_it_was_given_under_pressure_too(open_engine, chats, tmp_path, counters, recorded):
    with open_engine(own() + TRACE.format(folder=tmp_path), **PRESSURE) as llm:
        answers = llm.chat(chats, asked(temperature=1.0, max_tokens=64), use_tqdm=False)
        counted = counters(llm)
        lines = recorded(tmp_path / "traffic.jsonl", len(chats))
    assert sorted((line["prompt"], line["answer"]) for line in lines) == sorted(
        (list(answer.prompt_token_ids), list(answer.outputs[0].token_ids)) for answer in answers
    )
    assert {line["target"] for line in lines} == {str(model_dir("teacher"))}
    rejected = sum(len(line["rejected"]) for line in lines)
    # vLLM counts a block that its answer's end cut off as rejected; there is one an answer at most.
    incomplete = counted["drafts"] - counted["accepted_tokens_per_pos"][-1]
    assert 0 < incomplete - len(chats) <= rejected <= incomplete


def test_an_answer_ends_with_its_stop_string_and_aborted_ones_are_left_out(open_engine, chats, tmp_path, recorded):
    with open_engine(own() + TRACE.format(folder=tmp_path)) as llm:
        word = llm.chat(chats[:1], asked(temperature=0.0, max_tokens=24), use_tqdm=False)[0].outputs[0].text.split()[-2]
        params = asked(temperature=0.0, max_tokens=64, stop=[f" {word}"], include_stop_str_in_output=True)
        stopped = llm.chat(chats[:8], params, use_tqdm=False)
        ids = stopped[0].prompt_token_ids
        llm.llm_engine.add_request("cancelled", {"prompt_token_ids": ids}, asked(temperature=0.0, max_tokens=200))
        for _ in range(4):
            llm.llm_engine.step()
        llm.llm_engine.abort_request(["cancelled"])
        llm.chat(chats[8:9], asked(temperature=0.0, max_tokens=3), use_tqdm=False)
        lines = recorded(tmp_path / "traffic.jsonl", 10)
        decode = llm.get_tokenizer().decode
    by_string = [answer.outputs[0].text for answer in stopped if answer.outputs[0].stop_reason == f" {word}"]
    assert by_string
    texts = [decode(line["answer"], skip_special_tokens=True) for line in lines]
    assert len(lines) == 10
    for text in by_string:
        assert any(found.startswith(text) and f" {word}" not in found[len(text) :] for found in texts)


def test_plugins_are_told_of_blocks_inside_the_worker_only_where_the_environment_allows_it(
    open_engine, chats, observer, counters, monkeypatch
):
    for switch in ("off", "on"):
        monkeypatch.setenv("GKT_TRACE", switch)
        with open_engine(own()) as llm:
            llm.chat(chats[:16], asked(temperature=0.0, max_tokens=32), use_tqdm=False)
            counted = counters(llm)
            deadline = time.monotonic() + 30 * (switch == "on")
            while sum(event.finished for event in observer.told) < 16 and time.monotonic() < deadline:
                time.sleep(0.1)
        if switch == "off":
            assert observer.told == []
    assert sum(event.finished for event in observer.told) == 16
    assert sum(len(event.drafted) for event in observer.told) == counted["draft_tokens"]
    assert sum(event.accepted for event in observer.told) == counted["accepted_tokens"]


def test_each_engine_of_a_server_has_a_file_of_its_own_and_one_that_cannot_be_written_stops_no_request(
    serving, free_port, tmp_path, recorded
):
    (tmp_path / "file").write_text("")
    commands = {}
    for folder, port, engines in (("kept", free_port(), "2"), ("file", free_port(), "1")):
        config = tmp_path / f"{folder}.toml"
        config.write_text(own() + TRACE.format(folder=tmp_path / folder))
        commands[port] = [
            *(sys.executable, "-m", "gkt_plugins.cli", "vllm", "serve", "--gkt", str(config)),
            *(str(model_dir("teacher")), "--served-model-name", "target", "--dtype", "float32"),
            *("--enforce-eager", "--max-model-len", "256", "--data-parallel-size", engines),
        ]
    body = {"model": "target", "prompt": "Tom has 4 apples.", "temperature": 0, "max_tokens": 16}
    with serving(tmp_path, commands, VLLM_CPU_KVCACHE_SPACE="1") as urls:
        answers = []
        for url, engine in zip([urls[0], urls[0], urls[1], urls[1]], "0100", strict=True):
            headers = {"X-data-parallel-rank": engine}
            answer = httpx2.post(f"{url}/v1/completions", json=body, headers=headers, timeout=60)
            answers.append(answer.raise_for_status().json()["choices"][0]["text"])
        traffic = tmp_path / "kept" / "traffic.jsonl"
        lines = [recorded(engine_file(traffic, engine), 1) for engine in range(2)]
    assert len(set(answers)) == 1
    assert [[len(line["answer"]) for line in found] for found in lines] == [[16], [16]]
    assert [len(sample.answer) for sample in read_traffic(traffic)] == [16, 16]
    assert {file.stat().st_mode & 0o077 for file in traffic.parent.iterdir()} == {0}
    assert (tmp_path / f"{list(commands)[1]}.log").read_text().count("traffic is no longer recorded") == 1


def test_a_draft_distilled_from_what_vllm_recorded_is_accepted_more_there(
    open_engine, chats, tmp_path, recorded, observer, monkeypatch
):
    monkeypatch.setenv("GKT_TRACE", "on")
    traffic = tmp_path / "traffic.jsonl"
    unseen = chats[:UNSEEN]
    params = asked(temperature=1.0, max_tokens=64)

    def blocks_of(draft: Path, then: Callable[[Any], None] = lambda llm: None) -> dict[Any, list[int]]:
        """Accepted tokens and blocks of each unseen question, by its prompt; ``then`` has the engine afterwards."""
        counts: defaultdict[Any, list[int]] = defaultdict(lambda: [0, 0])
        observer.told.clear()
        with open_engine(OWN.format(draft=draft) + TRACE.format(folder=tmp_path), max_num_seqs=64) as llm:
            llm.chat(unseen, params, use_tqdm=False)
            recorded(traffic, len(unseen))
            for event in observer.told:
                count = counts[event.token_ids[: event.prompt_tokens]]
                count[0] += event.accepted
                count[1] += bool(event.drafted)
            traffic.unlink()  # it is begun anew
            then(llm)
        return counts

    def live(llm: Any) -> None:
        questions = [one.question for one in problems(70_000_000, LIVE, split="train")]
        llm.chat([[{"role": "user", "content": question}] for question in questions], params, use_tqdm=False)
        recorded(traffic, LIVE)

    before = blocks_of(model_dir("draft"), live)
    assert len(read_traffic(traffic)) == LIVE
    (tmp_path / "distill.toml").write_text(
        f"""output = "out"
[models]
target = "{model_dir("teacher")}"
draft = "{model_dir("draft")}"
device = "cpu"
[data]
policy = "ground_truth"
max_new_tokens = 64
held_out = 0.05
[train]
steps = {STEPS}
batch_size = 16
learning_rate = 2e-3
warmup_steps = 5
save_steps = {STEPS}
[evaluation]
every = {STEPS}
"""
    )
    command = [str(MAIN), "-m", "gkt_plugins.cli", "distill", "--from-traffic", str(traffic)]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=800)
    after = blocks_of(tmp_path / "out")
    assert before.keys() == after.keys()
    columns = zip(*([*before[prompt], *after[prompt]] for prompt in before), strict=True)
    gain = sums_estimate(list(columns), lambda sums: (sums[2] / sums[3]) / (sums[0] / sums[1]))
    # 1.47 to 1.52 in five runs, with a standard error of 0.045: the interval begins four of them above 1.2.
    assert gain.low > 1.2
