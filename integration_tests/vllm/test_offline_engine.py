"""vLLM as an engine in this process: guided, streamed and batched through the same pipeline as everywhere."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from gkt_plugins.accounting.records import read_records
from gkt_plugins.config import load_config
from gkt_plugins.contracts import BuildContext, Call, Prompt, Sampling
from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import problems
from gkt_plugins.errors import ConfigError, EngineError
from gkt_plugins.guidance.pipeline import Pipeline
from gkt_plugins.testing.openai_upstream import Upstream
from gkt_vllm.engine import build_engine
from gkt_vllm.options import VllmOptions

BEGINNING = "Plan: 22 *3 *2 +6 +12.\nThe first number is 22. Left: *3"
CONFIG = """
[engines.large]
adapter = "{adapter}"
{teacher}
[engines.here]
adapter = "vllm"
model = "{student}"
engine_args = {engine_args}
[pipelines.default]
teacher = "large"
student = "here"
guidance.tokens = 8
[ledger]
url = "sqlite:///{ledger}"
"""
ENGINE_ARGS = '{ dtype = "float32", enforce_eager = true, max_model_len = 512, max_num_seqs = 8 }'
QUESTIONS = [problem.question for problem in problems(0, 6, split="test")]


@pytest.fixture
def text(tmp_path: Path) -> Any:
    """``text(adapter, teacher)``: a configuration with that teacher."""
    return lambda adapter, teacher: CONFIG.format(
        adapter=adapter,
        teacher=teacher,
        student=model_dir("student"),
        engine_args=ENGINE_ARGS,
        ledger=tmp_path / "ledger.db",
    )


async def test_guided_answers_whole_streamed_and_in_batches_are_the_same(text):
    sampling = Sampling(max_tokens=32)
    with Upstream(BEGINNING, model="large") as teacher:
        configured = text("openai", f'base_url = "{teacher.url}"\nmodel = "large"')
        async with Pipeline.from_config(load_config(text=configured)) as pipeline:
            whole = [(await pipeline.answer(question, sampling=sampling)).choices[0].text for question in QUESTIONS]
            streamed = ""
            async with aclosing(pipeline.stream(QUESTIONS[0], sampling=sampling)) as pieces:
                async for piece in pieces:
                    streamed += getattr(piece, "text", "")
            began = time.perf_counter()
            batched = [answer async for answer in pipeline.batch(QUESTIONS, sampling=sampling)]
            took = time.perf_counter() - began
            student = pipeline.parts.student
            bad = Call(Prompt.chat("x"), sampling=Sampling(max_tokens=4, extra={"verbosity": "low"}))
            long = Call(Prompt.chat("x " * 600), sampling=Sampling(max_tokens=4))
            good = Call(Prompt.chat("x"), sampling=Sampling(max_tokens=4))
            [refused, too_long, fine] = await student.generate([bad, long, good])
            endless = Call(Prompt.chat(QUESTIONS[0]), sampling=Sampling(max_tokens=400))
            async with aclosing(student.stream(endless)) as pieces:
                assert (await anext(pieces)).finish_reason is None
            assert not student._engine.output_processor.has_unfinished_requests()  # closing it was the end of it
    assert all(answer.startswith("Plan: 22 *3 *2") and len(answer) > len("Plan: 22 *3 *2 +6") for answer in whole)
    assert streamed == whole[0]
    assert {answer.choices[0].text for answer in batched} == set(whole)
    # Calls that run at once share the seconds of their engine, so that what is paid by the hour is paid once.
    assert 0 < sum(answer.usage["student"].seconds for answer in batched) <= took
    assert isinstance(refused, EngineError)
    assert "verbosity" in str(refused)
    assert isinstance(too_long, EngineError)
    assert fine.usage.completion_tokens == 4
    assert fine.usage.prompt_tokens > 0


async def test_two_engines_in_this_process_answer_as_the_same_models_of_transformers_do(text):
    vllm = {name: f'model = "{model_dir(name)}"\nengine_args = {ENGINE_ARGS}' for name in ("teacher", "student")}
    by_vllm = text("vllm", vllm["teacher"])
    by_transformers = by_vllm.replace('"vllm"', '"transformers"')
    by_transformers = by_transformers.replace(f"engine_args = {ENGINE_ARGS}", 'device = "cpu"\ndtype = "float32"')
    samplings = [Sampling(max_tokens=48), Sampling(max_tokens=48, stop=("Left",)), Sampling(max_tokens=48, stop=("*",))]
    answers = []
    for configured in (by_vllm, by_transformers):
        async with Pipeline.from_config(load_config(text=configured)) as pipeline:
            asked = [pipeline.answer(one, sampling=sampling, n=2) for sampling in samplings for one in QUESTIONS[:3]]
            answers.append([await answer for answer in asked])
    for here, there in zip(*answers, strict=True):
        assert here.guidance == there.guidance != ""
        assert [(choice.text, choice.finish_reason) for choice in here.choices] == [
            (choice.text, choice.finish_reason) for choice in there.choices
        ]
        assert here.usage.keys() == there.usage.keys()
        for role, usage in here.usage.items():
            assert usage.prompt_tokens == there.usage[role].prompt_tokens
            assert usage.completion_tokens == there.usage[role].completion_tokens
    assert {choice.finish_reason for answer in answers[0] for choice in answer.choices} == {"length", "stop"}


def test_a_file_of_requests_is_answered_with_drafts_and_standard_output_is_the_summary_s_alone(tmp_path):
    section = ENGINE_ARGS.replace(" }", ', additional_config = { gkt = { config = "gkt.toml" } } }')
    (tmp_path / "gkt.toml").write_text(
        f'[engines.here]\nadapter = "vllm"\nmodel = "{model_dir("teacher")}"\nengine_args = {section}\n'
        f'[pipelines.default]\nstudent = "here"\n'
        f'[speculation]\ndrafter = "model"\ndraft = "{model_dir("distilled")}"\ngamma = 4\n'
        '[prices.teacher]\nper_hour = "10.00"\n'
    )
    lines = [
        {"custom_id": f"{number}", "method": "POST", "url": "/v1/chat/completions",
         "body": {"model": "gkt/default", "messages": [{"role": "user", "content": question}], "max_tokens": 32}}
        for number, question in enumerate(QUESTIONS)
    ]  # fmt: skip
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = subprocess.run(
        [sys.executable, "-m", "gkt_plugins.cli", "run", "-i", "in.jsonl", "-o", "out.jsonl", "--json"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=800,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads(done.stdout)
    assert summary["answered"] == len(QUESTIONS)
    assert "drafts by model, 4 tokens a block" in done.stderr  # vLLM's log
    records = list(read_records(f"sqlite:///{tmp_path}/gkt.db"))
    assert len(records) == len(QUESTIONS)
    assert all(record.usage.completion_tokens == 32 and record.cost_nano for record in records)


def test_a_model_that_vllm_does_not_take_is_one_sentence_with_the_engine_s_name(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"^vLLM does not start .* engines\.here: .*empty") as refused:
        build_engine(VllmOptions(model="empty"), BuildContext(name="here", base_dir=tmp_path))
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match=r"engines\.here\.engine_args must hold arguments of vLLM: .*max_lenght"):
        build_engine(VllmOptions(model="empty", engine_args={"max_lenght": 1}), BuildContext(name="here"))
