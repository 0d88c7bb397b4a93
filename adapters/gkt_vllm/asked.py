"""What a request asks for beside its sampling options: ``vllm_xargs`` over HTTP, ``extra_args`` offline."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from gkt_plugins.contracts import LeniencyRule
from gkt_plugins.errors import ConfigError

__all__ = ["EPSILON", "GAMMA", "Leniency", "asked_gamma", "check_epsilon", "check_gamma"]

EPSILON = "gkt_epsilon"
"""Key of a request's own leniency, in (0, 1]; 1 is lossless."""


GAMMA = "gkt_gamma"
"""Key of a request's own draft length, at least 0; 0 turns drafts off. Taken by our own drafter only."""


@dataclass(frozen=True, slots=True)
class Leniency:
    """One engine's leniency, as its workers apply it."""

    rule: LeniencyRule
    epsilon: float
    """For a request that does not ask."""
    least: float
    """The operator's bound: a request that asks for less, whoever let it through, gets exactness."""

    def asked(self, sampling_params: Any) -> float:
        """The leniency of one request. What cannot be understood is lossless: leniency is never an accident."""
        extra = getattr(sampling_params, "extra_args", None) or {}
        if EPSILON not in extra:
            return self.epsilon
        try:
            return check_epsilon(extra[EPSILON], self.least)
        except ConfigError:
            return 1.0


def check_epsilon(value: object, least: float) -> float:
    """``value`` as a leniency that a request may ask for.

    :raises ConfigError: it is no number in (0, 1], or below what the operator allows.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 < value <= 1:
        raise ConfigError(f"{EPSILON} must be a number in (0, 1], got {value!r}; 1 is lossless")
    if value < least:
        allowed = "no leniency here" if least == 1 else f"{least:g} at least here"
        raise ConfigError(f"{EPSILON} is {value:g}, and the operator allows {allowed} (vllm.max_leniency)")
    return float(value)


def asked_gamma(sampling_params: Any, most: int) -> int:
    """Draft tokens per block that a request wants at most; what cannot be understood is ``most``."""
    extra = getattr(sampling_params, "extra_args", None) or {}
    try:
        return min(check_gamma(extra[GAMMA]), most) if GAMMA in extra else most
    except ConfigError:
        return most


def check_gamma(value: object) -> int:
    """``value`` as a draft length. :raises ConfigError: it is no integer of at least 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{GAMMA} must be an integer of at least 0, got {value!r}; 0 turns drafts off")
    return value
