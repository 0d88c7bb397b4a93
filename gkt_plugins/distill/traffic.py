"""What real requests said, kept for training: a recorder of traces, and the reader of what it wrote.

The file holds one JSON object a line, one line for each answer. Token ids are text to whoever has the tokenizer, so
recording is off until ``[trace]`` is configured.

Source of the idea of distilling from live traffic: Liu et al. 2024 (Online Speculative Decoding), arXiv:2310.07177.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import json
import logging
import os
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gkt_plugins.contracts import TraceEvent
from gkt_plugins.distill.samples import Sample, fixed_key
from gkt_plugins.errors import ConfigError

if TYPE_CHECKING:
    from gkt_plugins.config import TraceSection

__all__ = ["FORMAT", "Positions", "TrafficRecorder", "engine_file", "older_half", "read_traffic"]

_log = logging.getLogger(__name__)

FORMAT = 1
"""Version of the lines, under the key ``gkt_traffic`` of each."""

Positions = Literal["answers", "rejections"]

_MAX_OPEN_ROWS = 4096
"""Answers under way that are remembered. A cancelled one is never said to be finished; this forgets it."""


@dataclass(slots=True)
class _OpenRow:
    """An answer under way."""

    wanted: bool
    rejected: list[int] = field(default_factory=list)
    """Places in the answer, from 0, at which the target replaced a drafted token."""


class TrafficRecorder:
    """Observes one decode loop, and appends each finished answer to a file.

    A line is written whole or not at all, also when the process is killed or the disk is full; several processes may
    write to one file. What goes wrong with the file is logged once, ends the recording, and hurts no request.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = 64 * 2**20,
        when_full: Literal["stop", "rotate"] = "stop",
        share: float = 1.0,
        redact: Literal["none", "prompt"] = "none",
        window: int = 32,
        target: str = "",
        draw: Callable[[], float] = random.random,
    ) -> None:
        """
        :param max_bytes: the file never grows beyond it; with ``rotate`` it and :func:`older_half` together.
        :param when_full: ``stop`` keeps the oldest answers, ``rotate`` the newest.
        :param share: of the answers that are recorded, in (0, 1].
        :param redact: ``prompt`` keeps nothing of the prompt, and of the answer only a window before each rejection.
        :param window: tokens of context kept before each rejection, at least 1, with ``redact="prompt"``.
        :param target: whose answers these are; every line says so.
        :param draw: a uniform draw in [0, 1), one for each answer.
        """
        self.path = path
        self.written = 0
        """Lines that this recorder has written."""
        self.stopped = False
        """Nothing more is recorded: the file is full, or cannot be written."""
        self._limit = max_bytes if when_full == "stop" else max_bytes // 2
        self._rotates = when_full == "rotate"
        self._max_bytes = max_bytes
        self._share = share
        self._redact = redact
        self._window = window
        self._target = target
        self._draw = draw
        self._open: OrderedDict[int, _OpenRow] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def from_section(
        cls, section: TraceSection, base_dir: Path, *, target: str = "", engine: int = 0
    ) -> TrafficRecorder:
        """What ``[trace]`` says. ``engine``: which one of a server's, from 0; each has a file of its own."""
        options = section.model_dump(exclude={"path"})
        return cls(engine_file(base_dir / section.path, engine), **options, target=target)

    def __call__(self, event: TraceEvent) -> None:
        """Take in one block of one row. Called on the observers' thread."""
        if self.stopped:
            return
        with self._lock:
            row = self._open.get(event.row)
            if row is None:
                row = self._open[event.row] = _OpenRow(self._draw() < self._share)
                if len(self._open) > _MAX_OPEN_ROWS:
                    self._open.popitem(last=False)
            if event.accepted < min(len(event.drafted), len(event.kept)):
                row.rejected.append(len(event.token_ids) - event.prompt_tokens + event.accepted)
            if event.finished:
                del self._open[event.row]
                if row.wanted:
                    prompt = event.token_ids[: event.prompt_tokens]
                    answer = event.token_ids[event.prompt_tokens :] + event.kept
                    self._record(event.request_id, prompt, answer, row.rejected)

    def record(
        self, request_id: str, prompt: Sequence[int], answer: Sequence[int], rejected: Sequence[int] = ()
    ) -> None:
        """Take in one finished answer, from an engine that knows it whole.

        :param rejected: places in ``answer``, from 0, at which the target replaced a drafted token.
        """
        with self._lock:
            if not self.stopped and self._draw() < self._share:
                self._record(request_id, prompt, answer, rejected)

    def _record(self, request_id: str, prompt: Sequence[int], answer: Sequence[int], rejected: Sequence[int]) -> None:
        line: dict[str, Any] = {"gkt_traffic": FORMAT, "target": self._target}
        if self._redact == "prompt":
            # A rejection of the answer's first token has no context but the prompt.
            windows = [answer[max(0, place - self._window) : place + 1] for place in rejected if place]
            if not windows:
                return
            line |= {"windows": windows}
        else:
            line |= {"request": request_id, "prompt": prompt, "answer": answer, "rejected": rejected}
        try:
            self._append(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        except OSError as exc:
            self._stop(f"{self.path} cannot be written ({exc})")

    def _append(self, line: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            # Opened for each answer: a file that was moved or deleted meanwhile is begun anew.
            file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not _is_still(file, self.path):
                    continue  # another process has rotated it while this one waited
                size = _whole_lines(file)
                if size + len(line) <= self._limit:
                    if os.write(file, line) != len(line):
                        os.ftruncate(file, size)
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    self.written += 1
                    return
                if not self._rotates or len(line) > self._limit:
                    self._stop(f"{self.path} has reached max_bytes = {self._max_bytes}")
                    return
                os.replace(self.path, older_half(self.path))
            finally:
                os.close(file)

    def _stop(self, reason: str) -> None:
        self.stopped = True
        self._open.clear()
        _log.warning("traffic is no longer recorded: %s; requests are not affected", reason)


def older_half(path: Path) -> Path:
    """Where ``when_full="rotate"`` keeps what came before ``path``."""
    return path.with_name(path.name + ".old")


def engine_file(path: Path, engine: int) -> Path:
    """Where engine number ``engine`` of a server records; the first one's, 0, is ``path`` itself."""
    return path.with_stem(f"{path.stem}-engine{engine}") if engine else path


def _is_still(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def _whole_lines(file: int) -> int:
    """Size in bytes, after cutting off a last line that a killed process left half written."""
    size = os.fstat(file).st_size
    if size and os.pread(file, 1, size - 1) != b"\n":
        size = os.pread(file, size, 0).rfind(b"\n") + 1
        os.ftruncate(file, size)
    return size


# -------------------------------------------------------------------------------------------------------------- reading


def read_traffic(path: Path, *, positions: Positions = "answers", vocab_size: int | None = None) -> list[Sample]:
    """What :class:`TrafficRecorder` wrote to ``path``, oldest first; then what a server's other engines did.

    Included are :func:`older_half` and :func:`engine_file`, as many as there are.

    A last line that is half written is left out, with one warning.

    :param positions: ``answers`` gives whole answers to train on. ``rejections`` gives one sample for each token at
        which the target replaced the draft's: what came before it is the prompt, that one token the answer. Redacted
        lines hold rejections alone, and give the same for both.
    :param vocab_size: of the models that shall train on it; None does not look.
    :raises ConfigError: the file cannot be read, a line is not one of ours (it names the line), a token is outside
        the vocabulary, or there is nothing to train on.
    """
    samples: list[Sample] = []
    for part in _parts(path):
        for number, line in _lines(part):
            where = f"traffic file {str(part)!r}, line {number}"
            found = list(_samples(_parsed(line, where), positions))
            top = max((token for sample in found for token in sample.prompt + sample.answer), default=0)
            if vocab_size is not None and top >= vocab_size:
                raise ConfigError(
                    f"{where} has token {top}, and the vocabulary has {vocab_size}; it was recorded with another model"
                )
            samples += found
    if not samples:
        wanted = "recorded answer" if positions == "answers" else "rejected token"
        raise ConfigError(f"traffic file {str(path)!r} holds no {wanted}; record with [trace] in gkt.toml first")
    return samples


def _parts(path: Path) -> list[Path]:
    """The files that there are of ``path``; itself where there is none."""
    engines = {0}
    for file in path.parent.glob(f"{glob.escape(path.stem)}-engine*{glob.escape(path.suffix)}"):
        number = file.stem.removeprefix(f"{path.stem}-engine")
        if number.isdecimal():
            engines.add(int(number))
    files = [engine_file(path, engine) for engine in sorted(engines)]
    return [part for file in files for part in (older_half(file), file) if part.is_file()] or [path]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Number and content of each line; a half-written last one is warned about and left out."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as exc:
        raise ConfigError(
            f"traffic file {str(path)!r} cannot be read: {exc.strerror}; name a file that [trace] recorded"
        ) from exc
    half = lines.pop()
    yield from enumerate(lines, start=1)
    if half:
        _log.warning("%s: the last line is half written and left out, as after a kill", path)


def _parsed(line: bytes, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as exc:
        raise ConfigError(f"{where} is damaged ({exc}); remove it, or record again") from exc
    version = record.get("gkt_traffic") if isinstance(record, dict) else None
    if version != FORMAT:
        raise ConfigError(f"{where} is no traffic of format {FORMAT}; name a file that [trace] recorded")
    lists = [record.get("prompt"), record.get("answer"), record.get("rejected")]
    if "windows" in record:
        lists = record["windows"] if isinstance(record["windows"], list) else [None]
    if not all(isinstance(ids, list) and all(type(i) is int and i >= 0 for i in ids) for ids in lists):
        raise ConfigError(f"{where} is damaged (token ids are missing); remove it, or record again")
    return dict(record)


def _samples(record: Mapping[str, Any], positions: Positions) -> Iterator[Sample]:
    if "windows" in record:
        pairs = [(window[:-1], window[-1:]) for window in record["windows"]]
    elif positions == "answers":
        pairs = [(record["prompt"], record["answer"])]
    else:
        prompt, answer = record["prompt"], record["answer"]
        pairs = [(prompt + answer[:place], answer[place : place + 1]) for place in record["rejected"]]
    for prompt, answer in pairs:
        if prompt and answer:
            yield Sample(tuple(prompt), tuple(answer), source="traffic", key=fixed_key(prompt, answer))
