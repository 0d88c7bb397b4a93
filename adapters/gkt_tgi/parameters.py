"""Our sampling options in TGI's words. What the server cannot honour fails the call, and is named."""

from __future__ import annotations

from typing import Any

from gkt_plugins.contracts import Sampling
from gkt_plugins.errors import EngineError

__all__ = ["MAX_STOPS", "chat_parameters", "native_parameters"]

MAX_STOPS = 4
"""The contract's bound; the engine looks for the others by itself."""

_LARGEST_SEED = 2**63 - 1
_NATIVE_EXTRA = {"frequency_penalty", "typical_p", "watermark", "adapter_id", "truncate"}
_CHAT_EXTRA = {"frequency_penalty", "presence_penalty"}


def native_parameters(sampling: Sampling, *, engine: str) -> dict[str, Any]:
    """For ``/generate`` and ``/generate_stream``. :raises EngineError: an option that they do not have."""
    _refuse(sampling, _NATIVE_EXTRA, engine)
    parameters: dict[str, Any] = {"max_new_tokens": sampling.max_tokens, **sampling.extra}
    if sampling.temperature > 0:
        parameters |= {"do_sample": True, "temperature": sampling.temperature, "seed": _seed(sampling.seed)}
        parameters |= {"top_p": sampling.top_p if sampling.top_p < 1 else None, "top_k": sampling.top_k or None}
    if sampling.repetition_penalty != 1:
        parameters["repetition_penalty"] = sampling.repetition_penalty
    if sampling.stop:
        parameters["stop"] = list(sampling.stop[:MAX_STOPS])
    return {key: value for key, value in parameters.items() if value is not None}


def chat_parameters(sampling: Sampling, *, engine: str) -> dict[str, Any] | None:
    """For ``/v1/chat/completions``; None where only the native routes have what is asked.

    :raises EngineError: an option that no route has.
    """
    _refuse(sampling, _NATIVE_EXTRA | _CHAT_EXTRA, engine)
    native_only = (sampling.top_k and sampling.temperature > 0) or sampling.repetition_penalty != 1
    if native_only or not _CHAT_EXTRA.issuperset(sampling.extra):
        return None
    parameters: dict[str, Any] = {"max_tokens": sampling.max_tokens, **sampling.extra}
    parameters["temperature"] = sampling.temperature  # 0 is greedy: TGI samples only where it is above
    if sampling.temperature > 0:
        parameters |= {"top_p": sampling.top_p if sampling.top_p < 1 else None, "seed": _seed(sampling.seed)}
    if sampling.stop:
        parameters["stop"] = list(sampling.stop[:MAX_STOPS])
    return {key: value for key, value in parameters.items() if value is not None}


def _refuse(sampling: Sampling, known: set[str], engine: str) -> None:
    unknown = sorted(set(sampling.extra) - known) + (["min_p"] if sampling.min_p else [])
    if unknown:
        raise EngineError(
            f"the engine {engine!r} cannot honour {', '.join(unknown)}, which TGI does not have; leave it out",
            refused=True,
        )


def _seed(seed: int | None) -> int | None:
    """In [1, 2^63): the contract has no 0."""
    return None if seed is None else seed % _LARGEST_SEED or _LARGEST_SEED
