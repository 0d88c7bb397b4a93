"""The outputs of a batch: answers, which an interrupted run goes on with, and errors, which are those of the last run.

Each line is ``{"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"}``, as OpenAI has it.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from gkt_plugins.errors import BackendError, ConfigError

__all__ = ["BatchFiles", "errors_path", "to_line"]

_BEGINS = b'{"id": "batch_req_'


def errors_path(output: Path) -> Path:
    """``answers.errors.jsonl`` beside ``answers.jsonl``."""
    return output.with_name(f"{output.stem}.errors{output.suffix or '.jsonl'}")


def to_line(row: Mapping[str, Any]) -> bytes:
    """``row`` as a line, with its end."""
    try:
        return json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which only an escape can hold
        return json.dumps(row).encode("utf-8") + b"\n"


class BatchFiles:
    """Answers are added to the end of their file, errors to a new one. Use it as a ``with`` block.

    Opening cuts off a last line that a killed run left half written, and keeps everything before it.
    """

    def __init__(self, output: Path, errors: Path | None = None) -> None:
        """:raises ConfigError: ``output`` is there and holds something else, or is being written by another run, or a
        file cannot be written."""
        self.output = output
        self.errors = errors_path(output) if errors is None else errors
        self.answered: set[str] = set()
        """Custom ids that need not be run again."""
        self._failed: BinaryIO | None = None
        try:
            self._file = output.open("a+b")
        except OSError as exc:
            raise ConfigError(f"the answers {str(output)!r} cannot be written: {exc}") from exc
        try:
            self._resume()
            self.errors.unlink(missing_ok=True)
        except OSError as exc:
            self._file.close()
            raise ConfigError(f"the errors {str(self.errors)!r} cannot be written: {exc}") from exc
        except BaseException:
            self._file.close()
            raise

    def _resume(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise ConfigError(
                f"{str(self.output)!r} is being written by another run; wait for it, or name another output"
            ) from exc
        self._file.seek(0)
        whole = 0
        for number, custom_id, end in _rows(self._file):
            if custom_id is None:
                raise ConfigError(
                    f"{str(self.output)!r} is no file of answers, see its line {number}; name another with --output"
                )
            self.answered.add(custom_id)
            whole = end
        self._file.truncate(whole)
        self._file.seek(0, os.SEEK_END)

    def add(self, line: bytes) -> None:
        """Append an answer; it is on its way to the disk when this returns, so that a killed run has it."""
        self._write(self._file, line, self.output)

    def add_error(self, line: bytes) -> None:
        """Append what became of a request that has no answer."""
        if self._failed is None:
            try:
                self._failed = self.errors.open("wb")
            except OSError as exc:
                raise BackendError(f"the errors {str(self.errors)!r} cannot be written: {exc}") from exc
        self._write(self._failed, line, self.errors)

    def _write(self, file: BinaryIO, line: bytes, path: Path) -> None:
        try:
            file.write(line)
            file.flush()
        except OSError as exc:
            raise BackendError(
                f"{str(path)!r} cannot be written: {exc}; run again to go on from what is in it"
            ) from exc

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in (self._file, self._failed):
            if file is not None:
                file.close()


def _rows(file: BinaryIO) -> Iterator[tuple[int, str | None, int]]:
    """Number, custom id and end of every whole line; the id is None where the line is no answer."""
    end = 0
    for number, line in enumerate(file, 1):
        if not line.endswith(b"\n"):
            if number == 1 and not _BEGINS.startswith(line[: len(_BEGINS)]):
                yield number, None, end  # not even the beginning of an answer: another file, not a run that was killed
            return
        end += len(line)
        yield number, _custom_id(line), end


def _custom_id(line: bytes) -> str | None:
    try:
        row = json.loads(line)
        found = row["custom_id"] if row["response"]["status_code"] == 200 else None
    except (ValueError, TypeError, KeyError):
        return None
    return found if isinstance(found, str) else None
