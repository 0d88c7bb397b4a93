"""Answers of a model behind an endpoint: asked for once, kept in a file, each on record in the ledger."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gkt_plugins.contracts import Engine, Forwarder, Usage
from gkt_plugins.distill.samples import PromptItem
from gkt_plugins.errors import BackendError, EngineError
from gkt_plugins.guidance.estimates import estimate_tokens

if TYPE_CHECKING:
    from gkt_plugins.accounting.accountant import Accountant

__all__ = ["Asking", "EndpointAnswer", "TokenScore", "collect", "read_answer"]

_ATTEMPTS = 5
_WAIT_S = 1.0
"""Before the second attempt at one prompt; doubled each time."""


@dataclass(frozen=True, slots=True)
class TokenScore:
    """One token of an answer, and the likeliest ones in its place."""

    text: str
    top: tuple[tuple[str, float], ...]
    """Text and log-probability, the token's own among them."""


@dataclass(frozen=True, slots=True)
class EndpointAnswer:
    """One answer."""

    text: str
    finished: bool
    """It ended by itself, and not at the budget."""
    tokens: tuple[TokenScore, ...] = ()
    """Empty where the endpoint told no probabilities."""


@dataclass(frozen=True, slots=True)
class Asking:
    """How answers are asked for; other settings are other answers."""

    model: str
    temperature: float
    max_new_tokens: int
    logprobs: int
    """Likeliest tokens to tell of each; 0 asks for none."""
    seed: int

    def key(self, item: PromptItem) -> str:
        """Names the answer to ``item``."""
        asked = [asdict(self), item.text, [(turn.role, turn.content) for turn in item.messages]]
        return sha256(json.dumps(asked, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()

    def body(self, item: PromptItem, number: int) -> tuple[Literal["chat", "completions"], dict[str, Any]]:
        """Route and body of the request: a conversation goes to the endpoint's own template, a text as it is."""
        body: dict[str, Any] = {
            "temperature": self.temperature,
            "max_tokens": self.max_new_tokens,
            "seed": (self.seed + number) % 2**31,
        }
        if item.messages:
            body["messages"] = [{"role": turn.role, "content": turn.content} for turn in item.messages]
            return "chat", body | ({"logprobs": True, "top_logprobs": self.logprobs} if self.logprobs else {})
        return "completions", body | {"prompt": item.text} | ({"logprobs": self.logprobs} if self.logprobs else {})


def collect(
    build: Callable[[], Engine],
    open_accounts: Callable[[], Accountant],
    items: Sequence[PromptItem],
    asking: Asking,
    path: Path,
    *,
    concurrency: int,
) -> list[EndpointAnswer]:
    """One answer to each of ``items``, in order. What ``path`` has is not asked for again, so a run that was
    interrupted goes on.

    :raises BackendError: an answer could not be had, or the file or the ledger cannot be written.
    """
    kept = dict(_kept(path))
    lacking = {asking.key(item): item for item in items if asking.key(item) not in kept}
    if lacking:
        _end_broken_line(path)
        kept |= asyncio.run(_ask(build, open_accounts, lacking, asking, path, concurrency))
    return [kept[asking.key(item)] for item in items]


async def _ask(
    build: Callable[[], Engine],
    open_accounts: Callable[[], Accountant],
    lacking: Mapping[str, PromptItem],
    asking: Asking,
    path: Path,
    concurrency: int,
) -> dict[str, EndpointAnswer]:
    engine = build()
    if not isinstance(engine, Forwarder):
        await engine.aclose()
        raise BackendError(f"the engine {engine.name!r} must speak the OpenAI API to be imitated; name another one")
    accounts = await asyncio.to_thread(open_accounts)
    slots = asyncio.Semaphore(concurrency)
    found: dict[str, EndpointAnswer] = {}

    async def one(number: int, key: str, item: PromptItem) -> None:
        route, body = asking.body(item, number)
        async with slots:
            found[key] = await _answered(engine, accounts, route, body, lambda answer: _keep(path, key, answer))

    try:
        async with asyncio.TaskGroup() as group:
            for number, (key, item) in enumerate(lacking.items()):
                group.create_task(one(number, key, item))
    except* BackendError as failed:
        raise _first(failed) from None
    finally:
        await engine.aclose()
        await accounts.aclose()
    return found


def _first(group: BaseExceptionGroup[BackendError]) -> BackendError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _answered(
    engine: Engine,
    accounts: Accountant,
    route: Literal["chat", "completions"],
    body: Mapping[str, Any],
    keep: Callable[[EndpointAnswer], None],
) -> EndpointAnswer:
    """The answer, with more attempts where one may help, each of them on record.

    ``keep``: called as soon as it is there, before anything else can happen, for it has been paid for.
    """
    assert isinstance(engine, Forwarder)
    request_id, attempt = uuid.uuid4().hex, 0
    while True:
        try:
            async with accounts.call(
                request_id, "target", engine.name, engine.model, attempt=attempt, pipeline="distill"
            ) as account:
                async with aclosing(engine.forward(route, body)) as responses:  # type: ignore[type-var]  # a generator
                    response = await anext(responses)
                answer = read_answer(response, route, engine.name)
                keep(answer)
                account.usage = _usage(response, body, answer)
        except EngineError as exc:
            attempt += 1
            if not exc.retryable or attempt == _ATTEMPTS:
                raise
            await asyncio.sleep(max(exc.retry_after_s or 0.0, _WAIT_S * 2 ** (attempt - 1)))
        else:
            return answer


def read_answer(response: Mapping[str, Any], route: str, engine: str) -> EndpointAnswer:
    """The answer in a whole response. :raises EngineError: it is none."""
    try:
        choice = response["choices"][0]
        text = choice["message"]["content"] if route == "chat" else choice["text"]
        finished = choice.get("finish_reason") == "stop"
        if not isinstance(text, str):
            raise TypeError(text)
        return EndpointAnswer(text, finished, tuple(_scores(choice.get("logprobs"))))
    except (LookupError, TypeError, ValueError, AttributeError) as exc:
        raise EngineError(
            f"the engine {engine!r} must answer with text, and sent something else; look at its model and its options"
        ) from exc


def _scores(logprobs: Any) -> Iterable[TokenScore]:
    """Both forms that the API has: a chat's list of objects, and the parallel lists of a raw completion."""
    if not isinstance(logprobs, Mapping):
        return
    if isinstance(logprobs.get("content"), list):
        for token in logprobs["content"]:
            top = {other["token"]: float(other["logprob"]) for other in token.get("top_logprobs") or ()}
            top.setdefault(token["token"], float(token["logprob"]))
            yield TokenScore(token["token"], tuple(top.items()))
        return
    tokens, own = logprobs.get("tokens") or (), logprobs.get("token_logprobs") or ()
    tops = logprobs.get("top_logprobs") or [{}] * len(tokens)
    for text, logprob, others in zip(tokens, own, tops, strict=True):
        top = {other: float(value) for other, value in (others or {}).items()}
        top.setdefault(text, float(logprob))
        yield TokenScore(text, tuple(top.items()))


def _usage(response: Mapping[str, Any], body: Mapping[str, Any], answer: EndpointAnswer) -> Usage:
    told = response.get("usage")
    counts = [told.get(name) if isinstance(told, Mapping) else None for name in ("prompt_tokens", "completion_tokens")]
    prompt, completion = (count if isinstance(count, int) and count >= 0 else None for count in counts)
    if prompt is not None and completion is not None:
        return Usage(prompt, None, completion)
    asked = body.get("prompt") or "\n".join(turn["content"] for turn in body.get("messages", ()))
    return Usage(estimate_tokens(asked), None, estimate_tokens(answer.text), estimated=True)


# ------------------------------------------------------------------------------------------------------------- the file


def _kept(path: Path) -> Iterable[tuple[str, EndpointAnswer]]:
    """What earlier runs were answered; a line that is not whole does not count."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
            tokens = tuple(TokenScore(text, tuple((t, float(p)) for t, p in top)) for text, top in entry["tokens"])
            yield entry["key"], EndpointAnswer(entry["text"], entry["finished"], tokens)
        except (ValueError, LookupError, TypeError):
            continue


def _keep(path: Path, key: str, answer: EndpointAnswer) -> None:
    entry = {
        "key": key,
        "text": answer.text,
        "finished": answer.finished,
        "tokens": [[token.text, token.top] for token in answer.tokens],
    }
    _append(path, json.dumps(entry) + "\n")


def _end_broken_line(path: Path) -> None:
    """A run that was killed may have left half a line; the next one is to begin on its own."""
    if path.exists() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        _append(path, "\n")


def _append(path: Path, text: str) -> None:
    try:
        with path.open("a", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        raise BackendError(f"cannot keep an answer in {path}: {exc}; make room, and go on with --resume") from exc
