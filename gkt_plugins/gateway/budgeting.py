"""Budgets before a request: shorten the guidance, then leave the teacher out, then refuse.

What a request may cost at most is reserved in the ledger's database before anything is called, and replaced by what it
did cost when it is over; so several processes cannot overspend together. Without a budget nothing is reserved.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from gkt_plugins.accounting.budgets import Budget, require_prices, utc_day, worst_cost_nano
from gkt_plugins.accounting.money import format_money, parse_nano
from gkt_plugins.contracts import PriceSource, UsageRecord
from gkt_plugins.gateway.access import Client
from gkt_plugins.gateway.refusals import RefusedError
from gkt_plugins.guidance.estimates import estimate_tokens
from gkt_plugins.guidance.events import Request
from gkt_plugins.guidance.exchange import Parts

if TYPE_CHECKING:
    from gkt_plugins.config import Config

__all__ = ["Admission", "Ladder", "Reservations", "Step"]

Step: TypeAlias = Literal["full", "shortened", "student", "refused"]
"""How far down the ladder a request went."""

_EVERYTHING = "all"
_MOST_NANO = 2**63 - 1
"""What the ledger can hold; nine thousand million units. An absurd ``max_tokens`` costs more."""
_TOKENS_PER_MESSAGE = 8
"""What chat templates put around a message, generously."""


class Reservations(Protocol):
    """What the ladder needs; :class:`~gkt_plugins.accounting.accountant.Accountant` is one."""

    @property
    def prices(self) -> PriceSource: ...
    async def reserve(
        self, reservation_id: str, budgets: Sequence[Budget], amount_nano: int, day: str
    ) -> Budget | None: ...
    async def settle(self, reservation_id: str, spent_nano: int | None) -> None: ...
    async def room(self, budgets: Sequence[Budget], day: str) -> int: ...


@dataclass(frozen=True)
class Admission:
    """Leave to serve a request, and what is held for it until it is settled."""

    requests: tuple[Request, ...]
    """What to serve: as asked, or with less guidance."""
    step: Step = "full"
    note: str = ""
    """What the answer should say; empty where the budget changed nothing."""
    held: Reservations | None = None
    """Where the reservations are; None: there are none."""

    @property
    def degraded(self) -> bool:
        """The budget left it less guidance than it would have had."""
        return self.step != "full"

    async def settle(self, records: Iterable[UsageRecord]) -> None:
        """Give back what was held and not spent; to be awaited once, however the request ended.

        ``records``: of all its engine calls, as the ledger has them. A call whose cost is unknown counts as all that
        was held.

        :raises BackendError: the ledger cannot be written; recovery will settle it.
        """
        if self.held is None:
            return
        costs: dict[str, list[int | None]] = {request.request_id: [] for request in self.requests}
        for record in records:
            costs[record.request_id].append(record.cost_nano)
        await _settle(self.held, {request_id: _total(found) for request_id, found in costs.items()})


class Ladder:
    """Holds every request against the budgets of its client and of all."""

    def __init__(
        self,
        held: Reservations,
        total: Budget | None,
        *,
        currency: str = "USD",
        request_timeout_s: float = 600.0,
        told: Callable[[Step], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prefer :meth:`from_config`. ``total``: of all requests together. ``currency``: of every client's budget.

        ``request_timeout_s``: how long a call may last at most, which bounds the cost of own hardware. ``told``: hears
        of every request that a budget applies to. ``clock``: seconds since the epoch.
        """
        self._held = held
        self._total = total
        self._currency = currency
        self._timeout_s = request_timeout_s
        self._told = told or _nobody
        self._clock = clock

    @classmethod
    def from_config(
        cls,
        config: Config,
        held: Reservations,
        pipelines: Iterable[Parts],
        *,
        told: Callable[[Step], None] | None = None,
    ) -> Ladder:
        """``[budget]`` and ``[gateway.keys.NAME] budget_per_day``.

        :raises ConfigError: there is a budget, and the price of a model is unknown or in another currency.
        """
        currency = config.budget.currency if config.budget else "USD"
        total = Budget(_EVERYTHING, parse_nano(config.budget.per_day), currency) if config.budget else None
        if total or any(key.budget_per_day is not None for key in config.gateway.keys.values()):
            engines = [engine for parts in pipelines for engine in (parts.teacher, parts.student) if engine]
            require_prices(held.prices, sorted({engine.model for engine in engines}), currency=currency)
        timeout_s = config.gateway.request_timeout_s
        return cls(held, total, currency=currency, request_timeout_s=timeout_s, told=told)

    async def admit(
        self, client: Client, requests: tuple[Request, ...], parts: Parts, *, forwarded: bool = False
    ) -> Admission:
        """Reserve what ``requests`` (the prompts of one HTTP request, each with an id of our own) may cost at most.

        ``forwarded``: they go to the student untouched, so no teacher can cost anything.

        :raises RefusedError: 429 ``insufficient_quota``, not even the student alone fits; 503 ``price_unknown``.
        :raises BackendError: the ledger cannot be written.
        """
        budgets = self._budgets(client)
        if not budgets:
            return Admission(requests)
        now = self._clock()
        day = utc_day(now)
        room: int | None = None
        short = budgets[0]
        for step, served in _rungs(requests, parts, forwarded=forwarded):
            costs = [self._worst_cost(request, parts) for request in served]
            if room is not None and sum(costs) > room:
                continue
            found = await self._reserve(served, costs, budgets, day)
            if found is None:
                self._told(step)
                return Admission(served, step, _note(step, short), self._held)
            short = found
            room = await self._held.room(budgets, day)
        self._told("refused")
        raise _used_up(short, room or 0, sum(costs), now)

    def _budgets(self, client: Client) -> list[Budget]:
        own = client.budget_nano
        budgets = [] if own is None else [Budget(f"key:{client.name}", own, self._currency)]
        return budgets if self._total is None else [*budgets, self._total]

    async def _reserve(
        self, requests: Sequence[Request], costs: Sequence[int], budgets: Sequence[Budget], day: str
    ) -> Budget | None:
        """Everything, or nothing and the budget that was short."""
        tried: list[str] = []
        short: Budget | None = None
        complete = False
        try:
            for request, cost in zip(requests, costs, strict=True):
                tried.append(request.request_id)
                short = await self._held.reserve(request.request_id, budgets, cost, day)
                if short is not None:
                    break
            complete = short is None
        finally:
            if not complete:  # also when the client went away meanwhile: what was asked of the ledger is done anyway
                await _settle(self._held, dict.fromkeys(tried, 0))
        return short

    def _worst_cost(self, request: Request, parts: Parts) -> int:
        cost = worst_cost_nano(
            self._held.prices,
            teacher=parts.teacher.model if parts.teacher else None,
            student=parts.student.model,
            prompt_tokens=_prompt_tokens(request),
            guidance_tokens=request.guidance_tokens or 0,
            max_tokens=request.sampling.max_tokens,
            n=request.n,
            currency=self._currency,
            timeout_s=self._timeout_s,
        )
        if cost is None:
            raise RefusedError(
                f"a budget in {self._currency} applies, and what this request may cost cannot be told because a price "
                "is unknown; the gateway's operator has to add it to [prices]",
                status=503,
                code="price_unknown",
                kind="api_error",
            )
        return min(cost, _MOST_NANO)


