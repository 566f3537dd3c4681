"""The watchdog sees a loop that stands still, and who stopped it."""

from __future__ import annotations

import threading

import trio
from trio.testing import MockClock

from semibot.live import live_ports
from semibot.observe.watchdog import Watchdog, open_watchdog
from semibot.testing import simulated_ports


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
    assert any("test_a_block_is_reported" in line for line in block.stack)
    assert ports.threads.in_use() == {"watchdog": 0}


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
