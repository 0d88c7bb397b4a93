"""The packaged models load offline, their tokenizers lose nothing, and the teacher knows more than the student."""

import json
from functools import cache

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gkt_plugins.demo._batches import batches, encode
from gkt_plugins.demo._evaluate import DemoModel, acceptance, load
from gkt_plugins.demo._tokenizers import render
from gkt_plugins.demo.models import MODEL_NAMES, ModelName, model_dir
from gkt_plugins.demo.problems import problems, score
from gkt_plugins.distill.provenance import weights_hash

MEBIBYTE = 2**20


@cache
def demo(name: ModelName) -> DemoModel:
    return load(model_dir(name))


def right(name: ModelName, guided: bool = False) -> int:
    """How many of 48 held-out problems a model solves, greedily, perhaps after the reference plan."""
    sample = list(problems(500_000, 48, split="test"))
    begun = [p.plan if guided else "" for p in sample]
    model = demo(name)
    texts = model.text(model.write([render(p.question) + text for p, text in zip(sample, begun, strict=True)]))
    return sum(score(p, text) is True for p, text in zip(sample, texts, strict=True))


def test_an_unknown_model_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown demo model 'oracle'; known: teacher, student, draft"):
        model_dir("oracle")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODEL_NAMES)
@given(text=st.text(max_size=40))
def test_tokenizers_lose_nothing(name: ModelName, text: str) -> None:
    tokenizer = demo(name).tokenizer
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_the_chat_template_opens_and_continues_an_answer(name: ModelName) -> None:
    tokenizer = demo(name).tokenizer
    user = {"role": "user", "content": "How many?"}
    opened = tokenizer.apply_chat_template([user], tokenize=False, add_generation_prompt=True)
    assert opened == render("How many?")
    begun = [user, {"role": "assistant", "content": "Plan: 3 *4"}]
    assert tokenizer.apply_chat_template(begun, tokenize=False, continue_final_message=True) == opened + "Plan: 3 *4"


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_training_saw_the_tokens_that_the_chat_template_gives(name: ModelName) -> None:
    tokenizer = demo(name).tokenizer
    sample = list(problems(0, 20, split="train"))
    for problem, row in zip(sample, encode(sample, tokenizer), strict=True):
        whole = render(problem.question) + problem.answer + str(tokenizer.eos_token)
        assert row.prompt + row.plan + row.rest == tokenizer(whole).input_ids


def test_every_digit_is_a_token_of_its_own_and_padding_is_no_end() -> None:
    for name in MODEL_NAMES:
        tokenizer = demo(name).tokenizer
        assert len(tokenizer("1234567890").input_ids) == 10
        assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_student_has_a_vocabulary_of_its_own_and_the_draft_has_the_target_s() -> None:
    teacher, student, draft, distilled = (demo(name).tokenizer for name in MODEL_NAMES)
    assert teacher.get_vocab() == draft.get_vocab() == distilled.get_vocab()
    assert demo("teacher").model.config.vocab_size == demo("draft").model.config.vocab_size == len(teacher)
    assert len(student) != len(teacher)
    question = next(problems(0, 1, split="test")).question
    assert teacher.tokenize(question) != student.tokenize(question)


def test_models_are_small_on_disk_and_single_precision_in_use() -> None:
    size = sum(path.stat().st_size for name in MODEL_NAMES for path in model_dir(name).iterdir())
    assert size < 9.5 * MEBIBYTE
    for name in MODEL_NAMES:
        assert demo(name).model.dtype == torch.float32
        assert demo(name).model.config.head_dim == 32


def test_teacher_solves_most_student_few_and_student_with_a_plan_most() -> None:
    alone = right("student")
    assert right("teacher") >= 0.8 * 48
    assert alone <= 0.7 * 48
    assert right("student", guided=True) >= alone + 12


def test_the_draft_is_useful_and_far_from_the_target_until_it_is_distilled() -> None:
    sample = list(problems(500_000, 6, split="test"))
    before, after = (acceptance(demo("teacher"), demo(name), sample) for name in ("draft", "distilled"))
    for figure in ("acceptance_tv", "greedy_agreement"):
        assert 0.6 < before[figure] < 0.85
        assert after[figure] > before[figure] + 0.1


def test_the_distilled_draft_says_what_it_was_made_from() -> None:
    made = json.loads((model_dir("distilled") / "provenance.json").read_text())
    for part, name in (("target", "teacher"), ("start_draft", "draft")):
        assert made[part]["sha256"] == weights_hash(str(model_dir(name)))


def test_an_interrupted_training_goes_on_with_the_batches_it_has_not_seen() -> None:
    tokenizer = demo("student").tokenizer
    stream = batches(tokenizer, 1024, 0.5)
    first = [next(stream) for _ in range(70)]
    again = batches(tokenizer, 1024, 0.5, first_step=66)
    for before in first[66:]:
        assert torch.equal(before.ids, next(again).ids)
