from __future__ import annotations

from freeze import CALLS, REDIAL_LIMIT, run_freeze

QUICK = {"link_heartbeat": 0.3, "link_dead_after": 2.0}
SECONDS = 5.0
"""Longer than the host waits, and than a VM may be late without noticing that it stood still."""


async def test_a_vm_that_stood_still_goes_on_where_it_was(tmp_path):
    frozen = await run_freeze(tmp_path / "plane", SECONDS, QUICK)
    assert frozen.audit.problems == []
    assert frozen.redial < REDIAL_LIMIT
    assert frozen.outcomes == ("completed", "completed")
    assert frozen.lines == CALLS
