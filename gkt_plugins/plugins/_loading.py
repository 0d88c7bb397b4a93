"""Takes one plugin in: imports it, checks its contract and its hooks, and asks what it provides."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pluggy import HookImpl, PluginManager, PluginValidationError

from gkt_plugins import hookspecs
from gkt_plugins._wording import suggestion
from gkt_plugins.contracts import CONTRACT_VERSION, Factory, Options
from gkt_plugins.errors import PluginLoadError
from gkt_plugins.plugins._discovery import Candidate

__all__ = ["OBSERVING_HOOKS", "LoadedPlugin", "load_candidate"]

OBSERVING_HOOKS = ("gkt_usage", "gkt_trace")
"""The hooks that are told something; the others collect."""

_HOOKS = [name for name in hookspecs.__all__ if name.startswith("gkt_")]


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """What one plugin gave."""

    provides: Mapping[str, Mapping[str, Factory[Any]]]
    """Collecting hook → name → factory."""
    observes: Mapping[str, Callable[[Any], object]]
    """Observing hook → implementation."""


def load_candidate(manager: PluginManager, candidate: Candidate) -> LoadedPlugin:
    """Import ``candidate``, register it with ``manager`` and ask it what it provides.

    :raises PluginLoadError: what is wrong with it.
    """
    try:
        plugin = candidate.load()
    except (Exception, SystemExit) as exc:  # someone else's module: whatever it raises is its load error
        raise PluginLoadError(f"importing {candidate.module!r} raised {exc!r}") from exc
    _check_contract(plugin, candidate)
    try:
        manager.register(plugin, candidate.label)
    except (PluginValidationError, ValueError) as exc:
        raise PluginLoadError(f"its hooks do not fit: {' '.join(str(exc).split())}") from exc
    return _ask(manager, plugin, candidate)


def _check_contract(plugin: object, candidate: Candidate) -> None:
    version = getattr(plugin, "GKT_CONTRACT", None)
    if version is None:
        raise PluginLoadError(
            f"{candidate.module!r} states no contract version; add 'GKT_CONTRACT = {CONTRACT_VERSION}' to it"
        )
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise PluginLoadError(f"GKT_CONTRACT must be an integer from 1 to {CONTRACT_VERSION}, got {version!r}")
    if version > CONTRACT_VERSION:
        raise PluginLoadError(
            f"it was written for contract {version} and this gkt-plugins knows up to {CONTRACT_VERSION}; "
            "upgrade gkt-plugins"
        )


def _ask(manager: PluginManager, plugin: object, candidate: Candidate) -> LoadedPlugin:
    provides: dict[str, Mapping[str, Factory[Any]]] = {}
    observes: dict[str, Callable[[Any], object]] = {}
    for caller in manager.get_hookcallers(plugin) or ():
        if caller.name not in _HOOKS:
            raise PluginLoadError(f"there is no hook {caller.name!r}; {suggestion(caller.name, _HOOKS)}")
        (implementation,) = [it for it in caller.get_hookimpls() if it.plugin is plugin]
        if implementation.wrapper or implementation.hookwrapper:
            raise PluginLoadError(f"{caller.name} is a wrapper, and hooks here only collect or observe")
        if caller.name in OBSERVING_HOOKS:
            observes[caller.name] = _observer(implementation)
        else:
            provides[caller.name] = _collect(implementation, caller.name)
    if not provides and not observes:
        raise PluginLoadError(
            f"{candidate.module!r} implements no hook; mark its functions with gkt_plugins.hookspecs.hookimpl"
        )
    return LoadedPlugin(provides, observes)


def _observer(implementation: HookImpl) -> Callable[[Any], object]:
    function = implementation.function
    return function if implementation.argnames else lambda _: function()


def _collect(implementation: HookImpl, hook: str) -> Mapping[str, Factory[Any]]:
    try:
        provided = implementation.function()
    except Exception as exc:  # someone else's hook
        raise PluginLoadError(f"{hook} raised {exc!r}") from exc
    if not isinstance(provided, Mapping):
        raise PluginLoadError(f"{hook} must return a mapping from name to Factory, got {type(provided).__name__}")
    for name, factory in provided.items():
        if not isinstance(name, str) or not name:
            raise PluginLoadError(f"{hook} must name each Factory with a string, got {name!r}")
        if not isinstance(factory, Factory):
            raise PluginLoadError(f"{hook}[{name!r}] must be a Factory, got {type(factory).__name__}")
        if not isinstance(factory.options, type) or not issubclass(factory.options, Options):
            raise PluginLoadError(
                f"the options of {hook}[{name!r}] must be a subclass of gkt_plugins.contracts.Options"
            )
    return dict(provided)
