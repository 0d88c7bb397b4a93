"""Requests per minute, and bytes per request."""

from __future__ import annotations

import asyncio

import pytest
from starlette.requests import ClientDisconnect

from gkt_plugins.gateway.access import Client
from gkt_plugins.gateway.limits import RateLimits, read_body
from gkt_plugins.gateway.refusals import RefusedError

TEAM = Client("team", requests_per_minute=6)
OTHER = Client("other", requests_per_minute=600)
FREE = Client("free")


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def limits(total: int | None = None) -> tuple[RateLimits, Clock]:
    clock = Clock()
    return RateLimits(total, [TEAM, OTHER, FREE], clock=clock), clock


def admitted(limits: RateLimits, client: Client, times: int) -> int:
    passed = 0
    for _ in range(times):
        try:
            limits.admit(client)
        except RefusedError:
            continue
        passed += 1
    return passed


def test_a_minute_s_worth_may_come_at_once_and_no_more():
    rate, _ = limits()
    assert admitted(rate, TEAM, 20) == 6


def test_room_comes_back_evenly():
    rate, clock = limits()
    admitted(rate, TEAM, 6)
    clock.now += 9.9
    assert admitted(rate, TEAM, 5) == 0
    clock.now += 0.2
    assert admitted(rate, TEAM, 5) == 1
    clock.now += 30
    assert admitted(rate, TEAM, 5) == 3


def test_a_quiet_hour_saves_up_a_minute_s_worth_only():
    rate, clock = limits()
    clock.now += 3600
    assert admitted(rate, TEAM, 100) == 6


def test_who_keeps_to_the_rate_is_never_refused():
    rate, clock = limits()
    for _ in range(500):
        rate.admit(TEAM)
        clock.now += 10.000001


def test_a_refusal_says_when_to_come_back_and_coming_back_then_works():
    rate, clock = limits()
    admitted(rate, TEAM, 6)
    clock.now += 4
    with pytest.raises(RefusedError, match=r"the key 'team' may send 6 .*retry in 6\.0 s") as refused:
        rate.admit(TEAM)
    assert (refused.value.status, refused.value.code) == (429, "rate_limit_exceeded")
    assert refused.value.retry_after_s == pytest.approx(6)
    assert 6000 <= int(refused.value.headers["retry-after-ms"]) <= 6001
    clock.now += refused.value.retry_after_s
    rate.admit(TEAM)


def test_one_client_s_limit_is_not_another_s():
    rate, _ = limits()
    admitted(rate, TEAM, 100)
    assert admitted(rate, OTHER, 100) == 100
    assert admitted(rate, FREE, 1000) == 1000


def test_the_limit_of_all_holds_for_all_together():
    rate, _ = limits(total=10)
    assert admitted(rate, FREE, 8) == 8
    assert admitted(rate, OTHER, 8) == 2
    with pytest.raises(RefusedError, match="all clients of this gateway together may send 10"):
        rate.admit(FREE)


def test_what_one_limit_refuses_counts_against_no_other():
    rate, clock = limits(total=10)
    assert admitted(rate, TEAM, 50) == 6
    assert admitted(rate, FREE, 50) == 4  # refusals of the team's own limit took nothing of the ten
    clock.now += 6  # one of the ten comes back, and 0.6 of the team's six
    assert admitted(rate, TEAM, 1) == 0
    assert admitted(rate, FREE, 1) == 1


# --------------------------------------------------------------------------------------------------------------- bodies


class Sender:
    """A client that sends its body in pieces."""

    def __init__(self, *pieces: bytes, announced: str | None = None, ends: str = "http.request") -> None:
        self.scope = {"headers": [] if announced is None else [(b"content-length", announced.encode())]}
        self._pieces = list(pieces)
        self._ends = ends
        self.asked = 0

    async def receive(self) -> dict[str, object]:
        self.asked += 1
        if self._pieces:
            piece = self._pieces.pop(0)
            more = bool(self._pieces) or self._ends != "http.request"
            return {"type": "http.request", "body": piece, "more_body": more}
        if self._ends == "silence":
            await asyncio.Event().wait()
        return {"type": self._ends}


async def body_of(sender: Sender, max_bytes: int = 10, timeout_s: float = 5.0) -> bytes:
    return await read_body(sender.scope, sender.receive, max_bytes=max_bytes, timeout_s=timeout_s)


@pytest.mark.parametrize("pieces", [[b""], [b"0123456789"], [b"01234", b"", b"56789"], [b"0"] * 10])
async def test_a_body_within_the_limit_comes_back_whole(pieces):
    assert await body_of(Sender(*pieces)) == b"".join(pieces)


async def test_a_body_announced_too_large_is_refused_before_any_of_it_is_read():
    sender = Sender(b"x" * 11, announced="11")
    with pytest.raises(RefusedError, match=r"10 bytes at most.*gateway\.max_body_bytes") as refused:
        await body_of(sender)
    assert (refused.value.status, refused.value.code) == (413, "request_too_large")
    assert sender.asked == 0


@pytest.mark.parametrize("announced", [None, "3", "-1", "many"])
async def test_a_body_that_turns_out_too_large_is_refused_as_soon_as_that_shows(announced):
    sender = Sender(b"x" * 6, b"x" * 6, b"x" * 6, b"x" * 6, announced=announced)
    with pytest.raises(RefusedError) as refused:
        await body_of(sender)
    assert refused.value.status == 413
    assert sender.asked == 2


async def test_a_client_that_goes_away_while_sending_is_no_error_of_ours():
    with pytest.raises(ClientDisconnect):
        await body_of(Sender(b"01", ends="http.disconnect"))


async def test_a_client_that_stops_sending_is_told_408():
    with pytest.raises(RefusedError, match="2 bytes of it did") as refused:
        await body_of(Sender(b"01", ends="silence"), timeout_s=0.05)
    assert (refused.value.status, refused.value.code) == (408, "request_timeout")
