"""What speculation did during one call of ``generate``."""

from __future__ import annotations

from dataclasses import dataclass, field

from gkt_plugins.speculation.counts import Counts

__all__ = ["Report"]


@dataclass(frozen=True, slots=True)
class Report:
    """Counts of one call, over all its rows. Rates are in [0, 1]; None means that nothing was measured."""

    rows: int
    tokens: int
    """Generated, ends of sequence included."""
    seconds: float
    counts: Counts = field(default_factory=Counts)
    notes: tuple[str, ...] = ()
    """What the caller should know; lenient verification is always among it."""

    @property
    def acceptance_rate(self) -> float | None:
        """accepted / tested."""
        return self.counts.acceptance_rate

    @property
    def block_efficiency(self) -> float | None:
        """Tokens per verifying target call, in [1, gamma + 1]."""
        return self.counts.block_efficiency

    @property
    def lenient(self) -> bool:
        """True: the output does not follow the target's own distribution."""
        return any(note.startswith("lenient") for note in self.notes)

    def __str__(self) -> str:
        if self.acceptance_rate is None:
            text = f"{self.tokens} tokens in {self.rows} rows, nothing drafted"
        else:
            text = (
                f"{self.tokens} tokens in {self.rows} rows, {self.counts.accepted} of {self.counts.drafted} drafted "
                f"tokens accepted, acceptance rate {self.acceptance_rate:.2f}, "
                f"{self.block_efficiency:.2f} tokens per target call"
            )
        return "; ".join([text, *self.notes])
