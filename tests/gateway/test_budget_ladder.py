"""Budgets: what a request may cost is held before it begins; then less guidance, no teacher, no answer."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gkt_plugins.accounting.accountant import Accountant
from gkt_plugins.accounting.budgets import Budget
from gkt_plugins.accounting.ledger import Ledger
from gkt_plugins.accounting.prices import ConfigPrices
from gkt_plugins.config import load_config
from gkt_plugins.contracts import Prompt, Sampling, Usage, UsageRecord
from gkt_plugins.errors import ConfigError
from gkt_plugins.gateway.access import Client
from gkt_plugins.gateway.budgeting import Ladder
from gkt_plugins.gateway.refusals import RefusedError
from gkt_plugins.guidance.events import Request, Rules
from gkt_plugins.guidance.exchange import Parts
from gkt_plugins.guidance.policies import FixedLength, WordCut
from gkt_plugins.testing.engines import ScriptedEngine

# One token is one unit of money, so that costs can be read off: "four" is a prompt of one token.
TOKEN = {"input_per_million": "1000000", "output_per_million": "1000000"}
UNIT = 1_000_000_000
ANYBODY = Client()
NOON = 1_800_000_000.0 - 1_800_000_000.0 % 86400 + 43200


@pytest.fixture
async def accounts(tmp_path):
    prices = ConfigPrices({"large": TOKEN, "small": TOKEN})
    accountant = Accountant(prices, Ledger.open(f"sqlite:///{tmp_path}/gkt.db"))
    yield accountant
    await accountant.aclose()


@pytest.fixture
def parts():
    rules = Rules(length=FixedLength(8), cutting=WordCut())
    return Parts(rules, ScriptedEngine("s", model="small"), ScriptedEngine("t", model="large"))


def ladder(accounts, limit: int | None, told=None) -> Ladder:
    total = None if limit is None else Budget("all", limit * UNIT)
    return Ladder(accounts, total, told=told, clock=lambda: NOON)


def request(name: str = "r1", **changes) -> Request:
    return replace(Request(Prompt(text="four"), Sampling(max_tokens=20), request_id=name), **changes)


def record(name: str, units: int | None) -> UsageRecord:
    cost = None if units is None else units * UNIT
    return UsageRecord(name, 0, "student", 0, "e", "small", "final", Usage(), cost_nano=cost, started_at=1.0)


async def room(accounts, limit: int) -> int:
    return await accounts.room([Budget("all", limit * UNIT)], "2027-01-15") // UNIT


# As asked: teacher 1 + 8, student 1 + 8 + 20 = 38 units; with half the guidance 30, with a quarter 26, alone 21.
@pytest.mark.parametrize(
    ("limit", "guidance_tokens", "step"),
    [(38, 8, "full"), (37, 4, "shortened"), (30, 4, "shortened"), (29, 2, "shortened"), (26, 2, "shortened"),
     (25, 0, "student"), (21, 0, "student")],
)  # fmt: skip
async def test_guidance_is_halved_then_quartered_then_left_out(accounts, parts, limit, guidance_tokens, step):
    admission = await ladder(accounts, limit).admit(ANYBODY, (request(),), parts)
    assert [served.guidance_tokens for served in admission.requests] == [guidance_tokens]
    assert admission.step == step
    assert admission.degraded == (step != "full")
    assert admission.note.startswith("degraded: ") == (step != "full")


async def test_what_does_not_fit_even_without_the_teacher_is_refused_and_nothing_stays_held(accounts, parts):
    with pytest.raises(RefusedError, match=r"has USD 20\.00 left, and this request may cost USD 21\.00") as refused:
        await ladder(accounts, 20).admit(ANYBODY, (request(),), parts)
    assert (refused.value.status, refused.value.code, refused.value.kind) == (429, *["insufficient_quota"] * 2)
    assert refused.value.retry_after_s == 43200  # from noon to midnight
    assert refused.value.headers == {"x-should-retry": "false"}
    assert await room(accounts, 20) == 20


async def test_requests_under_way_hold_what_they_may_cost(accounts, parts):
    budget = ladder(accounts, 60)
    first = await budget.admit(ANYBODY, (request("a"),), parts)
    second = await budget.admit(ANYBODY, (request("b"),), parts)
    assert (first.step, second.step) == ("full", "student")
    with pytest.raises(RefusedError):
        await budget.admit(ANYBODY, (request("c"),), parts)


async def test_settling_gives_back_what_was_not_spent(accounts, parts):
    budget = ladder(accounts, 60)
    admission = await budget.admit(ANYBODY, (request("a"),), parts)
    assert await room(accounts, 60) == 60 - 38
    await admission.settle([record("a", 3), record("a", 4)])
    assert await room(accounts, 60) == 60 - 7
    await admission.settle([record("a", 3)])
    assert await room(accounts, 60) == 60 - 7


async def test_a_call_of_unknown_cost_counts_as_all_that_was_held(accounts, parts):
    admission = await ladder(accounts, 60).admit(ANYBODY, (request("a"),), parts)
    await admission.settle([record("a", 3), record("a", None)])
    assert await room(accounts, 60) == 60 - 38


async def test_a_request_that_called_nobody_costs_nothing(accounts, parts):
    admission = await ladder(accounts, 60).admit(ANYBODY, (request("a"),), parts)
    await admission.settle([])
    assert await room(accounts, 60) == 60


async def test_several_prompts_of_one_request_are_admitted_together_or_not_at_all(accounts, parts):
    budget = ladder(accounts, 50)
    admission = await budget.admit(ANYBODY, (request("a-0"), request("a-1")), parts)
    assert [served.guidance_tokens for served in admission.requests] == [0, 0]  # 2 × 26 is too much, 2 × 21 is not
    await admission.settle([record("a-0", 1), record("a-1", 2)])
    assert await room(accounts, 50) == 47
    with pytest.raises(RefusedError):
        await budget.admit(ANYBODY, tuple(request(f"b-{i}") for i in range(3)), parts)
    assert await room(accounts, 50) == 47


async def test_the_client_s_own_budget_and_the_budget_of_all_both_hold(accounts, parts):
    budget = ladder(accounts, 100)
    team, other = Client("team", budget_nano=40 * UNIT), Client("other", budget_nano=90 * UNIT)
    assert (await budget.admit(team, (request("a"),), parts)).step == "full"
    with pytest.raises(RefusedError, match="the budget of the day of the key 'team'"):
        await budget.admit(team, (request("b"),), parts)
    assert (await budget.admit(other, (request("c"),), parts)).step == "full"
    last = await budget.admit(other, (request("d"),), parts)
    assert last.step == "student"
    assert "because the gateway's budget of the day runs short" in last.note


async def test_without_a_budget_nothing_is_reserved_and_the_request_is_as_it_came(accounts, parts):
    asked = (request(),)
    admission = await ladder(accounts, None).admit(ANYBODY, asked, parts)
    assert admission.requests is asked
    await admission.settle([record("r1", 3)])
    assert await room(accounts, 5) == 5


@pytest.mark.parametrize(
    "changes",
    [{"guidance_tokens": 0}, {"features": frozenset({"tools"})}],
)
async def test_a_request_without_guidance_holds_nothing_for_the_teacher(accounts, parts, changes):
    assert (await ladder(accounts, 21).admit(ANYBODY, (request(**changes),), parts)).step == "full"


async def test_a_request_that_is_forwarded_holds_nothing_for_the_teacher(accounts, parts):
    assert (await ladder(accounts, 21).admit(ANYBODY, (request(),), parts, forwarded=True)).step == "full"


async def test_a_request_s_own_guidance_is_what_is_shortened(accounts, parts):
    admission = await ladder(accounts, 25).admit(ANYBODY, (request(guidance_tokens=2),), parts)
    assert [served.guidance_tokens for served in admission.requests] == [1]


async def test_an_absurd_number_of_tokens_is_refused_like_any_that_costs_too_much(accounts, parts):
    asked = request(sampling=Sampling(max_tokens=10**30))
    with pytest.raises(RefusedError) as refused:
        await ladder(accounts, 10**6).admit(ANYBODY, (asked,), parts)
    assert refused.value.code == "insufficient_quota"


async def test_a_price_that_nobody_knows_is_a_refusal_and_not_a_free_request(accounts, parts):
    unpriced = replace(parts, student=ScriptedEngine("s", model="unheard-of"))
    with pytest.raises(RefusedError, match="a price is unknown") as refused:
        await ladder(accounts, 1000).admit(ANYBODY, (request(),), unpriced)
    assert (refused.value.status, refused.value.code) == (503, "price_unknown")
    assert await room(accounts, 1000) == 1000


async def test_many_at_once_never_hold_more_than_there_is(accounts, parts):
    budget = ladder(accounts, 200)

    async def ask(number: int) -> int:
        try:
            admission = await budget.admit(ANYBODY, (request(f"r{number}"),), parts)
        except RefusedError:
            return 0
        guidance_tokens = admission.requests[0].guidance_tokens
        return 21 + (1 + 2 * guidance_tokens if guidance_tokens else 0)

    held = sum(await asyncio.gather(*map(ask, range(40))))
    assert await room(accounts, 200) == 200 - held
    assert held > 200 - 21


async def test_a_client_that_goes_away_while_it_is_admitted_leaves_nothing_held(accounts, parts):
    budget = ladder(accounts, 1000)
    task = asyncio.create_task(budget.admit(ANYBODY, (request("a"), request("b")), parts))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await room(accounts, 1000) == 1000


class CancelledWhileSettling:
    """Reservations whose user is cancelled at the first settlement."""

    def __init__(self, accounts: Accountant) -> None:
        self._accounts = accounts
        self.prices = accounts.prices
        self.reserve = accounts.reserve
        self.room = accounts.room
        self.task: asyncio.Task[object] | None = None

    async def settle(self, reservation_id: str, spent_nano: int | None) -> None:
        if self.task is not None:
            self.task.cancel()
            self.task = None
        await self._accounts.settle(reservation_id, spent_nano)


async def comes_to(accounts, limit: int, expected: int) -> None:
    async with asyncio.timeout(10):
        left = None
        while left != expected:
            left = await room(accounts, limit)


async def test_a_client_that_goes_away_while_a_step_is_given_back_leaves_nothing_held(accounts, parts):
    held = CancelledWhileSettling(accounts)
    asked = tuple(request(f"r{number}") for number in range(3))  # two fit, the third does not
    task = held.task = asyncio.create_task(ladder(held, 80).admit(ANYBODY, asked, parts))
    with pytest.raises(asyncio.CancelledError):
        await task
    await comes_to(accounts, 80, 80)


async def test_a_client_that_goes_away_while_its_requests_are_settled_pays_for_all_of_them_and_no_more(accounts, parts):
    held = CancelledWhileSettling(accounts)
    admission = await ladder(held, 200).admit(ANYBODY, tuple(request(f"r{number}") for number in range(3)), parts)
    spent = [record(f"r{number}", number + 1) for number in range(3)]
    task = held.task = asyncio.create_task(admission.settle(spent))
    with pytest.raises(asyncio.CancelledError):
        await task
    await comes_to(accounts, 200, 200 - 6)


async def test_every_request_under_a_budget_is_told_with_how_far_down_it_went(accounts, parts):
    steps: list[str] = []
    budget = ladder(accounts, 68, steps.append)
    await budget.admit(ANYBODY, (request("a"),), parts)
    await budget.admit(ANYBODY, (request("b"),), parts)
    with pytest.raises(RefusedError):
        await budget.admit(ANYBODY, (request("c"),), parts)
    assert steps == ["full", "shortened", "refused"]


# -------------------------------------------------------------------------------------------------------- configuration

ENGINES = '[engines.s]\nadapter = "transformers"\nmodel = "small"\n[pipelines.default]\nstudent = "s"\n'


async def test_a_budget_over_a_model_without_a_price_is_refused_at_the_start(accounts, parts):
    unpriced = replace(parts, student=ScriptedEngine("s", model="unheard-of"))
    config = load_config(text=ENGINES + '[budget]\nper_day = "5"')
    with pytest.raises(ConfigError, match="'unheard-of' has none"):
        Ladder.from_config(config, accounts, [unpriced])
    Ladder.from_config(load_config(text=ENGINES), accounts, [unpriced])


async def test_a_budget_in_another_currency_than_the_prices_is_refused_at_the_start(accounts, parts):
    config = load_config(text=ENGINES + '[budget]\nper_day = "5"\ncurrency = "EUR"')
    with pytest.raises(ConfigError, match="a budget in EUR needs prices in EUR"):
        Ladder.from_config(config, accounts, [parts])


async def test_the_configuration_s_budget_is_the_one_that_holds(accounts, parts):
    budget = Ladder.from_config(load_config(text=ENGINES + '[budget]\nper_day = "25"'), accounts, [parts])
    assert (await budget.admit(ANYBODY, (request(),), parts)).step == "student"
