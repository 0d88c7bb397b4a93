"""Of those who want the same at the same time one fetches, and nobody is left waiting."""

from __future__ import annotations

import asyncio

import pytest

from gkt_plugins.guidance.single_flight import Flight, Landed, SingleFlight


async def join_all(flights: SingleFlight[str], count: int) -> list[asyncio.Task[Landed[str] | Flight[str]]]:
    tasks = [asyncio.create_task(flights.join("key")) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def leader_and_followers(
    flights: SingleFlight[str],
) -> tuple[Flight[str], list[asyncio.Task[Landed[str] | Flight[str]]]]:
    first, *others = await join_all(flights, 4)
    leader = await first
    assert isinstance(leader, Flight)
    assert not any(task.done() for task in others)
    return leader, others


async def test_the_first_leads_and_the_others_get_what_it_lands():
    leader, others = await leader_and_followers(SingleFlight())
    leader.land("text")
    for landed in await asyncio.gather(*others):
        assert isinstance(landed, Landed)
        assert landed.value == "text"


async def test_when_the_leader_goes_away_one_of_the_others_leads_them():
    leader, others = await leader_and_followers(SingleFlight())
    leader.give_up(failed=False)
    await asyncio.sleep(0)
    done, waiting = [task for task in others if task.done()], [task for task in others if not task.done()]
    [next_leader] = [task.result() for task in done]
    assert isinstance(next_leader, Flight)
    assert len(waiting) == 2
    next_leader.land("text")
    assert [task.value for task in await asyncio.gather(*waiting) if isinstance(task, Landed)] == ["text", "text"]


async def test_when_the_leader_fails_all_of_the_others_go_on_by_themselves_at_once():
    flights: SingleFlight[str] = SingleFlight()
    leader, others = await leader_and_followers(flights)
    leader.give_up(failed=True)
    alone = await asyncio.gather(*others)
    assert all(isinstance(flight, Flight) for flight in alone)
    assert len(set(map(id, alone))) == 3


async def test_one_who_stops_waiting_disturbs_nobody():
    leader, [quitter, *others] = await leader_and_followers(SingleFlight())
    quitter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await quitter
    leader.land("text")
    assert all(isinstance(landed, Landed) for landed in await asyncio.gather(*others))


async def test_after_a_flight_the_next_one_leads_anew_and_a_late_ending_of_the_first_changes_nothing():
    flights: SingleFlight[str] = SingleFlight()
    leader, _ = await leader_and_followers(flights)
    leader.land("text")
    second = await flights.join("key")
    assert isinstance(second, Flight)
    leader.give_up(failed=True)
    [follower] = await join_all(flights, 1)
    assert not follower.done()
    second.land("other text")
    landed = await follower
    assert isinstance(landed, Landed)
    assert landed.value == "other text"


async def test_different_keys_do_not_wait_for_each_other():
    flights: SingleFlight[str] = SingleFlight()
    assert isinstance(await flights.join("one"), Flight)
    assert isinstance(await flights.join("other"), Flight)
