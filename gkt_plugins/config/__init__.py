"""Loads ``gkt.toml``: reads it, checks it against what is installed, and says everything that is wrong at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from gkt_plugins._problems import KeyPath, Problem, dotted, option_keys, problems_of, shown
from gkt_plugins._wording import suggestion
from gkt_plugins.accounting.prices import parse_price
from gkt_plugins.config._secrets import find_secrets
from gkt_plugins.config._source import ConfigSource
from gkt_plugins.config.sections import (
    BudgetSection,
    CacheSection,
    ChoosingSection,
    Config,
    EngineSection,
    GatewaySection,
    GuidanceSection,
    KeySection,
    LedgerSection,
    PipelineSection,
    PriceSection,
    PriceSourceSection,
    RetriesSection,
    Section,
    SpeculationSection,
    TraceSection,
    VllmSection,
)
from gkt_plugins.contracts import Options
from gkt_plugins.errors import ConfigError
from gkt_plugins.plugins import FAMILIES, Family, Plugins, load_plugins

__all__ = [
    "Config",
    "EngineSection",
    "GatewaySection",
    "GuidanceSection",
    "LedgerSection",
    "PipelineSection",
    "PriceSection",
    "PriceSourceSection",
    "SpeculationSection",
    "TraceSection",
    "VllmSection",
    "as_written",
    "chosen_names",
    "environment_names",
    "load_config",
]


def load_config(
    path: Path | None = None,
    *,
    text: str | None = None,
    overrides: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    plugins: Plugins | None = None,
) -> Config:
    """Load and check a configuration.

    :param path: the file; by default ``GKT_CONFIG``, or else ``gkt.toml`` in the current folder.
    :param text: TOML that stands in for a file; relative paths then start in the current folder.
    :param overrides: ``dotted.key=value``, on top of the file; values are TOML, or else bare strings.
    :param env: stands in for ``os.environ``.
    :param plugins: what names may refer to; by default all that is installed.
    :raises ConfigError: everything that is wrong, one line each, with key, file and line.
    """
    env = os.environ if env is None else env
    source = ConfigSource.read(path, text, overrides, env)
    checker = _Checker(load_plugins(env=env) if plugins is None else plugins)
    sections = checker.sections(source.data)
    if checker.problems:
        raise source.report(checker.problems)
    base_dir = (source.path.parent if source.path else Path()).absolute()
    return Config(**sections, base_dir=base_dir, source=source.path)


def as_written(section: Section) -> dict[str, Any]:
    """``section`` in the layout of the file, defaults included, as JSON would have it."""
    written: dict[str, Any] = {}
    for name, value in section:
        if isinstance(value, Options):
            written |= value.model_dump(mode="json")
        elif isinstance(value, Section):
            written[name] = as_written(value)
        elif isinstance(value, dict):
            written[name] = {key: as_written(inner) for key, inner in value.items()}
        elif not type(section).model_fields[name].exclude:
            written[name] = value
    return written


def chosen_names(section: Section, path: KeyPath = ()) -> Iterator[tuple[str, Family, str]]:
    """Dotted key, family and name of everything in ``section`` that plugins provide."""
    if isinstance(section, ChoosingSection):
        for key, (family, _) in section.chooses.items():
            yield dotted((*path, key)), family, getattr(section, key)
    for name, value in section:
        if isinstance(value, Section):
            yield from chosen_names(value, (*path, name))
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield from chosen_names(inner, (*path, name, key))


def environment_names(config: Config) -> dict[str, str]:
    """Dotted key → the environment variable that it names, for every ``*_env`` key in use."""

    def walk(value: object, path: KeyPath) -> Iterator[tuple[str, str]]:
        for key, inner in value.items() if isinstance(value, Mapping) else ():
            if isinstance(inner, str) and key.endswith("_env"):
                yield dotted((*path, key)), inner
            else:
                yield from walk(inner, (*path, key))

    return dict(walk(as_written(config), ()))


Model = TypeVar("Model", bound=BaseModel)
Choosing = TypeVar("Choosing", bound=ChoosingSection)


_WITH_DEFAULTS: dict[str, type[Section]] = {
    "ledger": LedgerSection,
    "gateway": GatewaySection,
    "retries": RetriesSection,
    "vllm": VllmSection,
}
_PLAIN: dict[str, type[Section]] = {"trace": TraceSection, "cache": CacheSection, "budget": BudgetSection}
_ABSENT_OR_WRITTEN = {"speculation", *_PLAIN}
"""Sections whose absence turns something off."""


class _Checker:
    """Turns what was written into sections, and collects everything that is wrong on the way."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins
        self._problems: dict[KeyPath, Problem] = {}

    @property
    def problems(self) -> list[Problem]:
        return list(self._problems.values())

    def sections(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """The sections of a :class:`Config`; not to be used when there are :attr:`problems`."""
        for problem in find_secrets(data):
            self._add(problem)
        known = [name for name, field in Config.model_fields.items() if not field.exclude]
        for key in data.keys() - set(known):
            self._add(Problem((key,), "is not a known section", suggestion(key, known)))
        engines = self._tables(data, "engines")
        sections: dict[str, Any] = {
            "engines": {name: self._choosing(EngineSection, *at) for name, at in engines.items()},
            "price_sources": {
                name: self._choosing(PriceSourceSection, *at)
                for name, at in self._tables(data, "price_sources").items()
            },
            "prices": {name: self._price(*at) for name, at in self._tables(data, "prices").items()},
            "pipelines": {
                name: self._pipeline(*at, list(engines)) for name, at in self._tables(data, "pipelines").items()
            },
        }
        for name in _ABSENT_OR_WRITTEN & data.keys():
            if isinstance(data[name], dict):
                sections[name] = self._absent_or_written(name, data[name])
            else:
                self._table(data[name], (name,))
        for name, section in _WITH_DEFAULTS.items():
            sections[name] = self._validated(section, self._table(data.get(name, {}), (name,)), (name,))
        if isinstance(sections["gateway"], GatewaySection):
            self._keys(sections["gateway"].keys, list(sections["pipelines"]))
        return sections

    def _absent_or_written(self, name: str, table: Mapping[str, Any]) -> Section | None:
        if name == "speculation":
            return self._speculation(table)
        return self._validated(_PLAIN[name], table, (name,))

    def _add(self, problem: Problem) -> None:
        # The first word on a key is the last: a secret, for one, is not also shown as an unknown key's value.
        self._problems.setdefault(problem.path, problem)

    def _table(self, value: object, path: KeyPath) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        self._add(Problem(path, f"must be a table, got {shown(value)}"))
        return {}

    def _tables(self, data: Mapping[str, Any], key: str) -> dict[str, tuple[dict[str, Any], KeyPath]]:
        """The tables ``[key.NAME]``, each with where it stands."""
        tables = self._table(data.get(key, {}), (key,))
        checked = {name: (self._table(table, (key, name)), (key, name)) for name, table in tables.items()}
        return {name: at for name, at in checked.items() if isinstance(tables[name], dict)}

    def _validated(
        self, model: type[Model], table: Mapping[str, Any], path: KeyPath, also_known: Sequence[str] = ()
    ) -> Model | None:
        try:
            return model.model_validate(dict(table))
        except ValidationError as exc:
            for problem in problems_of(exc, model, table, at=path, also_known=also_known):
                self._add(problem)
            return None

    def _choosing(self, section: type[Choosing], table: Mapping[str, Any], path: KeyPath) -> Choosing | None:
        """A section together with the options of what it chooses."""
        own = section.own_keys()
        fields = section.model_fields
        values = {key: fields[key].default for key in own if not fields[key].is_required()} | dict(table)
        chosen: dict[str, type[Options]] = {}
        for key, (family, held_by) in section.chooses.items():
            name, provided = values.get(key), self._plugins.family(family)
            if isinstance(name, str) and name in provided:
                chosen[held_by] = provided[name].options
            elif isinstance(name, str):
                message = f"must name a known {FAMILIES[family]}, got {name!r}"
                self._add(Problem((*path, key), message, provided.instead_of(name)))
        keys = [*own, *(key for model in chosen.values() for key in option_keys(model))]
        if len(chosen) == len(section.chooses):  # otherwise nobody knows which keys are allowed
            for key in [key for key in table if key not in keys]:
                self._add(Problem((*path, key), "is not a known key", suggestion(key, keys)))
        # First the section's own keys: where a factory takes one of them too, the section's words are the clearer ones.
        blank = {held_by: Options() for _, held_by in section.chooses.values()}
        checked = self._validated(section, {key: table[key] for key in own if key in table} | blank, path)
        options = {
            held_by: self._validated(model, {key: values[key] for key in option_keys(model) if key in values}, path)
            for held_by, model in chosen.items()
        }
        return None if checked is None else checked.model_copy(update=options)

    def _price(self, table: Mapping[str, Any], path: KeyPath) -> PriceSection | None:
        price = self._validated(PriceSection, table, path)
        if price is not None:
            try:
                parse_price(str(path[-1]), price.model_dump())
            except ConfigError as exc:
                message, _, hint = str(exc).removeprefix(f"prices.{path[-1]} ").partition("; ")
                self._add(Problem(path, message, hint))
        return price

    def _pipeline(self, table: Mapping[str, Any], path: KeyPath, engines: Sequence[str]) -> PipelineSection | None:
        for role in ("teacher", "student"):
            name = table.get(role)
            if isinstance(name, str) and name not in engines:
                self._add(Problem((*path, role), f"must name an engine, got {name!r}", suggestion(name, engines)))
        at = (*path, "guidance")
        if "guidance" in table and "teacher" not in table:
            self._add(Problem(at, "has no effect without a teacher", "add teacher, or remove the section"))
        guidance = self._choosing(GuidanceSection, self._table(table.get("guidance", {}), at), at)
        if guidance is None:  # said already; the pipeline's own keys are checked all the same
            guidance = GuidanceSection(length_options=Options(), cut_options=Options())
        below = [f"guidance.{key}" for key in as_written(guidance)]  # what may have been written one level too high
        return self._validated(PipelineSection, dict(table) | {"guidance": guidance}, path, below)

    def _keys(self, keys: Mapping[str, KeySection], pipelines: Sequence[str]) -> None:
        holders: dict[str, str] = {}
        for name, key in keys.items():
            at = ("gateway", "keys", name)
            for pipeline in set(key.pipelines or ()) - set(pipelines):
                message = f"must name pipelines, got {pipeline!r}"
                self._add(Problem((*at, "pipelines"), message, suggestion(pipeline, pipelines)))
            holder = holders.setdefault(key.sha256, name)
            if holder != name:
                message = f"is the same key as gateway.keys.{holder}, so nobody could tell them apart"
                self._add(Problem((*at, "sha256"), message, f"make another with: gkt keys new {name}"))

    def _speculation(self, table: Mapping[str, Any]) -> SpeculationSection | None:
        section = self._choosing(SpeculationSection, table, ("speculation",))
        verifiers = self._plugins.verifiers()
        if section is None or section.verifier not in verifiers:
            return section
        for key in {"rule", "epsilon"} & table.keys() - set(option_keys(verifiers[section.verifier].options)):
            users = [repr(name) for name, factory in verifiers.items() if key in option_keys(factory.options)]
            message = f"has no effect with verifier {section.verifier!r}"
            self._add(Problem(("speculation", key), message, f"remove it, or choose {' or '.join(users)}"))
        return section
