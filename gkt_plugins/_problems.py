"""What is wrong with given options, as sentences about keys: pydantic's report, in our words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from gkt_plugins._wording import suggestion
from gkt_plugins.errors import ConfigError

__all__ = ["KeyPath", "Problem", "dotted", "option_keys", "problems_of", "shown", "validate_options"]

KeyPath: TypeAlias = tuple[str | int, ...]
"""Where a key stands: names of tables and keys, and positions in arrays."""

Model = TypeVar("Model", bound=BaseModel)

_BOUNDS = {
    "greater_than": ("greater than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """One key that cannot be used."""

    path: KeyPath
    message: str
    """Follows the key: ``must be at least 1, got 0``."""
    hint: str = ""
    """What to do, or why."""

    def sentence(self, where: str = "") -> str:
        """The whole message. ``where``: file and line."""
        subject = f"{dotted(self.path)} {self.message}" if self.path else self.message
        return subject + (f" ({where})" if where else "") + (f"; {self.hint}" if self.hint else "")


def dotted(path: KeyPath) -> str:
    """``("a", "b", 0)`` → ``a.b[0]``; a key with a dot inside is quoted, as TOML does."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = part.replace("-", "").replace("_", "")
            quoted = part if bare.isalnum() and bare.isascii() else f'"{part}"'
            text += f".{quoted}" if text else quoted
    return text


def option_keys(model: type[BaseModel]) -> list[str]:
    """The keys that ``model`` takes, as they are written."""
    return [field.alias or name for name, field in model.model_fields.items()]


def shown(value: object) -> str:
    """A value in a message: short, on one line."""
    if isinstance(value, Mapping):
        return "a table"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def validate_options(model: type[Model], data: Mapping[str, object], *, subject: str) -> Model:
    """``data`` as ``model``.

    :raises ConfigError: with one line for each key that cannot be used, opening with ``subject``.
    """
    try:
        return model.model_validate(dict(data))
    except ValidationError as exc:
        lines = [f"{subject}: {problem.sentence()}" for problem in problems_of(exc, model, data)]
        raise ConfigError("\n".join(lines)) from exc


def problems_of(
    error: ValidationError, model: type[BaseModel], data: object, *, at: KeyPath = (), also_known: Iterable[str] = ()
) -> list[Problem]:
    """One problem for each key that ``error`` is about.

    :param model: what was asked of ``data``.
    :param at: where ``data`` stands in the file.
    :param also_known: keys that are valid beside those of ``model``.
    """
    problems: dict[KeyPath, Problem] = {}
    for detail in error.errors(include_url=False):
        path = _path_in(data, detail)
        if detail["type"] == "extra_forbidden":
            known = [*_keys_at(model, path[:-1]), *(also_known if len(path) == 1 else ())]
            problem = Problem(at + path, "is not a known key", suggestion(str(path[-1]), known))
        else:
            message, _, hint = _message(detail).partition("; ")
            problem = Problem(at + path, message, hint)
        problems.setdefault(problem.path, problem)  # the members of a union each complain: the first is enough
    return list(problems.values())


def _message(detail: ErrorDetails) -> str:
    kind, text, got = detail["type"], detail["msg"], shown(detail["input"])
    if kind == "missing":
        return "is missing"
    if kind in ("value_error", "assertion_error"):
        return str(detail["ctx"]["error"])
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        limit = detail["ctx"][name]
        plain = int(limit) if isinstance(limit, float) and limit.is_integer() else limit
        return f"must be {words} {plain}, got {got}"
    if text.startswith("Input should be "):
        return f"must be {text.removeprefix('Input should be ')}, got {got}"
    return f"is not valid: {text[:1].lower()}{text[1:]}, got {got}"


def _path_in(data: Any, detail: ErrorDetails) -> KeyPath:
    """pydantic's location without the names of union members, which are no keys of the file."""
    path: KeyPath = ()
    for part in detail["loc"]:
        if part in (range(len(data)) if isinstance(data, list) else data if isinstance(data, Mapping) else ()):
            data = data[part]
        elif detail["type"] != "missing" or part != detail["loc"][-1]:
            continue
        path = (*path, part)
    return path


def _keys_at(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Keys that are valid in the table at ``path`` below ``model``."""
    models = [model]
    for part in path:
        fields = [it.model_fields[part] for it in models if part in it.model_fields]
        models = [found for field in fields for found in _models(field.annotation)] or models
    return [key for it in models for key in option_keys(it)]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Models inside a type: ``list[Inner]``, ``Inner | None`` and the like."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
