"""A session that pours makes no other wait long, on the slowest link that is promised.

``run.py`` in this directory pours ten times as much.
"""

from __future__ import annotations

import pytest
from flood import LATEST_BEAT, LONGEST_WAIT, Plan, percentile, simulate


def test_a_session_that_pours_makes_nobody_wait_long(tmp_path):
    plan = Plan(flood_bytes=5_000_000, heartbeat=1.0)
    outcome = simulate(plan, tmp_path)
    assert outcome.flood_events == plan.flood_bytes // plan.event_bytes
    assert outcome.wait(99) < LONGEST_WAIT
    assert outcome.wait(100) < 2 * LONGEST_WAIT
    said = plan.talkers * outcome.flood_seconds / plan.period
    assert len(outcome.waits) > 0.9 * said, "what has not arrived yet has waited, too"
    assert len(outcome.beats) >= int(outcome.flood_seconds / plan.heartbeat)
    assert outcome.longest_pause <= plan.heartbeat + LATEST_BEAT
    # What the others leave is made use of.
    assert outcome.link_share > 0.95
    assert outcome.flood_share > 0.85


@pytest.mark.parametrize(("percent", "expected"), [(50, 2), (99, 4), (100, 4), (1, 1)])
def test_a_percentile_is_one_of_the_values(percent, expected):
    assert percentile([4, 1, 3, 2], percent) == expected
