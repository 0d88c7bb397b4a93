"""A tiny target and draft in folders, with a tokenizer: a whole distillation takes a second."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gkt_plugins.distill.options import DistillOptions

WORDS = ["<pad>", "<eos>", *(f"w{n}" for n in range(398))]


def _save(folder: Path, *, hidden: int, layers: int, seed: int, vocab_size: int, words: list[str] = WORDS) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
        attention_dropout=0.5,  # nothing may come of it
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>"
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", autouse=True)
def _imports_are_not_collected():
    """Every training run collects garbage; looking through all that importing made takes longer than the run."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def save_tiny():
    """Write a tiny causal language model with a tokenizer of single words."""
    return _save


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> Path:
    """A folder with ``target`` and ``draft``, and ``prompts.jsonl``."""
    folder = tmp_path_factory.mktemp("tiny")
    _save(folder / "target", hidden=16, layers=2, seed=1, vocab_size=len(WORDS))
    _save(folder / "draft", hidden=8, layers=1, seed=2, vocab_size=len(WORDS))
    rng = Random(0)
    lines = [
        {
            "prompt": " ".join(rng.choices(WORDS[2:40], k=rng.randint(2, 8))),
            "answer": " ".join(rng.choices(WORDS[2:40], k=4)),
        }
        for _ in range(40)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture
def tiny_options(tiny_models, tmp_path):
    """Options of a short run; sections given are laid over them."""

    def options(output: str = "out", **sections: dict[str, Any]) -> DistillOptions:
        data: dict[str, dict[str, Any]] = {
            "models": {"target": str(tiny_models / "target"), "draft": str(tiny_models / "draft"), "device": "cpu"},
            "data": {"prompts": str(tiny_models / "prompts.jsonl"), "max_new_tokens": 8, "held_out": 0.2},
            "train": {"steps": 7, "batch_size": 4, "save_steps": 3, "learning_rate": 1e-2, "optimizer": "adamw"},
            "evaluation": {"every": 3, "temperature": 1.0},
        }
        for name, section in sections.items():
            data[name] = {**data.get(name, {}), **section}
        return DistillOptions.model_validate({**data, "output": str(tmp_path / output)})

    return options
