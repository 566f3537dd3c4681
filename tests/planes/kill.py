"""Kill a VM, a host, or a host whose VM lives on, in the middle of a run; see what is left.

As a program: ``python tests/planes/kill.py vm 20`` (or ``host``, or ``external``). ``any`` kills
whoever it may be at any moment, and ``bridge`` the bridge of a session or its guard, most of the
time; what is done under each number is the same every time, so that ``any 1 --from 57`` does
number 57 again. The exit code is 1 if anything was lost, came twice or was left.
"""
# What it prints is its answer.
# ruff: noqa: T201

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import attrs
import trio
from audit import Audit, audit_events, audit_replay, total
from following import (
    Follower,
    Stored,
    check_history,
    check_reader,
    check_store,
    ends_of,
    view_of,
)
from harness import (
    PATIENCE,
    Plane,
    open_external_vm,
    open_plane,
    process_table,
    resources,
    seconds_until,
    wait_vm,
)
from random_kills import ORPHAN_LIMIT, end_in_order, kill_at_random, kill_bridges

CHUNKS = 10
"""How many pieces of the answer a reader has seen before the kill, at least."""

HELD = 9.0
"""How soon the VM has to be back for readers to go on as if nothing had been, in seconds."""


@attrs.frozen
class Figures:
    """What one kill showed, in seconds after it."""

    terminal: float
    """Until a reader saw the run's end."""
    next_answer: float
    """Until the next message was answered."""
    gone: float | None = None
    """Until no process was left that should not be."""
    resyncs: int = 0
    """Readers that had to begin anew."""
    audit: Audit = attrs.field(factory=Audit)


