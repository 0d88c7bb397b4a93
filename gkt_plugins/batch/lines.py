"""The input of a batch: one request a line, as OpenAI's batch files have them.

::

    {"custom_id": "q1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gkt/default", …}}

Source of the format: https://platform.openai.com/docs/api-reference/batch/request-input.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gkt_plugins.errors import ConfigError, GktError

if TYPE_CHECKING:
    from gkt_plugins.openai_wire.requests import Asked

__all__ = ["BatchLine", "read_lines"]


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One line: a request for one pipeline, or why it is none."""

    number: int
    """From 1, blank lines counted too."""
    custom_id: str | None
    """None where the line has none that can be used."""
    pipeline: str = ""
    asked: Asked | None = None
    error: GktError | None = None
    """Set exactly where ``asked`` is None."""


def read_lines(path: Path, pipelines: Collection[str], *, pipeline: str | None = None) -> Iterator[BatchLine]:
    """The lines of ``path``, one at a time, so that a file need not fit into memory; blank lines are left out.

    :param pipelines: the pipelines that exist; a body's ``model`` names one of them as ``gkt/NAME`` or
        ``gkt/NAME@g=TOKENS``.
    :param pipeline: answers every line, whatever model it asks for, so that a file written for another endpoint runs
        as it is.
    :raises ConfigError: the file cannot be read, or holds nothing.
    """
    raise NotImplementedError
