"""Kill host, VM or both at any moment, and see that nothing acknowledged is lost.

Each kill has a number, and the number says what happens: who dies, when, and what is going
on. ``python tests/planes/kill.py any 20 --from 40`` does numbers 40 to 59 again.
"""
# What it prints is its answer.
# ruff: noqa: T201

from __future__ import annotations

import os
import random
import shlex
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal, TypeAlias

import attrs
import trio
from audit import (
    Audit,
    audit_effects,
    audit_events,
    audit_messages,
    audit_replay,
    audit_runs,
    audit_text,
    stored_before,
)
from following import TERMINAL, Follower, Stored, ends_of
from harness import (
    PATIENCE,
    Plane,
    ProcessEntry,
    open_plane,
    seconds_until,
    spawn_external_vm,
    wait_linked,
    wait_listening,
    wait_vm,
)

GUARD = "semibot/tools/guard.py"

ORPHAN_LIMIT = 1.0
"""How long after the kill nothing may be left, in seconds."""

PIECES = 40
PAUSE = 0.015
"""Seconds between two pieces of an answer."""
CALLS = 5
CALL_PAUSE = 0.05

BRIDGE = Path(__file__).parent / "programs" / "chosen_bridge.py"

Moment: TypeAlias = Literal["post", "work", "end", "start", "dial", "drain"]
Work: TypeAlias = Literal["stream", "append", "talk", "stubborn"]

SPANS: dict[Moment, float] = {
    "post": 0.06,
    "work": 0.5,
    "end": 0.04,
    "start": 1.5,
    "dial": 0.8,
    "drain": 1.0,
}
"""How long after the beginning of its moment a kill comes at the latest, in seconds."""


@attrs.frozen
class Plan:
    """What one number means."""

    number: int
    is_external: bool
    """Whether the user has started the VM, and not the host."""
    victims: tuple[str, ...]
    """``host``, ``vm``, ``bridge`` and ``guard``, which is its parent; they die in this order."""
    moment: Moment
    """``post``: from the moment of the POST; ``work``: in the run; ``end``: about its end;
    ``start``: while a host starts; ``dial``: while a VM dials a new host; ``drain``: while
    the host is told to end."""
    delay: float
    """Seconds after the moment has begun."""
    work: Work
    """What the run does; ``talk`` and ``stubborn`` are kinds of bridges."""

    @property
    def kills_host(self) -> bool:
        return "host" in self.victims or self.moment in {"start", "dial"}

    @property
    def may_take_back(self) -> bool:
        """Whether VM and host both die, so that nobody has what is not committed."""
        return self.kills_host and (not self.is_external or "vm" in self.victims)


def make_plan(seed: int, number: int) -> Plan:
    """Return what is done under a number; every third one has a VM that the user starts."""
    rng = random.Random(f"{seed}/{number}")
    moment: Moment = rng.choice(list(SPANS))
    victims = rng.choice([("host",), ("vm",), ("host", "vm"), ("vm", "host")])
    return Plan(
        number=number,
        is_external=number % 3 == 2,
        victims=victims,
        moment=moment,
        delay=rng.uniform(0, SPANS[moment]),
        work=rng.choice(["stream", "append"]),
    )


def make_bridge_plan(seed: int, number: int) -> Plan:
    """Return what is done under a number where a bridge drives the run."""
    rng = random.Random(f"bridge {seed}/{number}")
    moment: Moment = rng.choice(["post", "work", "work", "end"])
    (victim,) = rng.choices(["bridge", "guard", "vm", "host"], [9, 5, 3, 3])
    # What has left a bridge's group outlives its guard; the docs say so.
    work: Work = "talk" if victim == "guard" else rng.choice(["talk", "stubborn"])
    return Plan(number, False, (victim,), moment, rng.uniform(0, SPANS[moment]), work)


@attrs.frozen
class Killing:
    """What one kill showed; times in seconds after it."""

    what: str
    audit: Audit
    gone: float
    """Until nothing of the victims was left."""
    terminal: float
    """Until a reader saw the run's end."""
    next_answer: float
    """Until the next message was answered."""

    def __str__(self) -> str:
        times = f"gone {self.gone:.2f}, end {self.terminal:.2f}, next {self.next_answer:.2f}"
        return "\n    ".join([f"{self.what}: {times}; {self.audit}", *self.audit.problems])


