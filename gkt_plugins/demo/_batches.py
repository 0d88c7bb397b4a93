"""An endless, seeded stream of training batches, bucketed by length."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import get_args

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from gkt_plugins.demo._tokenizers import render
from gkt_plugins.demo.problems import Problem, Role, Voice, generate

__all__ = ["ROLES", "Batch", "batches", "collate", "encode"]

ROLES: tuple[Role, ...] = get_args(Role)

_POOL = 64  # batches that are sorted by length together
_ROUND = 32  # lengths are multiples of this: few shapes, whose kernels are made once


@dataclass(frozen=True)
class Batch:
    """Right-padded token ids; a model that looks only back needs no attention mask."""

    ids: Tensor
    """[batch, length]"""
    is_answer: Tensor
    """[batch, length], whether a token belongs to the answer, the closing token included."""
    is_plan: Tensor
    """[batch, length], whether it belongs to the plan line."""
    roles: Tensor
    """[batch, length], at the full stop of each sentence told its role as a place in ``ROLES``, elsewhere -100."""


@dataclass(frozen=True)
class _Row:
    prompt: list[int]
    plan: list[int]
    rest: list[int]
    roles: list[int]


def encode(problems: list[Problem], tokenizer: PreTrainedTokenizerFast) -> list[_Row]:
    """Token ids of prompt, plan line, and the rest of the answer with the closing token."""
    prompts = tokenizer([render(p.question) for p in problems]).input_ids
    plans = tokenizer([f"{p.plan}\n" for p in problems]).input_ids
    rests = tokenizer([p.answer[len(p.plan) + 1 :] + tokenizer.eos_token for p in problems]).input_ids
    stop = tokenizer.convert_tokens_to_ids(".")
    roles = []
    for problem, prompt in zip(problems, prompts, strict=True):
        said = iter(problem.roles)
        roles.append([ROLES.index(next(said)) if token == stop else -100 for token in prompt])
    return [_Row(*row) for row in zip(prompts, plans, rests, roles, strict=True)]


def collate(rows: list[_Row], pad_id: int, *, whole: bool) -> Batch:
    """One batch of whole answers, or of plans only."""
    sequences = [row.prompt + row.plan + (row.rest if whole else []) for row in rows]
    length = -(-max(map(len, sequences)) // _ROUND) * _ROUND
    ids = torch.tensor([s + [pad_id] * (length - len(s)) for s in sequences])
    at = torch.arange(length)
    begin = torch.tensor([[len(row.prompt)] for row in rows])
    plan_end = begin + torch.tensor([[len(row.plan)] for row in rows])
    end = torch.tensor([[len(s)] for s in sequences])
    roles = torch.tensor([row.roles + [-100] * (length - len(row.roles)) for row in rows])
    return Batch(ids, (at >= begin) & (at < end), (at >= begin) & (at < plan_end), roles)


def batches(
    tokenizer: PreTrainedTokenizerFast,
    tokens_per_batch: int,
    plan_only: float,
    first_step: int = 0,
    house_from: int | None = None,
) -> Iterator[Batch]:
    """Batches of about ``tokens_per_batch`` tokens, from training problems that never repeat.

    :param plan_only: the share of batches that stop after the plan, where most is to be learnt.
    :param first_step: how many batches to skip, rounded down to whole pools: continues an interrupted run.
    :param house_from: from this batch on, rounded up to whole pools, answers are in the house's voice.
    """
    for pool in count(first_step // _POOL):
        rng = Random(f"pool {pool}")
        whole = [rng.random() >= plan_only for _ in range(_POOL)]
        sizes = [tokens_per_batch // (250 if w else 88) for w in whole]
        voice: Voice = "corpus" if house_from is None or pool * _POOL < house_from else "house"
        problems = [generate((pool << 20) + i, voice=voice) for i in range(sum(sizes))]
        rows = sorted(encode(problems, tokenizer), key=lambda row: len(row.prompt) + len(row.rest))
        out: list[Batch] = []
        for w, size in zip(whole, sizes, strict=True):
            out.append(collate(rows[:size], int(tokenizer.pad_token_id or 0), whole=w))
            rows = rows[size:]
        rng.shuffle(out)
        yield from out[first_step % _POOL if pool == first_step // _POOL else 0 :]
