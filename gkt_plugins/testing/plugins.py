"""Plugins without packaging: modules loaded as if they were installed, or written as an installer leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from gkt_plugins.plugins import Plugins, assemble
from gkt_plugins.plugins._discovery import Candidate, discover

__all__ = ["plugins_from", "write_distribution"]


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


def write_distribution(folder: Path, name: str, module: str, source: str) -> Path:
    """Put a distribution with one plugin module into ``folder``, as an installer would leave it.

    For tests of what other processes, or an engine's workers, load by themselves: put ``folder`` on ``sys.path``.

    :param name: of the distribution and of its entry point. ``source``: the module's text.
    :returns: ``folder``, which is made where it is not there.
    """
    info = folder / f"{name.replace('-', '_')}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[gkt_plugins]\n{name} = {module}\n")
    (folder / f"{module}.py").write_text(source)
    return folder


def _given(plugin: object) -> object:
    return plugin
