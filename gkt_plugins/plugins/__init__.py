"""Builds the plugin manager, and the typed façade over it: one method per hook.

Plugins are found through the entry-point group ``gkt_plugins``. One that fails is named and left out as a whole. The
environment has a say: ``GKT_PLUGINS=off`` loads only what ships, ``GKT_PLUGINS_BLOCK=name,name`` leaves out plugins
or distributions by name, ``GKT_TRACE=on`` lets ``gkt_trace`` observers see token ids.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, TypeVar

from pluggy import PluginManager

from gkt_plugins import hookspecs
from gkt_plugins._problems import validate_options
from gkt_plugins._wording import suggestion
from gkt_plugins.contracts import (
    BuildContext,
    CuttingPolicy,
    Drafter,
    Engine,
    Exporter,
    Factory,
    LengthPolicy,
    LeniencyRule,
    Options,
    PriceSource,
    TraceEvent,
    UsageRecord,
    Verifier,
)
from gkt_plugins.errors import ConfigError, PluginLoadError
from gkt_plugins.plugins._discovery import Candidate, Selection, discover, switch
from gkt_plugins.plugins._loading import OBSERVING_HOOKS, LoadedPlugin, load_candidate
from gkt_plugins.plugins._observers import Observer, ObserverThread

__all__ = ["FAMILIES", "Family", "PluginInfo", "Plugins", "Provided", "load_plugins"]

_log = logging.getLogger(__name__)

Family: TypeAlias = Literal[
    "engines",
    "length_policies",
    "cutting_policies",
    "drafters",
    "verifiers",
    "leniency_rules",
    "exporters",
    "price_sources",
]
"""A collecting hook, without its prefix."""

FAMILIES: Mapping[Family, str] = {
    "engines": "engine adapter",
    "length_policies": "length policy",
    "cutting_policies": "cutting policy",
    "drafters": "drafter",
    "verifiers": "verifier",
    "leniency_rules": "leniency rule",
    "exporters": "exporter",
    "price_sources": "price source",
}
"""What messages call one of each family. In the order of ``hookspecs.py``."""

Built = TypeVar("Built", covariant=True)
Item = TypeVar("Item")

Entry: TypeAlias = tuple[Factory[Built], "PluginInfo"]
"""A factory, and the plugin that provides it."""


@dataclass(frozen=True, slots=True)
class PluginInfo:
    """One installed plugin, as ``gkt plugins`` lists it."""

    name: str
    distribution: str
    version: str
    module: str
    status: Literal["loaded", "failed", "blocked"]
    reason: str = ""
    """Why it failed or is blocked."""
    provides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Hook → names; an observing hook has none."""

    @property
    def label(self) -> str:
        """How messages name it: ``gkt-dummy 0.1.0 (plugin 'dummy')``."""
        return f"{self.distribution} {self.version} (plugin {self.name!r})"


