"""Tells of the requests that enter vLLM's second model runner, whose own records keep no sampling parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gkt_vllm.patching import replace

__all__ = ["Entered", "listen"]

Entered = Callable[[Any, str, Any, int], None]
"""``entered(runner, name, sampling_params, slot)``: a request has come, also when it comes again after a preemption."""

_listeners: list[Entered] = []


def listen(listener: Entered) -> None:
    """Call ``listener`` for every request that enters a runner of this process, before its first step.

    :raises BackendError: this vLLM has another function.
    """
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    why = "knowing what each request asks for"
    replace(GPUModelRunner, "add_requests", ("self", "scheduler_output"), _wrap, why)
    if listener not in _listeners:
        _listeners.append(listener)


def _wrap(original: Callable[..., Any]) -> Callable[..., Any]:
    def add_requests(self: Any, scheduler_output: Any) -> None:
        original(self, scheduler_output)
        for request in scheduler_output.scheduled_new_reqs:
            if request.sampling_params is None:  # a pooling model's
                continue
            slot = self.req_states.req_id_to_index[request.req_id]
            for listener in _listeners:
                listener(self, request.req_id, request.sampling_params, slot)

    return add_requests
