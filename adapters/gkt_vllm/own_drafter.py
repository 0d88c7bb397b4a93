"""Our drafters inside vLLM's first model runner, as its ``custom_class``: with draft probabilities, and per request.

vLLM hands over the tokens of its batch rows after every step and takes lists of drafted ids back.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gkt_vllm.drafting import Block, Drafting
from gkt_vllm.patching import replace
from gkt_vllm.section import read_section

__all__ = ["OwnDrafter", "install"]


class OwnDrafter:
    """What vLLM builds, in every tensor-parallel rank; all ranks draft the same, since draws depend on seeds alone."""

    def __init__(self, vllm_config: Any) -> None:
        section = read_section(vllm_config.additional_config)
        assert section is not None
        assert section.workers is not None
        assert section.workers.drafter is not None
        self._device = torch.device(vllm_config.device_config.device)
        self._drafting = Drafting(
            section.workers.drafter,
            vocab_size=int(vllm_config.model_config.get_vocab_size()),
            most=int(vllm_config.speculative_config.num_speculative_tokens),
            longest=int(vllm_config.model_config.max_model_len),
            device=self._device,
        )
        self._runner: Any = None
        self._block: Block | None = None

    def load_model(self, target_model: object) -> None:
        """Build the drafter. vLLM calls it once the target's weights are there."""
        self._drafting.load()

    def bind(self, runner: Any) -> None:
        """Where requests, their sampling options and their probabilities are."""
        self._runner = runner

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
        names: Sequence[str] = self._runner.input_batch.req_ids
        row_of = {name: i for i, name in enumerate(names)}

        def tokens_of(wanted: Sequence[str], lengths: Sequence[int]) -> Tensor:
            ids = token_ids_cpu[[row_of[name] for name in wanted], : max(lengths)]
            return torch.from_numpy(_without_leavings(ids, lengths)).to(self._device)

        self._block = block = self._drafting.propose(
            {name: int(num_tokens_no_spec[i]) for i, name in enumerate(names)},
            [name for name, new in zip(names, sampled_token_ids, strict=True) if new],
            lambda name: self._runner.requests[name].sampling_params,
            tokens_of,
        )
        if block is None or block.ids is None:
            return [[] for _ in names]
        rows = zip(block.names, block.ids.tolist(), block.drafted, strict=True)
        drafted = {name: ids[:count] for name, ids, count in rows}
        return [drafted.get(name, []) for name in names]

    def take_probs(self) -> tuple[Tensor | None, list[str]]:
        """[drafted rows, gamma, vocabulary] of the last proposal, and whose they are; None where drafts are certain."""
        return (None, []) if self._block is None else (self._block.probs, self._block.names)


def _without_leavings(ids: npt.NDArray[np.int32], lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """[B, T] with zeros beyond each row's length, where vLLM leaves what earlier requests had there, or -1."""
    used = np.arange(ids.shape[1]) < np.array(lengths)[:, None]
    return np.where(used, ids, 0).astype(np.int64)


def install() -> None:
    """Give the drafter its runner before each step, and the runner the probabilities after it.

    :raises BackendError: this vLLM has another function.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    replace(GPUModelRunner, "propose_draft_token_ids", ("self",), _wrap_propose, "our own drafter's probabilities")


def _wrap_propose(original: Any) -> Any:
    def propose_draft_token_ids(self: Any, *args: Any, **kwargs: Any) -> Any:
        drafter = self.drafter
        if not isinstance(drafter, OwnDrafter):
            return original(self, *args, **kwargs)
        drafter.bind(self)
        drafted = original(self, *args, **kwargs)
        probs, names = drafter.take_probs()
        if probs is not None:
            self._draft_probs = probs.float()
            self._draft_prob_req_ids = list(names)
        return drafted

    return propose_draft_token_ids
