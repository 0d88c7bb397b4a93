"""Models and tokenizers from a folder or an id: either whole, or one clear sentence about what is missing.

``from_pretrained`` only logs weights that it could not find and fills them with random numbers. A model that answers
nonsense is worse than one that does not start, so such a folder is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkt_plugins.errors import BackendError, ConfigError, require
from gkt_plugins.speculation.loading import LOADING

__all__ = ["LoadedModel", "eos_ids", "load_model", "load_tokenizer", "resolve_model", "torch_dtype"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in evaluation mode, and where it came from."""

    module: Any
    """A ``PreTrainedModel``."""
    source: str
    is_encoder_decoder: bool
    context: int | None
    """Positions that the model knows, prompt and answer together; None when it sets no limit."""


def resolve_model(model: str, base_dir: Path | None = None) -> str:
    """The folder that ``model`` names, relative to ``base_dir``; or ``model`` itself when it looks like a hub id.

    :raises ConfigError: neither a folder nor ``name`` or ``owner/name``.
    """
    folder = (base_dir or Path()) / Path(model).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"model folder {str(folder)!r} has no config.json; give a folder that save_pretrained wrote"
            )
        return str(folder)
    if folder.exists():
        raise ConfigError(f"model {model!r} is a file; give the folder that holds config.json and the weights")
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") > 1 or "\\" in model
    if looks_like_path or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise ConfigError(f"model folder {str(folder)!r} does not exist; give an existing folder or a hub id")
    return model


def torch_dtype(name: str) -> Any:
    """The torch dtype called ``name``, or ``"auto"``: what the weights were saved in.

    :raises ConfigError: torch knows no floating dtype of that name.
    """
    if name == "auto":
        return name
    torch = require("torch", extra="transformers")
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigError(f"dtype must be auto, float32, float16 or bfloat16, got {name!r}")
    return dtype


def load_model(
    model: str,
    *,
    base_dir: Path | None = None,
    dtype: str = "auto",
    device: str = "auto",
    trust_remote_code: bool = False,
) -> LoadedModel:
    """Load the weights of ``model`` and put it into evaluation mode.

    :raises MissingDependencyError: the extra is not installed.
    :raises ConfigError: no such folder, or an architecture that generates no text.
    :raises BackendError: the weights are corrupt or incomplete.
    """
    transformers = require("transformers", extra="transformers")
    source = resolve_model(model, base_dir)
    weights_dtype = torch_dtype(dtype)
    try:
        config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as exc:  # the hub's client, json and transformers each raise their own
        raise ConfigError(_unreadable(source, "configuration", exc)) from exc
    encoder_decoder = bool(config.is_encoder_decoder)
    auto = transformers.AutoModelForSeq2SeqLM if encoder_decoder else transformers.AutoModelForCausalLM
    if type(config) not in auto._model_mapping and not trust_remote_code:
        raise ConfigError(f"model {source!r} is a {config.model_type!r} model, which generates no text")
    try:
        with LOADING:
            module, info = auto.from_pretrained(
                source, dtype=weights_dtype, trust_remote_code=trust_remote_code, output_loading_info=True
            )
    except Exception as exc:  # safetensors, torch and pickle each raise their own
        raise BackendError(_unreadable(source, "weights", exc)) from exc
    _refuse_incomplete(source, info)
    module.to(_device(device))
    module.eval()
    context = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return LoadedModel(module, source, encoder_decoder, context)


def load_tokenizer(model: str, *, base_dir: Path | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer that lies beside the weights of ``model``.

    :raises ConfigError: there is none, or it cannot be read.
    """
    transformers = require("transformers", extra="transformers")
    source = resolve_model(model, base_dir)
    if Path(source).is_dir() and not any(Path(source).glob("*token*")):
        raise ConfigError(f"model {source!r} has no tokenizer; save one into the folder with save_pretrained")
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=trust_remote_code)
    except Exception as exc:  # tokenizers raises bare Exception
        raise ConfigError(_unreadable(source, "tokenizer", exc)) from exc
    return tokenizer


def eos_ids(module: Any) -> frozenset[int]:
    """Tokens that end an answer, as the model's generation config has them."""
    eos = module.generation_config.eos_token_id
    return frozenset([eos] if isinstance(eos, int) else eos or ())


def _device(device: str) -> str:
    if device != "auto":
        return device
    torch = require("torch", extra="transformers")
    return "cuda" if torch.cuda.is_available() else "cpu"


def _refuse_incomplete(source: str, info: dict[str, Any]) -> None:
    """Missing or misshapen weights would be random numbers."""
    missing = sorted(map(str, info.get("missing_keys", ())))
    if missing:
        raise BackendError(
            f"model {source!r} lacks {len(missing)} weights, {missing[0]} first; copy the complete folder again"
        )
    mismatched = sorted(str(key[0] if isinstance(key, tuple) else key) for key in info.get("mismatched_keys", ()))
    if mismatched:
        raise BackendError(
            f"model {source!r} has weights whose shape is not the one of its config.json, {mismatched[0]} first; "
            "weights and config.json must come from the same model"
        )


def _unreadable(source: str, what: str, exc: Exception) -> str:
    detail = (" ".join(str(exc).split()) or type(exc).__name__)[:160]
    if not Path(source).is_dir():
        return f"model {source!r} is not a folder, and its {what} could not be fetched from the hub ({detail})"
    return f"the {what} of model {source!r} cannot be read ({detail}); copy the complete folder again"
