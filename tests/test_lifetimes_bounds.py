from __future__ import annotations

import math

import pytest
import trio
import trio.testing

from semibot.errors import DeadlineExceeded
from semibot.lifetimes import StopClock, deadline, grace, open_services, open_stop_clock
from semibot.testing import capture_logs

# --- deadlines ------------------------------------------------------------------------


async def test_a_deadline_names_itself(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(DeadlineExceeded) as caught:
        with deadline("control.request_timeout", 3):
            await trio.sleep_forever()
    assert str(caught.value) == "control.request_timeout (3 s) exceeded"
    assert trio.current_time() == 3


async def test_a_deadline_that_is_kept_says_nothing(autojump_clock: trio.testing.MockClock) -> None:
    with deadline("test.limit", 3):
        await trio.sleep(2)
    assert trio.current_time() == 2


async def test_an_infinite_deadline_never_passes(autojump_clock: trio.testing.MockClock) -> None:
    with deadline("test.limit", math.inf):
        await trio.sleep(10_000)


async def test_a_deadline_can_be_moved(autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(DeadlineExceeded):
        with deadline("test.limit", 3) as scope:
            scope.deadline += 4
            await trio.sleep_forever()
    assert trio.current_time() == 7


async def test_a_deadline_does_not_rename_a_timeout_inside(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with pytest.raises(trio.TooSlowError):
        with deadline("test.limit", 3), trio.fail_after(1):
            await trio.sleep_forever()


async def test_of_two_deadlines_the_one_that_passed_is_named(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with pytest.raises(DeadlineExceeded, match=r"test\.inner"):
        with deadline("test.outer", 3), deadline("test.inner", 1):
            await trio.sleep_forever()
    with pytest.raises(DeadlineExceeded, match=r"test\.outer"):
        with deadline("test.outer", 1), deadline("test.inner", 3):
            await trio.sleep_forever()


async def test_a_cancellation_from_outside_is_not_a_deadline(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with trio.move_on_after(1) as outer:
        with deadline("test.limit", 3):
            await trio.sleep_forever()
    assert outer.cancelled_caught


async def test_an_error_before_the_deadline_passes_through(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with pytest.raises(ValueError, match="first"):
        with deadline("test.limit", 3):
            await trio.sleep(2)
            raise ValueError("first")


# --- graces ---------------------------------------------------------------------------


async def test_a_grace_shields_from_the_cancellation_it_cleans_up_after(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        with grace("test.cleanup", 5) as cleanup:
            await trio.sleep(4)
    assert not cleanup.cancelled_caught
    assert trio.current_time() == 4


async def test_a_grace_that_runs_out_ends_quietly_and_is_logged(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with capture_logs() as logs:
        with grace("test.cleanup", 5) as scope:
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() == 5
    assert [(entry["event"], entry["grace"]) for entry in logs] == [
        ("grace ran out", "test.cleanup")
    ]


async def test_a_grace_ends_with_the_grace_around_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with grace("test.outer", 2), grace("test.inner", 60) as inner:
        await trio.sleep_forever()
    assert inner.cancelled_caught
    assert trio.current_time() == 2


async def test_graces_one_after_another_share_the_grace_around_them(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with grace("test.outer", 5):
        with grace("test.first", 3):
            await trio.sleep_forever()
        with grace("test.second", 3):
            await trio.sleep_forever()
    assert trio.current_time() == 5


async def test_a_task_that_outlives_the_grace_it_was_started_in_is_not_bound_by_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def work() -> None:
        await trio.sleep(10)
        with grace("test.later", 7) as scope:
            await trio.sleep_forever()
        assert scope.cancelled_caught

    async with trio.open_nursery() as nursery:
        with grace("test.first", 1):
            nursery.start_soon(work)
    assert trio.current_time() == 17


async def test_an_error_in_clean_up_comes_out_of_the_grace() -> None:
    with pytest.raises(OSError, match="cleanup"):
        with grace("test.cleanup", 5):
            raise OSError("cleanup")


# --- the stop clock -------------------------------------------------------------------


async def test_before_a_stop_the_clock_bounds_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with open_stop_clock() as clock:
        assert clock.stop_at == math.inf
        with grace("test.cleanup", 100):
            await trio.sleep_forever()
    assert trio.current_time() == 100


async def stop_after(clock: StopClock, wait: float, seconds: float) -> None:
    await trio.sleep(wait)
    clock.stop(seconds)


async def test_a_stop_lowers_the_graces_that_are_open(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with open_stop_clock() as clock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_after, clock, 1, 2)
            with grace("test.cleanup", 100) as scope:
                await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() == 3


async def test_a_stop_lowers_the_graces_that_open_later(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with open_stop_clock() as clock:
        clock.stop(2)
        assert clock.stop_at == 2
        await trio.sleep(1)
        with grace("test.cleanup", 100):
            await trio.sleep_forever()
        assert trio.current_time() == 2
        with grace("test.too_late", 100) as scope:
            await trio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert trio.current_time() == 2


async def test_a_stop_never_lengthens_a_grace(autojump_clock: trio.testing.MockClock) -> None:
    with open_stop_clock() as clock:
        clock.stop(10)
        clock.stop(50)
        assert clock.stop_at == 10
        with grace("test.cleanup", 3):
            await trio.sleep_forever()
    assert trio.current_time() == 3


async def test_a_second_stop_can_only_make_the_bound_tighter(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with open_stop_clock() as clock:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_after, clock, 1, 20)
            nursery.start_soon(stop_after, clock, 5, 1)
            with grace("test.cleanup", 100):
                await trio.sleep_forever()
    assert trio.current_time() == 6


async def test_an_outer_stop_reaches_into_an_inner_root(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with open_stop_clock() as outer, open_stop_clock() as inner:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop_after, outer, 1, 2)
            with grace("test.cleanup", 100):
                await trio.sleep_forever()
        assert trio.current_time() == 3
        assert inner.stop_at == outer.stop_at == 3


async def test_an_inner_stop_leaves_the_outer_root_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with open_stop_clock() as outer:
        with open_stop_clock() as inner:
            inner.stop(1)
        assert outer.stop_at == math.inf
        with grace("test.cleanup", 30):
            await trio.sleep_forever()
    assert trio.current_time() == 30


async def test_a_stop_reaches_the_clean_up_of_tasks_started_inside(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def stubborn() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with grace("test.cleanup", 100):
                await trio.sleep_forever()

    with open_stop_clock() as clock, trio.move_on_after(1):
        async with open_services() as services:
            services.start_soon(stubborn)
            try:
                await trio.sleep_forever()
            finally:
                clock.stop(2)
    assert trio.current_time() == 3


async def test_a_grace_that_has_ended_is_forgotten_by_the_clock(
    autojump_clock: trio.testing.MockClock,
) -> None:
    with open_stop_clock() as outer, open_stop_clock():
        with grace("test.cleanup", 100) as scope:
            await trio.lowlevel.checkpoint()
        before = scope.deadline
        outer.stop(1)
        assert scope.deadline == before
