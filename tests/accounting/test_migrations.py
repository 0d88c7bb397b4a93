"""A ledger that an earlier version made is brought up to date when it is opened, and loses nothing."""

import asyncio
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from gkt_plugins.accounting import _migrate
from gkt_plugins.accounting._sqlite import sqlite_engine
from gkt_plugins.accounting.ledger import Ledger
from gkt_plugins.accounting.records import read_records
from gkt_plugins.accounting.requests import RequestRecord
from gkt_plugins.accounting.schema import METADATA
from gkt_plugins.contracts import Usage, UsageRecord
from gkt_plugins.errors import BackendError

FIRST = """
CREATE TABLE usage_records (
    request_id VARCHAR NOT NULL, call INTEGER NOT NULL, role VARCHAR NOT NULL, attempt INTEGER NOT NULL,
    pipeline VARCHAR NOT NULL, engine VARCHAR NOT NULL, model VARCHAR NOT NULL, status VARCHAR NOT NULL,
    started_at FLOAT NOT NULL, prompt_tokens BIGINT, cached_tokens BIGINT, completion_tokens BIGINT,
    drafted_tokens BIGINT NOT NULL, accepted_tokens BIGINT NOT NULL, duration_ns BIGINT, estimated BOOLEAN NOT NULL,
    currency VARCHAR NOT NULL, cost_nano BIGINT, price_source VARCHAR, writer VARCHAR NOT NULL,
    PRIMARY KEY (request_id, call, role, attempt)
);
CREATE INDEX usage_records_open ON usage_records (writer) WHERE status = 'open';
CREATE INDEX usage_records_started_at ON usage_records (started_at);
INSERT INTO usage_records VALUES
    ('done', 0, 'student', 0, 'p', 'edge', 'small', 'final', 1795000000.5, 7, NULL, 3, 0, 0, 250000000, 0, 'USD', 11,
     'config', 'gone'),
    ('left', 0, 'student', 0, 'p', 'edge', 'small', 'open', 1795000001.5, NULL, NULL, NULL, 0, 0, NULL, 0, 'USD', NULL,
     NULL, 'gone');
"""
"""What the package's first version made, and two calls; the process of the second one died."""

DONE = UsageRecord(
    "done", 0, "student", 0, "edge", "small", "final",
    Usage(7, None, 3, seconds=0.25), "USD", 11, "config", 1_795_000_000.5, "p",
)  # fmt: skip


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "gkt.db"
    connection = sqlite3.connect(path)
    connection.executescript(FIRST)
    connection.close()
    return path


def test_a_ledger_of_the_first_version_is_upgraded_when_it_is_opened_and_keeps_its_records(old: Path) -> None:
    ledger = Ledger(old)
    assert ledger.recovered == 1
    request = RequestRecord("new", "p", "", 1_795_000_002.0, "student", "ok")
    asyncio.run(ledger.request(request))
    assert list(ledger.requests()) == [request]
    records = {record.request_id: record for record in ledger.records()}
    assert records["done"] == DONE
    assert records["left"].status == "interrupted"
    ledger.close()


def test_reading_a_ledger_of_an_older_version_says_how_to_upgrade_it_and_changes_nothing(old: Path) -> None:
    before = old.read_bytes()
    with pytest.raises(BackendError, match=r"must be of version .* to be read, is of 0001; run gkt ledger recover"):
        read_records(old)
    assert old.read_bytes() == before


def test_a_ledger_of_a_newer_version_is_neither_opened_nor_read(tmp_path: Path) -> None:
    Ledger(tmp_path / "gkt.db").close()
    connection = sqlite3.connect(tmp_path / "gkt.db")
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    for use in (Ledger, read_records):
        with pytest.raises(BackendError, match=r"9999.*; upgrade gkt-plugins"):
            use(tmp_path / "gkt.db")


def test_an_upgrade_that_fails_leaves_the_ledger_as_it_was(old: Path) -> None:
    connection = sqlite3.connect(old)
    connection.execute("CREATE TABLE budget_days (mine TEXT)")  # in the way of the second of three tables
    connection.close()
    with pytest.raises(BackendError, match="could not be opened: table budget_days already exists"):
        Ledger(old)
    connection = sqlite3.connect(old)
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    connection.close()
    assert tables == {"usage_records", "budget_days"}


def test_processes_that_open_an_old_ledger_at_once_upgrade_it_once(old: Path) -> None:
    script = f"from gkt_plugins.accounting.ledger import Ledger; Ledger.open('sqlite:///{old}').close()"
    children = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True) for _ in range(5)]
    said = [child.communicate()[1] for child in children]
    assert [child.returncode for child in children] == [0] * len(children)
    assert "".join(said) == "1 calls were cut off when their process ended; marked interrupted, estimated\n"
    assert DONE in list(read_records(old))


def test_the_steps_make_exactly_the_tables_that_the_code_uses(tmp_path: Path) -> None:
    Ledger(tmp_path / "gkt.db").close()
    engine = sqlite_engine(tmp_path / "gkt.db")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), METADATA) == []
    engine.dispose()


def test_the_newest_step_is_the_version_that_the_code_asks_for() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(_migrate.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_heads() == [_migrate.HEAD]


def test_opening_an_up_to_date_ledger_loads_no_alembic(tmp_path: Path) -> None:
    Ledger(tmp_path / "gkt.db").close()
    script = (
        "import sys; from gkt_plugins.accounting.ledger import Ledger; "
        f"Ledger.open('sqlite:///{tmp_path}/gkt.db').close(); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
