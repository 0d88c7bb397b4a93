"""The words of the OpenAI API, as an endpoint says them: chunks, whole responses, usage, log-probabilities."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from gkt_plugins.testing.engines import by_words

__all__ = ["Answering", "frame", "logprobs_of"]


@dataclass(frozen=True, slots=True)
class Answering:
    """One answer that is about to be given."""

    route: str
    model: str
    tokens: Sequence[str]
    reason: str
    prompt_tokens: int
    n: int
    top_logprobs: int | None
    """How many alternatives to tell of each token; None: no log-probabilities at all."""
    echo: str

    @classmethod
    def of(
        cls, route: str, model: str, body: Mapping[str, Any], text: str, reason: str | None, prompt_tokens: int
    ) -> Self:
        """``text`` within the budget and before the stop strings that ``body`` names."""
        budget = body.get("max_completion_tokens") or body.get("max_tokens") or 10**6
        stops = body.get("stop") or []
        found = [text.find(stop) for stop in ([stops] if isinstance(stops, str) else stops) if stop in text]
        tokens = by_words(text[: min(found)] if found else text)
        cut = len(tokens) > budget
        if route == "chat":
            top = int(body.get("top_logprobs") or 0) if body.get("logprobs") else None
        else:
            top = body.get("logprobs")
        return cls(
            route,
            model,
            tokens[:budget],
            "length" if cut else "stop" if found else reason or "stop",
            prompt_tokens,
            body.get("n") or 1,
            top,
            str(body.get("prompt", "")) if body.get("echo") else "",
        )

    def head(self) -> dict[str, Any]:
        """What every chunk and response begins with."""
        kind = "chat.completion.chunk" if self.route == "chat" else "text_completion"
        return {"id": "upstream-1", "object": kind, "created": int(time.time()), "model": self.model}

    def chunk(
        self, piece: Any, choice: int, *, reason: str | None = None, logprobs: Any = None, tokens: int = 0
    ) -> dict[str, Any]:
        """A stream's chunk with ``piece``, a delta of a chat or text."""
        key = "delta" if self.route == "chat" else "text"
        one: dict[str, Any] = {"index": choice, key: piece, "finish_reason": reason}
        return self.head() | {"choices": [one if logprobs is None else one | {"logprobs": logprobs}]}

    def whole(self, reasoning: str, message: Mapping[str, Any]) -> dict[str, Any]:
        """A whole response, without usage."""
        text = "".join(self.tokens)
        logprobs = logprobs_of(self.route, self.tokens, self.top_logprobs)
        if self.route == "chat":
            said: dict[str, Any] = {"role": "assistant", "content": text, **message}
            body: dict[str, Any] = {"message": said | ({"reasoning_content": reasoning} if reasoning else {})}
        else:
            body = {"text": self.echo + text}
            if self.echo and self.top_logprobs is not None:
                logprobs = logprobs_of(self.route, [*by_words(self.echo), *self.tokens], self.top_logprobs)
        choices = [{"index": i, **body, "finish_reason": self.reason, "logprobs": logprobs} for i in range(self.n)]
        kind = "chat.completion" if self.route == "chat" else "text_completion"
        return self.head() | {"object": kind, "choices": choices}

    def usage(self, tokens: int) -> dict[str, Any]:
        """Counts after ``tokens`` of each choice."""
        completion = tokens * self.n
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
            "prompt_tokens_details": {"cached_tokens": 0},
        }


def logprobs_of(route: str, tokens: Sequence[str], top: int | None) -> dict[str, Any] | None:
    """Each token has probability 1/2, its first alternative 1/4, the next 1/8, …"""
    if top is None:
        return None
    alternatives = [[token, *(f"{token}{i}" for i in range(1, max(top, 1)))][:top] for token in tokens]
    if route == "chat":
        return {
            "content": [
                {
                    "token": token,
                    "logprob": math.log(0.5),
                    "bytes": list(token.encode()),
                    "top_logprobs": [
                        {"token": other, "logprob": math.log(0.5 ** (i + 1)), "bytes": list(other.encode())}
                        for i, other in enumerate(others)
                    ],
                }
                for token, others in zip(tokens, alternatives, strict=True)
            ]
        }
    return {
        "tokens": list(tokens),
        "token_logprobs": [math.log(0.5)] * len(tokens),
        "top_logprobs": [{other: math.log(0.5 ** (i + 1)) for i, other in enumerate(o)} for o in alternatives],
        "text_offset": [len("".join(tokens[:i])) for i in range(len(tokens))],
    }


def frame(
    data: str, end: str = "\n", *, number: int | None = None, comment: bool = False, multi_line: bool = False
) -> bytes:
    """One server-sent event."""
    if multi_line and data.startswith("{"):
        data = json.dumps(json.loads(data), ensure_ascii=False, indent=1)
    lines = [": still here", ""] if comment else []
    lines += [f"id: {number}"] if number is not None else []
    lines += [f"data: {line}" for line in data.split("\n")]
    return (end.join([*lines, ""]) + end).encode()
