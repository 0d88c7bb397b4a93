"""The batched decode loop: draft, verify, commit; finished rows leave, waiting prompts take their place."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

import torch
from torch import Tensor

from gkt_plugins.contracts import Drafter, Proposal, TraceEvent, Verdict, Verifier
from gkt_plugins.speculation.batch import Batch, View
from gkt_plugins.speculation.gamma import FixedGamma, GammaController, GammaPolicy
from gkt_plugins.speculation.requests import DecodeRequest, DecodeResult, RequestError
from gkt_plugins.speculation.rows import OnFinish, OnTokens, Row
from gkt_plugins.speculation.sampling import ProcessorError, sample
from gkt_plugins.speculation.scores import BlockScores
from gkt_plugins.speculation.target import CausalTarget
from gkt_plugins.speculation.verifiers import ExactVerifier

__all__ = ["DecodeLoop", "Timings"]

_log = logging.getLogger(__name__)

_PREFILL_TOKENS = 2048
"""Prompt tokens, padding included, that enter in one step: the rows under way do not wait for a long queue."""
_PADDING = 1.25
"""Prompts are prefilled together while padding makes their tokens no more than this many times as many."""


@dataclass(slots=True)
class Timings:
    """Where the loop's time went, in seconds since it was made."""

    total: float = 0.0
    """Inside :meth:`DecodeLoop.step`."""
    prefill: float = 0.0
    """Letting rows in: the target's forward calls over prompts, and their first tokens."""
    draft: float = 0.0
    """Inside the drafter, its forward calls included."""
    target: float = 0.0
    """Inside the target's forward calls of decode steps."""
    verify: float = 0.0


