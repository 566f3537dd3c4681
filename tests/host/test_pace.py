"""Readers rest only while events come faster than they can be written one by one."""

from __future__ import annotations

import trio
import trio.testing

from semibot.host.pace import AFFORDED, BUSY, LONGEST, WINDOW, Pace

MANY = int(BUSY * WINDOW) + 1


def test_a_reader_of_a_quiet_host_never_rests():
    pace = Pace()
    assert pace.rest_after(10.0, 9.0, MANY - 1) == 0


def test_a_rest_grows_with_the_readers_that_are_busy():
    pace = Pace()
    assert pace.rest_after(10.0, 9.0, MANY) == 1 / AFFORDED
    assert pace.rest_after(10.0, 9.0, 1) == 2 / AFFORDED


def test_a_reader_is_counted_once_in_a_window():
    pace = Pace()
    pace.rest_after(10.0, 9.0, MANY)
    assert pace.rest_after(10.01, 10.0, 1) == 1 / AFFORDED


def test_no_rest_is_longer_than_people_notice():
    pace = Pace()
    rests = [pace.rest_after(10.0, 9.0, MANY) for _ in range(1000)]
    assert rests[-1] == LONGEST


def test_the_window_before_still_counts_and_an_older_one_does_not():
    pace = Pace()
    pace.rest_after(10.01, 9.0, MANY)
    assert pace.rest_after(10.01 + WINDOW, 10.01, 1) == 1 / AFFORDED
    assert pace.rest_after(10.01 + 3 * WINDOW, 10.01 + WINDOW, 1) == 0


async def test_who_rests_wakes_with_the_first(autojump_clock):
    pace, woken = Pace(), []

    async def rest(until: float) -> None:
        await pace.rest(until)
        woken.append(trio.current_time())

    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rest, start + 1)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(rest, start + 5)
    assert woken == [start + 1, start + 1]


async def test_a_cancelled_keeper_lets_nobody_rest_for_ever(mock_clock):
    pace, woken = Pace(), []

    async def rest() -> None:
        await pace.rest(trio.current_time() + 100)
        woken.append("rested")

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as keeping:
                keeping.start_soon(rest)
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(rest)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
    assert woken == ["rested"]
