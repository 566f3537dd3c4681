from __future__ import annotations

import os
import signal

import pytest
import trio
from following import TERMINAL, Follower, check_history, check_reader, check_store, ends_of
from harness import open_external_vm, open_plane, seconds_until, wait_vm
from kill import kill_host, kill_host_only, kill_many, kill_vm
from random_kills import make_bridge_plan, make_plan


async def test_a_killed_vm_ends_its_run_and_the_next_message_gets_a_new_one(tmp_path):
    async with open_plane(tmp_path / "plane") as plane:
        await wait_vm(plane)
        for _ in range(2):
            figures = await kill_vm(plane)
            assert figures.audit.problems == []


async def test_a_killed_host_leaves_no_child_and_the_next_one_ends_the_run(tmp_path):
    async with open_plane(tmp_path / "plane") as plane:
        await wait_vm(plane)
        figures = await kill_host(plane)
        assert figures.audit.problems == []


async def test_a_run_goes_on_in_a_vm_that_outlives_its_host(tmp_path):
    async with open_plane(tmp_path / "plane", is_external=True) as plane, open_external_vm(plane):
        for count in (250, 40):  # the second run ends while there is no host
            figures = await kill_host_only(plane, count)
            assert figures.audit.problems == []


@pytest.mark.parametrize("victim", ["vm", "host"])
async def test_a_message_that_no_vm_got_is_answered_by_the_next_one(tmp_path, victim):
    async with open_plane(tmp_path / "plane") as plane, trio.open_nursery() as nursery:
        await wait_vm(plane)
        first, second, reader = Follower(), Follower(), Follower()
        nursery.start_soon(plane.start, first, "stream 100000 0.01")
        await first.wait_types("text_chunk", 5)
        sid = first.session_id
        nursery.start_soon(plane.follow, reader, sid)

        async def enqueue() -> None:
            await plane.say(second, sid, "stream 3 0", on_busy="enqueue")

        nursery.start_soon(enqueue)
        await second.wait(lambda f: f.run_id)
        await reader.wait_types("text_chunk", 5)
        if victim == "vm":
            os.kill(plane.vm_pid(), signal.SIGKILL)
        else:
            os.kill(plane.process.pid, signal.SIGKILL)
            assert await seconds_until(lambda: not plane.processes(), 1.0) is not None
            await plane.restart()
            nursery.start_soon(plane.follow, reader, sid)
        await reader.wait(lambda f: ends_of(f) == 2)  # perhaps in a ``resync``
        stored = plane.stored(sid)
        check_store(stored)
        check_reader(reader.seen, stored)
        check_history(reader.seen, await plane.messages(sid))
        ends = [event["type"] for _, _, _, event in stored if event["type"] in TERMINAL]
        assert ends == ["execution_error", "execution_complete"]
        assert stored[-1][2] == second.run_id
        nursery.cancel_scope.cancel()


SEED = 1
ANYWHERE = range(54, 59)
BRIDGES = range(12, 27)
"""Numbers of kills that differ much from each other; the command does as many as one likes."""


async def test_who_is_killed_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path):
    plans = [make_plan(SEED, number) for number in ANYWHERE]
    assert len({plan.moment for plan in plans}) >= 5
    assert {plan.is_external for plan in plans} == {True, False}
    kills = {"first": ANYWHERE.start, "times": len(ANYWHERE), "seed": SEED}
    summary = await kill_many("any", tmp_path, **kills)
    assert summary.startswith(f"good any: killed {len(ANYWHERE)} times: acked "), summary


async def test_a_killed_bridge_or_guard_ends_its_run_and_leaves_nothing(tmp_path):
    plans = [make_bridge_plan(SEED, number) for number in BRIDGES]
    assert {plan.victims for plan in plans} == {("bridge",), ("guard",), ("vm",), ("host",)}
    assert {plan.work for plan in plans} == {"talk", "stubborn"}
    kills = {"first": BRIDGES.start, "times": len(BRIDGES), "seed": SEED}
    summary = await kill_many("bridge", tmp_path, **kills)
    assert summary.startswith(f"good bridge: killed {len(BRIDGES)} times: acked "), summary
