"""Our drafters for a batch that vLLM schedules: what both of its model runners share.

vLLM keeps no record of what was drafted for whom. It is kept here: which requests, and how long they were, which says
one step later how much was accepted.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from gkt_plugins.contracts import BuildContext, Drafter, Sampling
from gkt_plugins.plugins import load_plugins
from gkt_plugins.speculation.gamma import FixedGamma, GammaController, GammaPolicy
from gkt_plugins.speculation.sampling import RowOptions
from gkt_plugins.speculation.state import BatchState
from gkt_vllm.asked import asked_gamma
from gkt_vllm.section import DrafterSettings

__all__ = ["Block", "Drafting"]

_OPTIONS = (1, 2, 3, 4, 5, 6, 8)


class _Target(Protocol):
    vocab_size: int
    device: torch.device


class _Size:
    """What a drafter is told of the target."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.vocab_size = vocab_size
        self.device = device


class Block:
    """One proposal: for whom, how long they were, and what was drafted."""

    def __init__(self, names: list[str], lengths: list[int], drafted: list[int], gamma: int, *, steady: bool) -> None:
        self.names = names
        self.lengths = lengths
        self.drafted = drafted
        """How many tokens of each request are real."""
        self.gamma = gamma
        self.steady = steady
        """No request was new to the drafter."""
        self.ids: Tensor | None = None
        """[requests, gamma] on the model's device; None where ``gamma`` is 0."""
        self.probs: Tensor | None = None
        """[requests, gamma, vocabulary]; None where drafts are certain."""
        self.started = time.perf_counter()


class Drafting:
    """One engine's drafter, its draft lengths, and its requests in the drafter's own order."""

    def __init__(
        self,
        settings: DrafterSettings,
        *,
        vocab_size: int,
        most: int,
        longest: int,
        device: torch.device,
        agree: Callable[[int], int] | None = None,
        policy: GammaPolicy | None = None,
    ) -> None:
        """
        :param most: tokens that vLLM verifies of a block at most.
        :param longest: tokens of a prompt with its answer.
        :param agree: takes this rank's draft length and gives that of all ranks, which measure different times; None:
            there is one.
        :param policy: how many tokens to draft; None: as the settings say.
        """
        self._settings = settings
        self._most = most
        self._longest = longest
        self._target: _Target = _Size(vocab_size, device)
        if policy is None:
            auto = GammaController([gamma for gamma in _OPTIONS if gamma <= most])
            policy = auto if settings.auto else FixedGamma(most)
        self._policy = policy
        self._drafter: Drafter | None = None
        self._order: list[str] = []
        """Requests in the drafter's own order: vLLM's rows change place, and its cache would follow in vain."""
        self._identities: dict[str, int] = {}
        """Of each of them, for the drafter: a name may be used again, by another request."""
        self._new_identity = count()
        self._agree = agree
        self._block: Block | None = None

    def load(self) -> None:
        """Build the drafter, and load what it needs."""
        context = BuildContext(base_dir=Path(self._settings.base_dir), resources={"target": self._target})
        drafters = load_plugins().drafters()
        self._drafter = drafters.build(self._settings.drafter, self._settings.drafter_options, context)

    def propose(
        self,
        lengths: Mapping[str, int],
        alive: Sequence[str],
        params_of: Callable[[str], Any],
        tokens_of: Callable[[Sequence[str], Sequence[int]], Tensor],
        *,
        most: int | None = None,
        verified: Mapping[str, int] | None = None,
    ) -> Block | None:
        """Draft for the requests that are ``alive``; None where there is nobody to draft for.

        :param lengths: tokens of every request of the batch so far, the new ones included.
        :param alive: those that gained a token in this step.
        :param params_of: vLLM's sampling parameters of a request.
        :param tokens_of: [B, longest] int64 tokens of the named requests, of these lengths; zeros beyond.
        :param most: tokens that vLLM verifies of this block at most; None: as many as ever.
        :param verified: how many tokens of the last block vLLM verified, by request; None: all of them.
        """
        self._learn(lengths, verified)
        params = {name: params_of(name) for name in alive}
        bound = self._most if most is None else min(most, self._most)
        wanted = {name: self._wanted(lengths[name], params[name], bound) for name in alive}
        wanted = {name: tokens for name, tokens in wanted.items() if tokens}
        return self._draft(wanted, lengths, params, tokens_of) if wanted else None

    def forget(self, names: Iterable[str]) -> None:
        """These requests are gone; who comes with such a name is another one."""
        for name in names:
            self._identities.pop(name, None)

    def miss(self) -> None:
        """A step went by that nothing was drafted for: what became of the last block cannot be told any more."""
        block, self._block = self._block, None
        if block is not None:
            self._commit(block, [0] * len(block.names))

    def _learn(self, lengths: Mapping[str, int], verified: Mapping[str, int] | None) -> None:
        """Tell the drafter and the policy what became of the last block."""
        block, self._block = self._block, None
        if block is None:
            return
        seconds = time.perf_counter() - block.started
        here = [name in lengths and name in self._identities for name in block.names]
        drafted = [
            0 if not there else most if verified is None else min(most, verified.get(name, 0))
            for name, most, there in zip(block.names, block.drafted, here, strict=True)
        ]
        kept = [
            min(max(lengths[name] - before - 1, 0), most) if most else 0
            for name, before, most in zip(block.names, block.lengths, drafted, strict=True)
        ]
        self._commit(block, kept)
        if any(here):  # else the engine may have had nothing to do since then
            self._policy.observe(
                len(block.names), block.gamma, seconds, drafted, kept, steady=block.steady and all(here)
            )

    def _commit(self, block: Block, kept: Sequence[int]) -> None:
        if block.gamma:
            assert self._drafter is not None
            self._drafter.commit(torch.tensor(kept, device=self._target.device))

    def _wanted(self, length: int, params: Any, most: int) -> int:
        """How many tokens to draft for a request at most."""
        room = self._longest - length - 1
        return max(min(room, asked_gamma(params, most)), 0)

    def _draft(
        self,
        wanted: Mapping[str, int],
        lengths: Mapping[str, int],
        params: Mapping[str, Any],
        tokens_of: Callable[[Sequence[str], Sequence[int]], Tensor],
    ) -> Block:
        before = list(self._identities.values())
        self._order = _in_old_places(self._order, wanted)
        known = self._identities
        self._identities = {name: known[name] if name in known else next(self._new_identity) for name in self._order}
        steady = before == list(self._identities.values())
        chosen = self._policy.choose(len(wanted))
        gamma = min(chosen if self._agree is None else self._agree(chosen), max(wanted.values()))
        own_lengths = [lengths[name] for name in self._order]
        drafted = [min(wanted[name], gamma) for name in self._order]
        block = Block(self._order, own_lengths, drafted, gamma, steady=steady)
        if gamma:
            assert self._drafter is not None
            ids = tokens_of(self._order, own_lengths)
            state = self._state(ids, own_lengths, [params[name] for name in self._order])
            proposal = self._drafter.propose(state, gamma)
            block.ids, block.probs = proposal.ids, proposal.probs
            if proposal.counts is not None:
                block.drafted = [min(pair) for pair in zip(drafted, proposal.counts.tolist(), strict=True)]
        self._block = block
        return block

    def _state(self, ids: Tensor, lengths: list[int], params: Sequence[Any]) -> BatchState:
        options = RowOptions.pack([_sampling(one) for one in params], [() for _ in params], self._target.device)
        seeds = [_seed(name, one) for name, one in zip(self._order, params, strict=True)]
        return BatchState(
            list(self._identities.values()),
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
