from __future__ import annotations

import pytest
import trio
from scenarios_store import CASES
from sweeping import check
from trials import Case
from trio.testing import MockClock, wait_all_tasks_blocked

from semibot.store._writer import Committed, GroupWriter, StoreClock
from semibot.testing import simulated_ports


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_is_left_behind_wherever_it_is_cancelled(case: Case) -> None:
    check(case)


async def test_a_write_that_is_dropped_does_not_hold_up_closing(autojump_clock: MockClock) -> None:
    ports = simulated_ports()
    writer = GroupWriter(
        lambda jobs, now: Committed(failure=None, has_written=True),
        ports=ports,
        clock=StoreClock(ports),
        seconds=10,
    )
    scope = trio.CancelScope()

    async def write() -> None:
        with scope:
            await writer.write(lambda _: None)

    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await wait_all_tasks_blocked()
            nursery.start_soon(writer.finish)  # whose job is there, and never begins
            await wait_all_tasks_blocked()
            scope.cancel()
