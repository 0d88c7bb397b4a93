import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gkt_plugins.accounting.budgets import Budget
from gkt_plugins.accounting.ledger import Ledger

HERE = Path(__file__).parent


@contextlib.contextmanager
def process(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        with child:
            yield child
    finally:
        child.kill()


@contextlib.contextmanager
def open_call(url: str, request_id: str) -> Iterator[subprocess.Popen[str]]:
    with process("open_call.py", url, request_id) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        yield child


def statuses(ledger: Ledger) -> dict[str, str]:
    return {record.request_id: record.status for record in ledger.records()}


@pytest.mark.parametrize("seed", range(5))
def test_sigkill_during_a_batch_loses_no_finished_row_and_leaves_no_orphan_unmarked(tmp_path: Path, seed: int) -> None:
    url = f"sqlite:///{tmp_path}/gkt.db"
    rows_before_the_kill = random.Random(seed).randrange(1, 250)
    with process("killed_batch.py", url, seed) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(rows_before_the_kill)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()  # what the client had received all the same
    received = {f"row-{json.loads(line)['row']}": json.loads(line)["row"] for line in lines if line.endswith("}\n")}
    assert len(received) >= rows_before_the_kill

    ledger = Ledger.open(url)
    records = {record.request_id: record for record in ledger.records()}
    ledger.close()
    for request_id, number in received.items():
        record = records[request_id]
        assert (record.status, record.usage.completion_tokens) == ("final", number)
        assert record.cost_nano == 34 * 1_000 + number * 2_000
    orphans = [record for record in records.values() if record.status != "final"]
    assert "row-0" in {record.request_id for record in orphans}
    assert ledger.recovered == len(orphans)
    for record in orphans:
        assert (record.status, record.usage.estimated, record.cost_nano) == ("interrupted", True, None)
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"a prompt that" in file.read_bytes()]
    assert not list(tmp_path.rglob("*.writer"))


def room(ledger: Ledger) -> int:
    return asyncio.run(ledger.room([Budget("all", 1000)], "2026-11-22"))


def test_recovery_marks_the_calls_of_the_dead_releases_their_budget_and_leaves_the_living_alone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/gkt.db"
    with open_call(url, "living") as living, open_call(url, "dead") as dead:
        dead.kill()
        dead.wait()
        ledger = Ledger.open(url)
        assert ledger.recovered == 1
        assert statuses(ledger) == {"dead": "interrupted", "living": "open"}
        assert room(ledger) == 1000 - 60
        living.communicate("finish\n")
        assert living.returncode == 0
    assert statuses(ledger) == {"dead": "interrupted", "living": "final"}
    assert room(ledger) == 1000 - 7
    ledger.close()


def test_a_process_that_leaves_marks_its_own_open_calls(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/gkt.db"
    with open_call(url, "left") as child:
        child.communicate("leave\n")
        assert child.returncode == 0
    ledger = Ledger.open(url)
    assert ledger.recovered == 0
    assert statuses(ledger) == {"left": "interrupted"}
    ledger.close()


def test_a_copied_ledger_has_no_living_writers(tmp_path: Path) -> None:
    with open_call(f"sqlite:///{tmp_path}/gkt.db", "living"):
        copy = tmp_path / "copy"
        copy.mkdir()
        for file in tmp_path.glob("gkt.db*"):
            if file.is_file():
                (copy / file.name).write_bytes(file.read_bytes())
        ledger = Ledger(copy / "gkt.db")
        assert ledger.recovered == 1
        ledger.close()


def test_two_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/gkt.db"
    names = [f"process-{number}" for number in range(6)]
    with contextlib.ExitStack() as stack:
        children = [stack.enter_context(process("open_call.py", url, name)) for name in names]  # all make the file
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "open\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("finish\n")
            child.stdin.flush()
        assert [child.wait() for child in children] == [0] * len(children)
    ledger = Ledger.open(url)
    assert statuses(ledger) == dict.fromkeys(names, "final")
    ledger.close()
