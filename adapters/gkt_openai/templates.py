"""Chats as raw prompts, by the model's own chat template, for endpoints that continue raw prompts only."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from gkt_plugins.contracts import Message
from gkt_plugins.errors import ConfigError, EngineError, require

__all__ = ["ChatTemplate"]


class ChatTemplate:
    """A chat template with the special tokens that it names. It runs in jinja2's sandbox."""

    def __init__(self, source: str, special: dict[str, str], *, origin: str) -> None:
        """:raises ConfigError: ``source``, which came from ``origin``, is no template."""
        sandbox = require("jinja2.sandbox", extra="transformers")
        environment = sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(source)
        except Exception as exc:
            raise ConfigError(
                f"{origin} must be a chat template, and jinja2 says: {' '.join(str(exc).split())}"
            ) from exc
        self._special = special

    @classmethod
    def load(cls, name: str, base_dir: Path | None) -> ChatTemplate:
        """From a folder with ``chat_template.jinja`` or ``tokenizer_config.json``, or from a ``.jinja`` file.

        :raises ConfigError: there is none.
        """
        path = (base_dir or Path()) / name
        try:
            if path.is_file():
                return cls(path.read_text(encoding="utf-8"), {}, origin=str(path))
            config: dict[str, Any] = {}
            if (path / "tokenizer_config.json").is_file():
                config = json.loads((path / "tokenizer_config.json").read_text(encoding="utf-8"))
            source = config.get("chat_template")
            if (path / "chat_template.jinja").is_file():
                source = (path / "chat_template.jinja").read_text(encoding="utf-8")
        except (OSError, ValueError) as exc:
            raise ConfigError(f"cannot read the chat template in {str(path)!r}: {exc}") from exc
        if not isinstance(source, str):
            raise ConfigError(
                f"chat_template must name a .jinja file, or a folder with chat_template.jinja or "
                f"tokenizer_config.json, got {name!r}, and there is none in {str(path)!r}"
            )
        special = {key: _text(config.get(key)) for key in ("bos_token", "eos_token", "unk_token", "pad_token")}
        return cls(source, special, origin=str(path))

    def render(self, messages: Sequence[Message]) -> str:
        """The chat as a prompt that ends where the answer begins.

        The beginning-of-sequence token is left out: servers put it before every raw prompt.

        :raises EngineError: the template refuses this chat.
        """
        turns = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text: str = self._template.render(messages=turns, add_generation_prompt=True, **self._special)
        except Exception as exc:
            reason = " ".join(str(exc).split())
            raise EngineError(f"the chat template does not take these messages: {reason}", refused=True) from exc
        bos = self._special.get("bos_token")
        return text.removeprefix(bos) if bos else text


def _text(token: object) -> str:
    """A special token, as text or as the object that some files hold in its place."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)
