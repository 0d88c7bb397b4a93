"""Mends ``expand_batch_to_tokens`` on CPU, which gives uninitialised memory back where temperatures are wanted.

vLLM 0.25 to 0.32 convert the output to another type on CPU and never write the result back, so that speculation above
temperature 0 divides by whatever was in memory. GPUs are not affected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gkt_vllm.patching import replace

__all__ = ["expand_batch_to_tokens", "is_broken", "mend"]


def expand_batch_to_tokens(
    x: Tensor, cu_num_tokens: Tensor, num_tokens: int, replace_from: float = 0, replace_to: float = 0
) -> Tensor:
    """[num_tokens] each request's value of ``x`` [B] for each of its tokens, one value replaced by another."""
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    values = torch.where(x == replace_from, torch.as_tensor(replace_to, dtype=x.dtype), x)
    return values.repeat_interleave(counts, output_size=num_tokens)


def is_broken(function: Callable[..., Any]) -> bool:
    """Whether ``function`` fails at what the sampler asks of it; a release that mends it is left alone."""
    x = torch.tensor([0.5, 0.0, 2.0])
    for _ in range(3):  # what was in memory may be right by chance
        torch.full((6,), -7.0)
        try:
            got = function(x, torch.tensor([2, 5, 6], dtype=torch.int32), 6, 0, 1)
        except Exception:  # noqa: BLE001 - 0.28 puts its CPU kernel in later, and cannot be asked before
            return True
        if not torch.equal(got, torch.tensor([0.5, 0.5, 1.0, 1.0, 1.0, 2.0])):
            return True
    return False


def mend() -> None:
    """Put a right function in the place of vLLM's, on CPU, and only where that one is wrong."""
    from vllm.platforms import current_platform
    from vllm.v1.sample import rejection_sampler

    if current_platform.is_cpu() and is_broken(rejection_sampler.expand_batch_to_tokens):
        replace(
            rejection_sampler,
            "expand_batch_to_tokens",
            ("x", "cu_num_tokens", "num_tokens", "replace_from", "replace_to"),
            lambda original: _mended,
            "sampling with drafts on CPU, which divides by uninitialised memory without it",
        )


def _mended(*args: Any, **kwargs: Any) -> Tensor:
    return expand_batch_to_tokens(*args, **kwargs)
