"""Invariants of what hosts and VMs do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, final

import trio

from semibot.wire.frames import Cancelled, FireAndForget, HostAck

from .database import rows_of, stored_ends
from .happenings import (
    CancelAnswered,
    Ended,
    Finished,
    Happening,
    Killed,
    Posted,
    RunBegins,
    RunRests,
    RunWorks,
    Said,
    Tick,
)
from .lives import Life, life_of_task

if TYPE_CHECKING:
    from .world import World

TASKS_EVERY: Final = 10
"""Seconds between two looks at the task tree."""


@final
class AcknowledgedIsStored:
    """What a host acknowledged is stored, then and after every crash."""

    name: ClassVar[str] = "acknowledged_is_stored"
    wants: ClassVar[tuple[type, ...]] = (Said, Killed, Finished)

    def __init__(self, world: World) -> None:
        self._world = world
        self._events: dict[str, int] = {}
        self._named: dict[str, str] = {}  # reports by the id under which they are acknowledged
        self._reports: dict[str, None] = {}

    def take(self, what: Happening) -> None:
        """Take note of a happening, and look whether all is well."""
        match what:
            case Said(is_from_host=True, frames=frames):
                acks = [frame for frame in frames if isinstance(frame, HostAck)]
                for ack in acks:
                    self._note(ack)
                if acks:
                    self._check(self._world.processes.host.directory, "is not stored yet")
            case Said(frames=frames):
                for frame in frames:
                    if isinstance(frame, FireAndForget) and frame.method == "audit_log":
                        self._named[frame.id or ""] = str(frame.params.get("event"))
            case Killed(life=life) if life.is_host:
                directory = self._world.processes.directory_of(life.kind)
                self._check(directory, "is not there after a crash")
            case Finished():
                self._check(self._world.processes.directory_of("host"), "is not there in the end")
            case _:
                pass

    def _note(self, ack: HostAck) -> None:
        for session_id, seq in (ack.sessions or {}).items():
            self._events[session_id] = max(self._events.get(session_id, 0), seq)
        for name in ack.ids or ():
            if name in self._named:
                self._reports[self._named.pop(name)] = None

    def _check(self, directory: Path, fate: str) -> None:
        stored, gone = stored_ends(directory)
        for session_id, seq in self._events.items():
            if session_id not in gone and stored.get(session_id, 0) < seq:
                self._world.violate(
                    self.name,
                    f"{session_id[:6]}: {seq} was acknowledged and {fate};"
                    f" {stored.get(session_id)} is",
                )
                self._events[session_id] = stored.get(session_id, 0)  # said once
        if self._reports:
            known = {row[0] for row in rows_of(directory, "SELECT event FROM audit_log")}
            for event in [each for each in self._reports if each not in known]:
                self._world.violate(self.name, f"{event} was acknowledged and {fate}")
                del self._reports[event]


@final
class SilentAfterReceipt:
    """After a receipt nothing works on its run, except what it lists."""

    name: ClassVar[str] = "silent_after_receipt"
    wants: ClassVar[tuple[type, ...]] = (RunBegins, RunWorks, RunRests, Said, CancelAnswered)

    def __init__(self, world: World) -> None:
        self._world = world
        self._running: dict[str, Life] = {}
        self._over: set[str] = set()
        self._told: set[str] = set()

    def take(self, what: Happening) -> None:
        """Take note of a happening, and look whether all is well."""
        match what:
            case RunBegins(run_id=run_id, life=life):
                if run_id in self._over:
                    self._violate(run_id, "begins after its receipt")
                self._running[run_id] = life
            case RunWorks(run_id=run_id, life=life):
                if run_id in self._over and life.is_alive:
                    self._violate(run_id, "does something after its receipt")
            case RunRests(run_id=run_id, life=life):
                if self._running.get(run_id) is life:
                    del self._running[run_id]
            case Said(is_from_host=False, frames=frames):
                for frame in frames:
                    if isinstance(frame, Cancelled):
                        self._take_receipt(frame.receipt)
            case CancelAnswered(receipt=receipt):
                self._take_receipt(receipt)
            case _:
                pass

    def _take_receipt(self, receipt: Mapping[str, object]) -> None:
        is_whole = not receipt.get("vm_lost") and not receipt.get("abandoned")
        outcome = receipt.get("outcome")
        # Without an outcome: the session is deleted, and its VM is told to stop it. A run that had
        # failed before anybody cancelled it was stopped by nobody's receipt: its bridge may still
        # clean up, and its VM may not know yet.
        had_failed = receipt.get("already") and outcome not in {"completed", "cancelled"}
        if not is_whole or outcome is None or had_failed:
            return
        run_id = str(receipt.get("run_id"))
        self._over.add(run_id)
        still = self._running.get(run_id)
        if still is not None and still.is_alive:
            self._violate(run_id, f"still works after its receipt {receipt}")

    def _violate(self, run_id: str, text: str) -> None:
        if run_id not in self._told:
            self._told.add(run_id)
            self._world.violate(self.name, f"run {run_id[:6]} {text}")


@final
class Once:
    """A message makes one run, a run is begun once, and a report counts once."""

    name: ClassVar[str] = "once"
    wants: ClassVar[tuple[type, ...]] = (RunBegins, Posted, Finished)

    def __init__(self, world: World) -> None:
        self._world = world
        self._handled: dict[str, str] = {}
        self._keys: dict[str, str] = {}

    def take(self, what: Happening) -> None:
        """Take note of a happening, and look whether all is well."""
        match what:
            case RunBegins(run_id=run_id, life=life):
                before = self._handled.get(run_id)
                self._handled[run_id] = life.name
                if before is not None:
                    self._world.violate(
                        self.name,
                        f"run {run_id[:6]} is begun again by {life.name}, before by {before}",
                    )
            case Posted(run_id=run_id, key=key):
                known = self._keys.setdefault(key, run_id)
                if known != run_id:
                    self._world.violate(self.name, f"{key} is run {known[:6]} and run {run_id[:6]}")
            case Finished():
                for event, count in self._world.rows(
                    "SELECT event, count(*) FROM audit_log GROUP BY event"
                ):
                    if count != 1 or event not in self._world.asked_reports:
                        self._world.violate(self.name, f"{event} is {count} times in the log")
            case _:
                pass


@final
class NoStrayTask:
    """Every task of a process is below its outermost one, and ends with it."""

    name: ClassVar[str] = "no_stray_task"
    wants: ClassVar[tuple[type, ...]] = (Ended, Tick)

    def __init__(self, world: World) -> None:
        self._world = world
        self._ticks = 0
        self._system_tasks: frozenset[str] | None = None

    def take(self, what: Happening) -> None:
        """Take note of a happening, and look whether all is well."""
        match what:
            case Ended(life=life):
                self._look(ended=life)
            case Tick():
                self._ticks += 1
                if self._ticks % TASKS_EVERY == 1:
                    self._look(ended=None)
            case _:
                pass

    def _look(self, ended: Life | None) -> None:
        root = trio.lowlevel.current_root_task()
        if root is None:
            return
        main = next(iter(root.child_nurseries), None)
        outside = frozenset(
            each.name for nursery in root.child_nurseries for each in nursery.child_tasks
        )
        if self._system_tasks is None:
            self._system_tasks = outside
        elif main is not None and outside - self._system_tasks:
            extra = ", ".join(sorted(outside - self._system_tasks))
            self._world.violate(self.name, f"tasks outside of every scope: {extra}")
        todo: list[tuple[trio.lowlevel.Task, Life | None]] = [(root, None)]
        while todo:
            task, owner = todo.pop()
            life: Life | None = task.context.get(life_of_task)
            is_outermost = life is not None and life.task is task
            if is_outermost:
                owner = life
            if life is not owner:
                named = "nobody" if life is None else life.name
                self._world.violate(self.name, f"{task.name} of {named} runs elsewhere")
            elif ended is not None and life is ended and not is_outermost:
                self._world.violate(self.name, f"{task.name} is left of {ended.name}")
            todo += [
                (each, owner) for nursery in task.child_nurseries for each in nursery.child_tasks
            ]
