"""A reader that stops reading costs the others nothing, and the host little.

``readers.py`` in this directory does the same with a hundred readers and a larger run.
"""

from __future__ import annotations

import pytest
import trio
from crowd import MOST_GROWTH, Chunks, measure
from crowd import Plan as RealPlan
from quiet_crowd import TICK, Plan, simulate


def test_a_stalled_reader_delays_nobody_and_comes_back_without_a_gap(tmp_path):
    waits = {}
    for has_stalled in (False, True):
        directory = tmp_path / str(has_stalled)
        directory.mkdir()
        plan = Plan(has_stalled=has_stalled, live=29)
        outcome = simulate(plan, directory)
        waits[has_stalled] = sorted(outcome.waits)
        last = plan.events + 2  # between run_started and the end
        for seen in (*outcome.seen, *([outcome.seen_stalled] if has_stalled else ())):
            numbers = [each.seq for each in seen]
            assert numbers[0] in {1, 2}, "run_started may be part of the view that comes first"
            assert numbers == list(range(numbers[0], last + 1))
    assert len(waits[True]) == plan.live * plan.events
    assert waits[True][-1] <= waits[False][-1] + 0.001
    # What the wire holds is accepted before the timeout begins to count.
    assert plan.stall_timeout <= outcome.closed_after <= plan.stall_timeout + 6 * plan.period + TICK
    assert outcome.came_back_with == "thinking"


def test_a_real_host_stays_small_while_one_of_its_readers_stalls(tmp_path):
    plan = RealPlan(readers=30)
    outcome = trio.run(measure, plan, tmp_path)
    assert outcome.rss_growth < MOST_GROWTH
    assert outcome.stalls, "nobody stalled"
    for stall in outcome.stalls:
        assert stall.closed_after >= plan.stall_timeout - 0.1
        assert stall.came_back_with in {"next", "resync"}
    delivered = sum(counts.total() for counts in outcome.waits.values())
    assert delivered == outcome.events * (plan.readers - 1)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_chunks_are_joined_however_they_come(size):
    data = b"3\r\nabc\r\n10\r\n0123456789abcdef\r\n"
    chunks = Chunks()
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert b"".join(chunks.feed(piece) for piece in pieces) == b"abc0123456789abcdef"
