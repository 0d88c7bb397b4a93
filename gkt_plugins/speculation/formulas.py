"""What speculation costs and gains, in closed form.

``alpha`` is an acceptance rate in [0, 1]; ``gamma`` is the draft tokens of a block, at least 1; ``cost`` is the time of
one draft step divided by the time of one target step.

Sources: Leviathan et al. 2023, arXiv:2211.17192; Zhou et al. 2024 (DistillSpec), arXiv:2310.08461.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = [
    "accept_probability",
    "acceptance_tv",
    "best_gamma",
    "block_efficiency",
    "mbsu",
    "sequence_acceptance",
    "speedup",
    "total_variation",
]


def accept_probability(p: float, q: float) -> float:
    """Chance that a drafted token passes: min(1, p/q).

    :param p: the target's probability of the token, in [0, 1].
    :param q: the draft's probability of the same token, in (0, 1].
    """
    if not 0 < q <= 1:
        raise ValueError(f"q must be in (0, 1], since the token was drawn from it; got {q!r}")
    return min(1.0, p / q)


def total_variation(p: Sequence[float], q: Sequence[float]) -> float:
    """Half the L1 distance of two distributions over the same tokens, in [0, 1]."""
    if len(p) != len(q):
        raise ValueError(f"expected two distributions over the same tokens, got sizes {len(p)} and {len(q)}")
    return 0.5 * sum(abs(a - b) for a, b in zip(p, q, strict=True))


def acceptance_tv(p: Sequence[float], q: Sequence[float]) -> float:
    """Expected acceptance of one drafted token, beta = sum of min(p, q) = 1 - total variation, in [0, 1]."""
    return 1.0 - total_variation(p, q)


def sequence_acceptance(variations: Iterable[Sequence[float]]) -> float:
    """Acceptance over answers that the *target* sampled: 1 - E[sum of total variations] / E[length].

    :param variations: per answer, the total variation at each of its tokens.
    """
    total, length = 0.0, 0
    for answer in variations:
        total += sum(answer)
        length += len(answer)
    if not length:
        raise ValueError("expected at least one token, got none: an empty set of answers has no acceptance")
    return 1.0 - total / length


def block_efficiency(alpha: float, gamma: int) -> float:
    """Expected tokens per target call when every drafted token passes with chance ``alpha``, in [1, gamma + 1]."""
    _check(alpha, gamma)
    return float(sum(alpha**i for i in range(gamma + 1)))  # = (1 - alpha^(gamma+1)) / (1 - alpha), also at alpha = 1


def speedup(alpha: float, gamma: int, cost: float) -> float:
    """Expected speed against plain decoding: block efficiency / (cost * gamma + 1).

    Assumes that verifying gamma + 1 tokens takes as long as one plain step, which a small batch on a large device
    comes close to and a CPU does not.
    """
    if cost < 0:
        raise ValueError(f"cost must be at least 0, got {cost!r}")
    return block_efficiency(alpha, gamma) / (cost * gamma + 1.0)


def best_gamma(alpha: float, cost: float, *, gammas: Sequence[int] = tuple(range(1, 33))) -> int:
    """The gamma of greatest expected speed; the smaller one of a tie. It may still be slower than no speculation."""
    if not gammas:
        raise ValueError("expected at least one gamma to choose from, got none")
    return max(sorted(gammas), key=lambda gamma: speedup(alpha, gamma, cost))


def mbsu(alpha: float, gamma: int, draft_parameters: int, target_parameters: int) -> float:
    """Memory-bound speed-up: the same shape with the ratio of parameters in place of the ratio of times.

    It is not a DistillSpec quantity, and it is not a measured speed-up: it tells what is possible where reading
    weights is all that takes time.
    """
    if draft_parameters < 0 or target_parameters <= 0:
        raise ValueError(
            "parameters must be at least 0 (draft) and at least 1 (target), "
            f"got {draft_parameters} and {target_parameters}"
        )
    return speedup(alpha, gamma, draft_parameters / target_parameters)


def _check(alpha: float, gamma: int) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha!r}")
    if gamma < 0:
        raise ValueError(f"gamma must be at least 0, got {gamma!r}")
