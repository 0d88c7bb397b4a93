"""Acceptance, counted once, as integers; every rate is derived from them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Counts"]


@dataclass(slots=True)
class Counts:
    """What became of drafted tokens, over any number of blocks and rows.

    A rate whose denominator is zero is None: nothing was measured.
    """

    drafted: int = 0
    """Tokens that the draft proposed."""
    tested: int = 0
    """Of them, up to and including the first rejection: min(accepted + 1, drafted), per block."""
    accepted: int = 0
    """Of them, kept by the verifier."""
    bonus: int = 0
    """Extra tokens of the target, from blocks in which all drafted tokens were accepted."""
    blocks: int = 0
    """Target calls that verified at least one drafted token."""

    def add_block(self, drafted: int, accepted: int, *, bonus: bool) -> None:
        """Count one block of one row. A block without drafted tokens is a plain step and is not counted.

        ``accepted``: of those that became part of the answer; drafted tokens behind its end count as not accepted.
        """
        assert 0 <= accepted <= drafted
        if drafted:
            self.drafted += drafted
            self.tested += min(accepted + 1, drafted)
            self.accepted += accepted
            self.bonus += bonus
            self.blocks += 1

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.drafted + other.drafted,
            self.tested + other.tested,
            self.accepted + other.accepted,
            self.bonus + other.bonus,
            self.blocks + other.blocks,
        )

    @property
    def acceptance_rate(self) -> float | None:
        """accepted / tested, in [0, 1]: the chance that a token which was looked at passes."""
        return self.accepted / self.tested if self.tested else None

    @property
    def draft_acceptance_rate(self) -> float | None:
        """accepted / drafted, in [0, 1]: what the counters of engines report."""
        return self.accepted / self.drafted if self.drafted else None

    @property
    def block_efficiency(self) -> float | None:
        """Tokens emitted per verifying target call, in [1, gamma + 1]."""
        return (self.accepted + self.blocks) / self.blocks if self.blocks else None
