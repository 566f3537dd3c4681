from __future__ import annotations

from drain import run_drain


async def test_a_host_that_is_told_to_stop_lets_runs_end(tmp_path):
    drained = await run_drain(3, tmp_path / "plane", "stream 40 0.05 500")
    assert drained.outcomes == {"completed": 3}
    assert drained.ready_503 < 1
    assert drained.exit < 12
    assert drained.closed_in_order == 6


async def test_a_host_that_is_told_twice_is_gone_in_two_seconds(tmp_path):
    drained = await run_drain(3, tmp_path / "plane", "stream 10000 0.05 500", signals=2)
    assert drained.exit < 2.5
