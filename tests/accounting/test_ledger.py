import asyncio
import fcntl
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gkt_plugins.accounting import _checkpoints
from gkt_plugins.accounting._sqlite import SQLiteStore
from gkt_plugins.accounting._writers import only_one
from gkt_plugins.accounting.ledger import Ledger
from gkt_plugins.contracts import Usage, UsageRecord
from gkt_plugins.errors import BackendError, ConfigError

DONE = Usage(prompt_tokens=7, cached_tokens=None, completion_tokens=3, seconds=0.25)


def opening(request_id: str = "r", **fields: Any) -> UsageRecord:
    defaults: dict[str, Any] = {"call": 0, "role": "student", "attempt": 0, "engine": "edge", "model": "small"}
    return UsageRecord(request_id, **(defaults | fields), status="open", started_at=1_795_000_000.5)


def closing(record: UsageRecord, **fields: Any) -> UsageRecord:
    return replace(record, **({"status": "final", "usage": DONE, "cost_nano": 11} | fields))


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = Ledger.open("sqlite:///gkt.db", base_dir=tmp_path)
    yield opened
    await opened.aclose()


async def test_a_record_is_on_disk_when_opened_returns_and_when_closed_returns(ledger: Ledger) -> None:
    record = opening()
    await ledger.opened(record)
    assert list(ledger.records()) == [record]
    await ledger.closed(closing(record))
    assert list(ledger.records()) == [closing(record)]


async def test_unknown_tokens_seconds_and_cost_come_back_as_unknown(ledger: Ledger) -> None:
    unknown = closing(opening(), usage=Usage(), cost_nano=None)
    await ledger.closed(unknown)
    assert list(ledger.records()) == [unknown]


async def test_replays_change_nothing_and_the_first_closing_counts(ledger: Ledger) -> None:
    record = opening()
    for replayed in (record, record, closing(record), closing(record), record, closing(record, cost_nano=999)):
        await (ledger.opened if replayed.status == "open" else ledger.closed)(replayed)
    assert list(ledger.records()) == [closing(record)]


async def test_an_opening_that_arrives_after_its_closing_does_not_reopen_it(ledger: Ledger) -> None:
    record = opening()
    await ledger.closed(closing(record))
    await ledger.opened(record)
    assert list(ledger.records()) == [closing(record)]


async def test_every_part_of_the_key_tells_calls_apart(ledger: Ledger) -> None:
    records = [opening("a"), opening("b"), opening("a", call=1), opening("a", role="teacher"), opening("a", attempt=1)]
    for record in records:
        await ledger.opened(record)
    assert len(list(ledger.records())) == len(records)


async def test_a_key_that_another_call_owns_is_refused_and_harms_no_other_record(ledger: Ledger) -> None:
    await ledger.closed(closing(opening("taken")))
    stranger = replace(opening("taken"), started_at=1_795_000_999.0)
    outcomes = await asyncio.gather(ledger.opened(stranger), ledger.opened(opening("fine")), return_exceptions=True)
    assert isinstance(outcomes[0], BackendError)
    assert "already has another call 'taken'" in str(outcomes[0])
    assert outcomes[1] is None
    assert [record.status for record in ledger.records()] == ["open", "final"]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
