"""Clients of an OpenAI-compatible server, many at a time: streamed chats, timed from outside."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx2
import orjson

from benchmarks.vllm._servers import PRICES
from gkt_plugins.demo.problems import Problem, score

__all__ = ["Chat", "ask", "complete", "message"]


@dataclass(frozen=True)
class Chat:
    """What one client saw of one answer."""

    text: str
    seconds: float
    first_s: float
    """Until the first text."""
    cost: float
    """Currency units: as the server reports it, or by the same prices from its usage."""
    route: str
    """As the plugin reports it; ``plain`` without the plugin."""

    def is_right(self, problem: Problem) -> bool:
        return score(problem, self.text) is True


def message(problem: Problem) -> list[dict[str, str]]:
    return [{"role": "user", "content": problem.question}]


async def ask(
    url: str, model: str, problems: Sequence[Problem], *, clients: int, max_tokens: int
) -> tuple[float, list[Chat]]:
    """Seconds for all, and the answers in order: greedy streams, ``clients`` at a time, each at once after the last."""
    places = asyncio.Semaphore(clients)
    limits = httpx2.Limits(max_connections=clients)
    async with httpx2.AsyncClient(base_url=url, timeout=300, limits=limits) as http:

        async def one(problem: Problem) -> Chat:
            body = {
                "model": model,
                "messages": message(problem),
                "max_tokens": max_tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            async with places:
                return await _stream(http, model, body)

        begun = time.perf_counter()
        chats = await asyncio.gather(*map(one, problems))
        return time.perf_counter() - begun, chats


async def _stream(http: httpx2.AsyncClient, model: str, body: Mapping[str, Any]) -> Chat:
    """:raises RuntimeError: the server refused, or the stream broke."""
    begun = time.perf_counter()
    texts: list[str] = []
    first_s: float | None = None
    usage: dict[str, Any] = {}
    about: dict[str, Any] = {}
    async with http.stream("POST", "/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"status {response.status_code}: {(await response.aread())[:300]!r}")
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = orjson.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"the stream broke: {line[:300]}")
            usage = event.get("usage") or usage
            about = event.get("gkt") or about
            for choice in event["choices"]:
                if text := choice["delta"].get("content"):
                    if first_s is None:
                        first_s = time.perf_counter() - begun
                    texts.append(text)
    seconds = time.perf_counter() - begun
    if first_s is None or not usage:
        raise RuntimeError("the stream had no text, or no usage")
    cost = float(about["cost"]) if about else _cost(model, usage)
    return Chat("".join(texts), seconds, first_s, cost, about.get("route", "plain"))


def _cost(model: str, usage: Mapping[str, int]) -> float:
    read, written = (float(price) for price in PRICES[model])
    return (usage["prompt_tokens"] * read + usage["completion_tokens"] * written) / 1e6


def complete(
    http: httpx2.Client, url: str, model: str, messages: Sequence[Mapping[str, str]], max_tokens: int, **more: Any
) -> str:
    """One whole greedy answer. :raises RuntimeError: the server refused."""
    body = {"model": model, "messages": messages, "max_tokens": max_tokens, "temperature": 0, **more}
    response = http.post(f"{url}/chat/completions", json=body)
    if response.status_code != 200:
        raise RuntimeError(f"status {response.status_code}: {response.text[:300]}")
    return str(response.json()["choices"][0]["message"]["content"])
