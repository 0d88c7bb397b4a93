"""Leniency under vLLM's first model runner: the drafted logits are lifted around its own rejection sampler."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gkt_plugins.contracts import LeniencyRule
from gkt_vllm.asked import Leniency
from gkt_vllm.one_logit import lift
from gkt_vllm.patching import replace

__all__ = ["bind", "install", "leniently"]

_WHY = "leniency"
_PARAMETERS = (
    "draft_token_ids",
    "num_draft_tokens",
    "max_spec_len",
    "cu_num_draft_tokens",
    "draft_probs",
    "target_logits",
    "bonus_token_ids",
    "sampling_metadata",
)


@dataclass(frozen=True, slots=True)
class _Batch:
    epsilon: list[float]
    """[B] of each request, in the order of the batch."""
    rule: LeniencyRule


_now: ContextVar[_Batch | None] = ContextVar("gkt_lenient_batch", default=None)
"""What the sampling step that runs on this thread was asked for; None: exactness."""

_bound: dict[int, Leniency] = {}
"""Identity of a vLLM configuration → its leniency: one process may hold several engines."""


def bind(vllm_config: object, leniency: Leniency) -> None:
    """Make the engine of ``vllm_config`` lenient."""
    _bound[id(vllm_config)] = leniency
    weakref.finalize(vllm_config, _bound.pop, id(vllm_config), None)  # another engine may get the same identity


@contextmanager
def leniently(epsilon: list[float], rule: LeniencyRule) -> Iterator[None]:
    """How vLLM verifies on this thread meanwhile. ``epsilon``: [B], of each request of the batch."""
    token = _now.set(_Batch(epsilon, rule))
    try:
        yield
    finally:
        _now.reset(token)


def install() -> None:
    """Wrap the two functions. An engine that is not bound is not touched by them.

    :raises BackendError: this vLLM has other functions.
    """
    from vllm.v1.sample import rejection_sampler
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    replace(GPUModelRunner, "_sample", ("self", "logits", "spec_decode_metadata"), _wrap_sample, _WHY)
    replace(rejection_sampler, "rejection_sample", _PARAMETERS, _wrap_rejection_sample, _WHY)


def _wrap_sample(original: Callable[..., Any]) -> Callable[..., Any]:
    def _sample(self: Any, logits: Tensor | None, spec_decode_metadata: Any) -> Any:
        leniency = _bound.get(id(self.vllm_config))
        if leniency is None or spec_decode_metadata is None:
            return original(self, logits, spec_decode_metadata)
        asked = [leniency.asked(self.requests[name].sampling_params) for name in self.input_batch.req_ids]
        if min(asked, default=1.0) == 1.0:
            return original(self, logits, spec_decode_metadata)
        with leniently(asked, leniency.rule):
            return original(self, logits, spec_decode_metadata)

    return _sample


def _wrap_rejection_sample(original: Callable[..., Any]) -> Callable[..., Any]:
    def rejection_sample(
        draft_token_ids: Tensor,
        num_draft_tokens: list[int],
        max_spec_len: int,
        cu_num_draft_tokens: Tensor,
        draft_probs: Tensor | None,
        target_logits: Tensor,
        bonus_token_ids: Tensor,
        sampling_metadata: Any,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        def exactly() -> Any:
            return original(
                draft_token_ids,
                num_draft_tokens,
                max_spec_len,
                cu_num_draft_tokens,
                draft_probs,
                target_logits,
                bonus_token_ids,
                sampling_metadata,
                *args,
                **kwargs,
            )

        batch = _now.get()
        if batch is None:
            return exactly()
        counts = torch.tensor(num_draft_tokens, device=target_logits.device)
        per_request = torch.tensor(batch.epsilon, dtype=torch.float64, device=target_logits.device)
        epsilon = per_request.repeat_interleave(counts, output_size=len(draft_token_ids))
        lifted = lift(
            target_logits,
            draft_token_ids.long(),
            epsilon,
            batch.epsilon,
            _greedy(sampling_metadata, counts, len(draft_token_ids), target_logits.device),
            batch.rule,
        )
        try:
            return exactly()
        finally:
            lifted.restore()

    return rejection_sample


def _greedy(sampling_metadata: Any, counts: Tensor, tokens: int, device: torch.device) -> Tensor | None:
    """[tokens] which drafted tokens belong to a request at temperature 0; None: none does."""
    if sampling_metadata.all_random:
        return None
    if sampling_metadata.all_greedy:
        return torch.ones(tokens, dtype=torch.bool, device=device)
    at_zero: Tensor = sampling_metadata.temperature[: len(counts)] == 0
    return at_zero.repeat_interleave(counts, output_size=tokens)
