"""Uniform draws that depend on a row's seed and position alone, never on what else is in the batch."""

from __future__ import annotations

import secrets
from typing import Any, Final

import numpy as np
import numpy.typing as npt

__all__ = ["ACCEPT", "DRAFT", "SAMPLE", "fresh_seed", "uniform"]

ACCEPT: Final = 0
"""Stream of the accept-or-reject draws."""
SAMPLE: Final = 1
"""Stream of the recovered or bonus token."""
DRAFT: Final = 2
"""Stream of the drafted tokens."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_LANES = np.uint64(0xD1B54A32D192ED03)
_STREAMS = np.uint64(0x8CB92BA72F3D8DD7)


def uniform(seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.uint64], lanes: int, stream: int, *,
            first_lane: int = 0) -> npt.NDArray[np.float32]:  # fmt: skip
    """[B, lanes] draws in [0, 1), multiples of 2^-24, the same for the same arguments everywhere and always.

    A counter-based generator (the finaliser of SplitMix64, twice): one block of one row uses its own ``positions``
    value, so no draw is ever used twice, and nothing needs to be stored per row.
    """
    lane = np.arange(first_lane + 1, first_lane + lanes + 1, dtype=np.uint64) * _LANES
    with np.errstate(over="ignore"):
        mixed = _mix(seeds + _GOLDEN * (positions + np.uint64(1)))[:, None]
        mixed = _mix(mixed ^ (lane + np.uint64(stream + 1) * _STREAMS))
    # 24 bits: the largest value is below 1 in float32, so that a draw never falls behind the last token.
    draws: npt.NDArray[np.float32] = (mixed >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
    return draws


def fresh_seed() -> int:
    """A seed for a row that named none."""
    return secrets.randbits(63)


def _mix(x: Any) -> Any:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