def _total(costs: Sequence[int | None]) -> int | None:
    known = [cost for cost in costs if cost is not None]
    return sum(known) if len(known) == len(costs) else None


async def _settle(held: Reservations, spent: Mapping[str, int | None]) -> None:
    """Settle every reservation, whether or not the client goes away meanwhile."""

    async def all_of_them() -> None:
        for request_id, spent_nano in spent.items():
            await held.settle(request_id, spent_nano)

    if len(spent) == 1:
        await all_of_them()  # what the ledger was once asked it does, also for a caller who is cancelled
    else:
        await asyncio.shield(asyncio.ensure_future(all_of_them()))


def _nobody(step: Step) -> None:
    pass


def _rungs(
    requests: tuple[Request, ...], parts: Parts, *, forwarded: bool
) -> Iterator[tuple[Step, tuple[Request, ...]]]:
    """As asked, then half and a quarter of the guidance, then none. Guidance is written into every request, so that
    what is served is what was reserved."""
    asked = [0 if forwarded else _guidance_tokens(request, parts) for request in requests]
    seen: set[tuple[int, ...]] = set()
    for divisor in (1, 2, 4, None):
        budgets = tuple(0 if divisor is None else tokens // divisor for tokens in asked)
        if budgets in seen:
            continue
        seen.add(budgets)
        step: Step = "full" if divisor == 1 else "shortened" if any(budgets) else "student"
        yield (
            step,
            tuple(replace(request, guidance_tokens=tokens) for request, tokens in zip(requests, budgets, strict=True)),
        )


def _guidance_tokens(request: Request, parts: Parts) -> int:
    """The guidance that ``request`` would have, were there no budget."""
    if parts.rules.length is None or parts.teacher is None or request.features:
        return 0
    tokens = request.guidance_tokens
    if tokens is None:
        tokens = parts.rules.length.guidance_tokens(request.prompt)
    return min(tokens, request.sampling.max_tokens)


def _prompt_tokens(request: Request) -> int:
    prompt = request.prompt
    if prompt.text is not None:
        return estimate_tokens(prompt.text)
    return sum(estimate_tokens(message.content) + _TOKENS_PER_MESSAGE for message in prompt.messages)


def _note(step: Step, short: Budget) -> str:
    if step == "full":
        return ""
    what = "the guidance was shortened" if step == "shortened" else "the student answered alone"
    return f"degraded: {what}, because {_whose(short)} runs short"


def _whose(budget: Budget) -> str:
    if budget.scope == _EVERYTHING:
        return "the gateway's budget of the day"
    return f"the budget of the day of the key {budget.scope.removeprefix('key:')!r}"


def _used_up(short: Budget, room: int, cost: int, now: float) -> RefusedError:
    moment = datetime.fromtimestamp(now, UTC)
    midnight = moment.replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
    return RefusedError(
        f"{_whose(short)} has {format_money(room, short.currency)} left, and this request may cost "
        f"{format_money(cost, short.currency)}; ask for fewer max_tokens, or come back after midnight UTC",
        status=429,
        code="insufficient_quota",
        kind="insufficient_quota",
        retry_after_s=(midnight - moment).total_seconds(),
        headers={"x-should-retry": "false"},  # OpenAI's clients would try a 429 again at once
    )
