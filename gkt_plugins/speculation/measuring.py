"""Measures what the planner needs, with the decode loop itself, within a budget of seconds.

First the prompts are answered with one gamma, and every block is observed: that gives acceptance per position of every
answer. Then rows that stand within those answers are stepped through all batch sizes and gammas, again and
again, so that costs are compared which were taken close together: the verify curve, the draft, prompts, and what the
loop itself takes are all in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from time import perf_counter

import torch
from torch import Tensor

from gkt_plugins.contracts import DecodeState, Drafter, Proposal, Sampling, TraceEvent, Verifier
from gkt_plugins.errors import BackendError, ConfigError
from gkt_plugins.speculation.gamma import FixedGamma
from gkt_plugins.speculation.loop import DecodeLoop
from gkt_plugins.speculation.planner import Measurement
from gkt_plugins.speculation.replay import AnswerTrace
from gkt_plugins.speculation.requests import DecodeRequest, DecodeResult
from gkt_plugins.speculation.step_costs import PrefillTime, StepTime
from gkt_plugins.speculation.target import CausalTarget

__all__ = ["measure"]

_MAX_ANSWERS = 64
"""Prompts that are answered; of more, a sample."""
_ANSWERING_SHARE = 0.5
"""Of the budget: the most that answering may take."""
_MIN_ROUNDS, _MAX_ROUNDS = 4, 20
_ENDLESS = 2**20
"""Tokens that a timed row may write: its answer is not to end."""


def measure(
    target: CausalTarget,
    drafter: Drafter,
    prompts: Sequence[Sequence[int]],
    *,
    batches: Sequence[int],
    gamma_max: int,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    eos_ids: Sequence[int] = (),
    verifier: Verifier | None = None,
    budget_s: float = 120.0,
    seed: int = 0,
    on_progress: Callable[[float], None] | None = None,
) -> Measurement:
    """Measure a pair of models on this machine.

    :param drafter: made for ``target``; nobody else uses it meanwhile.
    :param prompts: at least two; of many, a sample is answered.
    :param batches: batch sizes that will be planned for; those between them are measured too.
    :param verifier: None is exact.
    :param budget_s: seconds that measuring may take. Answers are cut off at half of it, and count with the tokens they
        have.
    :param on_progress: gets the share of the work that is done, in [0, 1].
    :raises ConfigError: fewer than two prompts, or a budget too small for a few rounds of steps.
    :raises BackendError: the target or the drafter fails.
    """
    if len(prompts) < 2:
        raise ConfigError(f"expected at least 2 prompts to plan with, got {len(prompts)}; give more")
    begun = perf_counter()
    report = on_progress or (lambda share: None)
    if target.device.type != "cpu":
        target, drafter = _AwaitedTarget(target), _AwaitedDrafter(drafter, target.device)
    rng = Random(seed)
    chosen = [list(prompt) for prompt in rng.sample(list(prompts), min(_MAX_ANSWERS, len(prompts)))]
    sampling = Sampling(max_tokens=max_new_tokens, temperature=temperature)
    bench = _Bench(target, drafter, verifier, sampling, max(batches))
    bench.warm_up(chosen[: max(batches)])
    answers = bench.answer(
        chosen, tuple(eos_ids), gamma_max, begun + _ANSWERING_SHARE * budget_s, lambda share: report(share / 2)
    )
    rounds = _Rounds(bench, answers, sizes=_sizes(batches), gammas=_gammas(gamma_max), rng=rng)
    for number in range(_MAX_ROUNDS):
        started = perf_counter()
        rounds.run(number)
        took = perf_counter() - started
        report(0.5 + (number + 1) / (2 * _MAX_ROUNDS))
        left = budget_s - (perf_counter() - begun)
        if number == 0 and (_MIN_ROUNDS - 1) * took > left:
            raise ConfigError(
                f"a budget of {budget_s:g} s is too small: {_MIN_ROUNDS} rounds of timed steps take about "
                f"{_MIN_ROUNDS * took:.0f} s beside the answers; raise it, or ask for smaller batches or gammas"
            )
        if number + 1 >= _MIN_ROUNDS and 1.2 * took > left:
            break
    report(1.0)
    return Measurement(
        tuple(answer.trace for answer in answers),
        tuple(rounds.steps),
        tuple(rounds.prefills),
        max_new_tokens,
        perf_counter() - begun,
    )


def _sizes(batches: Sequence[int]) -> list[int]:
    """The asked batch sizes and the powers of two below them: a batch that runs empty goes through all."""
    largest = max(batches)
    return sorted({*batches, *(2**i for i in range(largest.bit_length()) if 2**i <= largest)})


def _gammas(gamma_max: int) -> list[int]:
    """Every gamma up to 8, then every other."""
    return sorted({*range(1, min(gamma_max, 8) + 1), *range(10, gamma_max + 1, 2), gamma_max})


@dataclass(frozen=True, slots=True)
class _Answer:
    """One prompt's answer."""

    prompt: list[int]
    tokens: list[int]
    trace: AnswerTrace

    def under_way(self) -> list[int]:
        """The row with a quarter of its answer: with what it writes while steps are timed, contexts are then about as
        long as they are on average."""
        return self.prompt + self.tokens[: len(self.tokens) // 4]


class _Recorder:
    """Observes blocks; ``request_id`` is the prompt's place."""

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self._prompts = prompts
        self._passed: list[dict[int, bool]] = [{} for _ in prompts]

    def __call__(self, event: TraceEvent) -> None:
        place = int(event.request_id)
        first = len(event.token_ids) - len(self._prompts[place])
        passed = self._passed[place]
        for i in range(event.accepted):
            passed[first + i] = True
        if event.accepted < len(event.drafted):
            passed[first + event.accepted] = False

    def trace(self, place: int, tokens: int, *, finished: bool) -> AnswerTrace:
        passed = self._passed[place]
        return AnswerTrace(len(self._prompts[place]), tuple(passed.get(i) for i in range(tokens)), finished)


class _AwaitedTarget:
    """A target on an accelerator whose calls return when they are done, so that clocks tell them from the draft's."""

    def __init__(self, target: CausalTarget) -> None:
        self._target = target
        self.vocab_size = target.vocab_size
        self.context = target.context
        self.device = target.device
        self.seconds = 0.0

    def forward(self, ids: Tensor, starts: Sequence[int], *, slots: Sequence[int] | None = None,
                last: Sequence[int] | None = None) -> Tensor:  # fmt: skip
        logits = self._target.forward(ids, starts, slots=slots, last=last)
        torch.accelerator.synchronize(self.device)
        return logits

    def move(self, source: int, destination: int, length: int) -> None:
        self._target.move(source, destination, length)


class _AwaitedDrafter:
    """A drafter likewise."""

    def __init__(self, drafter: Drafter, device: torch.device) -> None:
        self._drafter = drafter
        self._device = device

    def propose(self, state: DecodeState, gamma: int) -> Proposal:
        proposal = self._drafter.propose(state, gamma)
        torch.accelerator.synchronize(self._device)
        return proposal

    def commit(self, kept: Tensor) -> None:
        self._drafter.commit(kept)


class _Bench:
    """The models and how they are driven."""

    def __init__(
        self,
        target: CausalTarget,
        drafter: Drafter,
        verifier: Verifier | None,
        sampling: Sampling,
        max_batch: int,
    ) -> None:
        self.target = target
        self.drafter = drafter
        self.verifier = verifier
        self.sampling = sampling
        self.max_batch = max_batch

    def warm_up(self, prompts: Sequence[list[int]]) -> None:
        """First calls pay for allocations and packing."""
        short = replace(self.sampling, max_tokens=4)
        loop = self.loop(FixedGamma(2))
        self.checked(loop, loop.run([DecodeRequest(prompt, short) for prompt in prompts]))

    def answer(
        self,
        prompts: Sequence[list[int]],
        eos_ids: tuple[int, ...],
        gamma: int,
        deadline: float,
        report: Callable[[float], None],
    ) -> list[_Answer]:
        """Answer the prompts; those that the deadline cuts off count with the tokens that they have."""
        recorder = _Recorder(prompts)
        loop = self.loop(FixedGamma(gamma), on_block=recorder)
        done: list[DecodeResult] = []
        identities = []
        for place, prompt in enumerate(prompts):
            request = DecodeRequest(prompt, replace(self.sampling, seed=place), eos_ids=eos_ids, request_id=str(place))
            identities.append(loop.add(request, on_finish=done.append))
        while loop.busy:
            if perf_counter() > deadline and not any(result.finish_reason == "cancelled" for result in done):
                for identity in identities:
                    loop.cancel(identity)
            loop.step()
            report(len(done) / len(prompts))
        self.checked(loop, done)
        answers = []
        for result in done:
            place = int(result.request.request_id)
            if result.token_ids:
                finished = result.finish_reason != "cancelled"
                trace = recorder.trace(place, len(result.token_ids), finished=finished)
                answers.append(_Answer(prompts[place], result.token_ids, trace))
        if len(answers) < 2:
            raise ConfigError("the budget ended before two answers had begun; raise it, or give shorter prompts")
        return answers

    def loop(self, gamma: FixedGamma | _Chosen, *, on_block: Callable[[TraceEvent], None] | None = None) -> DecodeLoop:
        return DecodeLoop(
            self.target,
            drafter=self.drafter,
            verifier=self.verifier,
            gamma=gamma,
            max_batch=self.max_batch,
            on_block=on_block,
        )

    def checked(self, loop: DecodeLoop, results: Sequence[DecodeResult]) -> None:
        """Nothing may have failed."""
        for result in results:
            if result.error is not None:
                raise BackendError(f"a prompt could not be answered: {result.error}") from result.error
            if loop.drafter is None:
                raise BackendError(f"nothing can be planned: {'; '.join(result.notes)}")


class _Chosen:
    """A gamma policy that does as it is told, and keeps what it is told."""

    def __init__(self) -> None:
        self.gamma = 1
        self.batch = 0
        self.drafted = 0
        self.steady = False
        self.behind = False
        """After the last block: some row had kept all of it."""

    def choose(self, batch: int) -> int:
        return self.gamma

    def observe(self, batch: int, gamma: int, seconds: float, drafted: Sequence[int], accepted: Sequence[int], *,
                steady: bool) -> None:  # fmt: skip
        self.batch, self.drafted, self.steady = batch, gamma, steady
        self.behind = gamma > 0 and max(accepted) >= gamma


class _Rounds:
    """Timed steps at all batch sizes and gammas, rows standing within their answers."""

    def __init__(
        self, bench: _Bench, answers: Sequence[_Answer], *, sizes: Sequence[int], gammas: Sequence[int], rng: Random
    ) -> None:
        self.steps: list[StepTime] = []
        self.prefills: list[PrefillTime] = []
        self._answers = answers
        self._sizes = sizes
        self._gammas = gammas
        self._rng = rng
        self._sampling = replace(bench.sampling, max_tokens=_ENDLESS)
        self._policy = _Chosen()
        self._bench = bench
        self._loop = bench.loop(self._policy)
        self._done: list[DecodeResult] = []

    def run(self, number: int) -> None:
        """One round: the batch grows through the sizes; at each, plain steps and every gamma."""
        rows = [self._rng.choice(self._answers).under_way() for _ in range(self._sizes[-1])]
        identities: list[int] = []
        for size in self._sizes:
            self._enter(number, rows[len(identities) : size], identities)
            for gamma in (0, 0, 0):
                self._keep(self._step(number, gamma)[0])
            self._step(number, 1)  # the drafter catches up with the plain steps
            for gamma in self._rng.sample(list(self._gammas), len(self._gammas)):
                self._keep(self._step(number, gamma)[0])
        for identity in identities:
            self._loop.cancel(identity)
        while self._loop.busy:
            self._loop.step()
        self._bench.checked(self._loop, self._done)
        self._done.clear()

    def _enter(self, number: int, rows: Sequence[list[int]], identities: list[int]) -> None:
        requests = [DecodeRequest(row, self._sampling) for row in rows]
        identities.extend(self._loop.add(request, on_finish=self._done.append) for request in requests)
        entered = 0
        while entered < len(rows) and not self._done:  # the loop lets in only so many prompt tokens at once
            before = self._policy.batch if entered or len(identities) > len(rows) else 0
            step, reading_s = self._step(number, 1)
            new = self._policy.batch - before
            tokens = sum(map(len, rows[entered : entered + new]))
            if new > 0 and step is not None:
                self.prefills.append(PrefillTime(tokens, reading_s, step))
            entered += max(new, 1)

    def _keep(self, step: StepTime | None) -> None:
        if step is not None:
            self.steps.append(step)

    def _step(self, number: int, gamma: int) -> tuple[StepTime | None, float]:
        """One step of the loop, and the seconds of its prefill; None when it decoded no block of ``gamma``."""
        before = replace(self._loop.timings)
        behind = self._policy.behind
        self._policy.gamma, self._policy.drafted = gamma, -1
        self._loop.step()
        now = self._loop.timings
        if self._policy.drafted != gamma:
            return None, now.prefill - before.prefill
        target, draft = now.target - before.target, now.draft - before.draft
        reading = now.prefill - before.prefill
        rest = now.total - before.total - reading - target - draft
        steady = gamma == 0 or self._policy.steady
        return StepTime(number, self._policy.batch, gamma, target, draft, rest, behind, steady), reading