def below(entries: Iterable[ProcessEntry], *roots: int | None) -> set[int]:
    """Return the processes *roots*, and all their descendants."""
    found = {pid for pid in roots if pid is not None}
    children = list(entries)
    while new := {entry.pid for entry in children if entry.parent in found} - found:
        found |= new
    return found


@attrs.define(eq=False)
class Ordeal:
    """One kill in a plane."""

    plane: Plane
    plan: Plan
    vm: trio.Process | None = None
    """The one that the user has started."""
    asker: Follower = attrs.field(factory=Follower)
    reader: Follower = attrs.field(factory=Follower)
    audit: Audit = attrs.field(factory=Audit)
    before: Stored = attrs.field(factory=list)
    older: frozenset[int] = frozenset()
    """Bridges of other sessions."""
    killed_at: float = 0.0
    gone: float = 0.0

    @property
    def file(self) -> Path:
        return self.plane.directory / f"lines-{self.plan.number}"

    @property
    def message(self) -> str:
        mark = f"n{self.plan.number}"
        if self.plan.work == "append":
            return f"append {self.file} {CALLS} {CALL_PAUSE} {mark}"
        return f"stream {PIECES} {PAUSE} 0 {mark}"

    @property
    def has_bridge(self) -> bool:
        return self.plan.work in {"talk", "stubborn"}

    # --- before ---

    async def post(self, follower: Follower) -> None:
        follower.headers = {"Idempotency-Key": f"kill-{self.plan.number}"}
        body: dict[str, object] = {}
        if self.has_bridge:
            body["runtime_type"] = "openclaw"
            body["openclaw_config"] = {"behaviour": self.plan.work}
        await self.plane.start(follower, self.message, **body)

    async def follow(self) -> None:
        """Follow the session for ever, as a browser does."""
        await self.asker.wait(lambda f: f.session_id or f.is_over)
        while True:
            if self.asker.session_id:
                await self.plane.follow(self.reader, self.asker.session_id)
            await trio.sleep(0.02)

    async def wait_moment(self) -> None:
        """Wait until it is time."""
        plane, plan = self.plane, self.plan
        if plan.moment == "end":
            last, count = ("tool", CALLS) if plan.work == "append" else ("text_chunk", PIECES)
            await self.asker.wait(
                lambda f: sum(kind.startswith(last) for kind in f.types) >= count - 1 or f.terminals
            )
        elif plan.moment == "post":
            if {"bridge", "guard"} & set(plan.victims):
                assert await seconds_until(lambda: self._guard(plane.processes())) is not None
        else:
            await self.asker.wait(
                lambda f: {"text_chunk", "tool_call_start"} & set(f.types) or f.terminals
            )
        if plan.moment == "drain":
            plane.process.terminate()
        elif plan.moment in {"start", "dial"}:
            await self.kill("host")
            await plane.spawn()
            if plan.moment == "dial":
                await wait_listening(plane.process, plane.directory)
        await trio.sleep(plan.delay)

    # --- the kill ---

    async def kill(self, *victims: str) -> None:
        """Kill them, and wait until nothing is left of them."""
        plane = self.plane
        self.before = stored_before(plane, self.asker.session_id) or self.before
        entries = plane.processes()
        local_vm = None if self.plan.is_external else plane.vm_pid()
        guard = self._guard(entries)
        bridge = next((entry.pid for entry in entries if entry.parent == guard), None)
        pids = {"host": plane.process.pid, "vm": self.vm.pid if self.vm else local_vm}
        pids |= {"guard": guard, "bridge": bridge}
        doomed = below(entries, *(pids[name] for name in victims))
        if "vm" in victims and local_vm is not None:
            doomed |= {entry.parent for entry in entries if entry.pid == local_vm}  # its guard
        if "bridge" in victims:
            doomed |= below(entries, guard)
        for name in victims:
            pid = pids[name]
            with suppress(ProcessLookupError):  # a host that drains may be gone by itself
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
        self.killed_at = trio.current_time()
        with trio.fail_after(PATIENCE):
            if "host" in victims:
                await plane.process.wait()
            if "vm" in victims and self.vm is not None:
                await self.vm.wait()
        await self._wait_gone(lambda: doomed & {entry.pid for entry in plane.processes()})
        self.gone = trio.current_time() - self.killed_at

    def _guard(self, entries: Sequence[ProcessEntry]) -> int | None:
        """Return the guard of this session's bridge."""
        parents = {entry.parent for entry in entries if BRIDGE.name in entry.command}
        guards = [
            entry.pid
            for entry in entries
            if GUARD in entry.command and entry.pid in parents and entry.pid not in self.older
        ]
        return max(guards, default=None)

    async def _wait_gone(self, left: Callable[[], Collection[int]]) -> None:
        if await seconds_until(lambda: not left(), ORPHAN_LIMIT) is None:
            self.audit.orphans.append(f"{left()} of {self.plane.processes()}")

    # --- after ---

    async def recover(self) -> None:
        """Start again what is dead."""
        plane, plan = self.plane, self.plan
        if plan.moment == "drain":
            with trio.fail_after(PATIENCE):  # it ends by itself, if it was not killed
                await plane.process.wait()
        if plane.process.returncode is not None:
            await plane.restart()
        elif plan.moment == "start":
            await wait_listening(plane.process, plane.directory)
        if self.vm is not None:
            if self.vm.returncode is not None:
                self.vm = await spawn_external_vm(plane)
                await wait_linked(plane)
            await wait_vm(plane, mode="external")

    async def get_answer(self) -> Follower:
        """Repeat the message until it has its answer, and say the next thing."""
        told = {self.asker.run_id} if self.asker.status == 200 else set()
        await self.asker.wait(lambda f: f.is_over)
        if self.asker.status not in {0, 200}:
            stored = self.plane.rows("SELECT id FROM messages WHERE content = ?", self.message)
            if stored:
                self.audit.wrong.append(f"{self.asker.status}, and the message is stored")
        repeated = await self._say(self.post)
        told.add(repeated.run_id)
        if len(told) > 1:
            self.audit.duplicates.append(f"runs {told} of one message")
            return repeated
        self.asker.session_id = repeated.session_id

        async def go_on(follower: Follower) -> None:
            await self.plane.say(follower, repeated.session_id, f"stream 3 0 0 m{self.plan.number}")

        again = await self._say(go_on)
        if again.types[-1:] != ["execution_complete"]:
            self.audit.wrong.append(f"the next message: {again.types} {again.terminals}")
        await self.reader.wait(lambda f: ends_of(f) >= 2)
        return repeated

    async def _say(self, post: Callable[[Follower], Awaitable[None]]) -> Follower:
        """Send a message as often as the host says that nothing was stored."""
        with trio.fail_after(PATIENCE):
            while True:
                follower = Follower()
                await post(follower)
                if follower.status == 200 and follower.terminals:
                    return follower
                await trio.sleep(0.05)

    async def look(self, repeated: Follower) -> None:
        """Compare everything with everything."""
        plane, plan = self.plane, self.plan
        session_id, run_id = repeated.session_id, repeated.run_id
        stored = plane.stored(session_id)
        self.audit += audit_events(
            stored,
            [self.asker, self.reader, repeated],
            self.before,
            may_take_back=plan.may_take_back,
        )
        self.audit += audit_messages(plane, {run_id: self.message})
        self.audit += await audit_replay(plane, session_id, stored)
        self.audit += audit_runs(plane)
        if plan.work != "append":
            whole = "".join(f"{index} " for index in range(PIECES))
            self.audit += audit_text(stored, {run_id: whole})
        else:
            lines = self.file.read_text().splitlines() if self.file.exists() else []
            self.audit += audit_effects(stored, run_id, lines, CALLS)
        await self._wait_gone(lambda: {entry.pid for entry in plane.processes()} - self._wanted())

    def _wanted(self) -> set[int]:
        """Return the processes that a plane at rest has."""
        vm = self.vm.pid if self.vm else self.plane.vm_pid()
        guards = {entry.parent for entry in self.plane.processes() if entry.pid == vm}
        bridges = below(self.plane.processes(), vm) if self.has_bridge else set()
        return {self.plane.process.pid, vm, *(guards if self.vm is None else ()), *bridges}

    async def undergo(self) -> Killing:
        self.older = frozenset(entry.pid for entry in self.plane.processes())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.post, self.asker)
            nursery.start_soon(self.follow)
            await self.wait_moment()
            await self.kill(*self.plan.victims)
            killed_at = self.killed_at
            await self.recover()
            repeated = await self.get_answer()
            next_answer = trio.current_time() - killed_at
            seen = (*self.asker.seen, *self.reader.seen, *repeated.seen)
            ended_at = min(item.at for item in seen if item.type in TERMINAL)
            await self.look(repeated)
            if self.has_bridge:  # which would live as long as its session
                await self.plane.ask("DELETE", f"/api/v1/sessions/{repeated.session_id}", {})
            nursery.cancel_scope.cancel()
        terminal = max(0.0, ended_at - killed_at)
        victims = "+".join(self.plan.victims)
        mode = "external" if self.plan.is_external else "local"
        what = f"{self.plan.number}: {mode} {victims} in {self.plan.moment} of {self.plan.work}"
        return Killing(what, self.audit, self.gone, terminal, next_answer)


