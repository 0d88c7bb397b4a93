"""One row of the batch, on the host."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch

from gkt_plugins.contracts import FinishReason
from gkt_plugins.errors import GktError
from gkt_plugins.speculation.noise import fresh_seed
from gkt_plugins.speculation.requests import DecodeRequest, DecodeResult, RequestError
from gkt_plugins.speculation.stops import StopMatcher
from gkt_plugins.speculation.target import CausalTarget

__all__ = ["OnFinish", "OnTokens", "Row"]

_log = logging.getLogger(__name__)

OnTokens = Callable[[Sequence[int]], None]
OnFinish = Callable[[DecodeResult], None]


def _check(request: DecodeRequest, vocab_size: int, context: int, tokenizer: Any) -> None:
    """Refuse what cannot be decoded."""
    ids = request.token_ids
    if not len(ids):
        raise RequestError("expected a prompt of at least one token, got an empty one; give it a beginning")
    if len(ids) >= context:
        raise RequestError(
            f"expected a prompt shorter than the model's context of {context} tokens, got {len(ids)}; shorten it"
        )
    if min(ids) < 0 or max(ids) >= vocab_size:
        raise RequestError(
            f"expected token ids from 0 to {vocab_size - 1}, got {min(ids)} to {max(ids)}; use the target's tokenizer"
        )
    if request.sampling.max_tokens < 1:
        raise RequestError(f"expected max_tokens of at least 1, got {request.sampling.max_tokens}")
    if request.sampling.temperature < 0:
        raise RequestError(f"expected a temperature of at least 0, got {request.sampling.temperature}")
    if request.sampling.repetition_penalty <= 0:
        raise RequestError(f"expected a repetition penalty above 0, got {request.sampling.repetition_penalty}")
    if "" in request.sampling.stop:
        raise RequestError("expected stop strings of at least one character, got an empty one; leave it out")
    if request.sampling.stop and tokenizer is None:
        raise RequestError("stop strings need a tokenizer, and the loop was made without one; pass tokenizer=")


class Row:
    """A request under way: its tokens, and whether it is done."""

    def __init__(self, request: DecodeRequest, identity: int, context: int, closed: deque[Row],
                 on_tokens: OnTokens | None, on_finish: OnFinish | None) -> None:  # fmt: skip
        """``closed``: where the row puts itself when it is done."""
        self.identity = identity
        self.request = request
        self.result = DecodeResult(request)
        self.done = False
        self._closed = closed
        self.tokens = [int(token) for token in request.token_ids]
        self.prompt = len(self.tokens)
        self.limit = min(request.sampling.max_tokens, context - self.prompt)
        """Most tokens that the answer may have, from its budget and the model's context."""
        self.seed = fresh_seed() if request.sampling.seed is None else request.sampling.seed % 2**64
        self._eos = frozenset(request.eos_ids)
        self._on_tokens = on_tokens
        self._on_finish = on_finish
        self._matcher: StopMatcher | None = None

    def begin(self, target: CausalTarget, tokenizer: Any) -> None:
        """Get ready to be decoded; a request that cannot be is done, with an error."""
        try:
            _check(self.request, target.vocab_size, target.context, tokenizer)
        except RequestError as error:
            self.finish(None, error=error)
            return
        if self.request.sampling.stop:
            self._matcher = StopMatcher(tokenizer, self.request.sampling.stop, self.tokens)

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - self.prompt

    @property
    def remaining(self) -> int:
        """Tokens that the answer may still gain, at least 1 while the row is active."""
        return self.limit - self.generated

    def take(self, new: Sequence[int]) -> int:
        """Append tokens until the row is done; return how many were kept. Hands them to the caller."""
        kept = 0
        reason: FinishReason | None = None
        error: GktError | None = None
        try:
            for token in new:
                kept += 1
                self.tokens.append(token)
                reason = self._reason(token)
                if reason is not None:
                    break
            if self._on_tokens is not None:
                self._on_tokens(new[:kept])
        except Exception as exc:  # noqa: BLE001 - a caller's criterion or callback must hurt its own row only
            error = RequestError(f"the row's own stopping criterion, tokenizer or callback failed: {exc!r}")
            error.__cause__ = exc
        if error is not None:
            self.finish(None, error=error)
        elif reason is not None:
            self.finish(reason)
        return kept

    def finish(self, reason: FinishReason | None, *, error: GktError | None = None) -> None:
        """Close the row with what it has. Nothing happens to one that is done already."""
        if self.done:
            return
        self.done = True
        self.result.token_ids = self.tokens[self.prompt :]
        self.result.finish_reason = reason
        self.result.error = error
        self._closed.append(self)

    def deliver(self, notes: Sequence[str]) -> DecodeResult:
        """Hand the result to the caller, with the loop's own ``notes``."""
        self.result.notes = tuple(notes)
        if self._on_finish is not None:
            try:
                self._on_finish(self.result)
            except Exception:  # noqa: BLE001 - the caller's own
                _log.exception("a callback for a finished row failed; the row's result is returned all the same")
        return self.result

    def _reason(self, token: int) -> FinishReason | None:
        if token in self._eos:
            return "stop"
        if self._matcher is not None:
            self.result.stop = self._matcher.feed(token)
            if self.result.stop is not None:
                return "stop"
        if self.request.criteria:
            ids = torch.tensor([self.tokens])
            if any(bool(torch.as_tensor(criterion(ids, None)).any()) for criterion in self.request.criteria):
                return "stop"
        return "length" if self.remaining <= 0 else None
