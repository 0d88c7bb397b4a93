"""Our drafters inside vLLM's first model runner, as its ``custom_class``: with draft probabilities, and per request.

vLLM hands over the tokens of its batch rows after every step and takes lists of drafted ids back. What it keeps no
record of is kept here: which rows were drafted for, and how long they were, which says later how much was accepted.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gkt_plugins.contracts import BuildContext, Drafter, Sampling
from gkt_plugins.plugins import load_plugins
from gkt_plugins.speculation.gamma import FixedGamma, GammaController, GammaPolicy
from gkt_plugins.speculation.sampling import RowOptions
from gkt_plugins.speculation.state import BatchState
from gkt_vllm.asked import asked_gamma
from gkt_vllm.patching import replace
from gkt_vllm.section import DrafterSettings, read_section

__all__ = ["OwnDrafter", "install"]

_OPTIONS = (1, 2, 3, 4, 5, 6, 8)


class _Target(Protocol):
    vocab_size: int
    device: torch.device


class _Size:
    """What a drafter is told of the target."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.vocab_size = vocab_size
        self.device = device


class _Block:
    """The last proposal: for whom, how long they were, and when."""

    def __init__(self, names: list[str], lengths: list[int], drafted: list[int], gamma: int, steady: bool) -> None:
        self.names = names
        self.lengths = lengths
        self.drafted = drafted
        self.gamma = gamma
        self.steady = steady
        self.started = time.perf_counter()


