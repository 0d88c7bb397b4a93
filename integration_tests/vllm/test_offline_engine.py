"""vLLM as an engine in this process: guided, streamed and batched through the same pipeline as everywhere."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from gkt_plugins.config import load_config
from gkt_plugins.contracts import Call, Prompt, Sampling
from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import problems
from gkt_plugins.errors import EngineError
from gkt_plugins.guidance.pipeline import Pipeline
from gkt_plugins.testing.openai_upstream import Upstream

BEGINNING = "Plan: 22 *3 *2 +6 +12.\nThe first number is 22. Left: *3"
CONFIG = """
[engines.large]
adapter = "openai"
base_url = "{url}"
model = "large"
[engines.here]
adapter = "vllm"
model = "{student}"
engine_args = {{ dtype = "float32", enforce_eager = true, max_model_len = 512, max_num_seqs = 8 }}
[pipelines.default]
teacher = "large"
student = "here"
guidance.tokens = 8
[ledger]
url = "sqlite:///{ledger}"
"""


@pytest.fixture
def text(tmp_path: Path) -> Any:
    """``text(upstream)``: a configuration with it as the teacher."""
    return lambda upstream: CONFIG.format(url=upstream.url, student=model_dir("student"), ledger=tmp_path / "ledger.db")


async def test_guided_answers_whole_streamed_and_in_batches_are_the_same(text):
    questions = [problem.question for problem in problems(0, 6, split="test")]
    sampling = Sampling(max_tokens=32)
    with Upstream(BEGINNING, model="large") as teacher:
        async with Pipeline.from_config(load_config(text=text(teacher))) as pipeline:
            whole = [(await pipeline.answer(question, sampling=sampling)).choices[0].text for question in questions]
            streamed = ""
            async with aclosing(pipeline.stream(questions[0], sampling=sampling)) as pieces:
                async for piece in pieces:
                    streamed += getattr(piece, "text", "")
            batched = {answer.choices[0].text async for answer in pipeline.batch(questions, sampling=sampling)}
            student = pipeline.parts.student
            bad = Call(Prompt.chat("x"), sampling=Sampling(max_tokens=4, extra={"verbosity": "low"}))
            [refused, fine] = await student.generate([bad, Call(Prompt.chat("x"), sampling=Sampling(max_tokens=4))])
    assert all(answer.startswith("Plan: 22 *3 *2") and len(answer) > len("Plan: 22 *3 *2 +6") for answer in whole)
    assert streamed == whole[0]
    assert batched == set(whole)
    assert isinstance(refused, EngineError)
    assert "verbosity" in str(refused)
    assert fine.usage.completion_tokens == 4
    assert fine.usage.prompt_tokens > 0
