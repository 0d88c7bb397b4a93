"""Leniency rules: f(p, epsilon) of the drafted token's target probability; it passes with min(1, f / q).

Elementwise for any array type. ``epsilon`` is in (0, 1]; f(p, 1) = p, and f >= p always. At temperature 0 no rule is
used: a token passes when p(token) >= epsilon * max p, on the model's own distribution, on every engine.

Source: Zhou et al. 2024 (DistillSpec), arXiv:2310.08461; linear is Leviathan's lenience, arXiv:2211.17192.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["CappedRule", "check_epsilon", "exponential", "linear", "square"]


def check_epsilon(epsilon: float) -> float:
    """Return ``epsilon``, or raise ValueError when it is outside (0, 1]."""
    if not 0 < epsilon <= 1:
        raise ValueError(
            f"leniency must be in (0, 1], got {epsilon!r}; 1 is lossless, smaller accepts more draft tokens"
        )
    return epsilon


def linear(p: Any, epsilon: float) -> Any:
    """p / epsilon. Scaling cannot save tokens whose p is near 0."""
    return p / epsilon


def square(p: Any, epsilon: float) -> Any:
    """p / epsilon squared."""
    return p / (epsilon * epsilon)


def exponential(p: Any, epsilon: float) -> Any:
    """p to the power epsilon. Spans the widest range: towards 0 it accepts all that the target finds possible."""
    return p**epsilon


@dataclass(frozen=True, slots=True)
class CappedRule:
    """min(p / epsilon, p + delta): the linear rule, raising no token's probability by more than ``delta``."""

    delta: float = 0.1
    """In [0, 1]."""

    def __post_init__(self) -> None:
        if not 0 <= self.delta <= 1:
            raise ValueError(f"delta must be in [0, 1], got {self.delta!r}")

    def __call__(self, p: Any, epsilon: float) -> Any:
        scaled, raised = p / epsilon, p + self.delta
        # The smaller of two by arithmetic, so that floats and arrays of any library are served alike.
        return (scaled < raised) * scaled + (scaled >= raised) * raised
