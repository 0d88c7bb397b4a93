"""Prompts from a file, answers to a file: one JSON object a line, written as they finish, resumable."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from gkt_plugins.contracts import Message, Prompt, Sampling
from gkt_plugins.errors import BackendError, ConfigError, GktError
from gkt_plugins.guidance.answers import Answer, Choice
from gkt_plugins.guidance.batch import run_batch
from gkt_plugins.guidance.events import Request

if TYPE_CHECKING:
    from gkt_plugins.guidance.pipeline import Pipeline

__all__ = ["AnswerFile", "Row", "RowId", "answer_row", "answer_rows", "read_rows"]

RowId: TypeAlias = str | int


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt, or why the line is none."""

    id: RowId
    prompt: Prompt | None
    error: str = ""


def read_rows(path: Path) -> list[Row]:
    """The prompts of ``path``; blank lines are left out.

    ``.txt``: a prompt a line, a user turn each. Anything else is JSON lines: ``{"prompt": text}`` for a user turn,
    ``{"messages": [{"role", "content"}, …]}`` for a chat or ``{"text": raw}`` for text without a chat template, and
    optionally ``"id"``; by default that is the line's number, from 1. Other keys are left alone. A line that is no
    prompt becomes a row with an error.

    :raises ConfigError: the file cannot be read, has no prompts, or uses an id twice.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"the prompts {str(path)!r} cannot be read as UTF-8 text: {exc}") from exc
    numbered = [(number, line.rstrip("\r")) for number, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise ConfigError(f"{str(path)!r} holds no prompts; write one a line")
    if path.suffix == ".txt":
        return [Row(number, Prompt.chat(line)) for number, line in numbered]
    rows = [_row(number, line) for number, line in numbered]
    seen: dict[RowId, int] = {}
    for (number, _), row in zip(numbered, rows, strict=True):
        if row.id in seen:
            raise ConfigError(
                f"{str(path)!r} uses the id {row.id!r} in lines {seen[row.id]} and {number}; give every row its own"
            )
        seen[row.id] = number
    return rows


def _row(number: int, line: str) -> Row:
    try:
        data = json.loads(line)
    except ValueError as exc:
        return Row(number, None, f"line {number} must be a JSON object, and cannot be parsed: {exc}")
    if not isinstance(data, dict):
        return Row(number, None, f"line {number} must be a JSON object, got {type(data).__name__}")
    row_id = data.get("id", number)
    if isinstance(row_id, bool) or not isinstance(row_id, str | int):
        return Row(number, None, f"line {number}: id must be a text or an integer, got {row_id!r}")
    given = [key for key in ("prompt", "messages", "text") if key in data]
    if len(given) != 1:
        got = " and ".join(given) or "none of them"
        return Row(row_id, None, f"line {number} must have one of prompt, messages and text, got {got}")
    value = data[given[0]]
    if given[0] == "messages":
        if not isinstance(value, list) or not value or not all(_is_message(message) for message in value):
            return Row(row_id, None, f'line {number}: messages must be a list of {{"role": text, "content": text}}')
        return Row(row_id, Prompt(messages=tuple(Message(m["role"], m["content"]) for m in value)))
    if not isinstance(value, str):
        return Row(row_id, None, f"line {number}: {given[0]} must be a text, got {type(value).__name__}")
    return Row(row_id, Prompt.chat(value) if given[0] == "prompt" else Prompt(text=value))


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)


def answer_row(row_id: RowId, answer: Answer) -> dict[str, Any]:
    """``answer`` as one line of the output; it has an ``error`` where anything of it failed."""
    row: dict[str, Any] = {"id": row_id}
    if answer.errors:
        row["error"] = "; ".join(dict.fromkeys(map(str, answer.errors)))
    if len(answer.choices) == 1:
        row |= _choice(answer.choices[0])
    elif answer.choices:
        row["choices"] = [_choice(choice) for choice in answer.choices]
    if answer.records:
        row["usage"] = {role: asdict(usage) for role, usage in answer.usage.items()}
    return row


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "text": choice.text,
        "guidance": choice.guidance,
        "finish_reason": choice.finish_reason,
        "notes": list(choice.notes),
    }


class AnswerFile:
    """The output: rows that are already answered are kept, everything else is added to its end.

    Opening drops rows that failed and a last line that was cut off, so that they are tried again.
    """

    def __init__(self, path: Path) -> None:
        """:raises ConfigError: the file is there and holds something else, or its folder does not exist."""
        self.path = path
        self.answered: set[RowId] = set()
        """Ids of rows that need not be run again."""
        kept = list(self._finished())
        try:
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            temporary.write_bytes(b"".join(line + b"\n" for line in kept))
            temporary.replace(path)
            self._file = path.open("ab")
        except OSError as exc:
            raise ConfigError(f"the answers {str(path)!r} cannot be written: {exc}") from exc

    def _finished(self) -> Iterator[bytes]:
        if not self.path.exists():
            return
        try:
            *lines, cut_off = self.path.read_bytes().split(b"\n")  # only \n: U+2028 may be part of an answer
        except OSError as exc:
            raise ConfigError(f"the answers {str(self.path)!r} cannot be read: {exc}") from exc
        if not lines and not cut_off.startswith(b'{"id": '[: len(cut_off)]):
            lines = [cut_off]  # not even the beginning of a row: another file, rather than a run that was killed
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line.decode("utf-8"))
                row_id = row["id"]
            except (ValueError, TypeError, KeyError) as exc:
                raise ConfigError(
                    f"{str(self.path)!r} is no file of answers, see its line {number}; name another with --output"
                ) from exc
            if "error" not in row:
                self.answered.add(row_id)
                yield line

    def add(self, row: dict[str, Any]) -> None:
        """Append a row; it is on its way to the disk when this returns."""
        try:
            line = json.dumps(row, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:  # half a surrogate pair, which only an escape can hold
            line = json.dumps(row).encode("utf-8")
        try:
            self._file.write(line + b"\n")
            self._file.flush()
        except OSError as exc:
            raise BackendError(f"the answers {str(self.path)!r} cannot be written: {exc}") from exc

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


async def answer_rows(
    pipeline: Pipeline, rows: Iterable[Row], file: AnswerFile, *, sampling: Sampling | None = None, n: int = 1
) -> AsyncGenerator[tuple[RowId, Answer], None]:
    """Answer the rows that ``file`` does not have yet; each is in the file when it is yielded, in any order.

    Needs an entered pipeline. Errors: as :func:`~gkt_plugins.guidance.batch.run_batch`.
    """
    ids: dict[str, RowId] = {}
    requests: list[Request] = []
    for row in rows:
        if row.id in file.answered:
            continue
        request_id = uuid.uuid4().hex  # a row may be answered again, in a ledger that knows its first attempt
        if row.prompt is None:
            file.add(answer_row(row.id, failed := Answer(request_id, error=GktError(row.error))))
            yield row.id, failed
        else:
            ids[request_id] = row.id
            requests.append(Request(row.prompt, sampling or pipeline.sampling, n, request_id=request_id))
    async with aclosing(run_batch(requests, pipeline.parts, pipeline.batches)) as answers:
        async for answer in answers:
            row_id = ids[answer.request_id]
            file.add(answer_row(row_id, answer))
            yield row_id, answer
