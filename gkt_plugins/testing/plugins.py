"""Plugins without packaging: load modules as if their distributions were installed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from gkt_plugins.plugins import Plugins, assemble
from gkt_plugins.plugins._discovery import Candidate, discover

__all__ = ["plugins_from"]


def plugins_from(
    *plugins: object,
    names: Mapping[str, object] | None = None,
    strict: bool = True,
    env: Mapping[str, str] | None = None,
) -> Plugins:
    """What ships, and ``plugins`` after it.

    :param plugins: plugin modules, or any objects with hook implementations and a ``GKT_CONTRACT``.
    :param names: more of them, by the name that messages and ``GKT_PLUGINS_BLOCK`` use.
    :param strict: a plugin that does not load is an error, which is what a test wants to see.
    :param env: stands in for ``os.environ``; empty by default.
    :raises PluginLoadError: ``strict``, and one of them does not load.
    """
    given = {getattr(plugin, "__name__", type(plugin).__name__): plugin for plugin in plugins} | dict(names or {})
    candidates = [
        Candidate(name, distribution=name, version="0", module=name, load=partial(_given, plugin))
        for name, plugin in given.items()
    ]
    shipping = [candidate for candidate in discover() if candidate.ships]
    return assemble([*shipping, *candidates], strict=strict, env=env or {})


def _given(plugin: object) -> object:
    return plugin
