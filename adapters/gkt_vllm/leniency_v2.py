"""Leniency under vLLM's second model runner: the same lift around its rejection sampler, with no wait for the device.

A request's leniency is written into a table on the device when it enters the batch, and gathered by its slot.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from gkt_vllm.asked import Leniency
from gkt_vllm.one_logit import lift
from gkt_vllm.patching import replace

__all__ = ["SlotLeniency", "bind", "install", "leniently"]

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


class SlotLeniency:
    """The leniency of each slot of one engine."""

    def __init__(self, leniency: Leniency, slots: int, device: torch.device) -> None:
        self.leniency = leniency
        self.epsilon = torch.ones(slots, dtype=torch.float64, device=device)
        self.values: list[float] = [1.0] * slots
        """The same, on the host."""

    def fill(self, slot: int, epsilon: float) -> None:
        """A request with this leniency has come into the slot."""
        if self.values[slot] != epsilon:
            self.values[slot] = epsilon
            self.epsilon[slot] = epsilon


_bound: dict[int, Leniency] = {}
"""Identity of a vLLM configuration → its leniency: one process may hold several engines."""

_tables: weakref.WeakKeyDictionary[Any, SlotLeniency] = weakref.WeakKeyDictionary()
"""An engine's sampler → its slots. Its tensors would not do as keys: vLLM's buffers take turns."""

_now: ContextVar[SlotLeniency | None] = ContextVar("gkt_lenient_slots", default=None)
"""The slots of the engine that verifies on this thread; None: exactness."""


def bind(vllm_config: object, leniency: Leniency) -> None:
    """Make the engine of ``vllm_config`` lenient."""
    _bound[id(vllm_config)] = leniency
    weakref.finalize(vllm_config, _bound.pop, id(vllm_config), None)  # another engine may get the same identity


@contextmanager
def leniently(table: SlotLeniency | None) -> Iterator[None]:
    """How vLLM verifies on this thread meanwhile; None: exactly."""
    token = _now.set(table)
    try:
        yield
    finally:
        _now.reset(token)


def install() -> None:
    """Wrap what enters and what verifies. An engine that is not bound is not touched.

    :raises BackendError: this vLLM has other functions.
    """
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler

    replace(GPUModelRunner, "add_requests", ("self", "scheduler_output"), _wrap_add_requests, _WHY)
    sampler = rejection_sampler.RejectionSampler
    replace(sampler, "__call__", ("self", "logits", "input_batch"), _wrap_call, _WHY)
    replace(rejection_sampler, "rejection_sample", _PARAMETERS, _wrap_rejection_sample, _WHY)


def _wrap_add_requests(original: Callable[..., Any]) -> Callable[..., Any]:
    def add_requests(self: Any, scheduler_output: Any) -> None:
        original(self, scheduler_output)
        for request in scheduler_output.scheduled_new_reqs:  # also those that come again after a preemption
            if request.sampling_params is not None:  # else it is a pooling model's
                _enter(self, request.sampling_params, self.req_states.req_id_to_index[request.req_id])

    return add_requests


def _enter(runner: Any, sampling_params: Any, slot: int) -> None:
    leniency = _bound.get(id(runner.vllm_config))
    if leniency is None or runner.sampler is None:  # only the last pipeline stage samples
        return
    table = _tables.get(runner.sampler)
    if table is None:
        table = _tables[runner.sampler] = SlotLeniency(leniency, runner.max_num_reqs, runner.device)
    table.fill(slot, leniency.asked(sampling_params))


def _wrap_call(original: Callable[..., Any]) -> Callable[..., Any]:
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807 - it replaces one
        with leniently(_tables.get(self.sampler)):
            return original(self, *args, **kwargs)

    return __call__


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

        table = _now.get()
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
