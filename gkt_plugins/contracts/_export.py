"""Export: a target and its draft for one serving stack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from gkt_plugins.config import SpeculationSection

__all__ = ["ExportRequest", "Exported", "Exporter"]


@dataclass(frozen=True, slots=True)
class ExportRequest:
    """What shall be written for a serving stack."""

    target: Path
    """Folder of the target model, as ``save_pretrained`` wrote it."""
    output: Path
    """Folder to write; must not exist, or be empty."""
    speculation: SpeculationSection
    """How blocks are drafted and accepted; a draft that it names is copied along."""
    base_dir: Path
    """Where a relative draft path starts."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What an exporter wrote."""

    folder: Path
    load: str
    """The exact command, or lines of Python, that load it; it runs in the folder."""
    notes: tuple[str, ...] = ()
    """What the stack does differently from the configuration, one sentence each."""


class Exporter(Protocol):
    """Writes a target and its draft in the form that one serving stack takes."""

    def export(self, request: ExportRequest) -> Exported:
        """Write the folder; it appears whole or not at all.

        :raises ConfigError: a folder is missing or of the wrong kind, ``output`` has something in it, or the stack
            cannot do what ``speculation`` says.
        """
        ...
