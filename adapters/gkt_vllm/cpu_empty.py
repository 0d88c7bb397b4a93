"""Mends steps without drafts on CPU, which end vLLM 0.32 when a request of the batch has a top-k, and none a top-p.

There every step goes through the rejection sampler where vLLM speculates, a prompt's too; top-k then looks for the
largest of no values. GPUs are not affected.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from gkt_vllm.patching import replace

__all__ = ["is_broken", "mend"]


def is_broken() -> bool:
    """Whether vLLM's top-k fails of no rows; a release that mends it is left alone."""
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    try:
        apply_top_k_top_p(torch.empty(0, 2), torch.empty(0, dtype=torch.int32), None)
    except RuntimeError:
        return True
    return False


def mend() -> None:
    """Leave the constraints out where nothing was drafted, on CPU, and only where vLLM fails at them."""
    from vllm.platforms import current_platform
    from vllm.v1.sample import rejection_sampler

    if current_platform.is_cpu() and is_broken():
        replace(
            rejection_sampler,
            "apply_sampling_constraints",
            ("logits", "cu_num_draft_tokens", "sampling_metadata"),
            _wrap,
            "steps without drafts on CPU, which a top-k ends without it",
        )


def _wrap(original: Callable[..., Any]) -> Callable[..., Any]:
    def apply_sampling_constraints(logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return original(logits, *args, **kwargs) if len(logits) else logits

    return apply_sampling_constraints
