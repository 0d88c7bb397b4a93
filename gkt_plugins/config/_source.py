"""Where a configuration comes from: a file or a text, and overrides on top of it; and where each key stands."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gkt_plugins._problems import KeyPath, Problem, dotted
from gkt_plugins.config._toml_lines import key_lines
from gkt_plugins.errors import ConfigError

__all__ = ["ConfigSource"]

DEFAULT_NAME = "gkt.toml"


@dataclass(frozen=True, slots=True)
class Override:
    """One ``dotted.key=value``."""

    written: str
    path: KeyPath
    value: Any


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """What was written, before anything is known about what it means."""

    data: dict[str, Any]
    path: Path | None
    """None for a text."""
    lines: Mapping[KeyPath, int]
    overrides: tuple[Override, ...]

    @classmethod
    def read(
        cls, path: Path | None, text: str | None, overrides: Sequence[str], env: Mapping[str, str]
    ) -> ConfigSource:
        """Read ``text``, or the file at ``path``, or at ``GKT_CONFIG``, or ``gkt.toml`` in the current folder.

        :raises ConfigError: no file, no TOML, or an override that is no ``key=value``.
        """
        if text is None:
            path = path or Path(env.get("GKT_CONFIG") or DEFAULT_NAME)
            text = _read(path)
        name = str(path) if path else "the text"
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as exc:
            raise ConfigError(f"{name} is not TOML: {exc}") from exc
        parsed = tuple(_parse_override(written) for written in overrides)
        for override in parsed:
            _apply(data, override)
        return cls(data, path, key_lines(text), parsed)

    def report(self, problems: Iterable[Problem]) -> ConfigError:
        """All ``problems`` as one error: a line each, in the order of the file."""
        ordered = sorted(problems, key=lambda problem: self._line(problem.path) or 0)
        return ConfigError("\n".join(problem.sentence(self._where(problem.path)) for problem in ordered))

    def _where(self, path: KeyPath) -> str:
        for override in reversed(self.overrides):
            if path[: len(override.path)] == override.path:
                return f"override {override.written!r}"
        line = self._line(path)
        return ", ".join(filter(None, [str(self.path) if self.path else "", f"line {line}" if line else ""]))

    def _line(self, path: KeyPath) -> int | None:
        """The line of the key, or of the nearest table around it."""
        return next((self.lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in self.lines), None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors put a byte order mark before it
    except FileNotFoundError as exc:
        raise ConfigError(
            f"there is no configuration at {str(path)!r}; write one there, give its path, or set GKT_CONFIG"
        ) from exc
    except OSError as exc:
        why = exc.strerror or exc
        raise ConfigError(f"the configuration at {str(path)!r} cannot be read: {why}; give a file that can") from exc
    except UnicodeDecodeError as exc:
        raise ConfigError(f"the configuration at {str(path)!r} cannot be read as UTF-8 text: {exc}") from exc


def _parse_override(written: str) -> Override:
    """``key=value``: the value is TOML, or else a bare string."""
    key, equals, value = written.partition("=")
    try:
        path = _only_path(tomllib.loads(f"{key} = 0"))
    except tomllib.TOMLDecodeError:
        path = ()
    if not equals or not path:
        raise ConfigError(f"an override must be dotted.key=value, got {written!r}")
    value = value.strip()
    try:
        return Override(written, path, tomllib.loads(f"value = {value}")["value"])
    except tomllib.TOMLDecodeError as exc:
        if value.startswith(('"', "'", "[", "{")):
            raise ConfigError(f"the value of the override {written!r} is not TOML: {exc}") from exc
        return Override(written, path, value)


def _only_path(data: dict[str, Any]) -> KeyPath:
    path: KeyPath = ()
    inner: Any = data
    while isinstance(inner, dict):
        ((key, inner),) = inner.items()
        path = (*path, key)
    return path


def _apply(data: dict[str, Any], override: Override) -> None:
    *parents, last = override.path
    table: Any = data
    for depth, part in enumerate(parents, start=1):
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise ConfigError(
                f"the override {override.written!r} needs {dotted(override.path[:depth])} to be a table, and it is none"
            )
    table[last] = override.value
