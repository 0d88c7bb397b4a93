"""Ways into ``generate``: the callable, and the call that the other two ways make."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor
from transformers import GenerationMixin
from transformers.generation.stopping_criteria import StoppingCriteriaList, StopStringCriteria

from gkt_plugins.errors import ConfigError
from gkt_transformers._attachment import attachment_of
from gkt_transformers._decoding import decode
from gkt_transformers._generation_options import ARGUMENTS, refuse
from gkt_transformers._speculator import Speculator

__all__ = ["call_generate", "calling_frame", "check_arguments", "generate"]

_GENERATE = inspect.unwrap(GenerationMixin.generate)


def generate(
    model: Any,
    input_ids: Tensor,
    logits_processor: Any = None,
    stopping_criteria: Any = None,
    generation_config: Any = None,
    gkt_config: str | Path | None = None,
    **model_kwargs: Any,
) -> Any:
    """Speculate in one call: ``model.generate(…, custom_generate=gkt_transformers.generate, gkt_config="gkt.toml")``.

    Without ``gkt_config`` an enabled model uses what it was enabled with; any other takes ``GKT_CONFIG``, or else
    ``gkt.toml`` in the current folder. ``generate`` keeps streamers and assistants to itself when ``custom_generate``
    is a function; they are looked up in the call that is under way, so that none is ignored. It asks for a tokenizer
    as soon as there are stop strings, and drops it before: for those, enable the model.

    :raises ConfigError: an option cannot be honoured, the configuration is wrong, or ``generate`` is not the caller.
    """
    frame = calling_frame()
    if frame is None:
        raise ConfigError("gkt_transformers.generate is for model.generate(custom_generate=…); pass it there")
    check_arguments(frame.f_locals)
    attachment = attachment_of(model)
    if gkt_config is not None or attachment.enabled is None:
        speculator = attachment.from_file(model, None if gkt_config is None else Path(gkt_config))
    else:
        speculator = attachment.enabled
    return decode(
        model,
        speculator,
        input_ids,
        logits_processor,
        stopping_criteria,
        generation_config,
        streamer=frame.f_locals.get("streamer"),
        **model_kwargs,
    )


def call_generate(model: Any, speculator: Speculator, /, *args: Any, **kwargs: Any) -> Any:
    """``model.generate(*args, **kwargs)``, decoded by ``speculator``. Arguments are those of the model's own method."""
    method = type(model).generate
    signature = inspect.signature(method)
    bound = signature.bind_partial(model, *args, **kwargs).arguments
    arguments: dict[str, Any] = {}
    for name, value in list(bound.items())[1:]:
        arguments |= value if signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD else {name: value}
    if arguments.get("custom_generate") is not None:
        return method(model, **arguments)  # another method was asked for by name
    check_arguments(arguments)
    if arguments.get("cache_implementation") == "paged":
        raise refuse("cache_implementation", "paged", "it is generate_batch's; call gkt_transformers.disable(model)")
    _add_stop_strings(model, arguments)
    streamer = arguments.get("streamer")

    def method_of_ours(
        model: Any, input_ids: Tensor, logits_processor: Any, stopping_criteria: Any, generation_config: Any,
        **model_kwargs: Any,
    ) -> Any:  # fmt: skip
        return decode(
            model,
            speculator,
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            streamer=streamer,
            **model_kwargs,
        )

    return method(model, custom_generate=method_of_ours, **arguments)


def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments of ``generate`` that speculation cannot honour.

    :raises ConfigError: one of them asks for something.
    """
    for name, field in ARGUMENTS.items():
        value = arguments.get(name)
        if field.treatment == "refused" and value is not None and value is not False:
            raise refuse(name, value, field.reason)


def calling_frame() -> FrameType | None:
    """The call of ``GenerationMixin.generate`` that is under way below the caller; None when there is none."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not _GENERATE.__code__:
        frame = frame.f_back
    return frame


def _add_stop_strings(model: Any, arguments: dict[str, Any]) -> None:
    """``generate`` cannot make this criterion when ``custom_generate`` is a function: it drops the tokenizer first."""
    tokenizer = arguments.pop("tokenizer", None)
    given = arguments.get("stop_strings")
    for config in (arguments.get("generation_config"), model.generation_config):
        given = getattr(config, "stop_strings", None) if given is None else given
    if given is None or tokenizer is None:
        return  # without a tokenizer, generate itself says what is missing
    arguments["stop_strings"] = None
    criterion = StopStringCriteria(stop_strings=given, tokenizer=tokenizer)
    arguments["stopping_criteria"] = StoppingCriteriaList([criterion, *(arguments.get("stopping_criteria") or ())])
