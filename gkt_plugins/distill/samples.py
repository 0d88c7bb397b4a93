"""Prompts, the answers to train on, and batches of both."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gkt_plugins.contracts import Message
from gkt_plugins.errors import ConfigError

__all__ = ["PromptItem", "Sample", "TrainingBatch", "collate", "fixed_key", "read_prompts"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class PromptItem:
    """A prompt, as the target would get it."""

    ids: tuple[int, ...]
    text: str
    """What ``ids`` were made of; conversations after the chat template."""
    answer: tuple[int, ...] | None = None
    """The ground truth, closed by the end-of-sequence token."""
    family: str = ""
    """The kind of problem, for figures per kind."""
    reference: str = ""
    """What a scorer compares an answer with."""
    messages: tuple[Message, ...] = ()
    """The conversation, where ``text`` was made of one; what an endpoint is asked that has a template of its own."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt with one answer to train on."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    """With its end-of-sequence token, unless it was cut off by length."""
    source: str
    """Who wrote the answer: "ground_truth", "target", "draft", …"""
    key: str = ""
    """For samples that come again: the same key means the same tokens, see :func:`fixed_key`. "" for all others."""


def fixed_key(prompt: Sequence[int], answer: Sequence[int]) -> str:
    """A name for these tokens: different tokens have different names."""
    content = np.array([len(prompt), *prompt, *answer], dtype="<i8").tobytes()
    return sha256(content).hexdigest()


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Samples side by side, padded on the right."""

    ids: Tensor
    """[B, L] int64."""
    attention: Tensor
    """[B, L] bool: True at tokens of the sample."""
    predicts_answer: Tensor
    """[B, L] bool: True at position t when token t + 1 belongs to the answer, its end-of-sequence token included."""

    def to(self, device: torch.device | str) -> TrainingBatch:
        """The same batch on another device."""
        return TrainingBatch(self.ids.to(device), self.attention.to(device), self.predicts_answer.to(device))


def collate(samples: Sequence[Sample], pad_id: int, *, multiple_of: int = 8) -> TrainingBatch:
    """One batch. Lengths are rounded up to a multiple, so that few shapes occur.

    :raises ValueError: no samples, or one with an empty prompt: its first token would have nothing to be predicted
        from.
    """
    if not samples:
        raise ValueError("a batch needs at least one sample, got none")
    if any(not sample.prompt for sample in samples):
        raise ValueError("every sample needs a prompt of at least one token, got an empty one")
    totals = [len(sample.prompt) + len(sample.answer) for sample in samples]
    length = -(-max(totals) // multiple_of) * multiple_of
    ids = torch.full((len(samples), length), pad_id, dtype=torch.int64)
    for row, sample, total in zip(ids, samples, totals, strict=True):
        row[:total] = torch.tensor(sample.prompt + sample.answer)
    at = torch.arange(length)
    end = torch.tensor(totals)[:, None]
    begin = torch.tensor([len(sample.prompt) for sample in samples])[:, None]
    return TrainingBatch(ids, at < end, (at >= begin - 1) & (at < end - 1))


def read_prompts(path: Path, tokenizer: Any, *, max_prompt_tokens: int) -> list[PromptItem]:
    """Prompts from JSON lines: ``{"prompt": text}`` or ``{"messages": [...]}``, the latter through the chat template.

    A line may also have "answer" (the ground truth), "family" and "reference", all text. Empty lines mean nothing.
    Prompts of more than ``max_prompt_tokens`` tokens are left out, and one warning says how many.

    :raises ConfigError: the file cannot be read, a line is broken (it names the line), or nothing remains.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"cannot read the prompts {path}: {exc}; give a file of JSON lines in UTF-8") from exc
    items = [_item(line, f"{path}, line {n}", tokenizer) for n, line in enumerate(lines, start=1) if line.strip()]
    if not items:
        raise ConfigError(f'{path} has no prompts; give one JSON object a line, such as {{"prompt": "…"}}')
    kept = [item for item in items if len(item.ids) <= max_prompt_tokens]
    if not kept:
        shortest = min(len(item.ids) for item in items)
        raise ConfigError(
            f"all {len(items)} prompts of {path} are longer than {max_prompt_tokens} tokens, the shortest has "
            f"{shortest}; raise max_prompt_tokens"
        )
    if len(kept) < len(items):
        _log.warning("%d of %d prompts of %s are longer than %d tokens and left out",
                     len(items) - len(kept), len(items), path, max_prompt_tokens)  # fmt: skip
    return kept


def _item(line: str, where: str, tokenizer: Any) -> PromptItem:
    try:
        entry = json.loads(line)
    except json.JSONDecodeError as exc:
        raise ConfigError(f"{where} is not JSON: {exc.msg} at column {exc.colno}; write one object a line") from exc
    if not isinstance(entry, Mapping) or ("prompt" in entry) == ("messages" in entry):
        raise ConfigError(f'{where} must be a JSON object with either "prompt" or "messages"')
    for key in ("prompt", "answer", "family", "reference"):
        if not isinstance(entry.get(key, ""), str):
            raise ConfigError(f'{where}: "{key}" must be text, got {type(entry[key]).__name__}')
    text, ids = _prompt(entry, where, tokenizer)
    if not ids:
        raise ConfigError(f"{where} has an empty prompt; give it at least one token")
    answer = None
    if "answer" in entry:
        if tokenizer.eos_token_id is None:
            raise ConfigError(f"{where} has an answer, and the tokenizer has no end-of-sequence token to close it with")
        answer = (*tokenizer(entry["answer"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)
    messages = tuple(Message(m["role"], str(m["content"])) for m in entry.get("messages", ()))
    return PromptItem(tuple(ids), text, answer, entry.get("family", ""), entry.get("reference", ""), messages)


def _prompt(entry: Mapping[str, Any], where: str, tokenizer: Any) -> tuple[str, Sequence[int]]:
    if "prompt" in entry:
        return entry["prompt"], tokenizer(entry["prompt"])["input_ids"]
    messages = entry["messages"]
    if not isinstance(messages, list) or not messages or not all(_is_message(message) for message in messages):
        raise ConfigError(f'{where}: "messages" must be a list of objects, each with a "role" and a "content"')
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as exc:  # a template is a program of its own
        reason = " ".join(str(exc).split())
        raise ConfigError(f'{where}: the chat template does not take its "messages": {reason}') from exc
    return text, tokenizer(text, add_special_tokens=False)["input_ids"]


def _is_message(message: object) -> bool:
    return isinstance(message, Mapping) and isinstance(message.get("role"), str) and "content" in message
