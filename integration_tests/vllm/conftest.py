"""Real vLLM engines on the packaged models, in this process, one after the other."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import problems

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

Open = Callable[..., Any]


@pytest.fixture(scope="session")
def chats() -> list[list[dict[str, str]]]:
    """200 questions; some share a beginning, so that prefix caching has something to do."""
    return [[{"role": "user", "content": problem.question}] for problem in problems(0, 200, split="test")]


@pytest.fixture
def open_engine(tmp_path: Path) -> Open:
    """``with open_engine(text, **options) as llm``: an engine with ``text`` as its gkt.toml; None: no section."""

    @contextmanager
    def open_engine(text: str | None = None, **options: Any) -> Iterator[Any]:
        from vllm import LLM

        if text is not None:
            (tmp_path / "gkt.toml").write_text(text)
            options["additional_config"] = {"gkt": {"config": str(tmp_path / "gkt.toml")}}
        defaults = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 16}
        llm = LLM(model=str(model_dir("teacher")), disable_log_stats=False, **(defaults | options))
        try:
            yield llm
        finally:
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()

    return open_engine


@pytest.fixture(scope="session")
def counters() -> Callable[[Any], dict[str, Any]]:
    """vLLM's own counters: ``drafts``, ``draft_tokens``, ``accepted_tokens``, ``accepted_tokens_per_pos``."""

    def counters(llm: Any) -> dict[str, Any]:
        values = {}
        for metric in llm.get_metrics():
            if metric.name.startswith("vllm:spec_decode_num_"):
                name = metric.name.removeprefix("vllm:spec_decode_num_")
                values[name] = metric.values if hasattr(metric, "values") else metric.value
        return values

    return counters
