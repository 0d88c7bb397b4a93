import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from gkt_plugins.accounting.accountant import Accountant
from gkt_plugins.accounting.budgets import Budget
from gkt_plugins.accounting.ledger import Ledger
from gkt_plugins.accounting.prices import ConfigPrices
from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.contracts import GUIDANCE_CACHE, Price, PriceSource, Usage, UsageRecord
from gkt_plugins.errors import BackendError

PRICES = ConfigPrices({"small": {"input_per_million": "1", "output_per_million": "2", "currency": "EUR"}})
USAGE = Usage(prompt_tokens=100, completion_tokens=10)


class Books:
    """A ledger, an accountant, and what observers were told."""

    def __init__(self, path: Path, prices: PriceSource = PRICES) -> None:
        self.ledger = Ledger(path)
        self.seen: list[UsageRecord] = []
        self.accountant = Accountant(prices, self.ledger, observer=self._observe, clock=lambda: 1_795_000_000.0)

    def _observe(self, record: UsageRecord) -> None:
        assert record in list(self.ledger.records())  # the ledger has it first
        self.seen.append(record)

    def only(self) -> UsageRecord:
        [record] = self.ledger.records()
        return record


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path / "gkt.db")


async def test_a_call_is_open_while_it_runs_then_final_and_priced_then_observed(books: Books) -> None:
    async with books.accountant.call("r", "student", "edge", "small", call=2, attempt=1, pipeline="p") as account:
        assert books.only().status == "open"
        assert books.seen == []
        account.usage = USAGE
    record = books.only()
    assert (record.request_id, record.role, record.engine, record.model) == ("r", "student", "edge", "small")
    assert (record.call, record.attempt, record.pipeline) == (2, 1, "p")
    assert (record.status, record.usage, record.started_at) == ("final", USAGE, 1_795_000_000.0)
    assert (record.currency, record.cost_nano, record.price_source) == ("EUR", 100 * 1_000 + 10 * 2_000, "config")
    assert books.seen == [record]
    await books.accountant.aclose()


async def test_a_model_without_a_price_costs_something_unknown(books: Books) -> None:
    async with books.accountant.call("r", "teacher", "cloud", "unheard-of") as account:
        account.usage = USAGE
    assert (books.only().cost_nano, books.only().price_source) == (None, None)
    await books.accountant.aclose()


async def test_a_call_that_said_nothing_costs_something_unknown_at_a_known_price(books: Books) -> None:
    async with books.accountant.call("r", "student", "edge", "small"):
        pass
    assert (books.only().cost_nano, books.only().price_source) == (None, "config")
    await books.accountant.aclose()


async def test_a_call_that_raises_is_failed_and_keeps_what_it_used(books: Books) -> None:
    async def fail() -> None:
        async with books.accountant.call("r", "student", "edge", "small") as account:
            account.usage = USAGE
            raise LookupError("engine")

    with pytest.raises(LookupError):
        await fail()
    assert (books.only().status, books.only().cost_nano) == ("failed", 120_000)
    await books.accountant.aclose()


async def test_a_cancelled_call_is_cancelled_in_the_ledger_too(books: Books) -> None:
    begun = asyncio.Event()

    async def run() -> None:
        async with books.accountant.call("r", "student", "edge", "small"):
            begun.set()
            await asyncio.sleep(3600)

    task = asyncio.create_task(run())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert books.only().status == "cancelled"
    await books.accountant.aclose()


async def test_a_call_cancelled_while_it_is_opened_is_not_left_open(books: Books) -> None:
    async def run() -> None:
        async with books.accountant.call("r", "student", "edge", "small"):
            raise AssertionError("not reached")

    task = asyncio.create_task(run())
    await asyncio.sleep(0)  # the opening is handed over, and not durable yet
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert books.only().status == "cancelled"
    await books.accountant.aclose()


async def test_no_engine_is_called_when_the_ledger_cannot_be_written(books: Books) -> None:
    await books.accountant.aclose()
    with pytest.raises(BackendError, match="is closed"):
        async with books.accountant.call("r", "student", "edge", "small"):
            raise AssertionError("not reached")


async def test_drivers_may_open_and_close_records_themselves(books: Books) -> None:
    record = UsageRecord("r", 0, "student", 0, "edge", "small", "open", started_at=1.0)
    await books.accountant.opened(record)
    written = await books.accountant.closed(replace(record, status="final", usage=USAGE))
    assert written == books.only()
    assert written.cost_nano == 120_000
    await books.accountant.aclose()


async def test_a_cost_that_the_engine_reported_is_kept(books: Books) -> None:
    record = UsageRecord("r", 0, "student", 0, "edge", "small", "final", USAGE, "USD", 7, "bill", started_at=1.0)
    assert await books.accountant.closed(record) == record
    assert books.only() == record
    await books.accountant.aclose()


async def test_guidance_from_the_cache_costs_nothing_in_the_currency_that_the_teacher_is_paid_in(books: Books) -> None:
    record = UsageRecord("r", 0, "teacher", 0, "cloud", "small", "final", USAGE, "USD", 0, GUIDANCE_CACHE, 1.0)
    written = await books.accountant.closed(record)  # no call went out, so none was opened
    assert (written.currency, written.cost_nano, written.price_source) == ("EUR", 0, GUIDANCE_CACHE)
    assert books.only() == written
    await books.accountant.aclose()


async def test_requests_and_budgets_reach_the_ledger(books: Books) -> None:
    request = RequestRecord("r", "p", "anna", 1_795_000_000.0, "guided", "ok")
    budget = Budget("all", 100)
    await books.accountant.request(request)
    assert list(books.ledger.requests()) == [request]
    assert await books.accountant.reserve("r", [budget], 60, "2026-11-22") is None
    assert await books.accountant.reserve("s", [budget], 60, "2026-11-22") == budget
    await books.accountant.settle("r", 10)
    assert await books.accountant.room([budget], "2026-11-22") == 90
    await books.accountant.aclose()


async def test_a_price_source_that_raises_leaves_the_cost_unknown_and_the_call_recorded(tmp_path: Path) -> None:
    class Broken:
        def price(self, model: str) -> Price | None:
            raise RuntimeError("no network")

    books = Books(tmp_path / "gkt.db", Broken())
    async with books.accountant.call("r", "student", "edge", "small") as account:
        account.usage = USAGE
    assert (books.only().status, books.only().cost_nano) == ("final", None)
    await books.accountant.aclose()
