"""A host tells the truth of a VM whose loop stands still, and judges nobody by an old clock."""

from __future__ import annotations

from liveness import run_liveness


async def test_a_blocked_vm_is_silent_and_then_named_and_a_standstill_is_forgiven(tmp_path):
    blocked, frozen = await run_liveness(
        tmp_path / "plane", heartbeat=1.0, dead_after=4.0, blocked=3.0, frozen=5.5
    )
    assert blocked.tells_the_truth, blocked
    assert "dead" not in blocked.states + frozen.states, (blocked, frozen)
    assert blocked.rows == frozen.rows == {"ready"}
    assert blocked.epochs == frozen.epochs == 0
    assert blocked.block["seconds"] >= 2.5
    assert "in hold_up" in blocked.block["where"]
    assert any("in careless" in line for line in blocked.block["stack"])