class DecodeLoop:
    """Decodes any number of rows, ``max_batch`` at a time.

    :meth:`add` and :meth:`cancel` may be called from any thread; :meth:`step` and :meth:`run` from one at a time.
    Greedy rows, and with a fixed gamma also sampled ones, do not depend on what else is in the batch.
    """

    def __init__(self, target: CausalTarget, *, drafter: Drafter | None = None, verifier: Verifier | None = None,
                 gamma: int | Literal["auto"] | GammaPolicy = "auto", max_batch: int = 8, tokenizer: Any = None,
                 on_block: Callable[[TraceEvent], None] | None = None) -> None:  # fmt: skip
        """
        :param drafter: None decodes plainly.
        :param verifier: None is exact.
        :param gamma: draft tokens per block, ``"auto"``, or a :class:`GammaController` to share between loops.
        :param tokenizer: needed by rows that have stop strings.
        :param on_block: observes every verified block of every row, and each row's last step; it must be quick, and
            must not raise.
        """
        if max_batch < 1:
            raise ValueError(f"max_batch must be at least 1, got {max_batch!r}")
        self.target = target
        self.drafter = drafter
        """None once it has failed: the loop then decodes plainly, and notes it on every row."""
        self.timings = Timings()
        self._verifier: Verifier = verifier or ExactVerifier()
        self._gamma: GammaPolicy = (
            GammaController() if isinstance(gamma, str) else FixedGamma(gamma) if isinstance(gamma, int) else gamma
        )
        self._tokenizer = tokenizer
        self._on_block = on_block
        self._batch = Batch(target, max_batch)
        self._waiting: deque[Row] = deque()
        self._unfinished: dict[int, Row] = {}
        self._cancelled: deque[int] = deque()
        self._closed: deque[Row] = deque()
        self._identities = count()
        self._speculated: frozenset[int] = frozenset()
        self._notes: list[str] = []

    # ------------------------------------------------------------------------------------------------ from any thread

    def add(self, request: DecodeRequest, *, on_tokens: OnTokens | None = None,
            on_finish: OnFinish | None = None) -> int:  # fmt: skip
        """Queue a request; return its identity.

        ``on_tokens`` gets the row's new tokens after each step, ``on_finish`` its result as soon as it is done; both
        are called from :meth:`step`. A request that cannot be decoded finishes with an error in the next step.
        """
        row = Row(request, next(self._identities), self.target.context, self._closed, on_tokens, on_finish)
        self._unfinished[row.identity] = row
        row.begin(self.target, self._tokenizer)
        self._waiting.append(row)
        return row.identity

    def cancel(self, identity: int) -> None:
        """Let a row finish as ``cancelled`` before the next step, with the tokens that it has."""
        self._cancelled.append(identity)

    @property
    def busy(self) -> bool:
        """Some row is waiting or under way."""
        return bool(self._unfinished)

    # ------------------------------------------------------------------------------------------------ from one thread

    def run(self, requests: Iterable[DecodeRequest], *, on_tokens: Callable[[int, Sequence[int]], None] | None = None,
            on_finish: Callable[[int, DecodeResult], None] | None = None) -> list[DecodeResult]:  # fmt: skip
        """Decode all requests; return their results in order. Callbacks get the request's place in that order."""
        results: dict[int, DecodeResult] = {}

        def submit(place: int, request: DecodeRequest) -> None:
            def finished(result: DecodeResult) -> None:
                results[place] = result
                if on_finish is not None:
                    on_finish(place, result)

            tokens = None if on_tokens is None else (lambda new: on_tokens(place, new))
            self.add(request, on_tokens=tokens, on_finish=finished)

        expected = 0
        for request in requests:
            submit(expected, request)
            expected += 1
        while len(results) < expected:
            self.step()
        return [results[place] for place in range(expected)]

    @torch.inference_mode()
    def step(self) -> list[DecodeResult]:
        """Let waiting rows in, decode one block of all rows; return the results of rows that finished."""
        begun = time.perf_counter()
        gained: dict[Row, int] = {}
        self._enter(gained)
        self.timings.prefill += time.perf_counter() - begun
        if self._batch.rows:
            self._block(gained)
        elapsed = time.perf_counter() - begun
        self.timings.total += elapsed
        tokens = sum(gained.values())
        for row, share in gained.items():
            row.result.seconds += elapsed * share / tokens
        return [self._deliver(self._closed.popleft()) for _ in range(len(self._closed))]

    def _deliver(self, row: Row) -> DecodeResult:
        del self._unfinished[row.identity]
        return row.deliver(self._notes)

    # ------------------------------------------------------------------------------------------------- rows come and go

    def _enter(self, gained: dict[Row, int]) -> None:
        """Close cancelled rows, and prefill waiting ones in the place of finished ones."""
        while self._cancelled:
            cancelled = self._unfinished.get(self._cancelled.popleft())
            if cancelled is not None:
                cancelled.finish("cancelled")
        entering: list[Row] = []
        budget = _PREFILL_TOKENS
        while self._waiting and len(entering) < self._batch.free:
            row = self._waiting[0]
            if not row.done:
                if entering and len(row.tokens) > budget:
                    break
                budget -= len(row.tokens)
                entering.append(row)
            self._waiting.popleft()
        slots = dict(zip(entering, self._batch.exchange(entering), strict=True))
        for group in _groups(entering):
            self._prefill(group, [slots[row] for row in group], gained)
        self._batch.exchange([])  # rows that ended with their first token

    def _prefill(self, rows: list[Row], slots: list[int], gained: dict[Row, int]) -> None:
        lengths = [len(row.tokens) for row in rows]
        ids = self._batch.prompts(slots, max(lengths))
        try:
            logits = self.target.forward(ids, [0] * len(rows), slots=slots, last=[length - 1 for length in lengths])
        except Exception as exc:  # noqa: BLE001 - out of memory, say; the others go on
            _fail(rows, exc)
            return
        while rows:
            view = View(rows, self.target.device)
            try:
                tokens = self._plain_tokens(view, logits, ids, lengths)
                break
            except ProcessorError as error:
                rows[error.row].finish(None, error=error)
                kept = [i for i in range(len(rows)) if i != error.row]
                rows, slots, lengths = ([part[i] for i in kept] for part in (rows, slots, lengths))  # type: ignore[assignment]
                logits, ids = logits[kept], ids[kept]
        else:
            return
        self._batch.write(slots, lengths, tokens[:, None])
        for row, token in zip(rows, tokens.tolist(), strict=True):
            gained[row] = row.take([token])

    def _plain_tokens(self, view: View, logits: Tensor, ids: Tensor, lengths: Sequence[int]) -> Tensor:
        """[B] next tokens from ``logits`` [B, vocab], without speculation."""
        scores = BlockScores(logits[:, None], view.options, ids, lengths, ids[:, :0])
        if all(scores.greedy):
            return scores.argmax()[:, 0]
        return sample(scores.probs()[:, 0], view.noise(0).sample)

    # ------------------------------------------------------------------------------------------------------- one block

    def _block(self, gained: dict[Row, int]) -> None:
        begun = time.perf_counter()
        view = self._batch.view()
        size = len(view.rows)
        gamma = 0
        if self.drafter is not None:
            gamma = min(self._gamma.choose(size), max(row.remaining for row in view.rows) - 1)
        ids = self._batch.ids(gamma + 1)
        lengths = view.lengths
        proposal: Proposal | None = None
        try:
            proposal = self._propose(view, ids, gamma) if gamma else None
            drafts = ids[:, :0] if proposal is None else proposal.ids
            last = ids.gather(1, torch.tensor(lengths, device=ids.device)[:, None] - 1)
            logits = self._forward(torch.cat([last, drafts], dim=1), [length - 1 for length in lengths])
            verdict = self._verify(view, proposal, logits, ids, lengths)
        except ProcessorError as error:
            view.rows[error.row].finish(None, error=error)  # the others decode this block again, without it
            if proposal is not None:
                self._commit(torch.zeros(size, dtype=torch.int64))
            return
        except Exception as exc:  # noqa: BLE001 - out of memory, say, or a draft that the target cannot take
            if proposal is None:
                _fail(view.rows, exc)
            else:
                self._give_up_drafting(exc)  # and once more without it
            return
        if proposal is not None:
            self._commit(verdict.accepted)
        accepted, drafted = self._take(view, proposal, verdict, lengths, gained)
        speculated = frozenset(view.identities) if proposal is not None else frozenset()
        if self.drafter is not None:
            self._gamma.observe(
                size,
                drafts.shape[1],
                time.perf_counter() - begun,
                drafted,
                accepted,
                steady=speculated <= self._speculated,
            )
        self._speculated = speculated

    def _propose(self, view: View, ids: Tensor, gamma: int) -> Proposal | None:
        """A block that no row can overrun, or None where there is nothing to verify."""
        assert self.drafter is not None
        begun = time.perf_counter()
        try:
            proposal = self.drafter.propose(view.state(ids), gamma)
            if proposal.ids.ndim != 2 or len(proposal.ids) != len(view.rows) or proposal.ids.shape[1] > gamma:
                raise ValueError(f"expected ids [{len(view.rows)}, {gamma}], got {list(proposal.ids.shape)}")
        except ProcessorError:
            raise
        except Exception as exc:  # noqa: BLE001 - a drafter may be anybody's; rows go on without it
            self._give_up_drafting(exc)
            return None
        finally:
            self.timings.draft += time.perf_counter() - begun
        limits = [row.remaining - 1 for row in view.rows]
        width = proposal.ids.shape[1]
        if min(limits) < width:
            cap = torch.tensor(limits, device=proposal.ids.device)
            proposal.counts = cap if proposal.counts is None else torch.minimum(cap, proposal.counts)
        if proposal.counts is not None:
            width = min(width, int(proposal.counts.max()))
            proposal.counts = proposal.counts.clamp(max=width)
        if width == 0:
            self._commit(torch.zeros(len(view.rows), dtype=torch.int64))
            return None
        proposal.ids = proposal.ids[:, :width].long()
        if proposal.probs is not None:
            proposal.probs = proposal.probs[:, :width]
        return proposal

    def _forward(self, ids: Tensor, starts: Sequence[int]) -> Tensor:
        begun = time.perf_counter()
        try:
            return self.target.forward(ids, starts)
        finally:
            self.timings.target += time.perf_counter() - begun

    def _verify(self, view: View, proposal: Proposal | None, logits: Tensor, ids: Tensor,
                lengths: Sequence[int]) -> Verdict:  # fmt: skip
        begun = time.perf_counter()
        try:
            if proposal is None:
                tokens = self._plain_tokens(view, logits[:, 0], ids, lengths)
                return Verdict(torch.zeros_like(tokens), tokens)
            scores = BlockScores(logits, view.options, ids, lengths, proposal.ids)
            noise = view.noise(proposal.ids.shape[1])
            try:
                return self._verifier.verify(proposal, scores, noise)
            except ProcessorError:
                raise
            except Exception as exc:
                if isinstance(self._verifier, ExactVerifier):
                    raise
                self._note(f"degraded: the verifier failed, decoding goes on exactly: {exc!r}")
                self._verifier = ExactVerifier()
                return self._verifier.verify(proposal, scores, noise)
        finally:
            self.timings.verify += time.perf_counter() - begun

    def _take(self, view: View, proposal: Proposal | None, verdict: Verdict, lengths: Sequence[int],
              gained: dict[Row, int]) -> tuple[list[int], list[int]]:  # fmt: skip
        """Hand the block's tokens to the rows; return what each row accepted and really drafted."""
        size = len(view.rows)
        columns = [verdict.accepted[:, None], verdict.next_ids[:, None]]
        counts = None
        if proposal is None:
            self._batch.write(range(size), lengths, columns[1])
        else:
            counts = proposal.counts
            block = torch.cat([proposal.ids, columns[1]], dim=1).scatter_(1, *columns)
            self._batch.write(range(size), lengths, block)
            columns.append(proposal.ids)
        width = 0 if proposal is None else proposal.ids.shape[1]
        drafted_per_row = [width] * size if counts is None else counts.tolist()
        accepted_per_row = []
        for row, drafted, values in zip(view.rows, drafted_per_row, torch.cat(columns, dim=1).tolist(), strict=True):
            accepted, following, *drafts = values
            before = len(row.tokens)
            kept = row.take([*drafts[:accepted], following])
            if self._on_block is not None and (drafted or row.done):
                self._on_block(_event(row, before, drafts[:drafted], accepted))
            gained[row] = gained.get(row, 0) + kept
            row.result.counts.add_block(drafted, min(accepted, kept), bonus=accepted == drafted and kept > accepted)
            accepted_per_row.append(accepted)
        return accepted_per_row, drafted_per_row

    # ------------------------------------------------------------------------------------------------------- failures

    def _commit(self, kept: Tensor) -> None:
        if self.drafter is None:
            return
        begun = time.perf_counter()
        try:
            self.drafter.commit(kept)
        except Exception as exc:  # noqa: BLE001 - as for propose
            self._give_up_drafting(exc)
        self.timings.draft += time.perf_counter() - begun

    def _give_up_drafting(self, exc: Exception) -> None:
        self.drafter = None
        self._note(f"degraded: the drafter failed, decoding goes on without it: {exc!r}")

    def _note(self, text: str) -> None:
        _log.warning("%s", text, exc_info=True)
        self._notes.append(text)


def _event(row: Row, before: int, drafted: Sequence[int], accepted: int) -> TraceEvent:
    """The block that took ``row`` on from its first ``before`` tokens."""
    return TraceEvent(
        row.request.request_id,
        tuple(row.tokens[:before]),
        tuple(drafted),
        accepted,
        kept=tuple(row.tokens[before:]),
        prompt_tokens=row.prompt,
        row=row.identity,
        finished=row.done and row.result.error is None,
    )


def _groups(rows: list[Row]) -> list[list[Row]]:
    """Rows to prefill together: of similar length, so that padding stays cheap."""
    groups: list[list[Row]] = []
    total = 0
    for row in sorted(rows, key=lambda row: len(row.tokens)):
        length = len(row.tokens)
        if groups and (len(groups[-1]) + 1) * length <= _PADDING * (total + length):
            groups[-1].append(row)
            total += length
        else:
            groups.append([row])
            total = length
    return groups


def _fail(rows: Sequence[Row], exc: Exception) -> None:
    _log.error("the target failed; %d rows end with what they have", len(rows), exc_info=True)
    for row in rows:
        error = RequestError(f"the target model failed: {exc!r}")
        error.__cause__ = exc
        row.finish(None, error=error)
