"""Our drafters inside vLLM's first model runner, as its ``custom_class``: with draft probabilities, and per request.

vLLM hands over the tokens of its batch rows after every step and takes lists of drafted ids back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gkt_vllm.answers import ends_within
from gkt_vllm.drafting import Block, Drafting
from gkt_vllm.patching import replace
from gkt_vllm.ranks import agreed
from gkt_vllm.section import read_section
from gkt_vllm.tracing import Tracer, open_tracer

__all__ = ["OwnDrafter", "install"]


class OwnDrafter:
    """What vLLM builds, in every tensor-parallel rank; all ranks draft the same, since draws depend on seeds alone."""

    def __init__(self, vllm_config: Any) -> None:
        section = read_section(vllm_config.additional_config)
        assert section is not None
        assert section.workers is not None
        assert section.workers.drafter is not None
        self._settings = section.workers.drafter
        self._config = vllm_config
        self._device = torch.device(vllm_config.device_config.device)
        self._longest = int(vllm_config.model_config.max_model_len)
        agree = agreed if vllm_config.parallel_config.tensor_parallel_size > 1 and self._settings.auto else None
        self._drafting = Drafting(
            self._settings,
            vocab_size=int(vllm_config.model_config.get_vocab_size()),
            most=int(vllm_config.speculative_config.num_speculative_tokens),
            longest=self._longest,
            device=self._device,
            agree=agree,
        )
        self._tracer: Tracer | None = None
        self._runner: Any = None
        self._step: Any = None
        self._waiting = False
        """A step has begun, and what came of it was not handed over yet."""
        self._block: Block | None = None

    def load_model(self, target_model: object) -> None:
        """Build the drafter. vLLM calls it once the target's weights are there."""
        self._drafting.load()
        self._tracer = open_tracer(self._config, self._settings)

    def begin(self, runner: Any, step: Any) -> None:
        """A step begins, before the runner forgets the requests that have left.

        :param runner: where requests, their sampling options and their probabilities are.
        :param step: vLLM's ``SchedulerOutput``.
        """
        self._runner, self._step = runner, step
        if self._tracer is not None:
            self._tracer.take_out(step.finished_req_ids, runner.requests)
        self._drafting.forget(step.finished_req_ids)
        if step.total_num_scheduled_tokens:
            if self._waiting:  # vLLM drafts nothing itself where a request is close to the model's length
                self._drafting.miss()
                self._block = None
            self._waiting = True

    def propose(
        self,
        sampled_token_ids: Sequence[Sequence[int]],
        num_tokens_no_spec: npt.NDArray[np.int32],
        token_ids_cpu: npt.NDArray[np.int32],
        slot_mappings: object = None,
    ) -> list[list[int]]:
        """[rows] drafted ids, none for a row that gained no token in this step.

        ``num_tokens_no_spec`` [rows] and ``token_ids_cpu`` [rows, longest]: prompt and answer so far, the new tokens
        included.
        """
        assert self._runner is not None
        self._waiting = False
        names: Sequence[str] = self._runner.input_batch.req_ids
        row_of = {name: i for i, name in enumerate(names)}
        gained = {name: new for name, new in zip(names, sampled_token_ids, strict=True) if new}
        ended = {name for name, new in gained.items() if self._ends(name, new)}
        verified = self._verified()
        if self._tracer is not None:
            self._tracer.step(self._runner.requests, gained, verified, ended)

        def tokens_of(wanted: Sequence[str], lengths: Sequence[int]) -> Tensor:
            ids = token_ids_cpu[[row_of[name] for name in wanted], : max(lengths)]
            return torch.from_numpy(_without_leavings(ids, lengths)).to(self._device)

        self._block = block = self._drafting.propose(
            {name: int(num_tokens_no_spec[i]) for i, name in enumerate(names)},
            [name for name in gained if name not in ended],
            lambda name: self._runner.requests[name].sampling_params,
            tokens_of,
            most=self._step.num_spec_tokens_to_schedule,
            verified={name: len(ids) for name, ids in verified.items()},
        )
        if block is None or block.ids is None:
            return [[] for _ in names]
        rows = zip(block.names, block.ids.tolist(), block.drafted, strict=True)
        drafted = {name: ids[:count] for name, ids, count in rows}
        return [drafted.get(name, []) for name in names]

    def _verified(self) -> Mapping[str, Sequence[int]]:
        """What vLLM verified in this step of the last block, by request; what is its own stopgap is left out."""
        names = () if self._block is None else self._block.names
        scheduled: Mapping[str, Sequence[int]] = self._step.scheduled_spec_decode_tokens
        return {name: scheduled[name] for name in names if name in scheduled and scheduled[name][0] >= 0}

    def _ends(self, name: str, new: Sequence[int]) -> bool:
        """The request's answer is complete; vLLM takes it out before the next step."""
        request = self._runner.requests[name]
        room = self._longest - request.num_prompt_tokens
        return ends_within(request.sampling_params, new, len(request.output_token_ids), room)

    def take_probs(self) -> tuple[Tensor | None, list[str]]:
        """[drafted rows, gamma, vocabulary] of the last proposal, and whose they are; None where drafts are certain."""
        return (None, []) if self._block is None else (self._block.probs, self._block.names)


def _without_leavings(ids: npt.NDArray[np.int32], lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """[B, T] with zeros beyond each row's length, where vLLM leaves what earlier requests had there, or -1."""
    used = np.arange(ids.shape[1]) < np.array(lengths)[:, None]
    return np.where(used, ids, 0).astype(np.int64)


def install() -> None:
    """Tell the drafter of each step, and the runner of the probabilities after it.

    :raises BackendError: this vLLM has other functions.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    parameters = ("self", "scheduler_output")
    replace(GPUModelRunner, "_update_states", parameters, _wrap_update, "what requests our own drafter has")
    replace(GPUModelRunner, "propose_draft_token_ids", parameters, _wrap_propose, "our own drafter's probabilities")


def _wrap_update(original: Callable[..., Any]) -> Callable[..., Any]:
    def _update_states(self: Any, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        drafter = getattr(self, "drafter", None)
        if isinstance(drafter, OwnDrafter):
            drafter.begin(self, scheduler_output)
        return original(self, scheduler_output, *args, **kwargs)

    return _update_states


def _wrap_propose(original: Callable[..., Any]) -> Callable[..., Any]:
    def propose_draft_token_ids(self: Any, *args: Any, **kwargs: Any) -> Any:
        drafter = self.drafter
        drafted = original(self, *args, **kwargs)
        if isinstance(drafter, OwnDrafter):
            probs, names = drafter.take_probs()
            if probs is not None:
                self._draft_probs = probs.float()
                self._draft_prob_req_ids = list(names)
        return drafted

    return propose_draft_token_ids
