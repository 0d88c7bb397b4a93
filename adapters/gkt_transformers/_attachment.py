"""What gkt keeps with a model while it speculates: outside its state dict, and left behind by copies and pickles."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from gkt_plugins.config import load_config
from gkt_transformers._speculator import Speculator
from gkt_transformers.report import Report

__all__ = ["Attachment", "attachment_of"]

_NAME = "_gkt_attachment"


class Attachment:
    """Speculators of one model, and the report of its last call."""

    def __init__(self) -> None:
        self.enabled: Speculator | None = None
        """What :func:`gkt_transformers.enable` built."""
        self.report: Report | None = None
        self._from_files: dict[Path, tuple[int, Speculator]] = {}
        """With the file's time of change, in nanoseconds."""
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Attachment], tuple[()]]:
        """A copy or a pickle of the model starts anew."""
        return Attachment, ()

    def from_file(self, model: Any, path: Path | None) -> Speculator:
        """What the file says, built at first use and again when the file has changed.

        ``path``: None is ``GKT_CONFIG``, or else ``gkt.toml`` in the current folder.

        :raises ConfigError: the file is wrong, or the model or the draft does not fit.
        """
        path = Path(os.environ.get("GKT_CONFIG", "gkt.toml")) if path is None else path
        key, changed = path.absolute(), path.stat().st_mtime_ns if path.is_file() else 0
        with self._lock:
            if key not in self._from_files or self._from_files[key][0] != changed:
                self._from_files[key] = changed, Speculator.for_model(model, load_config(path))
            return self._from_files[key][1]


def attachment_of(model: Any) -> Attachment:
    """The attachment of ``model``, made when there is none."""
    found = model.__dict__.get(_NAME)
    if not isinstance(found, Attachment):
        found = model.__dict__[_NAME] = Attachment()
    return found