class OwnDrafter:
    """What vLLM builds, in every tensor-parallel rank; all ranks draft the same, since draws depend on seeds alone."""

    def __init__(self, vllm_config: Any) -> None:
        section = read_section(vllm_config.additional_config)
        assert section is not None
        assert section.workers is not None
        assert section.workers.drafter is not None
        self._settings: DrafterSettings = section.workers.drafter
        self._most = int(vllm_config.speculative_config.num_speculative_tokens)
        self._longest = int(vllm_config.model_config.max_model_len)
        self._target: _Target = _Size(
            int(vllm_config.model_config.get_vocab_size()), torch.device(vllm_config.device_config.device)
        )
        auto = GammaController([gamma for gamma in _OPTIONS if gamma <= self._most])
        self._policy: GammaPolicy = auto if self._settings.auto else FixedGamma(self._most)
        self._drafter: Drafter | None = None
        self._runner: Any = None
        self._order: list[str] = []
        """Requests in the drafter's own order: vLLM's rows change place, and its cache would follow in vain."""
        self._block: _Block | None = None
        self._probs: Tensor | None = None

    def load_model(self, target_model: object) -> None:
        """Build the drafter. vLLM calls it once the target's weights are there."""
        context = BuildContext(base_dir=Path(self._settings.base_dir), resources={"target": self._target})
        drafters = load_plugins().drafters()
        self._drafter = drafters.build(self._settings.drafter, self._settings.drafter_options, context)

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
        assert self._drafter is not None
        assert self._runner is not None
        self._probs = None
        names: Sequence[str] = self._runner.input_batch.req_ids
        lengths = {name: int(num_tokens_no_spec[i]) for i, name in enumerate(names)}
        self._learn(lengths)
        alive = [name for name, new in zip(names, sampled_token_ids, strict=True) if new]
        wanted = {name: self._wanted(name, lengths[name]) for name in alive}
        drafted = self._draft({name: most for name, most in wanted.items() if most}, lengths, names, token_ids_cpu)
        return [drafted.get(name, []) for name in names]

    def take_probs(self) -> tuple[Tensor | None, list[str]]:
        """[drafted rows, gamma, vocabulary] of the last proposal, and whose they are; None where drafts are certain."""
        return self._probs, [] if self._block is None else self._block.names

    def _learn(self, lengths: Mapping[str, int]) -> None:
        """Tell the drafter and the policy what became of the last proposal."""
        block, self._block = self._block, None
        if block is None:
            return
        seconds = time.perf_counter() - block.started
        kept = [
            min(max(lengths.get(name, 0) - before - 1, 0), count)
            for name, before, count in zip(block.names, block.lengths, block.drafted, strict=True)
        ]
        if block.gamma:
            assert self._drafter is not None
            self._drafter.commit(torch.tensor(kept, device=self._target.device))
        alive = all(name in lengths for name in block.names)
        self._policy.observe(len(block.names), block.gamma, seconds, block.drafted, kept, steady=block.steady and alive)

    def _wanted(self, name: str, length: int) -> int:
        """How many tokens to draft for a request at most."""
        room = self._longest - length - 1
        return max(min(self._most, room, asked_gamma(self._runner.requests[name].sampling_params, self._most)), 0)

    def _draft(
        self,
        wanted: Mapping[str, int],
        lengths: Mapping[str, int],
        names: Sequence[str],
        token_ids_cpu: npt.NDArray[np.int32],
    ) -> dict[str, list[int]]:
        if not wanted:
            return {}
        before = self._order
        self._order = _in_old_places(before, wanted)
        steady = before == self._order
        gamma = min(self._policy.choose(len(wanted)), max(wanted.values()))
        own_lengths = [lengths[name] for name in self._order]
        if gamma == 0:
            self._block = _Block(self._order, own_lengths, [0] * len(wanted), 0, steady)
            return {}
        block = _Block(self._order, own_lengths, [min(wanted[name], gamma) for name in self._order], gamma, steady)
        row_of = {name: i for i, name in enumerate(names)}
        rows = [row_of[name] for name in self._order]
        ids = torch.from_numpy(_without_leavings(token_ids_cpu[rows, : max(own_lengths)], own_lengths))
        assert self._drafter is not None
        proposal = self._drafter.propose(self._state(ids.to(self._target.device), own_lengths), gamma)
        self._block, self._probs = block, proposal.probs
        counts = block.drafted if proposal.counts is None else _smaller(block.drafted, proposal.counts.tolist())
        block.drafted = counts
        every = proposal.ids.tolist()
        return {name: every[i][: counts[i]] for i, name in enumerate(self._order)}

    def _state(self, ids: Tensor, lengths: list[int]) -> BatchState:
        params = [self._runner.requests[name].sampling_params for name in self._order]
        options = RowOptions.pack([_sampling(one) for one in params], [() for _ in params], self._target.device)
        seeds = [_seed(name, one) for name, one in zip(self._order, params, strict=True)]
        return BatchState(
            [zlib.crc32(name.encode()) for name in self._order],
            ids,
            lengths,
            options,
            np.array(seeds, dtype=np.uint64),
            np.array(lengths, dtype=np.uint64),
        )


def _in_old_places(before: Sequence[str], wanted: Mapping[str, int]) -> list[str]:
    """``wanted``, each where it was; the last ones fill the gaps, newcomers follow."""
    order = list(before)
    for place in range(len(order) - 1, -1, -1):
        if order[place] not in wanted:
            last = order.pop()
            if place < len(order):
                order[place] = last
    return order + [name for name in wanted if name not in before]


def _without_leavings(ids: npt.NDArray[np.int32], lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    """[B, T] with zeros beyond each row's length, where vLLM leaves what earlier requests had there, or -1."""
    used = np.arange(ids.shape[1]) < np.array(lengths)[:, None]
    return np.where(used, ids, 0).astype(np.int64)


def _smaller(left: Sequence[int], right: Sequence[int]) -> list[int]:
    return [min(pair) for pair in zip(left, right, strict=True)]


def _sampling(params: Any) -> Sampling:
    return Sampling(
        temperature=float(params.temperature),
        top_k=max(int(params.top_k), 0),
        top_p=float(params.top_p),
        min_p=float(params.min_p),
        repetition_penalty=float(params.repetition_penalty),
    )


def _seed(name: str, params: Any) -> int:
    """The same in every rank, another for every request that named none."""
    return int(params.seed) % 2**64 if params.seed is not None else zlib.crc32(name.encode()) << 20


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
