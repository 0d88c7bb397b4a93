"""Which plugins are installed, and which of them the environment lets in."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from gkt_plugins.errors import ConfigError

__all__ = ["ENTRY_POINT_GROUP", "OWN_DISTRIBUTION", "Candidate", "Selection", "discover", "switch"]

ENTRY_POINT_GROUP = "gkt_plugins"

OWN_DISTRIBUTION = "gkt-plugins"
"""What ships with the project: it loads first, and ``GKT_PLUGINS=off`` keeps it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """An entry point that has not been imported yet."""

    name: str
    distribution: str
    version: str
    module: str
    load: Callable[[], object]

    @property
    def ships(self) -> bool:
        return _normal(self.distribution) == OWN_DISTRIBUTION

    @property
    def label(self) -> str:
        """How messages name it: ``gkt-dummy 0.1.0 (plugin 'dummy')``."""
        return f"{self.distribution} {self.version} (plugin {self.name!r})"


@dataclass(frozen=True, slots=True)
class Selection:
    """What the environment says about plugins."""

    third_parties: bool = True
    blocked: frozenset[str] = frozenset()
    """Names of plugins or of distributions, normalised."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> Selection:
        """Read ``GKT_PLUGINS`` and ``GKT_PLUGINS_BLOCK``.

        :raises ConfigError: ``GKT_PLUGINS`` is neither ``on`` nor ``off``.
        """
        names = (_normal(name) for name in env.get("GKT_PLUGINS_BLOCK", "").split(","))
        return cls(third_parties=switch(env, "GKT_PLUGINS", default=True), blocked=frozenset(filter(None, names)))

    def reason_to_block(self, candidate: Candidate) -> str | None:
        """Why ``candidate`` stays out, or None when it may load."""
        if not self.third_parties and not candidate.ships:
            return "GKT_PLUGINS=off"
        return "GKT_PLUGINS_BLOCK" if self.blocked & _names(candidate) else None

    def unmatched(self, candidates: Sequence[Candidate]) -> list[str]:
        """Blocked names that nothing installed has: most likely misspelt."""
        installed = frozenset[str]().union(*map(_names, candidates))
        return sorted(self.blocked - installed)


def discover() -> list[Candidate]:
    """Installed plugins, what ships first, then by distribution and name. Imports none of them."""
    candidates = [
        Candidate(
            name=entry.name,
            distribution=entry.dist.name if entry.dist else "unknown",
            version=entry.dist.version if entry.dist else "unknown",
            module=entry.value,
            load=entry.load,
        )
        for entry in metadata.entry_points(group=ENTRY_POINT_GROUP)
    ]
    return sorted(candidates, key=lambda it: (not it.ships, _normal(it.distribution), it.name))


def switch(env: Mapping[str, str], name: str, *, default: bool) -> bool:
    """The environment variable ``name`` as on or off.

    :raises ConfigError: it is set to anything else.
    """
    value = env.get(name, "").strip().lower()
    if value not in ("", "on", "off"):
        raise ConfigError(f"{name} must be 'on' or 'off', got {env[name]!r}")
    return default if not value else value == "on"


def _names(candidate: Candidate) -> frozenset[str]:
    return frozenset({_normal(candidate.name), _normal(candidate.distribution)})


def _normal(name: str) -> str:
    """A distribution's name as package indexes compare it."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