@attrs.define(eq=False)
class Conversation:
    """A session with a run under way, and its readers."""

    plane: Plane
    nursery: trio.Nursery
    asker: Follower = attrs.field(factory=Follower)
    """The reader of the POST."""
    readers: list[Follower] = attrs.field(factory=lambda: [Follower(), Follower()])
    """Readers of the session: from the beginning, and from the middle of the run."""

    @property
    def session_id(self) -> str:
        return self.asker.session_id

    async def begin(self, message: str) -> None:
        """Begin the run, and return once all readers have seen some of it."""
        plane, first, late = self.plane, *self.readers
        self.nursery.start_soon(plane.start, self.asker, message)
        await self.asker.wait(lambda _: self.asker.session_id)
        self.nursery.start_soon(plane.follow, first, self.session_id)
        await first.wait_types("text_chunk", CHUNKS // 2)
        self.nursery.start_soon(plane.follow, late, self.session_id)
        for reader in (first, late, self.asker):
            await reader.wait(
                lambda f: (
                    f.types.count("text_chunk") >= CHUNKS
                    or sum(kind != "resync" for kind in f.types) > CHUNKS
                )
            )

    def reconnect(self) -> None:
        """Let every reader follow the session again, from what it saw last."""
        for reader in (self.asker, *self.readers):
            self.nursery.start_soon(self.plane.follow, reader, self.session_id)

    async def check(
        self, again: Follower, before: Stored, *, terminals: int, may_take_back: bool = False
    ) -> Audit:
        """Wait until everybody has seen so many ends, and compare what they saw.

        Args:
            again: Who has sent the second message.
            before: What was in the database before the kill.
            terminals: Ends that there must be.
            may_take_back: Whether VM and host were killed.
        """
        for reader in self.readers:
            await reader.wait(lambda f: ends_of(f) >= terminals)
        stored = self.plane.stored(self.session_id)
        check_store(stored)
        messages = await self.plane.messages(self.session_id)
        for reader in (self.asker, *self.readers):
            check_reader(reader.seen, stored)
        for reader in self.readers:
            check_history(reader.seen, messages)
        plane = self.plane
        everybody = [self.asker, *self.readers, again]
        audit = audit_events(stored, everybody, before, may_take_back=may_take_back)
        audit += await audit_replay(plane, self.session_id, stored)
        audit += audit_runs_of(plane, self.asker, again)
        return audit

    def leave(self) -> None:
        for reader in (self.asker, *self.readers):
            reader.scope.cancel()


def audit_runs_of(plane: Plane, *askers: Follower) -> Audit:
    """Look for the runs of POSTs that were answered with 200."""
    known = {run_id for (run_id,) in plane.rows("SELECT id FROM runs WHERE outcome IS NOT NULL")}
    asked = [asker.run_id for asker in askers]
    return Audit(acked=len(asked), lost=[run_id for run_id in asked if run_id not in known])


@asynccontextmanager
async def open_conversation(plane: Plane, message: str) -> AsyncGenerator[Conversation]:
    async with trio.open_nursery() as nursery:
        talk = Conversation(plane, nursery)
        with trio.fail_after(3 * PATIENCE):
            await talk.begin(message)
            yield talk
        talk.leave()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_sleeper(plane: Plane) -> AsyncGenerator[str]:
    """Run a program in another session, as a tool; yields what it can be found by."""
    mark = uuid.uuid4().hex
    follower = Follower()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(plane.start, follower, f"sleep {mark}")
        assert await seconds_until(lambda: bool(process_table(mark))) is not None
        yield mark
        nursery.cancel_scope.cancel()


async def kill_vm(plane: Plane) -> Figures:
    """Kill the VM of a host: its run ends, the next message gets a new VM."""
    async with open_sleeper(plane) as mark, open_conversation(plane, "stream 2000 0.01") as talk:
        pid = plane.vm_pid()
        assert pid is not None
        before = plane.stored(talk.session_id)
        os.kill(pid, signal.SIGKILL)
        start = trio.current_time()
        gone = await seconds_until(lambda: not process_table(mark), ORPHAN_LIMIT)
        assert gone is not None, process_table(mark)
        first = talk.readers[0]
        await first.wait(lambda f: f.terminals)
        terminal = first.seen[-1].at - start
        assert first.terminals[0]["code"] == "EXECUTION_PLANE_DISCONNECTED"
        again = Follower()
        await plane.say(again, talk.session_id, "stream 3 0")
        answered = trio.current_time() - start
        assert again.types[-1] == "execution_complete", (again.status, again.body, again.types)
        assert plane.vm_pid() not in {pid, None}
        audit = await talk.check(again, before, terminals=2)
        resyncs = sum(f.types[1:].count("resync") for f in (talk.asker, *talk.readers))
        return Figures(terminal, answered, gone, resyncs, audit)


async def kill_host(plane: Plane) -> Figures:
    """Kill a host: its VM dies with it, and a new host ends the run."""
    async with open_sleeper(plane), open_conversation(plane, "stream 2000 0.01") as talk:
        old_vm = plane.vm_pid()
        before = plane.stored(talk.session_id)
        os.kill(plane.process.pid, signal.SIGKILL)
        start = trio.current_time()
        gone = await seconds_until(lambda: not plane.processes(), ORPHAN_LIMIT)
        assert gone is not None, plane.processes()
        await plane.restart()
        assert plane.vm_pid() not in {old_vm, None}
        talk.reconnect()
        for reader in talk.readers:
            await reader.wait(lambda f: ends_of(f) >= 1)
        terminal = trio.current_time() - start
        _, _, _, event = plane.stored(talk.session_id)[-1]
        assert (event["type"], event["code"]) == ("execution_error", "INTERRUPTED")
        again = Follower()
        await plane.say(again, talk.session_id, "stream 3 0")
        answered = trio.current_time() - start
        assert again.types[-1] == "execution_complete", (again.status, again.body, again.types)
        await talk.asker.wait(lambda f: ends_of(f) >= 2)
        audit = await talk.check(again, before, terminals=2, may_take_back=True)
        resyncs = sum(f.types[1:].count("resync") for f in (talk.asker, *talk.readers))
        return Figures(terminal, answered, gone, resyncs, audit)


async def kill_host_only(plane: Plane, count: int = 400) -> Figures:
    """Kill a host whose VM somebody else has started: the run goes on."""
    async with open_conversation(plane, f"stream {count} 0.01") as talk:
        before = plane.stored(talk.session_id)
        os.kill(plane.process.pid, signal.SIGKILL)
        start = trio.current_time()
        await plane.restart()
        talk.reconnect()
        since = trio.current_time()
        await wait_vm(plane, mode="external")
        was_soon = trio.current_time() - since < HELD
        for reader in (talk.asker, *talk.readers):
            await reader.wait(lambda f: f.terminals)
        terminal = trio.current_time() - start
        for reader in (talk.asker, *talk.readers):
            assert "resync" not in reader.types[1:] or not was_soon, "a reader had to begin anew"
            assert reader.types[-1] == "execution_complete", reader.terminals
        text = "".join(f"{index} " for index in range(count))
        assert view_of(talk.readers[0].seen)[1] == ("assistant", text)
        again = Follower()
        await plane.say(again, talk.session_id, "stream 3 0")
        answered = trio.current_time() - start
        assert again.types[-1] == "execution_complete", (again.status, again.body, again.types)
        await talk.asker.wait(lambda f: ends_of(f) >= 2)
        audit = await talk.check(again, before, terminals=2)
        resyncs = sum(f.types[1:].count("resync") for f in (talk.asker, *talk.readers))
        return Figures(terminal, answered, resyncs=resyncs, audit=audit)


async def run_kills(what: str, times: int, directory: Path) -> list[Figures]:
    """Kill *times* times in one plane, and print what each showed."""
    figures = []
    async with open_plane(directory, is_external=what == "external") as plane:
        if what != "external":
            await wait_vm(plane)
        for index in range(times):
            if what == "vm":
                figures.append(await kill_vm(plane))
            elif what == "host":
                figures.append(await kill_host(plane))
            else:  # a new VM each time, as one that was cut off lately waits longer and longer
                async with open_external_vm(plane):
                    figures.append(await kill_host_only(plane))
            opened, kib = resources(plane.process.pid)
            print(index + 1, figures[-1], f"host: {opened} descriptors, {kib} KiB", flush=True)
        await end_in_order(plane)
    return figures


async def kill_many(
    what: str, directory: Path, *, first: int = 0, times: int = 20, seed: int = 1
) -> str:
    """Kill *times* times, print each, and return the summary; its first word is the verdict.

    Args:
        what: ``vm``, ``host``, ``external``, ``any`` or ``bridge``.
        directory: For planes.
        first: Number of the first kill, where numbers have a meaning.
        times: How often.
        seed: Of what the numbers mean.
    """
    resyncs = ""
    if what in {"any", "bridge"}:
        numbers = range(first, first + times)
        kill = kill_at_random if what == "any" else kill_bridges
        found = await kill(directory / "planes", numbers, seed=seed)
        gone = [item.gone for item in found]
    else:
        found = await run_kills(what, times, directory / "plane")
        gone = [item.gone for item in found if item.gone is not None]
        resyncs = f"; readers that began anew: {sum(item.resyncs for item in found)}"
    audit = total(item.audit for item in found)
    return (
        f"{'BAD' if audit.problems else 'good'} {what}: killed {len(found)} times: {audit}; "
        f"seconds until nothing was left: {_summary(gone)}; "
        f"a reader saw the run's end: {_summary([item.terminal for item in found])}; "
        f"the next message was answered: {_summary([item.next_answer for item in found])}{resyncs}"
    )


def _summary(values: list[float]) -> str:
    if not values:
        return "-"
    return f"median {statistics.median(values):.2f}, most {max(values):.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("vm", "host", "external", "any", "bridge"))
    parser.add_argument("times", type=int, nargs="?", default=20)
    parser.add_argument("--from", dest="first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="semibot-kill-") as directory:
        summary = trio.run(
            partial(
                kill_many,
                options.what,
                Path(directory),
                first=options.first,
                times=options.times,
                seed=options.seed,
            )
        )
    print(summary)
    return 0 if summary.startswith("good") else 1


if __name__ == "__main__":
    sys.exit(main())
