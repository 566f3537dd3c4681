"""The watchdog sees a loop that stands still, and who stopped it."""

from __future__ import annotations

import gc
import sys
import threading
import time

import pytest
import trio
from trio.testing import MockClock

from semibot.live import live_ports
from semibot.observe.watchdog import (
    INTERVAL,
    MAX_LINE_LENGTH,
    MAX_LINES,
    NOBODY,
    FrozenStack,
    LoopBlock,
    Watchdog,
    open_watchdog,
)
from semibot.testing import capture_logs, simulated_ports


def hold_the_loop(watchdog: Watchdog) -> None:
    """Block until the watching thread has seen it: the time it takes is the thread's own."""
    seen = threading.Event()
    threading.Thread(target=_wait_seen, args=(watchdog, seen), daemon=True).start()
    assert seen.wait(30)


def _wait_seen(watchdog: Watchdog, seen: threading.Event) -> None:
    while not watchdog.has_seen_block:
        watchdog.ticked.wait(1)
    seen.set()


async def test_a_block_is_reported_with_function_and_length() -> None:
    ports = live_ports()
    async with open_watchdog(ports) as watchdog:
        await watchdog.wait_beat()
        hold_the_loop(watchdog)
        await watchdog.wait_beat()
        block = watchdog.worst_block
    assert block is not None
    assert block.seconds > 1
    assert "hold_the_loop" in block.where
    names = [line.partition(" in ")[2] for line in block.stack]
    caller = names.index("test_a_block_is_reported_with_function_and_length")
    assert names[caller + 1] == "hold_the_loop"  # innermost last
    assert ports.threads.in_use() == {"watchdog": 0}


async def test_whoever_asks_first_after_a_block_is_told_of_it() -> None:
    async with open_watchdog(live_ports()) as watchdog:
        tally, other = watchdog.tally(), watchdog.tally()
        await watchdog.wait_beat()
        hold_the_loop(watchdog)
        # Nothing else has run on the loop since.
        health = tally.take_worst()
        assert health.worst_block is not None
        assert "hold_the_loop" in health.worst_block.where
        assert health.worst_lag >= health.worst_block.seconds - 0.001
        await watchdog.wait_beat()
        again = tally.take_worst()
        assert again.worst_block is None
        assert other.take_worst().worst_block == health.worst_block == watchdog.worst_block


def test_each_reader_is_told_the_worst_since_it_asked_last() -> None:
    watchdog = Watchdog()
    tally = watchdog.tally()
    short, long = (LoopBlock(seconds=s, where=f"{s}", stack=()) for s in (1.0, 9.0))
    for block in (short, long, short):
        watchdog.record(block.seconds, block)
    watchdog.record(0.5, None)
    health = tally.take_worst()
    assert (health.worst_block, health.worst_lag) == (long, 9.0)
    watchdog.record(1.0, short)
    assert tally.take_worst().worst_block == short
    assert tally.take_worst().worst_block is None
    assert watchdog.worst_block == long


def test_a_reader_that_is_gone_is_forgotten() -> None:
    watchdog = Watchdog()
    watchdog.tally()
    gc.collect()
    assert len(watchdog._tallies) == 0


def test_a_process_that_stood_still_blames_nobody() -> None:
    watchdog = Watchdog()  # whose thread slept, too
    tally = watchdog.tally()
    watchdog._beat = time.monotonic() - INTERVAL - 60
    block = tally.take_worst().worst_block
    assert block is not None
    assert (block.where, block.stack) == (NOBODY, ())
    assert 60 <= block.seconds < 61


def test_a_thread_that_is_late_itself_looks_once_more_before_it_blames() -> None:
    watchdog = Watchdog()
    looks = []

    class Stop:
        def wait(self, seconds: float) -> bool:
            looks.append(watchdog.has_seen_block)
            if len(looks) == 1:
                clock.sleep(60)
            return len(looks) > 3

    class Clock:
        def __init__(self) -> None:
            self.now = time.monotonic()

        def sleep(self, seconds: float) -> None:
            self.now += seconds

        def monotonic(self) -> float:
            self.now += INTERVAL
            return self.now

    clock = Clock()
    watchdog._stop = Stop()
    watchdog._clock = clock.monotonic
    watchdog.watch()
    assert looks == [False, False, True, True]


