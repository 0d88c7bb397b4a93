"""Readiness."""

from __future__ import annotations

import asyncio
import logging

from gkt_plugins.errors import BackendError
from gkt_plugins.gateway.health import Readiness


class Checked:
    """A check that counts how often it was asked."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self._outcomes = list(outcomes)
        self.asked = 0

    async def __call__(self) -> None:
        self.asked += 1
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if outcome is not None:
            raise outcome


async def test_all_is_well_where_nothing_fails():
    assert await Readiness({"ledger": Checked(None)}).report() == (200, {"status": "ready", "failed": []})


async def test_what_fails_is_named_in_the_answer_and_explained_in_the_log_alone(caplog):
    readiness = Readiness({"ledger": Checked(BackendError("/var/lib/gkt.db: no space")), "cache": Checked(None)})
    with caplog.at_level(logging.ERROR):
        assert await readiness.report() == (503, {"status": "not ready", "failed": ["ledger"]})
    assert "/var/lib/gkt.db: no space" in caplog.text


async def test_a_check_that_hangs_has_failed():
    readiness = Readiness({"ledger": asyncio.Event().wait}, timeout_s=0.02)
    assert (await readiness.report())[0] == 503


async def test_asking_often_checks_once_a_second_also_when_all_ask_at_once():
    now = [0.0]
    check = Checked(BackendError("no"), None)
    readiness = Readiness({"ledger": check}, clock=lambda: now[0])
    assert {status for status, _ in await asyncio.gather(*(readiness.report() for _ in range(50)))} == {503}
    assert check.asked == 1
    now[0] = 1.0
    assert (await readiness.report())[0] == 200
    assert check.asked == 2


async def test_while_draining_no_new_request_should_come():
    readiness = Readiness({})
    readiness.draining = True
    assert await readiness.report() == (503, {"status": "draining", "failed": []})
