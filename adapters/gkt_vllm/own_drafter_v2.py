"""Our drafters on vLLM's second model runner, in the place of a speculator of its own. Experimental.

vLLM keeps tokens, lengths and drafts on the device, by slot. The lengths are read to the host once a step, which is
what our drafters need; tokens, drafts and probabilities stay where they are. Tracing reads each step's few tokens too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from gkt_vllm.answers import ends_within
from gkt_vllm.drafting import Block, Drafting
from gkt_vllm.patching import replace
from gkt_vllm.ranks import agreed
from gkt_vllm.section import read_section
from gkt_vllm.tracing import Tracer, open_tracer

__all__ = ["OwnSpeculator", "install"]

_WHY = "our own drafter"

_CERTAIN = ("prompt_lookup",)
"""Drafters that give no probabilities, so that none have to be kept."""

_TRIALS = ("_warmup_", "_v2_mixed_warmup_")
"""How the names of vLLM's own requests begin, with which it warms up."""


class OwnSpeculator:
    """What the runner makes, in every tensor-parallel rank of the last pipeline stage."""

    num_query_per_req = 1
    num_extra_query_per_req = 0
    supports_mm_inputs = False
    pcp_manager: Any = None

    def __init__(self, vllm_config: Any, device: torch.device, req_states: Any) -> None:
        """``req_states``: the runner's own record of its requests, by slot."""
        section = read_section(vllm_config.additional_config)
        assert section is not None
        assert section.workers is not None
        assert section.workers.drafter is not None
        self._settings = section.workers.drafter
        self._certain = self._settings.drafter in _CERTAIN
        self._config = vllm_config
        self._longest = int(vllm_config.model_config.max_model_len)
        self._most = int(vllm_config.speculative_config.num_speculative_tokens)
        self._vocab_size = int(vllm_config.model_config.get_vocab_size())
        self._device = device
        self._states = req_states
        self._requests: dict[str, Any] = {}
        """vLLM's record of each, which its first runner keeps, and the second one does not."""
        self._tracer: Tracer | None = None
        ranks = int(vllm_config.parallel_config.tensor_parallel_size)
        self._drafting = Drafting(
            self._settings,
            vocab_size=self._vocab_size,
            most=self._most,
            longest=self._longest,
            device=device,
            agree=agreed if ranks > 1 and self._settings.auto else None,
        )
        self._drafted: dict[str, int] = {}
        """How many tokens of each request are real in the last proposal."""
        self.draft_logits: Tensor | None = None
        """[slots, gamma, vocabulary] before temperature, as vLLM takes them; None where drafts are certain."""

    def load(self) -> None:
        """Build the drafter, and make room for its probabilities."""
        self._drafting.load()
        if not self._certain:
            shape = (self._states.max_num_reqs, self._most, self._vocab_size)
            self.draft_logits = torch.zeros(shape, device=self._device)
        self._tracer = open_tracer(self._config, self._settings)

    def init_cudagraph_manager(self, cudagraph_mode: object) -> None:
        """vLLM's; there is nothing to record."""

    def capture(self) -> None:
        """vLLM's; there is nothing to record."""

    def begin(self, step: Any) -> None:
        """A step begins. ``step``: vLLM's ``SchedulerOutput``."""
        if self._tracer is not None:
            self._tracer.take_out(step.finished_req_ids, self._requests)
        for name in step.finished_req_ids:
            self._requests.pop(name, None)
        new = {data.req_id: _record(data) for data in step.scheduled_new_reqs}
        self._requests |= new
        self._drafting.forget([*step.finished_req_ids, *new])

    def propose(
        self,
        input_batch: Any,
        attn_metadata: object,
        slot_mappings: object,
        last_hidden_states: object,
        aux_hidden_states: object,
        num_sampled: Tensor,
        *args: object,
        dummy_run: bool = False,
        num_speculative_tokens: int | None = None,
        **kwargs: object,
    ) -> Tensor:
        """[rows, gamma] int64 drafted tokens; zeros where there are none, see :meth:`shorten`.

        ``num_sampled``: [rows] tokens that each row gained in this step; 0 while its prompt is being read.
        """
        ids = torch.zeros(input_batch.num_reqs, self._most, dtype=torch.int64, device=self._device)
        if dummy_run:
            return ids
        names: list[str] = input_batch.req_ids
        slots: list[int] = input_batch.idx_mapping_np.tolist()
        slot_of = dict(zip(names, slots, strict=True))
        on_device = input_batch.idx_mapping.long()
        lengths, gained = torch.stack([self._states.total_len.gpu[on_device].long(), num_sampled.long()]).tolist()
        counts = input_batch.num_draft_tokens_per_req
        verified = {} if counts is None else dict(zip(names, counts.tolist(), strict=True))
        if self._tracer is not None:
            self._trace(self._tracer, names, on_device, lengths, gained, verified)
        block = self._drafting.propose(
            dict(zip(names, lengths, strict=True)),
            [name for name, new in zip(names, gained, strict=True) if new],
            lambda name: self._requests[name].sampling_params,
            lambda wanted, lengths: self._tokens([slot_of[name] for name in wanted], lengths),
            most=num_speculative_tokens,
            verified=verified,
        )
        self._drafted = {}
        if block is not None and block.ids is not None:
            self._drafted = dict(zip(block.names, block.drafted, strict=True))
            row_of = {name: row for row, name in enumerate(names)}
            rows = torch.tensor([row_of[name] for name in block.names], device=self._device)
            ids[rows, : block.ids.shape[1]] = block.ids
            self._keep_logits(block, [slot_of[name] for name in block.names])
        return ids

    def _trace(
        self,
        tracer: Tracer,
        names: Sequence[str],
        slots: Tensor,
        lengths: Sequence[int],
        gained: Sequence[int],
        verified: Mapping[str, int],
    ) -> None:
        """What became of the last block, whose drafts vLLM still has, and of whom the answer is complete.

        :param slots: [rows] int64. ``lengths``, ``gained``: [rows] tokens so far, and in this step.
        """
        first = torch.tensor([lengths, gained], device=self._device)
        places = (first[0] - first[1])[:, None] + torch.arange(self._most + 1, device=self._device)
        new = self._states.all_token_ids.gpu[slots[:, None], places.clamp(max=self._longest - 1)]
        rows = torch.cat([self._states.draft_tokens[slots], new], dim=1).tolist()
        gains: dict[str, list[int]] = {}
        drafted: dict[str, list[int]] = {}
        ended: list[str] = []
        for name, row, length, count in zip(names, rows, lengths, gained, strict=True):
            if not count:
                continue
            answer, params = self._requests[name].output_token_ids, self._requests[name].sampling_params
            gains[name] = row[self._most : self._most + count]
            answer += gains[name]
            if verified.get(name):
                drafted[name] = row[: verified[name]]
            if ends_within(params, gains[name], len(answer), self._longest - length + len(answer)):
                ended.append(name)
        tracer.step(self._requests, gains, drafted, ended)

    def shorten(self, names: Sequence[str], drafts: Sequence[list[int]]) -> list[list[int]]:
        """``drafts``, [rows] of the last proposal's tokens, with as many as are real: vLLM verifies no others."""
        return [draft[: self._drafted.get(name, 0)] for name, draft in zip(names, drafts, strict=True)]

    def _tokens(self, slots: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """[B, longest] tokens of the slots; zeros beyond each one's length, where earlier requests left theirs."""
        longest = max(lengths)
        ids: Tensor = self._states.all_token_ids.gpu[torch.tensor(slots, device=self._device), :longest]
        used = torch.arange(longest, device=self._device) < torch.tensor(lengths, device=self._device)[:, None]
        return torch.where(used, ids, 0).long()

    def _keep_logits(self, block: Block, slots: Sequence[int]) -> None:
        """What the sampler divides by the temperature and normalises, so that it gets the block's probabilities."""
        if self.draft_logits is None:
            assert block.probs is None
            return
        assert block.ids is not None
        temperatures = [float(self._requests[name].sampling_params.temperature) for name in block.names]
        if not any(temperatures):  # greedy rows are compared with the target's best token only
            return
        probs = block.probs
        if probs is None:
            probs = torch.nn.functional.one_hot(block.ids, self._vocab_size)
        by_row = torch.tensor([one or 1.0 for one in temperatures], device=self._device)
        at = torch.tensor(slots, device=self._device)
        self.draft_logits[at, : block.ids.shape[1]] = probs.float().log() * by_row[:, None, None]


def _record(data: Any) -> Any:
    """``data``: vLLM's ``NewRequestData``; that of a preempted request has its answer so far."""
    record = SimpleNamespace(**vars(data), output_token_ids=list(data.prefill_token_ids[data.prompt_len :]))
    if data.req_id.startswith(_TRIALS):
        record.prompt_token_ids = None  # then it is not traced
    return record


def install() -> None:
    """Make our speculator where the section asks for it, tell it of steps, and tell vLLM how much it drafted.

    :raises BackendError: this vLLM has other functions.
    """
    from vllm.v1.worker.gpu import model_runner

    replace(model_runner, "init_speculator", ("vllm_config", "device", "req_states"), _wrap_init, _WHY)
    replace(model_runner.GPUModelRunner, "load_model", ("self",), _wrap_load, _WHY)
    replace(model_runner.GPUModelRunner, "finish_requests", ("self", "scheduler_output"), _wrap_finish, _WHY)
    replace(model_runner.GPUModelRunner, "take_draft_token_ids", ("self",), _wrap_take, _WHY)


def _wrap_init(original: Callable[..., Any]) -> Callable[..., Any]:
    def init_speculator(vllm_config: Any, device: torch.device, req_states: Any) -> Any:
        section = read_section(vllm_config.additional_config)
        if section is None or section.workers is None or section.workers.drafter is None:
            return original(vllm_config, device, req_states)
        return OwnSpeculator(vllm_config, device, req_states)

    return init_speculator


def _wrap_load(original: Callable[..., Any]) -> Callable[..., Any]:
    def load_model(self: Any, *args: Any, **kwargs: Any) -> None:
        from vllm.utils.mem_utils import DeviceMemoryProfiler

        original(self, *args, **kwargs)
        if isinstance(self.speculator, OwnSpeculator):
            with DeviceMemoryProfiler() as profiler:
                self.speculator.load()
            self.model_memory_usage += profiler.consumed_memory  # what vLLM takes for its own cache comes after

    return load_model


def _wrap_finish(original: Callable[..., Any]) -> Callable[..., Any]:
    def finish_requests(self: Any, scheduler_output: Any) -> None:
        if isinstance(self.speculator, OwnSpeculator):
            self.speculator.begin(scheduler_output)
        original(self, scheduler_output)

    return finish_requests


def _wrap_take(original: Callable[..., Any]) -> Callable[..., Any]:
    def take_draft_token_ids(self: Any) -> Any:
        drafts = original(self)
        if drafts is not None and isinstance(self.speculator, OwnSpeculator):
            drafts.draft_token_ids[:] = self.speculator.shorten(drafts.req_ids, drafts.draft_token_ids)
        return drafts

    return take_draft_token_ids
