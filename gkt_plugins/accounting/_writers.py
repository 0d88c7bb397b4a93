"""Who is writing to a ledger right now: one locked file a writer, in a folder beside the database.

The kernel releases a lock when its process ends, however it ends, so a held lock means a live writer: no clocks, no
heartbeats, no process ids that are reused or that mean something else in another container.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Writer", "is_alive", "only_one", "remove_dead"]


@contextlib.contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the ledger's front door: opening and recovering happen one process at a time, for milliseconds."""
    folder.mkdir(exist_ok=True)
    door = os.open(folder / "door", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(door, fcntl.LOCK_EX)
        yield
    finally:
        os.close(door)


class Writer:
    """This ledger object's mark of life, from here until :meth:`release`. Made behind :func:`only_one`."""

    def __init__(self, folder: Path) -> None:
        self.id = uuid.uuid4().hex
        self._path = _mark(folder, self.id)
        self._file: int | None = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        """Say that this writer is gone. Safe to call twice."""
        if self._file is not None:
            self._path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None


def is_alive(folder: Path, writer_id: str) -> bool:
    """True while that writer holds its lock, in this process or in any other. Asked behind :func:`only_one`."""
    try:
        mark = os.open(_mark(folder, writer_id), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(mark)
    return False


def remove_dead(folder: Path) -> None:
    """Remove the marks that killed writers left. Called behind :func:`only_one`, after their rows are closed."""
    for mark in folder.glob("*.writer"):
        if not is_alive(folder, mark.stem):
            mark.unlink(missing_ok=True)


def _mark(folder: Path, writer_id: str) -> Path:
    return folder / f"{writer_id}.writer"
