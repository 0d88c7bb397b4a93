"""What drafting would have done to answers that are known: blocks of any gamma, and a queue of rows in a batch.

Nothing is assumed about how acceptance is distributed. Exact verification draws the target's own answer, and whether a
drafted token passes at a position depends on the tokens before it alone, not on where the block began: at temperature
0 it passes when the draft agrees with the target, otherwise with min(1, q/p) of the token that stands there. So one run
of the decode loop tells for each position of an answer whether drafting passes there, and any other gamma is replayed
over it: hard passages, easy ones, lengths and ends are the answers' own. Other verifiers follow this closely, not
exactly. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

__all__ = ["AnswerTrace", "BlockCosts", "Replay", "active_rows", "decode_seconds", "fill"]


@dataclass(frozen=True, slots=True)
class AnswerTrace:
    """One answer of the target, and where the draft would have had its way."""

    prompt_tokens: int
    passed: tuple[bool | None, ...]
    """Per token of the answer: the drafted token was accepted there, or not; None where nothing was tested (the first
    token comes from the prompt's own call, others are the target's own after a block that passed whole)."""
    finished: bool = True
    """False: measuring ended before the answer did."""


class BlockCosts(Protocol):
    """What :func:`decode_seconds` asks of a cost model; all in seconds."""

    def block(self, batch: int, gamma: int, *, behind: bool) -> float:
        """One step of ``batch`` rows; gamma 0 is plain. ``behind``: some row had its whole last block accepted, so
        that the draft begins with two tokens."""
        ...

    def prefill(self, tokens: int) -> float:
        """The target reads prompts of so many tokens in all."""
        ...

    def draft_prefill(self, tokens: int) -> float:
        """The draft reads them."""
        ...


def fill(traces: Sequence[AnswerTrace], *, seed: int = 0) -> list[list[bool]]:
    """Each trace with its untested positions drawn, at the rate of positions whose predecessor passed."""
    followed = [
        now
        for trace in traces
        for before, now in zip(trace.passed, trace.passed[1:], strict=False)
        if before and now is not None
    ]
    tested = followed or [now for trace in traces for now in trace.passed if now is not None]
    rate = sum(tested) / len(tested) if tested else 0.0
    rng = Random(seed)
    return [[rng.random() < rate if now is None else now for now in trace.passed] for trace in traces]


class Replay:
    """An answer that can be decoded again with any gamma."""

    def __init__(self, prompt_tokens: int, passed: Sequence[bool], *, limit: int) -> None:
        """``passed``: per token of the answer, from :func:`fill`. ``limit``: tokens that the row was allowed to write,
        at least as many."""
        self.prompt_tokens = prompt_tokens
        self.tokens = len(passed)
        self.limit = max(limit, self.tokens)
        self._run = [0] * (self.tokens + 1)
        for position in range(self.tokens - 1, -1, -1):
            self._run[position] = self._run[position + 1] + 1 if passed[position] else 0

    def accepted(self, position: int, gamma: int) -> int:
        """Drafted tokens that a block beginning at ``position`` keeps, of the answer and of what the row may write."""
        return min(self._run[position], gamma, self.limit - position - 1)

    def counts(self, gamma: int) -> list[tuple[int, int]]:
        """Per draft position of a block: how often it was tested, how often accepted; within the answer."""
        tested, accepted = [0] * gamma, [0] * gamma
        for position, width in self._blocks(gamma):
            kept = min(self._run[position], width)
            for i in range(min(kept + 1, width)):
                tested[i] += 1
                accepted[i] += i < kept
        return list(zip(tested, accepted, strict=True))

    def blocks(self, gamma: int) -> int:
        """Target calls that the answer takes after its first token."""
        return len(self._blocks(gamma))

    def _blocks(self, gamma: int) -> list[tuple[int, int]]:
        """Where each block begins, and how many of its drafts lie within the answer."""
        found, position = [], 1
        while position < self.tokens:
            found.append((position, min(gamma, self.tokens - position)))
            position += self.accepted(position, gamma) + 1
        return found


def decode_seconds(rows: Sequence[Replay], *, batch: int, gamma: int, costs: BlockCosts) -> list[float]:
    """Wall time of decoding ``rows`` as a queue, ``batch`` at a time, shared out to the rows; the sum is the whole.

    Mirrors the decode loop: prompts enter where rows have ended, their first token comes with the prompt, and a step
    costs what its number of rows costs, so that a batch which runs empty gets cheaper. ``gamma`` 0 decodes plainly.
    """
    seconds = [0.0] * len(rows)
    place: dict[int, int] = {}
    waiting, behind = 0, False
    while place or waiting < len(rows):
        entering = range(waiting, min(waiting + batch - len(place), len(rows)))
        waiting = entering.stop if entering else waiting
        prompt_tokens = sum(rows[row].prompt_tokens for row in entering)
        reading = costs.prefill(prompt_tokens) if entering else 0.0
        for row in entering:
            seconds[row] += reading * rows[row].prompt_tokens / max(prompt_tokens, 1)
            if rows[row].tokens > 1:
                place[row] = 1
        if not place:
            continue
        width = min(gamma, max(rows[row].limit - position for row, position in place.items()) - 1)
        step = costs.block(len(place), width, behind=behind)
        fresh = sum(rows[row].prompt_tokens for row in entering if row in place)
        if width and fresh:
            step += costs.draft_prefill(fresh)
        gained: dict[int, int] = {}
        behind = False
        for row, position in list(place.items()):
            kept = rows[row].accepted(position, width)
            gained[row] = min(kept + 1, rows[row].tokens - position)
            if position + gained[row] >= rows[row].tokens:
                del place[row]
            else:
                place[row] = position + gained[row]
                behind |= kept == width > 0
        total = sum(gained.values())
        for row, share in gained.items():
            seconds[row] += step * share / total
    return seconds


def active_rows(steps: Sequence[int]) -> list[int]:
    """Rows still under way in each step of a batch that entered together; ``steps``: how many each row takes."""
    return [sum(step < taken for taken in steps) for step in range(max(steps, default=0))]
