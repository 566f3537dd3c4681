"""Bridges that ignore everything one can ignore, under a real host and a real VM."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from audit import audit_events, audit_replay, audit_runs
from following import Follower
from harness import Plane, open_plane, seconds_until, wait_vm
from random_kills import BRIDGE, ORPHAN_LIMIT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs the guard and /proc")

STUBBORN = ("rude", "forks", "stubborn")
"""They ignore the end of their input and SIGTERM; ``forks`` and ``stubborn`` have a child in a
session of its own that does so, too, and ``stubborn`` floods stderr while it talks."""

COMMAND = shlex.join([sys.executable, "-I", "-S", str(BRIDGE)])

STOP_BOUND = 12.0
"""Of a cancel: an answer that never comes (3 s), end of input (2 s), SIGTERM (2 s), SIGKILL,
and what a busy machine adds, in seconds."""


HURRY = 2.5
"""What a host may take that was told to end twice: 2 s, and what a busy machine adds."""


@asynccontextmanager
async def open_bridges(plane: Plane, *behaviours: str) -> AsyncGenerator[list[Follower]]:
    """Begin a run of each kind that does not end; yields who follows them."""
    followers = [Follower() for _ in behaviours]
    async with trio.open_nursery() as nursery:
        for follower, behaviour in zip(followers, behaviours, strict=True):
            body = {
                "message": "stream 100000 0.01",
                "runtime_type": "openclaw",
                "openclaw_config": {"behaviour": behaviour},
            }
            nursery.start_soon(follower.post, plane.port, "/api/v1/chat/start", body)
        for follower in followers:
            await follower.wait_types("text_chunk", 1)
        yield followers
        nursery.cancel_scope.cancel()


def bridges(plane: Plane) -> list[int]:
    """Return what there is of bridges, grandchildren too."""
    return [entry.pid for entry in plane.processes() if BRIDGE.name in entry.command]


async def check(plane: Plane, followers: list[Follower], outcome: str) -> None:
    """Assert that each run has ended so, once, and that nobody saw anything else."""
    for follower in followers:
        await follower.wait(lambda f: f.terminals or f.is_over)
        stored = plane.stored(follower.session_id)
        audit = audit_events(stored, [follower], may_take_back=True)
        audit += await audit_replay(plane, follower.session_id, stored)
        audit += audit_runs(plane)
        assert audit.problems == []
        (row,) = plane.rows("SELECT outcome FROM runs WHERE id = ?", follower.run_id)
        assert row == (outcome,)


async def test_stubborn_bridges_are_stopped_in_time_and_die_with_vm_and_host(tmp_path):
    async with open_plane(
        tmp_path / "plane", OPENCLAW_BRIDGE_CMD=COMMAND, VM_BOOTSTRAP_COOLDOWN_MS="0"
    ) as plane:
        await wait_vm(plane)
        # A cancel ends them, within its bounds.
        async with open_bridges(plane, *STUBBORN) as followers:
            assert len(bridges(plane)) == 5  # two have a grandchild
            start = trio.current_time()

            async def cancel(follower: Follower) -> None:
                path = f"/api/v1/chat/sessions/{follower.session_id}/cancel"
                answer = await plane.ask("POST", path, {})
                assert answer.status == 200, answer
                assert answer.data["outcome"] == "cancelled", answer

            async with trio.open_nursery() as nursery:
                for follower in followers:
                    nursery.start_soon(cancel, follower)
            assert trio.current_time() - start < STOP_BOUND
            assert await seconds_until(lambda: not bridges(plane), ORPHAN_LIMIT) is not None
            await check(plane, followers, "cancelled")
        # They die with the VM.
        async with open_bridges(plane, *STUBBORN) as followers:
            os.kill(plane.vm_pid(), signal.SIGKILL)
            assert await seconds_until(lambda: not bridges(plane), ORPHAN_LIMIT) is not None
            await check(plane, followers, "interrupted")
        # They die with the host.
        async with open_bridges(plane, *STUBBORN) as followers:
            os.kill(plane.process.pid, signal.SIGKILL)
            assert await seconds_until(lambda: not plane.processes(), ORPHAN_LIMIT) is not None
            await plane.restart()
            await check(plane, followers, "interrupted")


async def test_a_bridge_that_floods_stderr_is_heard_and_no_bridge_keeps_a_hurried_host(tmp_path):
    async with open_plane(tmp_path / "plane", OPENCLAW_BRIDGE_CMD=COMMAND) as plane:
        await wait_vm(plane)
        follower = Follower()
        config = {"runtime_type": "openclaw", "openclaw_config": {"behaviour": "flood"}}
        await plane.start(follower, "go", **config)
        assert follower.terminals[0]["final_response"] == "an answer"
        async with open_bridges(plane, *STUBBORN):
            plane.process.terminate()
            with trio.fail_after(5):
                while (await plane.ask("GET", "/readyz")).status == 200:
                    pass
            plane.process.terminate()
            with trio.fail_after(HURRY):
                await plane.process.wait()
            assert await seconds_until(lambda: not plane.processes(), ORPHAN_LIMIT) is not None
