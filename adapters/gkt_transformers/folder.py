"""What an exported folder's ``custom_generate/generate.py`` calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gkt_plugins.errors import ConfigError
from gkt_transformers._attachment import attachment_of
from gkt_transformers._generate import call_generate, calling_frame
from gkt_transformers.export import DRAFT_FOLDER

__all__ = ["generate"]


def generate(*args: Any, model: Any, **kwargs: Any) -> Any:
    """``generate``, speculating as the folder says that this was loaded from.

    transformers calls it in two ways: bound to a model that was loaded from the folder, or for any model, from
    ``model.generate(custom_generate=FOLDER)``; only the second says which folder, and only in its own frame.

    :raises ConfigError: the folder cannot be found, or does not fit ``model``.
    """
    if kwargs.get("custom_generate") is not None:
        return type(model).generate(model, *args, **kwargs)  # a model from such a folder, asked for this or another one
    kwargs.pop("trust_remote_code", None)  # that we run at all is the answer
    frame = calling_frame()
    asked = frame.f_locals.get("custom_generate") if frame is not None else None
    folder = _local(asked if isinstance(asked, str) else model.name_or_path)
    speculator = attachment_of(model).from_file(model, folder / "gkt.toml")
    return call_generate(model, speculator, *args, **kwargs)


def _local(name: str) -> Path:
    """The folder itself, or the local copy of a hub repository, with the draft."""
    folder = Path(name)
    if not folder.is_dir() and "/" in name:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(name, allow_patterns=["gkt.toml", f"{DRAFT_FOLDER}/*"]))
    if not (folder / "gkt.toml").is_file():
        raise ConfigError(f"{name!r} has no gkt.toml; export it again with 'gkt export --to transformers'")
    return folder
