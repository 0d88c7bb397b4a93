"""What is known of one endpoint and model, and where that is kept between runs."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from gkt_openai.options import ChatRoute

__all__ = ["MAX_AGE_S", "Findings", "FindingsFile", "StreamUsage"]

_log = logging.getLogger(__name__)

MAX_AGE_S = 7 * 24 * 3600.0
"""Older findings are asked for anew: endpoints are updated."""

_FORMAT = 1

StreamUsage: TypeAlias = Literal["asked", "unasked", "none"]
"""Streams tell their usage when ``stream_options`` asks for it; without being asked; or not at all."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What a probe found."""

    chat: bool
    """``/chat/completions`` answers."""
    completions: bool
    """``/completions`` continues raw prompts as they are."""
    chat_route: ChatRoute
    """The best way of going on from a given beginning in a chat that the endpoint has by itself: not ``completion``,
    which needs the model's chat template."""
    stream_usage: StreamUsage
    running_usage: bool = False
    """Each chunk of a stream can count its tokens."""
    chat_logprobs: int = 0
    """So many alternatives of each token are told with its log-probability; 0: there are none."""
    completion_logprobs: int = 0
    prompt_logprobs: bool = False
    """``echo`` gives the prompt's own log-probabilities."""
    models: bool = False
    """``/models`` lists this model."""
    tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    tokens_spent: int = 0
    """By the probe."""
    notes: tuple[str, ...] = ()
    """What was odd, one sentence each."""
    at: float = field(default_factory=time.time)
    """When, in seconds since the epoch."""


def _home(env: Mapping[str, str]) -> Path:
    try:
        return Path(env.get("HOME") or Path.home())
    except RuntimeError:  # a user whom the system does not know, as containers have
        return Path(tempfile.gettempdir())


class FindingsFile:
    """Keeps findings in the user's cache folder, one small file for each endpoint and model. No key is in it."""

    def __init__(self, base_url: str, model: str, env: Mapping[str, str]) -> None:
        """``env``: ``GKT_CACHE_DIR``, else ``XDG_CACHE_HOME``, else ``HOME`` say where."""
        root = Path(env.get("GKT_CACHE_DIR") or Path(env.get("XDG_CACHE_HOME") or _home(env) / ".cache") / "gkt")
        name = sha256(f"{base_url}\n{model}".encode()).hexdigest()[:32]
        self.path = root / "endpoints" / f"{name}.json"
        self._of = {"base_url": base_url, "model": model}

    def read(self) -> Findings | None:
        """What is kept; None where there is nothing, it is too old, or it cannot be understood."""
        try:
            kept = json.loads(self.path.read_text(encoding="utf-8"))
            if kept["format"] != _FORMAT or kept["of"] != self._of:
                return None
            findings = Findings(**{**kept["findings"], "notes": tuple(kept["findings"]["notes"])})
            if findings.chat_route not in get_args(ChatRoute) or not 0 <= time.time() - findings.at < MAX_AGE_S:
                return None
        except (OSError, ValueError, LookupError, TypeError):
            return None
        return findings

    def write(self, findings: Findings) -> None:
        """Keep ``findings``; a folder that cannot be written is worth a warning, and no more."""
        kept: dict[str, Any] = {"format": _FORMAT, "of": self._of, "findings": asdict(findings)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", encoding="utf-8", dir=self.path.parent, suffix=".tmp", delete=False
            ) as file:
                json.dump(kept, file, ensure_ascii=False, indent=1)
            os.replace(file.name, self.path)
        except OSError as exc:
            _log.warning("what was found out about %s cannot be kept: %s", self._of["base_url"], exc)
