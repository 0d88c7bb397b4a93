import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gkt_plugins.accounting._reservations import Books, Day, Reserve, Room, Settle, Total, touched
from gkt_plugins.accounting.budgets import Budget, require_prices, utc_day, worst_cost_nano
from gkt_plugins.accounting.ledger import Ledger
from gkt_plugins.accounting.prices import ConfigPrices
from gkt_plugins.contracts import Usage, UsageRecord
from gkt_plugins.errors import ConfigError

DAY = "2026-11-22"
ALL = Budget("all", 100)
KEY = Budget("key:anna", 30)
PRICES = ConfigPrices(
    {
        "large": {"input_per_million": "2.50", "output_per_million": "10"},
        "small": {"input_per_million": "0.25", "output_per_million": "1"},
        "own": {"per_hour": "3.60"},
        "euro": {"input_per_million": "1", "output_per_million": "1", "currency": "EUR"},
    }
)


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = Ledger(tmp_path / "gkt.db")
    yield opened
    await opened.aclose()


async def test_what_is_reserved_and_what_is_spent_leave_less_room(ledger: Ledger) -> None:
    assert await ledger.room([ALL], DAY) == 100
    assert await ledger.reserve("a", [ALL], 60, DAY) is None
    assert await ledger.room([ALL], DAY) == 40
    await ledger.settle("a", 25)
    assert await ledger.room([ALL], DAY) == 75


async def test_the_first_budget_without_room_is_named_and_nothing_is_reserved_in_any(ledger: Ledger) -> None:
    assert await ledger.reserve("a", [ALL, KEY], 31, DAY) == KEY
    assert await ledger.room([ALL], DAY) == 100
    assert await ledger.room([KEY], DAY) == 30
    assert await ledger.reserve("b", [ALL, KEY], 30, DAY) is None
    assert await ledger.room([ALL, KEY], DAY) == 0
    assert await ledger.room([ALL], DAY) == 70


async def test_days_and_currencies_have_totals_of_their_own(ledger: Ledger) -> None:
    assert await ledger.reserve("a", [ALL], 100, DAY) is None
    assert await ledger.reserve("b", [ALL], 1, DAY) == ALL
    assert await ledger.reserve("c", [ALL], 100, "2026-11-23") is None
    assert await ledger.reserve("d", [replace(ALL, currency="EUR")], 100, DAY) is None


async def test_an_unknown_amount_counts_as_all_that_was_reserved(ledger: Ledger) -> None:
    await ledger.reserve("a", [ALL], 60, DAY)
    await ledger.settle("a", None)
    assert await ledger.room([ALL], DAY) == 40


async def test_more_may_have_been_spent_than_was_reserved_and_the_room_is_then_zero(ledger: Ledger) -> None:
    await ledger.reserve("a", [ALL], 60, DAY)
    await ledger.settle("a", 130)
    assert await ledger.room([ALL], DAY) == 0
    assert await ledger.reserve("b", [ALL], 0, DAY) == ALL


async def test_reserving_and_settling_twice_count_once(ledger: Ledger) -> None:
    for _ in range(2):
        assert await ledger.reserve("a", [ALL], 60, DAY) is None
    for _ in range(2):
        await ledger.settle("a", 10)
    await ledger.settle("nobody's", 10)
    assert await ledger.room([ALL], DAY) == 90


async def test_a_name_may_be_reserved_again_after_it_was_settled_even_in_one_commit(ledger: Ledger) -> None:
    await ledger.reserve("a", [ALL], 10, DAY)
    await asyncio.gather(ledger.settle("a", 10), ledger.reserve("a", [ALL, KEY], 20, DAY), ledger.room([ALL], DAY))
    assert await ledger.room([ALL], DAY) == 70
    await ledger.settle("a", 0)
    assert await ledger.room([ALL], DAY) == 90


async def test_no_budget_is_always_granted(ledger: Ledger) -> None:
    assert await ledger.reserve("a", [], 10**15, DAY) is None


