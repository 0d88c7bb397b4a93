"""``gkt.toml`` as it was when vLLM's frontend read it: what every process of one server goes by, whatever becomes of
the file."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import zlib
from collections.abc import MutableMapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from gkt_plugins.config import Config, load_config
from gkt_plugins.errors import ConfigError

__all__ = ["FrozenFile", "freeze"]

_HANDED_DOWN = "GKT_VLLM_FROZEN"
"""Environment variable by which a frontend hands the file's text to the API servers that it starts: in vLLM's own
configuration it would be printed, and would be a part of the compilation cache's key."""

_MOST_CHARACTERS = 100_000
"""Of that variable; Linux takes 128 KiB."""


@dataclass(frozen=True)
class FrozenFile:
    """The file's text, and where it was read."""

    path: Path
    text: str
    inherited: bool = False
    """The frontend that started this process read it."""

    @cached_property
    def digest(self) -> str:
        """``sha256:`` and the digest of the text."""
        return digest_of(self.text)

    def config(self) -> Config:
        """What it says. :raises ConfigError: it is wrong."""
        return load_config(self.path, text=self.text)

    def hand_down(self, env: MutableMapping[str, str] | None = None) -> None:
        """To the processes that this one starts from now on. ``env``: stands in for ``os.environ``.

        :raises ConfigError: it is too large for that.
        """
        packed = base64.b64encode(zlib.compress(self.text.encode())).decode()
        if len(packed) > _MOST_CHARACTERS:
            raise ConfigError(
                f"{self.path} must be at most {_MOST_CHARACTERS:,} characters when it is compressed, for vLLM's API "
                f"servers to be handed it, and is {len(packed):,}; put prices into a file of [price_sources]"
            )
        environment = os.environ if env is None else env
        environment[_HANDED_DOWN] = json.dumps([os.getpid(), str(self.path), packed])


def freeze(path: Path) -> FrozenFile:
    """The file at ``path`` as the frontend that started this process read it; in any other process, as it is now.

    :raises ConfigError: it cannot be read.
    """
    path = path.absolute()
    parent = multiprocessing.parent_process()
    inherited = None if parent is None else _inherited(path, parent.pid)
    return inherited or FrozenFile(path, read_text(path))


def _inherited(path: Path, parent: int | None) -> FrozenFile | None:
    written = os.environ.get(_HANDED_DOWN)
    if written is None:
        return None
    writer, where, packed = json.loads(written)
    if writer != parent or where != str(path):
        return None
    return FrozenFile(path, zlib.decompress(base64.b64decode(packed)).decode(), inherited=True)


def read_text(path: Path) -> str:
    """:raises ConfigError: it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors put a byte order mark before it
    except FileNotFoundError as exc:
        raise ConfigError(
            f"additional_config.gkt.config must name a file, and there is none at {str(path)!r}; a relative path "
            "starts where vLLM is started"
        ) from exc
    except (OSError, UnicodeDecodeError):
        load_config(path)  # which says what is wrong with it
        raise


def digest_of(text: str) -> str:
    return "sha256:" + sha256(text.encode()).hexdigest()
