"""Hold a VM's loop up, and stop host and VM as a whole; see what the host says meanwhile.

As a program, with the real bounds: ``python tests/planes/liveness.py``.
"""
# What it prints is its answer.
# ruff: noqa: T201

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import groupby
from pathlib import Path

import attrs
import trio
from following import Follower
from harness import Plane, open_plane, wait_vm

PROGRAM = Path(__file__).parent / "programs" / "blocking_vm.py"


@attrs.frozen(kw_only=True)
class Told:
    """What the host said of its VM."""

    states: list[str]
    """One after the other, without repeats."""
    rows: set[str]
    """Every status of the row."""
    block: dict[str, object]
    """What was told of the block."""
    epochs: int
    """Links that the VM has had since it was up."""

    @property
    def tells_the_truth(self) -> bool:
        """Whether a blocked VM was silent, and then blocked.

        It may have been alive in between: what it was about to say may come before the
        heartbeat that names the block.
        """
        states = [state for state in self.states if state != "alive"]
        return states[-2:] == ["silent", "blocked"] and self.states[-1] == "blocked"


@asynccontextmanager
async def open_blocking_vm(plane: Plane) -> AsyncGenerator[trio.Process]:
    url = plane.url.replace("http", "ws") + "/ws/vm"
    with plane.vm_log_path.open("wb") as log:
        process = await trio.lowlevel.open_process(
            [sys.executable, str(PROGRAM), url, plane.token],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd=plane.directory,
            env={"PATH": os.environ["PATH"], "TMPDIR": str(plane.directory / "tmp")},
        )
    try:
        await wait_vm(plane, mode="external")
        yield process
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def watch(plane: Plane, seconds: float, until: str = "") -> Told:
    """Look at the VM for *seconds*, or until a block in function *until* was told."""
    states, rows, block = [], set(), {}
    first = plane.rows("SELECT epoch FROM user_vm_instances")
    with trio.move_on_after(seconds):
        while not (until and until in str(block.get("where"))):
            data = (await plane.ask("GET", "/api/v1/vm/status")).data
            states.append(data["liveness"]["state"])
            rows.add(data["status"])
            block = data["liveness"]["block"] or {}
            await trio.sleep(0.05)
    last = plane.rows("SELECT epoch FROM user_vm_instances")
    return Told(
        states=[state for state, _ in groupby(states)],
        rows=rows,
        block=block,
        epochs=last[0][0] - first[0][0],
    )


async def block(plane: Plane, seconds: float) -> Told:
    """Let the agent hold its loop up for *seconds*."""
    asker = Follower()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(plane.start, asker, f"block {seconds}")
        told = await watch(plane, seconds + 30, until="hold_up")
        await asker.wait(lambda f: f.terminals)
    assert asker.types[-1] == "execution_complete"
    return told


async def freeze(plane: Plane, vm: trio.Process, seconds: float, after: float) -> Told:
    """Stop host and VM for *seconds*, as a terminal or a sleeping machine does."""
    await trio.sleep(1)  # a commit that is under way would exceed its own deadline
    for pid in (vm.pid, plane.process.pid):
        os.kill(pid, signal.SIGSTOP)
    await trio.sleep(seconds)
    for pid in (plane.process.pid, vm.pid):
        os.kill(pid, signal.SIGCONT)
    return await watch(plane, after)


async def run_liveness(
    directory: Path, *, heartbeat: float, dead_after: float, blocked: float, frozen: float
) -> tuple[Told, Told]:
    """Do both, and return what the host said."""
    bounds = {"link_heartbeat": heartbeat, "link_dead_after": dead_after}
    async with (
        open_plane(directory, deadlines=bounds, is_external=True) as plane,
        open_blocking_vm(plane) as vm,
    ):
        return await block(plane, blocked), await freeze(plane, vm, frozen, 2 * heartbeat)


async def main(blocked: float, frozen: float) -> int:
    with tempfile.TemporaryDirectory() as directory:
        block_told, freeze_told = await run_liveness(
            Path(directory) / "plane",
            heartbeat=10.0,
            dead_after=30.0,
            blocked=blocked,
            frozen=frozen,
        )
    print(f"a loop that stood still for {blocked:g} s: {', '.join(block_told.states)}")
    print(f"  {block_told.block['seconds']} s in {block_told.block['where']}")
    for line in block_told.block["stack"]:
        print(f"    {line}")
    print(f"  status {', '.join(block_told.rows)}; links anew: {block_told.epochs}")
    print(f"host and VM stopped for {frozen:g} s: then {', '.join(freeze_told.states)}")
    print(f"  status {', '.join(freeze_told.rows)}; links anew: {freeze_told.epochs}")
    is_good = (
        block_told.epochs == freeze_told.epochs == 0
        and "dead" not in block_told.states + freeze_told.states
        and block_told.tells_the_truth
    )
    return 0 if is_good else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocked", type=float, default=20.0)
    parser.add_argument("--frozen", type=float, default=60.0)
    options = parser.parse_args()
    sys.exit(trio.run(main, options.blocked, options.frozen))