@pytest.mark.parametrize(
    ("budgets", "amount", "message"),
    [
        ([ALL, replace(KEY, currency="EUR")], 1, "share one currency"),
        ([ALL, ALL], 1, "have a scope each"),
        ([ALL], -1, "is at least 0 and fits 64 bits, got -1"),
        ([ALL], 2**63, "is at least 0 and fits 64 bits"),
    ],
)
async def test_a_reservation_that_no_ledger_could_keep_is_refused(
    ledger: Ledger, budgets: list[Budget], amount: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        await ledger.reserve("a", budgets, amount, DAY)


async def test_requests_calls_and_budgets_in_one_commit_each_get_their_own_answer(ledger: Ledger) -> None:
    record = UsageRecord("r", 0, "student", 0, "edge", "small", "open", started_at=1_795_000_000.0)
    answers = await asyncio.gather(
        ledger.room([ALL], DAY),
        ledger.opened(record),
        ledger.reserve("a", [KEY], 20, DAY),
        ledger.reserve("b", [KEY], 20, DAY),
        ledger.room([KEY], DAY),
    )
    assert answers == [100, None, None, KEY, 10]
    assert list(ledger.records()) == [record]


async def test_a_ledger_that_is_closed_releases_what_it_had_reserved(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "gkt.db")
    await first.reserve("a", [ALL], 60, DAY)
    await first.aclose()
    second = Ledger(tmp_path / "gkt.db")
    assert await second.room([ALL], DAY) == 100
    await second.aclose()


async def test_recovery_releases_what_the_dead_had_reserved_but_not_what_they_are_known_to_have_spent(
    tmp_path: Path,
) -> None:
    dead, living = Ledger(tmp_path / "gkt.db"), Ledger(tmp_path / "gkt.db")
    call = UsageRecord("a", 0, "teacher", 0, "cloud", "large", "final", Usage(1, None, 1), cost_nano=7, started_at=1.0)
    await dead.reserve("a", [ALL, KEY], 20, DAY)
    await dead.closed(call)
    await dead.opened(replace(call, role="student", status="open", cost_nano=None))
    await living.reserve("b", [ALL], 10, DAY)
    dead._store._mark.release()  # type: ignore[attr-defined]  # as the kernel does when the process is killed
    third = Ledger(tmp_path / "gkt.db")
    assert third.recovered == 1
    assert await third.room([ALL], DAY) == 100 - 7 - 10
    assert await third.room([KEY], DAY) == 30 - 7
    for ledger in (third, living, dead):
        await ledger.aclose()


def test_processes_that_share_a_budget_never_spend_more_than_it_together(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/gkt.db"
    spent = spend_together(url, ["a", "b", "c"], limit_nano=20_000)
    ledger = Ledger.open(url)
    left = asyncio.run(ledger.room([Budget("all", 20_000)], DAY))
    ledger.close()
    assert sum(spent) == 20_000 - left
    assert 0 <= left < 100  # each stopped only where its next request did not fit


def spend_together(url: str, names: list[str], *, limit_nano: int) -> list[int]:
    script = str(Path(__file__).with_name("spender.py"))
    children = [
        subprocess.Popen(
            [sys.executable, script, url, name, str(limit_nano)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in names
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    return [int(child.communicate()[0]) for child in children]


@given(data=st.data())
def test_whatever_is_reserved_and_settled_in_whatever_groups_the_totals_add_up(data: st.DataObject) -> None:
    limits = {"all": 100, "anna": 40}
    totals: dict[Day, Total] = {}
    held: dict[str, dict[Day, int]] = {}
    granted: dict[str, tuple[tuple[str, ...], int]] = {}
    spent = dict.fromkeys(limits, 0)
    for _ in range(data.draw(st.integers(1, 5))):
        group = data.draw(st.lists(operations(limits), max_size=6))
        days = touched(group, held)
        books = Books({day: totals.setdefault(day, Total()) for day in days}, held)
        for operation in group:
            result = books.apply(operation)
            if isinstance(operation, Reserve) and operation.reservation_id not in granted:
                if result is None:
                    scopes = tuple(budget.scope for budget in operation.budgets)
                    granted[operation.reservation_id] = (scopes, operation.amount)
                else:
                    assert result in operation.budgets
            elif isinstance(operation, Settle) and operation.reservation_id in granted:
                scopes, amount = granted.pop(operation.reservation_id)
                for scope in scopes:
                    spent[scope] += amount if operation.spent is None else operation.spent
            for scope, limit in limits.items():
                reserved = sum(amount for scopes, amount in granted.values() if scope in scopes)
                total = totals.get(Day(scope, "USD", DAY), Total())
                assert (total.spent, total.reserved) == (spent[scope], reserved)
                assert reserved <= limit
    assert set(held) == set(granted)


def operations(limits: dict[str, int]) -> st.SearchStrategy[Reserve | Settle | Room]:
    names = st.sampled_from("abcd")
    budgets = st.sampled_from([("all",), ("anna",), ("all", "anna")]).map(
        lambda scopes: tuple(Budget(scope, limits[scope]) for scope in scopes)
    )
    return st.one_of(
        st.builds(Reserve, names, budgets, st.integers(0, 60), st.just(DAY)),
        st.builds(Settle, names, st.none() | st.integers(0, 60)),
        st.builds(Room, budgets, st.just(DAY)),
    )


def worst(**fields: object) -> int | None:
    asked = {"teacher": "large", "student": "small", "prompt_tokens": 100, "guidance_tokens": 40, "max_tokens": 200}
    return worst_cost_nano(PRICES, **(asked | fields))  # type: ignore[arg-type]


def test_the_worst_cost_is_all_guidance_and_a_whole_answer_of_every_student() -> None:
    teacher = 100 * 2_500 + 40 * 10_000
    student = 140 * 250 + 200 * 1_000
    assert worst() == teacher + student
    assert worst(n=3) == teacher + 3 * student
    assert worst(guidance_tokens=0) == worst(teacher=None, guidance_tokens=0) == 100 * 250 + 200 * 1_000


def test_guidance_is_never_longer_than_the_answer() -> None:
    assert worst(guidance_tokens=40, max_tokens=10) == 100 * 2_500 + 10 * 10_000 + 110 * 250 + 10 * 1_000


def test_the_worst_cost_of_an_unknown_price_or_another_currency_is_unknown() -> None:
    assert worst(student="unheard-of") is None
    assert worst(teacher="unheard-of") is None
    assert worst(teacher="unheard-of", guidance_tokens=0) is not None  # it is not called
    assert worst(student="euro") is None


def test_own_hardware_costs_at_worst_what_it_costs_until_the_time_is_out() -> None:
    assert worst(student="own", guidance_tokens=0, timeout_s=10.0) == 10_000_000
    assert worst(student="own", guidance_tokens=0) is None


def test_a_budget_needs_a_price_in_its_currency_for_every_model() -> None:
    require_prices(PRICES, ["large", "small"], currency="USD")
    with pytest.raises(ConfigError, match=r"'unheard-of' has none; add \[prices.'unheard-of'\]"):
        require_prices(PRICES, ["large", "unheard-of"], currency="USD")
    with pytest.raises(ConfigError, match="a budget in USD needs prices in USD, and 'euro' is priced in EUR"):
        require_prices(PRICES, ["euro"], currency="USD")


def test_a_day_is_a_day_in_utc() -> None:
    assert utc_day(1_795_305_599.9) == "2026-11-21"
    assert utc_day(1_795_305_600.0) == "2026-11-22"