def deep(levels: int) -> FrozenStack:
    if levels:
        return deep(levels - 1)
    return FrozenStack.of(sys._getframe())


def test_a_stack_is_bounded_and_names_only_functions() -> None:
    secret = "sk-of-the-caller"
    stack = deep(100)
    assert len(stack.stack) == MAX_LINES
    assert "in deep" in stack.where
    assert all(line.startswith("test_watchdog.py:") for line in stack.stack)
    assert all(len(line) <= MAX_LINE_LENGTH for line in stack.stack)
    assert secret not in str(stack)


async def test_a_loop_that_runs_is_not_reported() -> None:
    async with open_watchdog(live_ports()) as watchdog:
        for _ in range(3):
            await watchdog.wait_beat()
    assert watchdog.worst_block is None


async def test_an_inner_watchdog_joins_the_outer_one() -> None:
    ports = live_ports()
    async with open_watchdog(ports) as outer, open_watchdog(ports) as inner:
        assert inner is outer
        await outer.wait_beat()
        assert ports.threads.in_use() == {"watchdog": 1}
    async with open_watchdog(ports) as later:
        assert later is not outer


async def test_nothing_is_watched_in_a_simulation(autojump_clock: MockClock) -> None:
    async with open_watchdog(simulated_ports()) as watchdog:
        await trio.sleep(100)
    assert watchdog.worst_block is None


# --- by the clock ---------------------------------------------------------------------


class Looks:
    """Lets the thread look *count* times, and stops it then."""

    def __init__(self, count: int) -> None:
        self._left = count

    def wait(self, seconds: float) -> bool:
        self._left -= 1
        return self._left < 0


def late_by(seconds: float) -> Watchdog:
    """Return a watchdog whose last beat is *seconds* ago."""
    watchdog = Watchdog()
    watchdog._clock = lambda: seconds
    watchdog._beat = 0.0
    return watchdog


def look_from_the_thread(watchdog: Watchdog, count: int = 1) -> None:
    watchdog._stop = Looks(count)
    watchdog.watch()


@pytest.mark.parametrize(("seconds", "is_seen"), [(1.2, False), (1.3, True)])
def test_a_loop_that_stands_still_for_a_second_is_looked_at(seconds: float, is_seen: bool) -> None:
    watchdog = late_by(seconds)
    look_from_the_thread(watchdog)
    assert watchdog.has_seen_block == is_seen


def test_a_block_is_looked_at_once_and_reported_once() -> None:
    watchdog = late_by(2.25)
    with capture_logs() as logs:
        look_from_the_thread(watchdog, 3)
    assert [entry["event"] for entry in logs] == ["event loop is blocked"]
    tally = watchdog.tally()
    block = tally.take_worst().worst_block
    assert block is not None
    assert block.seconds == 2.0
    watchdog._clock = lambda: 2.25 + INTERVAL + 0.9  # late again, and nobody has looked
    health = tally.take_worst()
    assert (round(health.worst_lag, 3), health.worst_block) == (0.9, None)


@pytest.mark.parametrize(("late", "where"), [(0.4, None), (0.5, "f.py:1 in f")])
def test_a_stack_that_was_taken_at_the_last_moment_is_no_block(late: float, where: object) -> None:
    watchdog = late_by(INTERVAL + late)
    watchdog._seen = FrozenStack("f.py:1 in f", ())
    block = watchdog.tally().take_worst().worst_block
    assert (block and block.where) == where


@pytest.mark.parametrize(("late", "where"), [(2.9, None), (3.1, NOBODY)])
def test_only_a_long_standstill_of_which_nothing_was_seen_is_told(
    late: float, where: object
) -> None:
    block = late_by(INTERVAL + late).tally().take_worst().worst_block
    assert (block and block.where) == where


async def test_what_was_seen_of_a_block_that_is_over_is_forgotten(
    autojump_clock: MockClock,
) -> None:
    watchdog = late_by(0.0)
    watchdog._seen = FrozenStack("f.py:1 in f", ())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watchdog.beat)
        await watchdog.wait_beat()
        assert not watchdog.has_seen_block
        nursery.cancel_scope.cancel()
    assert watchdog.worst_block is None
