"""Speculation: who proposes, who decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DecodeState", "Drafter", "LeniencyRule", "Noise", "Proposal", "TargetScores", "Verdict", "Verifier"]


class DecodeState(Protocol):
    """The rows of the batch as a drafter sees them, at the start of a block."""

    @property
    def rows(self) -> Sequence[int]:
        """[B] identity of each row, stable for its life; rows come, go and change place between blocks."""
        ...

    @property
    def token_ids(self) -> Tensor:
        """[B, T] int64, prompt and answer so far, left-aligned; what lies beyond ``lengths`` is padding."""
        ...

    @property
    def lengths(self) -> Sequence[int]:
        """[B] tokens in use of each row, at least 1."""
        ...

    @property
    def greedy(self) -> bool:
        """Every row is at temperature 0 and its logits are used as they are: the draft is their argmax, one-hot."""
        ...

    def draft_probs(self, logits: Tensor, drafted: Tensor) -> Tensor:
        """[B, vocab] distribution to draft from, under each row's own sampling options.

        ``logits``: [B, vocab] of the draft model. ``drafted``: [B, i] tokens of this block so far.
        """
        ...

    def sample(self, probs: Tensor) -> Tensor:
        """[B] tokens drawn from ``probs`` [B, vocab], with each row's own generator."""
        ...


@dataclass(slots=True)
class Proposal:
    """One drafted block."""

    ids: Tensor
    """[B, gamma] int64 drafted tokens."""
    probs: Tensor | None
    """[B, gamma, vocab] distributions they were drawn from; None means that each was certain (one-hot)."""
    counts: Tensor | None = None
    """[B] how many of the gamma are real, on the model's device; None means all. The rest is never accepted."""


class TargetScores(Protocol):
    """What the target says about the gamma + 1 positions of a block. Each form is computed when it is asked for."""

    @property
    def greedy(self) -> Sequence[bool]:
        """[B] which rows are at temperature 0."""
        ...

    def argmax(self) -> Tensor:
        """[B, gamma + 1] int64, the target's most likely token: all that greedy rows need."""
        ...

    def probs(self) -> Tensor:
        """[B, gamma + 1, vocab] float32 after temperature and truncation; greedy rows are one-hot."""
        ...

    def log_ratio(self, ids: Tensor) -> Tensor:
        """[B, gamma] log(p(token) / max p) of the drafted ``ids`` on the model's own distribution: at temperature 1,
        untruncated, at most 0."""
        ...


@dataclass(slots=True)
class Noise:
    """Uniform draws of one block, passed in so that a run can be replayed."""

    accept: Tensor
    """[B, gamma] in [0, 1)."""
    sample: Tensor
    """[B] in [0, 1), for the recovered or the bonus token."""


@dataclass(slots=True)
class Verdict:
    """What became of a block."""

    accepted: Tensor
    """[B] int64, length of the accepted prefix, in [0, gamma]."""
    next_ids: Tensor
    """[B] int64, the recovered token, or the bonus token when all were accepted."""


class Drafter(Protocol):
    """Proposes; is told afterwards what was kept."""

    def propose(self, state: DecodeState, gamma: int) -> Proposal:
        """Draft up to ``gamma`` tokens for every row."""
        ...

    def commit(self, kept: Tensor) -> None:
        """[B] drafted tokens kept of each row of the last proposal, so that caches roll back instead of recomputing."""
        ...


class Verifier(Protocol):
    """Decides. Tensors stay on the model's device; only integers reach the host."""

    def verify(self, proposal: Proposal, target: TargetScores, noise: Noise) -> Verdict:
        """Decide one block. A verifier that knows nothing of temperature 0 is right with ``target.probs()`` alone."""
        ...


class LeniencyRule(Protocol):
    """Elementwise f(p, epsilon) of the drafted token's target probability, for any array type; f(p, 1) = p."""

    def __call__(self, p: Any, epsilon: float) -> Any: ...