@asynccontextmanager
async def open_ordeal(plane: Plane, plan: Plan) -> AsyncGenerator[Ordeal]:
    """Make everything ready for one kill."""
    ordeal = Ordeal(plane, plan)
    try:
        if plan.is_external:
            ordeal.vm = await spawn_external_vm(plane)
            await wait_linked(plane)
        else:
            await wait_vm(plane)
        yield ordeal
    finally:
        if ordeal.vm is not None:
            ordeal.vm.kill()
            with trio.CancelScope(shield=True):
                await ordeal.vm.wait()


async def kill_anywhere(plane: Plane, plan: Plan) -> Killing:
    """Do what *plan* says, and return what was found."""
    async with open_ordeal(plane, plan) as ordeal:
        with trio.fail_after(4 * PATIENCE):
            return await ordeal.undergo()


async def kill_at_random(
    directory: Path, numbers: Sequence[int], *, seed: int = 1
) -> list[Killing]:
    """Do what *numbers* stand for, in two planes, and print what each showed."""
    found = []
    plans = [make_plan(seed, number) for number in numbers]
    for is_external in (False, True):
        chosen = [plan for plan in plans if plan.is_external == is_external]
        if not chosen:
            continue
        async with open_plane(
            directory / ("external" if is_external else "local"),
            is_external=is_external,
            VM_BOOTSTRAP_COOLDOWN_MS="0",  # we kill VMs that are starting, too
        ) as plane:
            for plan in chosen:
                found.append(await kill_anywhere(plane, plan))
                print(found[-1], flush=True)
            await end_in_order(plane)
    return found


async def kill_bridges(directory: Path, numbers: Sequence[int], *, seed: int = 1) -> list[Killing]:
    """Do what *numbers* stand for where bridges drive the runs, and print what each showed."""
    found = []
    command = shlex.join([sys.executable, "-I", "-S", str(BRIDGE)])
    async with open_plane(
        directory, OPENCLAW_BRIDGE_CMD=command, VM_BOOTSTRAP_COOLDOWN_MS="0"
    ) as plane:
        for number in numbers:
            found.append(await kill_anywhere(plane, make_bridge_plan(seed, number)))
            print(found[-1], flush=True)
        await end_in_order(plane)
    return found


async def end_in_order(plane: Plane) -> None:
    """End a host as users do."""
    plane.process.terminate()
    with trio.fail_after(PATIENCE):
        assert await plane.process.wait() == 0, plane.log
    assert await seconds_until(lambda: not plane.processes(), ORPHAN_LIMIT) is not None
