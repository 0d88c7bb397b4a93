"""What vLLM, or this release of it, cannot do of what a file asks: refused or said before any weight is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gkt_plugins.config import Config
from gkt_plugins.errors import ConfigError
from gkt_vllm.versions import release

__all__ = ["asks_for_second_runner", "differences", "refuse_dropped", "refuse_idle", "refuse_second_runner"]

_SECOND_RUNNER = "VLLM_USE_V2_MODEL_RUNNER"

_DRAFTS_THERE = {"draft_model": ("0.31", "0.32"), "ngram": ("0.32",)}
"""Method → releases whose second model runner has it."""


def refuse_idle(config: Config) -> None:
    """:raises ConfigError: a key of ``[vllm]`` is about drafts, and the file configures none."""
    if config.speculation is not None:
        return
    asked = {
        "max_leniency": config.vllm.max_leniency < 1,
        "largest_batch": config.vllm.largest_batch is not None,
        "drafts_by": config.vllm.drafts_by != "vllm",
    }
    for key, is_set in asked.items():
        if is_set:
            raise ConfigError(
                f"vllm.{key} is about drafts, and the file has no [speculation]; add one, or remove the key"
            )


def asks_for_second_runner(environment: Mapping[str, str]) -> bool:
    """The operator's word, by vLLM's own switch."""
    return environment.get(_SECOND_RUNNER, "0") not in ("", "0")


def refuse_second_runner(method: str, version: str, environment: Mapping[str, str]) -> None:
    """vLLM takes its first model runner by itself where it has to, but not against the operator's word.

    :param method: vLLM's own word for the drafts that were filled in.
    :raises ConfigError: the environment asks for the second one, and this release's does not have them.
    """
    there = _DRAFTS_THERE.get(method)
    if there is None or not asks_for_second_runner(environment) or release(version) in there:
        return
    raise ConfigError(
        f"{_SECOND_RUNNER} asks for vLLM's second model runner, which has the method {method!r} from {there[0]} on, "
        f"and this is {version}; unset the variable, or install a later vLLM"
    )


def refuse_dropped(config: Config, filled: Mapping[str, Any] | None, vllm_config: Any) -> None:
    """:raises ConfigError: vLLM took an argument that we filled in, and left it out of its configuration."""
    key = "num_speculative_tokens_per_batch_size"
    if filled and key in filled and not getattr(vllm_config.speculative_config, key, None):
        raise ConfigError(
            "vLLM drafts for batches of every size where several engines share the data; remove "
            f"vllm.largest_batch = {config.vllm.largest_batch}, or --data-parallel-size"
        )


def differences(config: Config, filled: Mapping[str, Any] | None, vllm_config: Any) -> list[str]:
    """What of ``[speculation]`` has no effect in this engine, for the log."""
    speculation = config.speculation
    if speculation is None:
        return []
    found = []
    if filled is None:
        idle = [f"vllm.{key}" for key in ("drafts_by", "largest_batch") if key in config.vllm.model_fields_set]
        if idle:
            found.append(f"--speculative-config goes before {' and '.join(idle)} too")
    elif speculation.verifier == "block" and not vllm_config.use_v2_model_runner:
        found.append("vLLM's first model runner verifies token by token instead of by block, which is exact too")
    dtype = getattr(speculation.drafter_options, "dtype", "auto")
    if filled is not None and filled.get("method") == "draft_model" and dtype != "auto":
        found.append(f"vLLM runs the draft in the target's data type: dtype = {dtype!r} has no effect")
    if speculation.expected_acceptance is not None:
        found.append("speculation.expected_acceptance is not watched inside vLLM")
    return found