async def test_whatever_the_order_of_arrival_every_call_ends_with_its_first_closing(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    calls = [opening(f"r{number}") for number in range(data.draw(st.integers(1, 8)))]
    events = [event for call in calls for event in (call, closing(call), call, closing(call))]
    order = data.draw(st.permutations(events))
    ledger = Ledger(tmp_path_factory.mktemp("ledger") / "gkt.db")
    try:
        await asyncio.gather(*((ledger.opened if e.status == "open" else ledger.closed)(e) for e in order))
        assert list(ledger.records()) == [closing(call) for call in calls]
    finally:
        await ledger.aclose()


async def test_a_record_is_kept_even_when_the_waiting_task_is_cancelled(ledger: Ledger) -> None:
    record = opening()
    task = asyncio.create_task(ledger.closed(closing(record)))
    await asyncio.sleep(0)  # the record is handed over
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await ledger.opened(opening("later"))  # committed after it
    assert closing(record) in list(ledger.records())


async def test_a_record_that_fails_when_nobody_waits_for_it_any_more_is_said_in_the_log(
    ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    sql(ledger, "PRAGMA query_only = ON")
    task = asyncio.create_task(ledger.closed(closing(opening())))
    await asyncio.sleep(0)  # the record is handed over
    task.cancel()
    with pytest.raises(BackendError):
        await ledger.opened(opening("later"))  # after it
    [record] = caplog.records
    assert "could not be written" in record.getMessage()
    assert record.getMessage().endswith("; nobody waits for that record any more")
    sql(ledger, "PRAGMA query_only = OFF")


async def test_closing_the_ledger_marks_its_open_calls_and_refuses_more(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gkt.db")
    await ledger.opened(opening())
    await ledger.aclose()
    await ledger.aclose()
    [left] = ledger.records()
    assert (left.status, left.usage.estimated, left.cost_nano) == ("interrupted", True, None)
    with pytest.raises(BackendError, match="is closed; open it again"):
        await ledger.closed(closing(opening()))


async def test_a_real_outcome_replaces_what_recovery_guessed(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "gkt.db")
    await first.opened(opening())
    await first.aclose()
    second = Ledger(tmp_path / "gkt.db")
    await second.closed(closing(opening()))
    assert list(second.records()) == [closing(opening())]
    await second.aclose()


async def test_two_ledgers_on_one_file_leave_each_other_s_open_calls_alone(ledger: Ledger) -> None:
    await ledger.opened(opening())
    other = Ledger(ledger.location)
    assert other.recovered == 0
    await other.aclose()
    assert [record.status for record in ledger.records()] == ["open"]


def test_a_ledger_s_front_door_lets_one_in_at_a_time(tmp_path: Path) -> None:
    """Otherwise one opening could take another's fresh mark of life for a dead one's."""
    with only_one(tmp_path), (tmp_path / "door").open() as door, pytest.raises(BlockingIOError):
        fcntl.flock(door, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (tmp_path / "door").open() as door:
        fcntl.flock(door, fcntl.LOCK_EX | fcntl.LOCK_NB)


async def test_records_since_a_time_leave_out_earlier_ones(ledger: Ledger) -> None:
    late = replace(opening("late"), started_at=1_795_000_100.0)
    await ledger.opened(opening("early"))
    await ledger.opened(late)
    assert list(ledger.records(since=1_795_000_100.0)) == [late]


async def test_the_ledger_has_no_column_for_text(ledger: Ledger) -> None:
    """Names, counts, times and money: a new column has to be added here, and argued for."""
    texts: dict[str, set[str]] = {}
    others: dict[str, set[str]] = {}
    with sqlite3.connect(str(ledger.location)) as connection:
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            columns = {name: kind for _, name, kind, *_ in connection.execute(f"PRAGMA table_info({table})")}
            texts[table] = {name for name, kind in columns.items() if kind.startswith("VARCHAR")}
            others[table] = set(columns) - texts[table]
    connection.close()
    assert texts == {
        "alembic_version": {"version_num"},
        "usage_records": {
            "request_id", "role", "pipeline", "engine", "model", "status", "currency", "price_source", "writer"
        },
        "requests": {"request_id", "pipeline", "key", "route", "status", "error"},
        "budget_days": {"scope", "currency", "day"},
        "budget_reservations": {"reservation_id", "scope", "currency", "day", "writer"},
    }  # fmt: skip
    assert others == {
        "alembic_version": set(),
        "usage_records": {
            "call", "attempt", "started_at", "prompt_tokens", "cached_tokens", "completion_tokens", "drafted_tokens",
            "accepted_tokens", "duration_ns", "estimated", "cost_nano",
        },
        "requests": {
            "started_at", "streamed", "choices", "guidance_tokens", "degraded", "cached", "first_token_s", "total_s",
            "teacher_s", "student_s", "overhead_s", "retries",
        },
        "budget_days": {"spent_nano", "reserved_nano"},
        "budget_reservations": {"amount_nano"},
    }  # fmt: skip


@pytest.mark.parametrize(
    "bad",
    [
        replace(closing(opening()), started_at=0.0),
        replace(closing(opening()), started_at=float("nan")),
        closing(opening(), usage=Usage(seconds=float("inf"))),
        closing(opening(), cost_nano=2**63),
        closing(opening("\ud800")),
        closing(opening(), status="done"),
        opening(),
    ],
    ids=["no start", "nan start", "endless", "too dear", "no unicode", "no status", "still open"],
)
async def test_a_record_that_could_not_be_given_back_is_refused_alone(ledger: Ledger, bad: UsageRecord) -> None:
    outcomes = await asyncio.gather(ledger.closed(bad), ledger.closed(closing(opening("ok"))), return_exceptions=True)
    assert isinstance(outcomes[0], ValueError)
    assert [record.request_id for record in ledger.records()] == ["ok"]


async def test_a_full_disk_fails_the_closing_that_it_hits_and_the_call_stays_visible(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gkt.db")
    await ledger.opened(opening())
    sql(ledger, "PRAGMA max_page_count = 1")  # SQLite now behaves as on a full disk
    big = [closing(opening(f"{'x' * 3000}{number}")) for number in range(50)]
    outcomes = await asyncio.gather(*map(ledger.closed, big), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {BackendError}
    assert "full; free some disk space" in str(outcomes[0])
    assert [record.status for record in ledger.records()] == ["open"]
    sql(ledger, f"PRAGMA max_page_count = {2**30}")
    for record in big:
        await ledger.closed(record)  # the same records may be closed again
    assert len(list(ledger.records())) == 51
    await ledger.aclose()


def sql(ledger: Ledger, statement: str) -> None:
    """Run a statement on the ledger's own connection, between two commits."""
    assert isinstance(ledger._store, SQLiteStore)
    ledger._store.connection.execute(statement)


def test_a_folder_that_is_missing_is_named_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"could not be opened: .*No such file.*; create its folder"):
        Ledger.open("sqlite:///nowhere/gkt.db", base_dir=tmp_path)


def test_a_file_that_is_no_database_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "gkt.db").write_text("dear diary " * 200)
    with pytest.raises(BackendError, match=r"could not be opened: file is not a database; name another file"):
        Ledger.open("sqlite:///gkt.db", base_dir=tmp_path)
    assert (tmp_path / "gkt.db").read_text() == "dear diary " * 200


async def test_a_file_that_became_read_only_fails_the_call_in_one_sentence(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "gkt.db")
    sql(ledger, "PRAGMA query_only = ON")
    with pytest.raises(BackendError, match=r"could not be written: .*readonly.*; check that the file and its folder"):
        await ledger.opened(opening())
    with pytest.raises(BackendError, match="could not be closed"):
        await ledger.aclose()
    await ledger.aclose()


def test_a_folder_where_writers_cannot_be_marked_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "gkt.db.writers").write_text("in the way")
    with pytest.raises(BackendError, match=r"could not be opened: .*File exists.*; check that the file and its folder"):
        Ledger(tmp_path / "gkt.db")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://user:secret@db/gkt", "no ledger is kept in 'mysql'"),
        ("postgresql://user:secret@db:port/gkt", "must be a database URL such as"),
        ("sqlite://", "outlives the process"),
        ("sqlite:///:memory:", "outlives the process"),
        ("gkt.db", "must be a database URL such as"),
    ],
)
def test_a_url_that_no_ledger_can_have_is_refused_without_its_password(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        Ledger.open(url)
    assert "secret" not in str(caught.value)


async def test_records_that_gather_while_the_disk_is_busy_share_a_commit(ledger: Ledger) -> None:
    commits = []
    assert isinstance(ledger._store, SQLiteStore)
    ledger._store.connection.set_trace_callback(
        lambda statement: commits.append(statement) if statement == "COMMIT" else None
    )
    records = [opening(f"r{number:04}") for number in range(1500)]
    disk = sqlite3.connect(str(ledger.location), isolation_level=None)
    disk.execute("BEGIN IMMEDIATE")  # the writer thread waits with the first record in its hands
    waiting = [asyncio.create_task(ledger.opened(record)) for record in records]
    await asyncio.sleep(0)
    disk.execute("ROLLBACK")
    disk.close()
    await asyncio.gather(*waiting)
    assert len(commits) <= 1 + 3  # what it held, then the rest in groups of 512
    assert list(ledger.records()) == records


async def test_what_was_committed_is_brought_to_the_disk_while_no_call_waits_for_it(
    ledger: Ledger, tmp_path: Path
) -> None:
    await ledger.opened(opening())
    until(lambda: _calls_after_a_power_cut(ledger, tmp_path) > 0)
    assert _calls_after_a_power_cut(ledger, tmp_path) == 1


async def test_a_checkpoint_that_fails_is_said_once_and_tried_again(
    ledger: Ledger, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_checkpoints, "_EVERY_S", 0.01)
    assert isinstance(ledger._store, SQLiteStore)
    disk = ledger._store._checkpoints._connection
    tries = []

    def deny(*_: object) -> int:
        tries.append(0)
        return sqlite3.SQLITE_DENY

    disk.set_authorizer(deny)
    await ledger.opened(opening())
    until(lambda: len(tries) >= 3)
    assert [record.getMessage() for record in caplog.records] == [
        "what was committed to the ledger is not on the disk yet: not authorized; it is tried again"
    ]
    disk.set_authorizer(None)
    until(lambda: _calls_after_a_power_cut(ledger, tmp_path) > 0)


def until(happened: Callable[[], bool]) -> None:
    while not happened():
        time.sleep(0.02)


def _calls_after_a_power_cut(ledger: Ledger, tmp_path: Path) -> int:
    """How many calls are in the file itself, without its write-ahead log; 0 while a checkpoint writes it."""
    copy = tmp_path / "copy.db"
    copy.write_bytes(Path(str(ledger.location)).read_bytes())
    connection = sqlite3.connect(copy)
    try:
        return int(connection.execute("SELECT COUNT(*) FROM usage_records").fetchone()[0])
    except sqlite3.DatabaseError:
        return 0
    finally:
        connection.close()


@pytest.mark.parametrize(("sync", "level"), [("second", 1), ("commit", 2)])
async def test_a_commit_waits_for_the_disk_only_where_that_was_asked_for(
    tmp_path: Path, sync: Literal["second", "commit"], level: int
) -> None:
    ledger = Ledger.open("sqlite:///gkt.db", base_dir=tmp_path, sync=sync)
    assert isinstance(ledger._store, SQLiteStore)
    assert ledger._store.execute("PRAGMA synchronous").fetchone() == (level,)
    await ledger.opened(opening())
    assert list(ledger.records()) == [opening()]
    await ledger.aclose()
