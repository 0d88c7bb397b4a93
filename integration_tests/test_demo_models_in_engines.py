"""The packaged models load in the engines that later adapters serve, and say there what they say in transformers."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import problems

ROOT = Path(__file__).parent.parent
VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"


def questions(count: int) -> list[str]:
    return [problem.question for problem in problems(0, count, split="test")]


def greedy(name: str, count: int, max_tokens: int) -> tuple[list[list[int]], list[list[int]], list[str]]:
    """Prompt ids, answer ids and answer texts of one packaged model under transformers."""
    tokenizer = AutoTokenizer.from_pretrained(model_dir(name))
    model = AutoModelForCausalLM.from_pretrained(model_dir(name), dtype=torch.float32).eval()
    prompts, answers = [], []
    for question in questions(count):
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )["input_ids"]
        with torch.inference_mode():
            output = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False
            )
        prompts.append(ids[0].tolist())
        answers.append(output[0, ids.shape[1] :].tolist())
    return prompts, answers, [tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]


@pytest.mark.parametrize("name", ["teacher", "student", "draft"])
def test_vllm_loads_each_packaged_model_and_continues_greedily_as_transformers_does(name: str) -> None:
    prompts, answers, _ = greedy(name, count=4, max_tokens=32)
    job = {"model": str(model_dir(name)), "prompts": prompts, "max_tokens": 32}
    run = subprocess.run(
        [VLLM_PYTHON, ROOT / "integration_tests" / "vllm_generate.py"],
        input=json.dumps(job), capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(run.stdout.splitlines()[-1])["token_ids"] == answers


@contextmanager
def transformers_serve(model: Path, *options: str) -> Iterator[str]:
    """A running ``transformers serve``; gives its base URL."""
    port = free_port()
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(model), "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    server = subprocess.Popen([*command, "--device", "cpu", "--dtype", "float32", *options], env=environment)
    url = f"http://localhost:{port}"
    try:
        wait_until_ready(f"{url}/health", server)
        yield url
    finally:
        server.terminate()
        server.wait(timeout=30)


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_ready(url: str, server: subprocess.Popen[bytes], timeout_s: float = 120.0) -> None:
    import time

    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert server.poll() is None, f"the server ended with exit code {server.returncode}"
        try:
            if httpx2.get(url, timeout=2).status_code == 200:
                return
        except httpx2.HTTPError:
            time.sleep(0.5)
    raise AssertionError(f"{url} did not answer within {timeout_s} s")


def test_transformers_serve_answers_a_chat_with_the_teacher_s_own_greedy_text() -> None:
    _, _, texts = greedy("teacher", count=1, max_tokens=40)
    with transformers_serve(model_dir("teacher")) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="unused")
        answer = client.chat.completions.create(
            model=str(model_dir("teacher")),
            messages=[{"role": "user", "content": questions(1)[0]}],
            max_tokens=40,
            temperature=0,
        )
        assert answer.choices[0].message.content == texts[0]
