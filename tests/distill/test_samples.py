import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from gkt_plugins.demo.models import model_dir
from gkt_plugins.distill.samples import PromptItem, Sample, collate, fixed_key, read_prompts
from gkt_plugins.errors import ConfigError


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(model_dir("teacher"))


def written(folder: Path, *lines: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


# ----------------------------------------------------------------------------------------------------------- batches


def test_exactly_the_positions_before_answer_tokens_predict_the_answer() -> None:
    batch = collate([Sample((5, 6, 7), (8, 9), "draft"), Sample((1,), (2, 3, 4), "draft")], 0)
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9, 0, 0, 0], [1, 2, 3, 4, 0, 0, 0, 0]]
    assert batch.attention.sum(1).tolist() == [5, 4]
    assert batch.attention[0, :5].all()
    assert batch.predicts_answer.nonzero().tolist() == [[0, 2], [0, 3], [1, 0], [1, 1], [1, 2]]
    following = batch.ids.roll(-1, 1)[batch.predicts_answer]
    assert following.tolist() == [8, 9, 2, 3, 4]  # what is predicted is the answers, one after the other


def test_an_empty_answer_predicts_nothing() -> None:
    assert not collate([Sample((1, 2), (), "target")], 0).predicts_answer.any()


@pytest.mark.parametrize(("multiple_of", "length"), [(1, 9), (8, 16), (5, 10)])
def test_lengths_are_rounded_up(multiple_of: int, length: int) -> None:
    batch = collate([Sample(tuple(range(1, 8)), (8, 9), "draft")], 0, multiple_of=multiple_of)
    assert batch.ids.shape == (1, length)
    assert batch.ids.dtype == torch.int64


def test_a_batch_of_nothing_and_a_prompt_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one sample, got none"):
        collate([], 0)
    with pytest.raises(ValueError, match="prompt of at least one token"):
        collate([Sample((), (1,), "draft")], 0)


def test_keys_tell_prompt_and_answer_apart() -> None:
    keys = {fixed_key(*it) for it in [((1, 2), (3,)), ((1,), (2, 3)), ((1, 2, 3), ()), ((12,), (3,)), ((1, 2), (4,))]}
    assert len(keys) == 5
    assert fixed_key([1, 2], [3]) == fixed_key((1, 2), (3,))


# ------------------------------------------------------------------------------------------------------------- files


def test_prompts_are_tokenized_as_they_stand_and_answers_are_closed(tmp_path: Path, tokenizer: Any) -> None:
    path = written(
        tmp_path, {"prompt": "Tom has 3 apples.", "answer": "He has 3.", "family": "f", "reference": "3"}, ""
    )
    [item] = read_prompts(path, tokenizer, max_prompt_tokens=99)
    assert item == PromptItem(
        tuple(tokenizer("Tom has 3 apples.")["input_ids"]),
        "Tom has 3 apples.",
        (*tokenizer("He has 3.")["input_ids"], tokenizer.eos_token_id),
        "f",
        "3",
    )


def test_messages_go_through_the_chat_template(tmp_path: Path, tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "How many?"}]
    [item] = read_prompts(written(tmp_path, {"messages": messages}), tokenizer, max_prompt_tokens=99)
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert item.ids == tuple(expected)
    assert tokenizer.decode(item.ids) == item.text
    assert item.answer is None


def test_prompts_that_are_too_long_are_left_out_and_counted(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, {"prompt": "Tom"}, {"prompt": "Tom has " * 50})
    with caplog.at_level(logging.WARNING):
        [item] = read_prompts(path, tokenizer, max_prompt_tokens=20)
    assert item.text == "Tom"
    assert "1 of 2 prompts" in caplog.text
    with pytest.raises(ConfigError, match=r"all 1 prompts of .* are longer than 20 tokens, the shortest has"):
        read_prompts(written(tmp_path, {"prompt": "Tom has " * 50}), tokenizer, max_prompt_tokens=20)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "half', "line 2 is not JSON"),
        ("[1]", 'line 2 must be a JSON object with either "prompt" or "messages"'),
        ({"text": "x"}, 'line 2 must be a JSON object with either "prompt" or "messages"'),
        ({"prompt": "x", "messages": []}, 'line 2 must be a JSON object with either "prompt" or "messages"'),
        ({"prompt": 3}, 'line 2: "prompt" must be text, got int'),
        ({"prompt": "x", "answer": None}, 'line 2: "answer" must be text, got NoneType'),
        ({"prompt": ""}, "line 2 has an empty prompt"),
        ({"messages": []}, 'line 2: "messages" must be a list of objects, each with a "role" and a "content"'),
        ({"messages": [{"content": "x"}]}, 'line 2: "messages" must be a list of objects'),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, tokenizer: Any, line: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_prompts(written(tmp_path, {"prompt": "good"}, line), tokenizer, max_prompt_tokens=99)
    assert "\n" not in str(caught.value)


def test_empty_missing_and_foreign_files_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="has no prompts; give one JSON object a line"):
        read_prompts(written(tmp_path, "", "  "), tokenizer, max_prompt_tokens=99)
    with pytest.raises(ConfigError, match="cannot read the prompts"):
        read_prompts(tmp_path / "none.jsonl", tokenizer, max_prompt_tokens=99)
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"cannot read the prompts .* in UTF-8"):
        read_prompts(path, tokenizer, max_prompt_tokens=99)


def test_what_the_chat_template_objects_to_is_passed_on(tmp_path: Path) -> None:
    strict = AutoTokenizer.from_pretrained(model_dir("teacher"))
    strict.chat_template = "{{ raise_exception('only users may speak') }}"
    path = written(tmp_path, {"messages": [{"role": "system", "content": "x"}]})
    with pytest.raises(ConfigError, match='line 1: the chat template does not take its "messages": only users may'):
        read_prompts(path, strict, max_prompt_tokens=99)


def test_an_answer_needs_an_end_of_sequence_token(tmp_path: Path) -> None:
    endless = AutoTokenizer.from_pretrained(model_dir("teacher"))
    endless.eos_token = None
    path = written(tmp_path, {"prompt": "x", "answer": "y"})
    with pytest.raises(ConfigError, match="line 1 has an answer, and the tokenizer has no end-of-sequence token"):
        read_prompts(path, endless, max_prompt_tokens=99)
