import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select
from sqlalchemy.exc import OperationalError

from gkt_plugins.accounting.ledger import Ledger
from gkt_plugins.accounting.records import connect_reader, read_records, read_requests
from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.accounting.schema import REQUESTS
from gkt_plugins.errors import BackendError

FULL = RequestRecord(
    request_id="r",
    pipeline="default",
    key="anna",
    started_at=1_795_305_600.123456,
    route="guided",
    status="error",
    error="upstream_timeout",
    streamed=True,
    choices=2,
    guidance_tokens=40,
    degraded=True,
    cached=True,
    first_token_s=0.1,
    total_s=1.7,
    teacher_s=0.3,
    student_s=1.2000000000000002,
    overhead_s=0.002,
    retries=3,
)
BARE = RequestRecord("b", "default", "", 1_795_305_601.0, "student", "cancelled")


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = Ledger(tmp_path / "gkt.db")
    yield opened
    await opened.aclose()


async def test_a_request_is_on_disk_as_it_was_when_the_call_returns_and_unknown_times_stay_unknown(
    ledger: Ledger,
) -> None:
    for record in (FULL, BARE):
        await ledger.request(record)
        assert record in list(ledger.requests())
    assert BARE.first_token_s is None


async def test_a_replayed_request_changes_nothing(ledger: Ledger) -> None:
    await ledger.request(FULL)
    await asyncio.gather(ledger.request(replace(FULL, status="ok")), ledger.request(replace(FULL, total_s=9.0)))
    assert list(ledger.requests()) == [FULL]


async def test_requests_come_in_the_order_of_their_start_and_from_a_time_to_another(ledger: Ledger) -> None:
    records = [replace(BARE, request_id=name, started_at=1_795_305_600.0 + n) for n, name in enumerate("dbca")]
    await asyncio.gather(*map(ledger.request, reversed(records)))
    assert list(ledger.requests()) == records
    path = ledger.location.path
    assert path is not None
    assert list(read_requests(path, since=1_795_305_601.0, until=1_795_305_603.0)) == records[1:3]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (replace(BARE, status="done"), "has a status in"),
        (replace(BARE, started_at=0.0), "needs started_at"),
        (replace(BARE, total_s=-1.0), "seconds are at least 0"),
        (replace(BARE, total_s=float("nan")), "seconds are at least 0"),
        (replace(BARE, retries=2**31), "must fit 32 bits"),
        (replace(BARE, key="a\0b"), "hold no NUL character"),
        (replace(BARE, pipeline="\ud800"), "surrogates not allowed"),
    ],
)
async def test_a_request_that_could_not_be_given_back_is_refused_alone(
    ledger: Ledger, bad: RequestRecord, message: str
) -> None:
    outcomes = await asyncio.gather(ledger.request(bad), ledger.request(FULL), return_exceptions=True)
    assert isinstance(outcomes[0], ValueError)
    assert message in str(outcomes[0])
    assert list(ledger.requests()) == [FULL]


async def test_a_reader_sees_one_moment_and_cannot_write(ledger: Ledger) -> None:
    await ledger.request(FULL)
    engine = connect_reader(f"sqlite:///{ledger.location}")
    count = select(func.count()).select_from(REQUESTS)
    with engine.connect() as connection:
        assert connection.scalar(count) == 1
        await ledger.request(BARE)
        assert connection.scalar(count) == 1  # still the moment of its first look
    with engine.connect() as connection:
        assert connection.scalar(count) == 2
        with pytest.raises(OperationalError, match="readonly"):
            connection.execute(delete(REQUESTS))
    engine.dispose()


async def test_a_relative_url_starts_at_the_folder_that_is_given(ledger: Ledger, tmp_path: Path) -> None:
    await ledger.request(FULL)
    assert list(read_requests("sqlite:///gkt.db", base_dir=tmp_path)) == [FULL]


def test_reading_makes_no_ledger(tmp_path: Path) -> None:
    for read in (read_records, read_requests, connect_reader):
        with pytest.raises(BackendError, match="there is no ledger at"):
            read(tmp_path / "gkt.db")
    (tmp_path / "empty.db").touch()
    with pytest.raises(BackendError, match=r"empty\.db' is a database without a ledger"):
        read_records(tmp_path / "empty.db")


def test_event_loops_of_several_threads_may_share_a_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gkt.db")

    async def write(thread: int) -> None:
        await asyncio.gather(*(ledger.request(replace(BARE, request_id=f"{thread}-{n}")) for n in range(50)))

    async def main() -> None:
        await asyncio.gather(*(asyncio.to_thread(asyncio.run, write(thread)) for thread in range(4)))

    asyncio.run(main())
    assert len(list(ledger.requests())) == 200
    ledger.close()


def test_a_loop_that_ends_before_its_record_is_durable_hurts_no_other(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gkt.db")

    async def leave() -> None:
        task = asyncio.create_task(ledger.request(FULL))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave())
    asyncio.run(ledger.request(BARE))
    assert list(ledger.requests()) == [FULL, BARE]
    ledger.close()