class Provided(Mapping[str, Factory[Built]]):
    """Everything that plugins provide of one family: name → factory."""

    def __init__(self, family: Family, entries: Mapping[str, Entry[Built]], left_out: Sequence[str] = ()) -> None:
        """``left_out``: plugins that failed or are blocked, named when someone asks for an unknown name."""
        self._family = family
        self._entries = dict(entries)
        self._left_out = left_out

    def __getitem__(self, name: str) -> Factory[Built]:
        return self._entries[name][0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def provider(self, name: str) -> PluginInfo:
        """The plugin that provides ``name``."""
        return self._entries[name][1]

    def named(self, name: str) -> Factory[Built]:
        """The factory called ``name``.

        :raises ConfigError: nothing is called so; the message says what is known, and which plugins were left out.
        """
        if name in self._entries:
            return self._entries[name][0]
        raise ConfigError(f"unknown {FAMILIES[self._family]} {name!r}; {self.instead_of(name)}")

    def instead_of(self, name: str) -> str:
        """What to write instead of the unknown ``name``, and which plugins were left out that might have had it."""
        left_out = f"; left out: {', '.join(self._left_out)}, see 'gkt plugins'" if self._left_out else ""
        return suggestion(name, self) + left_out

    def build(self, name: str, options: Options | Mapping[str, object], context: BuildContext) -> Built:
        """Build ``name``. ``options``: its own keys, validated here unless they are a validated model already.

        :raises ConfigError: ``name`` is unknown, or an option is; the message names the key and what is allowed.
        """
        factory = self.named(name)
        if not isinstance(options, Options):
            options = validate_options(factory.options, options, subject=f"{FAMILIES[self._family]} {name!r}")
        return factory.build(options, context)


class Plugins:
    """What the loaded plugins provide, and those of them that observe. Made by :func:`load_plugins`."""

    def __init__(
        self,
        infos: Sequence[PluginInfo],
        provided: Mapping[Family, Provided[Any]],
        observers: Mapping[str, tuple[Observer, ...]],
        *,
        trace: bool = False,
    ) -> None:
        self.infos = tuple(infos)
        self._provided = provided
        self._usage_observers = observers.get("gkt_usage", ())
        self._trace_observers = observers.get("gkt_trace", ()) if trace else ()
        self._thread = ObserverThread()

    def engines(self) -> Provided[Engine]:
        """Hook ``gkt_engines``."""
        return self._provided["engines"]

    def length_policies(self) -> Provided[LengthPolicy]:
        """Hook ``gkt_length_policies``."""
        return self._provided["length_policies"]

    def cutting_policies(self) -> Provided[CuttingPolicy]:
        """Hook ``gkt_cutting_policies``."""
        return self._provided["cutting_policies"]

    def drafters(self) -> Provided[Drafter]:
        """Hook ``gkt_drafters``."""
        return self._provided["drafters"]

    def verifiers(self) -> Provided[Verifier]:
        """Hook ``gkt_verifiers``."""
        return self._provided["verifiers"]

    def leniency_rules(self) -> Provided[LeniencyRule]:
        """Hook ``gkt_leniency_rules``."""
        return self._provided["leniency_rules"]

    def exporters(self) -> Provided[Exporter]:
        """Hook ``gkt_exporters``."""
        return self._provided["exporters"]

    def price_sources(self) -> Provided[PriceSource]:
        """Hook ``gkt_price_sources``."""
        return self._provided["price_sources"]

    def family(self, family: Family) -> Provided[Any]:
        """Any of the above, by name."""
        return self._provided[family]

    def record_usage(self, record: UsageRecord) -> None:
        """Hook ``gkt_usage``: tell observers about a call that the ledger has. Returns at once and never raises."""
        self._thread.tell(self._usage_observers, record)

    def trace(self, event: TraceEvent) -> None:
        """Hook ``gkt_trace``: tell observers about a verified block, where :attr:`tracing`. Returns at once."""
        self._thread.tell(self._trace_observers, event)

    def tracer(self, own: Mapping[str, Callable[[TraceEvent], object]]) -> Callable[[TraceEvent], None] | None:
        """What one decode loop tells of its blocks: like :meth:`trace`, and ``own`` observers beside the plugins'.

        :param own: label for the log → observer of this loop alone; it needs no ``GKT_TRACE``.
        :returns: None where nobody would see an event.
        """
        observers = (*self._trace_observers, *(Observer(label, call) for label, call in own.items()))
        return (lambda event: self._thread.tell(observers, event)) if observers else None

    def observer(self, label: str, call: Callable[[Item], object]) -> Callable[[Item], None]:
        """``call`` on the observers' thread: what this returns takes an item, returns at once and never raises.

        :param label: whose it is, for the log.
        """
        observers = (Observer(label, call),)
        return lambda item: self._thread.tell(observers, item)

    @property
    def tracing(self) -> bool:
        """Whether anybody would see a :class:`TraceEvent`; where not, loops need not make one."""
        return bool(self._trace_observers)

    @property
    def dropped(self) -> int:
        """Records and events that observers lost because they could not keep up."""
        return self._thread.dropped

    def close(self, timeout_s: float = 5.0) -> None:
        """Let observers finish what is queued, then stop them. Safe to call twice; runs by itself at exit."""
        self._thread.close(timeout_s)


def load_plugins(*, strict: bool = False, env: Mapping[str, str] | None = None) -> Plugins:
    """Load every installed plugin that the environment lets in. Each call is independent of the ones before.

    :param strict: a plugin that fails is an error, instead of being named in the log and left out.
    :param env: stands in for ``os.environ``.
    :raises PluginLoadError: ``strict``, and a plugin failed, or a blocked name is not installed.
    :raises ConfigError: ``GKT_PLUGINS`` or ``GKT_TRACE`` is neither ``on`` nor ``off``.
    """
    return assemble(discover(), strict=strict, env=os.environ if env is None else env)


def assemble(candidates: Sequence[Candidate], *, strict: bool, env: Mapping[str, str]) -> Plugins:
    """:func:`load_plugins` for given candidates, in their order: of two that claim one name, the first keeps it."""
    selection, trace = Selection.from_env(env), switch(env, "GKT_TRACE", default=False)
    for name in selection.unmatched(candidates):
        _complain(PluginLoadError(f"GKT_PLUGINS_BLOCK names {name!r}, and no such plugin is installed"), strict=strict)
    manager = PluginManager("gkt")
    manager.add_hookspecs(hookspecs)
    infos: list[PluginInfo] = []
    entries: dict[Family, dict[str, Entry[Any]]] = {family: {} for family in FAMILIES}
    observers: dict[str, list[Observer]] = {hook: [] for hook in OBSERVING_HOOKS}
    for candidate in candidates:
        info = PluginInfo(candidate.name, candidate.distribution, candidate.version, candidate.module, "loaded")
        if reason := selection.reason_to_block(candidate):
            infos.append(replace(info, status="blocked", reason=reason))
            continue
        try:
            loaded = load_candidate(manager, candidate)
            _refuse_claimed_names(loaded, entries)
        except PluginLoadError as exc:
            infos.append(replace(info, status="failed", reason=str(exc)))
            _complain(PluginLoadError(f"{info.label} is left out: {exc}"), strict=strict, cause=exc)
            continue
        names = {
            hook: tuple(loaded.provides[hook]) for hook in map("gkt_{}".format, FAMILIES) if hook in loaded.provides
        }
        info = replace(info, provides=names | dict.fromkeys(loaded.observes, ()))
        infos.append(info)
        for family, known in entries.items():
            known |= {name: (factory, info) for name, factory in loaded.provides.get(f"gkt_{family}", {}).items()}
        for hook, call in loaded.observes.items():
            observers[hook].append(Observer(f"{hook} of {info.label}", call))
    left_out = tuple(info.label for info in infos if info.status != "loaded")
    provided = {family: Provided(family, known, left_out) for family, known in entries.items()}
    return Plugins(infos, provided, {hook: tuple(calls) for hook, calls in observers.items()}, trace=trace)


def _refuse_claimed_names(loaded: LoadedPlugin, entries: Mapping[Family, Mapping[str, Entry[Any]]]) -> None:
    for family, known in entries.items():
        for name in loaded.provides.get(f"gkt_{family}", {}):
            if name in known:
                raise PluginLoadError(
                    f"{FAMILIES[family]} {name!r} is already provided by {known[name][1].label}; "
                    "block one of the two with GKT_PLUGINS_BLOCK"
                )


def _complain(error: PluginLoadError, *, strict: bool, cause: PluginLoadError | None = None) -> None:
    """Fatal with ``strict``, otherwise a line in the log."""
    if strict:
        raise error from (cause.__cause__ or cause if cause else None)
    _log.warning("%s", error)
