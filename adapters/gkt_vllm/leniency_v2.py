"""Leniency under vLLM's second model runner: the same lift around its rejection sampler, with no wait for the device.

A request's leniency is written into a table on the device when it enters the batch, and gathered by its slot.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gkt_vllm.asked import Leniency
from gkt_vllm.one_logit import lift
from gkt_vllm.patching import replace

__all__ = ["install"]

_WHY = "leniency"
_PARAMETERS = (
    "target_logits",
    "draft_logits",
    "draft_sampled",
    "cu_num_logits",
    "pos",
    "idx_mapping",
    "expanded_idx_mapping",
    "expanded_local_pos",
    "temperature",
)


class _Table:
    """The leniency of each slot of one engine."""

    def __init__(self, leniency: Leniency, slots: int, device: torch.device) -> None:
        self.leniency = leniency
        self.epsilon = torch.ones(slots, dtype=torch.float64, device=device)
        self.values: list[float] = [1.0] * slots
        """The same, on the host."""

    def fill(self, slot: int, epsilon: float) -> None:
        if self.values[slot] != epsilon:
            self.values[slot] = epsilon
            self.epsilon[slot] = epsilon


_tables: dict[int, _Table] = {}
"""Address of an engine's temperatures, which its sampler passes along → its table."""


def install(leniency: Leniency) -> None:
    """Wrap the two functions, for the engine that is being made in this process.

    :raises BackendError: this vLLM has other functions.
    """
    from vllm.v1.worker.gpu.sample.sampler import Sampler
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler

    def wrap_add_request(original: Callable[..., Any]) -> Callable[..., Any]:
        def add_request(self: Any, req_idx: int, *args: Any) -> Any:
            temperature = self.sampling_states.temperature.gpu
            table = _tables.get(temperature.data_ptr())
            if table is None:
                table = _Table(leniency, len(temperature), temperature.device)
                _tables[temperature.data_ptr()] = table
            table.fill(req_idx, table.leniency.asked(args[-1]))  # 0.28 has the prompt's length before the parameters
            return original(self, req_idx, *args)

        return add_request

    replace(Sampler, "add_request", ("self", "req_idx"), wrap_add_request, _WHY)
    replace(rejection_sampler, "rejection_sample", _PARAMETERS, _wrap_rejection_sample, _WHY)


def _wrap_rejection_sample(original: Callable[..., Any]) -> Callable[..., Any]:
    def rejection_sample(
        target_logits: Tensor,
        draft_logits: Tensor | None,
        draft_sampled: Tensor,
        cu_num_logits: Tensor,
        pos: Tensor,
        idx_mapping: Tensor,
        expanded_idx_mapping: Tensor,
        expanded_local_pos: Tensor,
        temperature: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        def exactly() -> Any:
            return original(
                target_logits,
                draft_logits,
                draft_sampled,
                cu_num_logits,
                pos,
                idx_mapping,
                expanded_idx_mapping,
                expanded_local_pos,
                temperature,
                *args,
                **kwargs,
            )

        table = _tables.get(temperature.data_ptr())
        if table is None or min(table.values) == 1.0:
            return exactly()
        slots = expanded_idx_mapping.long()
        drafted = torch.cat([draft_sampled[1:], draft_sampled.new_full((1,), -1)]).long()
        drafted[cu_num_logits[1:].long() - 1] = -1  # a request's last row draws the bonus token
        lifted = lift(
            target_logits, drafted, table.epsilon[slots], table.values, temperature[slots] == 0, table.leniency.rule
        )
        try:
            return exactly()
        finally:
            lifted.restore()

    return rejection_sample
