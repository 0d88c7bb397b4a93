"""Checkpoints that are whole or not there: written beside, renamed when complete."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError

from gkt_plugins.errors import BackendError

__all__ = ["Checkpoints", "publish"]

_NAME = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = ".unfinished-"


class Checkpoints:
    """The checkpoints of one run, each a folder ``checkpoint-STEP``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """Of the complete ones, ascending."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Where the checkpoint of ``step`` is, or will be."""
        return self.folder / f"checkpoint-{step}"

    def latest(self) -> Path | None:
        """The last complete one."""
        steps = self.steps()
        return self.path(steps[-1]) if steps else None

    def begin(self, step: int) -> Path:
        """An empty folder to write the checkpoint of ``step`` into. What an interrupted run left half written goes."""
        for left in self.folder.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(left)
        folder = self.folder / f"{_UNFINISHED}{step}"
        folder.mkdir(parents=True)
        return folder

    def complete(self, step: int, *, keep: Sequence[int] = ()) -> None:
        """Put what was written in the place of the checkpoint of ``step``; remove all others but those of ``keep``."""
        unfinished = self.folder / f"{_UNFINISHED}{step}"
        _flush(unfinished)
        shutil.rmtree(self.path(step), ignore_errors=True)
        unfinished.rename(self.path(step))
        _flush_folder(self.folder)
        for old in self.steps():
            if old != step and old not in keep:
                shutil.rmtree(self.path(old))

    def writing_failed(self, step: int, exc: Exception | str) -> BackendError:
        """The one sentence about a checkpoint that could not be written; the half written one is removed."""
        shutil.rmtree(self.folder / f"{_UNFINISHED}{step}", ignore_errors=True)
        last = self.latest()
        intact = f"{last} is intact, continue from there with --resume" if last else "there is no earlier one"
        reason = " ".join(str(exc).split())
        return BackendError(f"the checkpoint of step {step} could not be written ({reason}); free some space: {intact}")


WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)
"""What writing to a full disk raises: Python, torch and safetensors each have their own."""


def publish(folder: Path, write: Callable[[Path], None], last: str) -> None:
    """Let ``write`` fill a folder beside, then move its files into ``folder``, the one called ``last`` at last.

    :raises BackendError: it could not be written; files that were there stay as they are.
    """
    unfinished = folder / f"{_UNFINISHED}result"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        write(unfinished)
        _flush(unfinished)
    except WRITE_ERRORS as exc:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise BackendError(
            f"the draft could not be written to {folder} ({' '.join(str(exc).split())}); free some space, and finish "
            "the run with --resume"
        ) from exc
    for path in sorted(unfinished.iterdir(), key=lambda path: path.name == last):
        path.replace(folder / path.name)
    unfinished.rmdir()
    _flush_folder(folder)


def _flush(folder: Path) -> None:
    """Let the files reach the disk before their folder gets its name."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    _flush_folder(folder)


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
