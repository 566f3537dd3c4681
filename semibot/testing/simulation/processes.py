"""Which processes there are, and how they are started, killed, stopped and frozen."""

from __future__ import annotations

import functools
import random
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

import trio

from semibot.errors import LinkRefused

from .disk import SimulatedDisk
from .happenings import Killed, Stopping
from .lives import HOST, Life
from .planes import run_host, run_vm
from .threads import Drive

if TYPE_CHECKING:
    from .world import World

STOPS_WITHIN: Final = 90.0
"""How long an orderly end may take at most, in seconds."""

SUPERSEDED: Final = 4009


@final
class Processes:
    """The processes of one simulation, and their disks.

    Args:
        world: The simulation.
        directory: Where disks are.
        kinds: The host, and the VM of each user.
    """

    def __init__(self, world: World, directory: Path, kinds: tuple[str, ...]) -> None:
        self._world = world
        self._directory = directory
        self.kinds: Final = kinds
        """The host, and the VM of each user."""
        self.lives: Final[dict[str, Life]] = {}
        """The newest life of each kind."""
        self.twins: Final[list[Life]] = []
        """Older VMs that run beside the newest of their kind."""
        self.doubled: Final[set[str]] = set()
        """Kinds of which there were two at once."""
        self._number: Counter[str] = Counter()
        self._reports: dict[str, set[str]] = {kind: set() for kind in kinds}
        self._disks: dict[str, SimulatedDisk] = {}
        self._old_disks: list[SimulatedDisk] = []
        self._draw = random.Random(f"disks {world.seed}")  # noqa: S311 - reproducible on purpose

    @property
    def host(self) -> Life:
        """The newest host."""
        return self.lives[HOST]

    @property
    def everyone(self) -> list[Life]:
        """Everything that runs, the host first."""
        return [life for life in (*self.lives.values(), *self.twins) if life.is_alive]

    def vms(self) -> list[Life]:
        """Return the newest VM of each user."""
        return [life for kind, life in self.lives.items() if kind != HOST]

    def directory_of(self, kind: str) -> Path:
        """Return where the newest disk of a kind is."""
        if kind in self._disks:
            return self._disks[kind].directory
        directory = self._directory / f"{kind}-0"
        directory.mkdir(exist_ok=True)
        return directory

    def insert_disks(self) -> None:
        """Give every process a disk, with the files that are there already."""
        for kind in self.kinds:
            self._disks[kind] = SimulatedDisk(
                self.directory_of(kind),
                self._draw,
                now=trio.current_time,
                on_fault=functools.partial(self._disk_failed, kind),
            )

    def _disk_failed(self, kind: str, fault: str, _: str) -> None:
        self._world.hit(fault)
        for life in (self.lives[kind], *self.twins):
            if life.kind == kind:
                life.drive.note_failure()

    def remove_disks(self) -> None:
        """Forget every disk; nothing may run any more."""
        for disk in (*self._old_disks, *self._disks.values()):
            disk.close()

    def wanted_reports(self) -> set[str]:
        """Return what the newest disks of VMs have to deliver, or have delivered."""
        return set[str]().union(*self._reports.values())

    def start(self, kind: str) -> None:
        """Begin the next life of a kind, on the newest disk."""
        self._number[kind] += 1
        life = Life(
            world=self._world,
            kind=kind,
            number=self._number[kind],
            disk=self._disks[kind],
            drive=Drive(self._world.disk_delay),
            body=run_host if kind == HOST else run_vm,
            reports=self._reports[kind],
        )
        self.lives[kind] = life
        self._world.note_life(life)
        self._world.trace.note("start", life.name)
        self._world.begin(life.run)

    def kill(self, kind: str) -> bool:
        """Kill the newest life of a kind; return whether there was one to kill."""
        life = self.lives[kind]
        if not life.is_alive:
            return False
        how = self._world.random.choice(["fin", "reset", "silent"])
        self._world.trace.note("kill", life.name, how)
        copy = self._directory / f"{kind}-{self._number[kind]}"
        disk = life.disk
        self._old_disks.append(disk)
        self._disks[kind] = disk.cut_power(copy) if how == "silent" else disk.kill(copy)
        life.kill(how)
        self._world.tell(Killed(life=life))
        return True

    def kill_and_restart(self, kind: str, pause: float) -> bool:
        """Kill the newest life of a kind, and begin the next after a pause."""
        if self.lives[kind].ask_to_stop.is_set() or not self.kill(kind):
            return False
        self._restart_after(kind, pause)
        return True

    def _restart_after(self, kind: str, pause: float) -> None:
        async def restart() -> None:
            await trio.sleep(pause)
            if not self.lives[kind].is_alive:
                self.start(kind)

        self._world.begin(restart)

    async def stop(self, life: Life) -> None:
        """End a process in order, within what it promises."""
        self._world.trace.note("stop", life.name)
        self._world.tell(Stopping(life=life))
        life.ask_to_stop.set()
        asked_at = trio.current_time()
        while not life.has_ended.is_set():
            # Who stands still, or comes to, goes on with it later.
            latest = max(asked_at, life.frozen_until) + STOPS_WITHIN
            if trio.current_time() >= latest:
                self._world.violate("no_failure", f"{life.name} does not stop")
                life.scope.cancel("it does not stop")
                return
            with trio.move_on_at(latest):
                await life.has_ended.wait()

    async def stop_and_restart(self, kind: str, pause: float) -> bool:
        """End a process in order, and begin its next life after a pause."""
        life = self.lives[kind]
        if not life.is_alive or not life.is_up.is_set() or life.ask_to_stop.is_set():
            return False
        await self.stop(life)
        self._restart_after(kind, pause)
        return True

    def start_twin(self, kind: str) -> bool:
        """Start another VM beside the one there is, as somebody may by mistake."""
        life = self.lives[kind]
        if not life.is_alive or life.ask_to_stop.is_set():
            return False
        copy = self._directory / f"{kind}-{self._number[kind]}-twin"
        self._disks[kind] = life.disk.kill(copy)  # a copy, as somebody may make one
        self._reports[kind] = set()
        self.twins.append(life)
        self.doubled.add(kind)
        self.start(kind)
        return True

    def refused(self, life: Life, error: LinkRefused) -> None:
        """Take note that a VM has ended for good, because another one has come."""
        if error.close_code != SUPERSEDED or life.kind not in self.doubled:
            self._world.violate("no_failure", f"{life.name} is refused: {error!r}", error)
        self._world.trace.note("refused", life.name)
        if life in self.twins:
            self.twins.remove(life)
        elif self.lives[life.kind] is life:
            others = [each for each in self.twins if each.kind == life.kind and each.is_alive]
            if others:
                other = others[-1]
                self.twins.remove(other)
                self.lives[life.kind] = other
                self._old_disks.append(life.disk)
                self._disks[life.kind] = other.disk
                self._reports[life.kind] = other.reports

    def failed(self, life: Life, error: Exception) -> None:
        """Take note that a process has failed; it is started again, as a service is."""
        if not self._world.is_disk_excused(life):
            self._world.violate("no_failure", f"{life.name} failed: {error!r}", error)
        self._world.trace.note("failed", life.name)
        if life in self.twins:
            self.twins.remove(life)
        elif self.lives[life.kind] is life:
            self._restart_after(life.kind, 1.0)

    def heal_disks(self) -> None:
        """End every fault of every disk."""
        for disk in self._disks.values():
            disk.heal()
        for life in self.everyone:
            life.drive.slow_until = 0.0
            life.disk.heal()

    async def end_twins(self) -> None:
        """Leave one VM of each user."""
        for life in tuple(self.twins):
            if life.is_alive:
                await self.stop(life)
        self.twins.clear()

    def freeze(self, life: Life, seconds: float) -> None:
        """Stop a process as SIGSTOP does, and let it go on later."""
        life.frozen_until = trio.current_time() + seconds
        self._world.trace.note("freeze", life.name)

        async def thaw() -> None:
            await trio.sleep(seconds)
            life.thawed_at = trio.current_time()
            self._world.trace.note("thaw", life.name)
            # The scheduler lets it go on in its next round; there has to be one.
            await trio.lowlevel.checkpoint()
            await trio.lowlevel.checkpoint()

        self._world.begin(thaw)
