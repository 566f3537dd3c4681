from __future__ import annotations

from kill import run_kills


async def test_a_killed_vm_ends_its_run_and_the_next_message_gets_a_new_one(tmp_path):
    await run_kills("vm", 2, tmp_path / "plane")


async def test_a_killed_host_leaves_no_child_and_the_next_one_ends_the_run(tmp_path):
    await run_kills("host", 2, tmp_path / "plane")


async def test_a_run_goes_on_in_a_vm_that_outlives_its_host(tmp_path):
    await run_kills("external", 1, tmp_path / "plane")
