"""Loading a target or a draft, with one sentence for what is wrong with it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from gkt_plugins.errors import ConfigError, require

__all__ = ["LOADING", "end_ids", "load_causal_model", "load_tokenizer"]

LOADING = threading.Lock()
"""Held while weights are loaded: transformers ties and fills weights under switches of the whole process, so that of
two models which load at once one comes out incomplete."""


def load_causal_model(
    source: str, *, key: str, extra: str = "transformers", dtype: Any = "auto", trust_remote_code: bool = False
) -> Any:
    """A decoder-only language model of transformers.

    :param source: a folder, or a name on the Hub. What is absolute or begins with a dot is a folder for certain.
    :param key: the option that named it, for messages.
    :param extra: the one that installs transformers for the caller.
    :raises ConfigError: it cannot be loaded, or is an encoder-decoder model.
    """
    transformers = require("transformers", extra=extra)
    if not Path(source).is_dir() and (Path(source).is_absolute() or source.startswith((".", "~"))):
        raise ConfigError(f"{key}: there is no folder {source}; give one that holds a causal language model")
    try:
        with LOADING:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, trust_remote_code=trust_remote_code
            )
    except Exception as exc:  # the hub's client, safetensors, torch and transformers each raise their own
        reason = " ".join(str(exc).split())[:200] or type(exc).__name__
        raise ConfigError(f"{key}: no causal language model could be loaded from {source!r}: {reason}") from exc
    if model.config.is_encoder_decoder:
        raise ConfigError(f"{key}: {source!r} is an encoder-decoder model, and speculation needs a decoder-only one")
    return model


def load_tokenizer(source: str, *, extra: str = "transformers", trust_remote_code: bool = False) -> Any | None:
    """The tokenizer beside a model; None where there is none that can be loaded."""
    transformers = require("transformers", extra=extra)
    try:
        return transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception:  # noqa: BLE001 - a draft's folder need not have one
        return None


def end_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The tokens that end an answer of ``model``: its own, else the tokenizer's, else none."""
    eos = getattr(model.generation_config, "eos_token_id", None)
    eos = tokenizer.eos_token_id if eos is None else eos
    return () if eos is None else tuple(eos) if isinstance(eos, list | tuple) else (int(eos),)
