"""Invariants of what becomes of runs: they go on, unless somebody or something ends them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Final, final

import trio

from semibot.wire.frames import Init

from .happenings import (
    CancelAnswered,
    CancelPending,
    Finished,
    Happening,
    Killed,
    Posted,
    RunBegins,
    RunRests,
    Said,
    Stopping,
    Tick,
)
from .lives import Life

if TYPE_CHECKING:
    from .world import World

LONGEST_OUTAGE: Final = 40.0
"""How long the end of a link may go unnoticed by the host, and a bit, in seconds."""

USUAL_LOST_AFTER: Final = 120.0
"""``vm.lost_after`` of the simulations in which an outage rarely costs a VM its runs."""

HEARD_WITHIN: Final = 11.0
"""Longest silence of a link on which all is well, in seconds."""

STOPS_WITHIN: Final = 13.0
"""How long a run may go on after it was cancelled where all is well, in seconds: the host waits
15 for the receipt, 10 of them for the adapter."""


def _is_well_since(world: World, life: Life, since: float) -> bool:
    """Return whether nothing has hindered a VM, its host and their link since some time."""
    now = trio.current_time()
    host = world.processes.host
    if not life.is_alive or life.is_frozen or life.thawed_at >= since or not host.is_alive:
        return False
    if world.is_disk_excused(life) or world.is_disk_excused(host):
        return False
    if world.network.slow_until >= since:
        return False
    for link in world.links:
        ends = (link.connection.client, link.connection.server)
        if (
            ends[0].machine is life.machine
            and ends[1].machine is host.machine
            and link.live_at is not None
            and link.live_at <= since
        ):
            is_open = not any(end.is_closed for end in ends)
            return is_open and all(now - end.into.received_at < HEARD_WITHIN for end in ends)
    return False


@final
class RunsGoOn:
    """A run that a VM has begun is interrupted only if the VM was lost, or stopped."""

    name: ClassVar[str] = "runs_go_on"
    wants: ClassVar[tuple[type, ...]] = (RunBegins, RunRests, Stopping, Killed, Tick, Finished)

    def __init__(self, world: World) -> None:
        self._world = world
        self._begun: dict[str, Life] = {}
        self._excused: set[str] = set()  # names of VMs, and runs
        self._down_since: dict[str, float] = {}
        self._stops_since: dict[str, float] = {}

    def take(self, what: Happening) -> None:
        """Take note of a happening, and look whether all is well."""
        match what:
            case RunBegins(run_id=run_id, life=life):
                self._begun[run_id] = life
            case RunRests(run_id=run_id, life=life):
                if life.ask_to_stop.is_set() or life.kind in self._world.processes.doubled:
                    self._excused.add(run_id)  # stopped, or by the VM that took its place
            case Tick():
                for life in self._world.processes.everyone:
                    self._watch(life)
            case Stopping(life=life):
                self._stops_since[life.name] = trio.current_time()
                self._watch(life)
            case Killed(life=life):
                self._excused.add(life.name)
            case Finished():
                if self._world.lost_after == USUAL_LOST_AFTER:
                    self._check()
            case _:
                pass

    def _watch(self, life: Life) -> None:
        now = trio.current_time()
        if life.is_frozen or life.kind in self._world.processes.doubled:
            self._excused.add(life.name)
        since = self._stops_since.get(life.name)
        if life.is_alive and since is not None and not _is_well_since(self._world, life, since):
            self._excused.add(life.name)  # there may be no host to tell its last words to
        if life.is_link_up():
            self._down_since.pop(life.name, None)
        elif now - self._down_since.setdefault(life.name, now) > LONGEST_OUTAGE:
            self._excused.add(life.name)

    def _check(self) -> None:
        for run_id, session_id in self._world.rows(
            "SELECT id, session_id FROM runs WHERE outcome = 'interrupted'"
        ):
            life = self._begun.get(str(run_id))
            if life is not None and not {str(run_id), life.name} & self._excused:
                self._world.violate(
                    self.name,
                    f"run {str(run_id)[:6]} of {str(session_id)[:6]} was interrupted,"
                    f" but {life.name} was there all the time",
                )


@final
class CancelWorks:
    """A cancel ends its run at once, and no other; nor does a run of a deleted session go on."""

    name: ClassVar[str] = "cancel_works"
    wants: ClassVar[tuple[type, ...]] = (
        RunBegins,
        RunRests,
        Posted,
        CancelAnswered,
        CancelPending,
        Tick,
        Finished,
    )

    def __init__(self, world: World) -> None:
        self._world = world
        self._running: dict[str, Life] = {}
        self._session_of: dict[str, str] = {}
        self._deleted_at: dict[str, float] = {}

    def take(self, what: Happening) -> None:
        """Take note of a happening, and look whether all is well."""
        match what:
            case RunBegins(run_id=run_id, life=life):
                self._running[run_id] = life
            case RunRests(run_id=run_id):
                self._running.pop(run_id, None)
            case Posted(session_id=session_id, run_id=run_id):
                self._session_of[run_id] = session_id
            case CancelAnswered(session_id=session_id, asked=asked, receipt=receipt):
                if asked not in {None, receipt.get("run_id")}:
                    self._world.violate(
                        self.name, f"who cancels run {str(asked)[:6]} is answered with {receipt}"
                    )
                self._check_receipt(session_id, receipt)
            case CancelPending(run_id=run_id, since=since):
                self._check(run_id, since, "was cancelled")
            case Tick():
                self._look_at_deleted()
            case Finished():
                self._check_store()
            case _:
                pass

    def _check(self, run_id: str, since: float, fate: str) -> None:
        life = self._running.get(run_id)
        # With one seat in a VM, a run waits for the sessions before it, cancelled or not.
        if (
            life is None
            or self._world.max_open == 1
            or not _is_well_since(self._world, life, since)
        ):
            return
        passed = trio.current_time() - since
        if passed > STOPS_WITHIN:
            del self._running[run_id]
            self._world.violate(
                self.name, f"run {run_id[:6]} {fate} {passed:.0f} s ago and works on"
            )

    def _check_receipt(self, session_id: str, receipt: Mapping[str, object]) -> None:
        """A receipt without an outcome says that there was nothing to cancel."""
        run_id = str(receipt.get("run_id"))
        life = self._running.get(run_id)
        if receipt.get("outcome") is not None or receipt.get("vm_lost") or life is None:
            return
        is_excused = session_id in self._world.maybe_deleted or not life.is_alive
        if not is_excused and life.kind not in self._world.processes.doubled:
            self._world.violate(
                self.name, f"run {run_id[:6]} works, but its cancel was answered by {receipt}"
            )

    def _look_at_deleted(self) -> None:
        now = trio.current_time()
        for session_id in self._world.deleted:
            self._deleted_at.setdefault(session_id, now)
        for run_id in tuple(self._running):
            deleted_at = self._deleted_at.get(self._session_of.get(run_id, ""))
            if deleted_at is not None:
                self._check(run_id, deleted_at, "lost its session")

    def _check_store(self) -> None:
        for run_id, session_id in self._world.rows(
            "SELECT id, session_id FROM runs WHERE outcome = 'cancelled' AND wants_cancel = 0"
        ):
            self._world.violate(
                self.name,
                f"run {str(run_id)[:6]} of {str(session_id)[:6]} was cancelled by nobody",
            )


@final
class EpochsRise:
    """Every link that a host lets in has a greater epoch than the VM's links before."""

    name: ClassVar[str] = "epochs_rise"
    wants: ClassVar[tuple[type, ...]] = (Said,)

    def __init__(self, world: World) -> None:
        self._world = world
        self._newest: dict[str, int] = {}

    def take(self, what: Happening) -> None:
        """Take note of a happening, and look whether all is well."""
        if not isinstance(what, Said) or not what.is_from_host:
            return
        for frame in what.frames:
            if not isinstance(frame, Init) or frame.data.epoch is None:
                continue
            kind = self._world.kind_of(what.link.connection.client.machine)
            before, epoch = self._newest.get(kind, 0), frame.data.epoch
            if epoch <= before:
                self._world.violate(
                    self.name, f"{what.link.vm} gets epoch {epoch} after {before} was given out"
                )
            self._newest[kind] = max(before, epoch)
