"""``gkt serve`` before two real ``transformers serve``: the demo models, each with its own tokenizer."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gkt_plugins.accounting.records import read_records
from gkt_plugins.demo.models import model_dir
from gkt_plugins.demo.problems import problems
from gkt_plugins.testing.gateway_process import GatewayProcess

TOML = """
[engines.cloud]
adapter = "openai"
base_url = "{teacher}/v1"
model = "{teacher_model}"
[engines.edge]
adapter = "openai"
base_url = "{student}/v1"
model = "{student_model}"
chat_template = "{student_model}"
[pipelines.default]
teacher = "cloud"
student = "edge"
guidance.tokens = 16
"""

MAX_TOKENS = 48


@pytest.fixture(scope="module")
def gateway(transformers_serve: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with ExitStack() as stack:
        teacher = stack.enter_context(transformers_serve(model_dir("teacher")))
        student = stack.enter_context(transformers_serve(model_dir("student")))
        toml = TOML.format(
            teacher=teacher, student=student, teacher_model=model_dir("teacher"), student_model=model_dir("student")
        )
        yield stack.enter_context(GatewayProcess(toml, tmp_path_factory.mktemp("gateway")))


@pytest.fixture
def client(gateway: GatewayProcess) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=0, timeout=120)


class Model:
    """A demo model under transformers, greedy: what the servers should say."""

    def __init__(self, name: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(model_dir(name))
        self._model = AutoModelForCausalLM.from_pretrained(model_dir(name), dtype=torch.float32).eval()

    def answer(self, question: str, prefix: str = "", max_tokens: int = MAX_TOKENS) -> str:
        """What follows ``prefix`` in an answer to ``question``."""
        chat = [{"role": "user", "content": question}]
        prompt = self._tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) + prefix
        ids = self._tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            output = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False
            )
        return str(self._tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))


QUESTIONS = [problem.question for problem in problems(0, 3, split="test")]


def ask(client: openai.OpenAI, question: str, model: str = "gkt/default", **more: Any) -> Any:
    return client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": question}], max_tokens=MAX_TOKENS, temperature=0, **more
    )


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_answer_is_the_teachers_beginning_and_what_the_student_makes_of_it(
    client: openai.OpenAI, question: str
) -> None:
    answer = ask(client, question)
    text, gkt = answer.choices[0].message.content, answer.gkt
    assert gkt["route"] == "guided"
    assert not gkt["degraded"], gkt["notes"]
    whole_teacher = Model("teacher").answer(question, max_tokens=16)
    guidance = next(text[:end] for end in range(len(text), -1, -1) if whole_teacher.startswith(text[:end]))
    assert len(guidance) > 0.6 * len(whole_teacher)
    student = Model("student")
    handed_over = [guidance[:end] for end in range(len(guidance), 0, -1)]
    assert any(text.startswith(prefix + student.answer(question, prefix, 8)) for prefix in handed_over)


@pytest.mark.parametrize("question", QUESTIONS)
def test_streamed_and_whole_answers_are_the_same_text(client: openai.OpenAI, question: str) -> None:
    whole = ask(client, question).choices[0].message.content
    chunks = list(ask(client, question, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole
    assert chunks[-1].usage.completion_tokens > 0


def test_without_guidance_it_is_the_students_own_answer(client: openai.OpenAI) -> None:
    answer = ask(client, QUESTIONS[0], "gkt/default@g=0")
    assert answer.choices[0].message.content == Model("student").answer(QUESTIONS[0])
    assert answer.gkt["route"] == "student"


def test_with_enough_guidance_it_is_the_teachers_own_answer(client: openai.OpenAI) -> None:
    answer = ask(client, QUESTIONS[0], f"gkt/default@g={MAX_TOKENS}")
    expected = Model("teacher").answer(QUESTIONS[0])
    assert expected.startswith(answer.choices[0].message.content.rstrip())
    assert answer.gkt["route"] == "teacher"


def test_every_call_is_in_the_ledger_with_tokens(client: openai.OpenAI, gateway: GatewayProcess) -> None:
    identity = ask(client, QUESTIONS[0], stream=False).id
    calls = [call for call in read_records(gateway.folder / "gkt.db") if call.request_id == identity]
    assert sorted((call.role, call.status) for call in calls) == [("student", "final"), ("teacher", "final")]
    assert all(call.usage.prompt_tokens and call.usage.completion_tokens for call in calls)
