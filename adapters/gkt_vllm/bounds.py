"""What a request may ask of a server's drafts: checked where its client can still be told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gkt_plugins._wording import suggestion
from gkt_plugins.errors import ConfigError
from gkt_vllm.asked import EPSILON, GAMMA, check_epsilon, check_gamma
from gkt_vllm.section import WorkerSettings

__all__ = ["Bounds", "wishes"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """The operator's."""

    rule: str = ""
    """By which drafts are verified leniently, where they are."""
    epsilon: float = 1.0
    """What a request gets that does not ask."""
    least: float = 1.0
    """The smallest that it may ask for."""
    own_drafter: bool = False
    """A request may have a draft length of its own."""

    @classmethod
    def of(cls, workers: WorkerSettings | None) -> Bounds:
        """As workers were told."""
        if workers is None:
            return cls()
        own, leniency = workers.drafter is not None, workers.leniency
        if leniency is None:
            return cls(own_drafter=own)
        return cls(leniency.rule, leniency.epsilon, leniency.least, own)

    def check(self, asked: Mapping[str, Any]) -> float:
        """The leniency that a request with the wishes ``asked`` is verified with; 1: exactly.

        :raises ConfigError: it asks for what is no leniency or draft length, or for what the operator does not allow.
        """
        for name in asked:
            if name.startswith("gkt_") and name not in (EPSILON, GAMMA):
                raise ConfigError(f"{name} is nothing that a request can ask for; {suggestion(name, (EPSILON, GAMMA))}")
        epsilon = check_epsilon(asked[EPSILON], self.least) if EPSILON in asked else self.epsilon
        if GAMMA not in asked:
            return epsilon
        if not self.own_drafter:
            raise ConfigError(
                f"{GAMMA} is for servers whose drafts are made by gkt-plugins (vllm.drafts_by = 'gkt'), and this one's "
                "are not; leave it out"
            )
        return epsilon if check_gamma(asked[GAMMA]) else 1.0


def wishes(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the body of a request asks for beside its sampling options: ``vllm_xargs``, or, where token ids are asked
    of vLLM, ``sampling_params.extra_args``. What vLLM will refuse is nothing."""
    inner = body.get("sampling_params")
    found = body.get("vllm_xargs") if not isinstance(inner, Mapping) else inner.get("extra_args")
    return found if isinstance(found, Mapping) else {}
