"""Stop a VM with SIGSTOP for longer than its host waits, and let it go on.

As a program: ``python tests/planes/freeze.py [SECONDS]``, by default 60, with the bounds that
users have. The exit code is 1 if anything was lost, came twice, or took too long.
"""
# What it prints is its answer.
# ruff: noqa: T201

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import attrs
import trio
from audit import Audit, audit_effects, audit_events, audit_replay, audit_runs, audit_text
from following import Follower
from harness import PATIENCE, Plane, open_external_vm, open_plane, seconds_until

REDIAL_LIMIT = 5.0
"""How soon a VM that goes on has its link again, in seconds."""

PAUSE = 0.1
"""Seconds between two pieces of the answer."""

CALLS = 8
CALL_PAUSE = 0.4


@attrs.frozen
class Frozen:
    """What one stop showed."""

    seconds: float
    """How long the VM stood still."""
    redial: float
    """From when it went on until it had its link again."""
    outcomes: tuple[str, ...]
    """How the runs ended: one that talks, one that calls tools."""
    lines: int
    """What the tools have appended to their file, a line a call."""
    audit: Audit

    def __str__(self) -> str:
        head = (
            f"stood still for {self.seconds:.1f} s; link again after {self.redial:.2f} s; "
            f"runs: {', '.join(self.outcomes)}; {self.lines} lines of {CALLS} calls; {self.audit}"
        )
        return "\n    ".join([head, *self.audit.problems])


def epoch(plane: Plane) -> object:
    """Return how many links there have been."""
    return plane.rows("SELECT max(epoch) FROM user_vm_instances")[0][0]


async def freeze(plane: Plane, vm: trio.Process, seconds: float) -> Frozen:
    """Stop the VM in the middle of two runs, wake it, and compare everything."""
    talker, reader, caller = Follower(), Follower(), Follower()
    file = plane.directory / "lines"
    pieces = int((seconds + 2) / PAUSE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(plane.start, talker, f"stream {pieces} {PAUSE}")
        nursery.start_soon(plane.start, caller, f"append {file} {CALLS} {CALL_PAUSE} c")
        await talker.wait(lambda f: f.session_id)
        nursery.start_soon(plane.follow, reader, talker.session_id)
        await reader.wait_types("text_chunk", 5)
        await caller.wait_types("tool_call_complete", 2)
        before = {f.session_id: plane.stored(f.session_id) for f in (talker, caller)}
        old = epoch(plane)
        os.kill(vm.pid, signal.SIGSTOP)
        start = trio.current_time()
        await trio.sleep(seconds)
        os.kill(vm.pid, signal.SIGCONT)
        woken = trio.current_time()
        found = await seconds_until(lambda: epoch(plane) != old)
        assert found is not None, plane.vm_log[-3000:]
        redial = trio.current_time() - woken
        for follower in (talker, reader, caller):
            await follower.wait(lambda f: f.terminals)
        nursery.cancel_scope.cancel()
    audit = Audit()
    for followers in ([talker, reader], [caller]):
        session_id = followers[0].session_id
        stored = plane.stored(session_id)
        audit += audit_events(stored, followers, before[session_id])
        audit += await audit_replay(plane, session_id, stored)
    whole = "".join(f"{index} " for index in range(pieces))
    audit += audit_text(plane.stored(talker.session_id), {talker.run_id: whole})
    lines = file.read_text().splitlines()
    audit += audit_effects(plane.stored(caller.session_id), caller.run_id, lines, CALLS)
    audit += audit_runs(plane)
    if redial > REDIAL_LIMIT:
        audit.wrong.append(f"the VM needed {redial:.2f} s to dial again")
    if "the host was silent" in plane.vm_log:
        audit.wrong.append("the VM blamed its host for its own silence")
    outcomes = tuple(
        str(plane.rows("SELECT outcome FROM runs WHERE id = ?", f.run_id)[0][0])
        for f in (talker, caller)
    )
    return Frozen(woken - start, redial, outcomes, len(lines), audit)


async def run_freeze(
    directory: Path, seconds: float, deadlines: Mapping[str, float] | None = None
) -> Frozen:
    """Do it in a plane of its own."""
    async with (
        open_plane(directory, deadlines=deadlines, is_external=True) as plane,
        open_external_vm(plane) as vm,
    ):
        with trio.fail_after(seconds + 3 * PATIENCE):
            return await freeze(plane, vm, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float, nargs="?", default=60.0)
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory(prefix="semibot-freeze-") as directory:
        frozen = trio.run(partial(run_freeze, Path(directory) / "plane", seconds))
    print("BAD" if frozen.audit.problems else "good", "freeze:", frozen)
    return 1 if frozen.audit.problems else 0


if __name__ == "__main__":
    sys.exit(main())
