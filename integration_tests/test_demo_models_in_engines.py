"""The packaged models load in the engines that later adapters serve, and say there what they say in transformers."""

import json
import subprocess
from pathlib import Path

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


def test_transformers_serve_answers_a_chat_with_the_teacher_s_own_greedy_text(transformers_serve) -> None:
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
