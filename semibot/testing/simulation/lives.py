"""Processes of a simulation, which can be killed, stopped, frozen and started again.

A killed process keeps running until its clean-up is done, but it is dead for everybody: its
connections are gone, and nobody looks at its disk any more. The next life goes on with a copy of
the disk as a kill or a loss of power left it.
"""

from __future__ import annotations

import contextvars
import zlib
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

import attrs
import structlog
import trio

from semibot.errors import LinkRefused
from semibot.ports import Ports
from semibot.testing.ports import EPOCH, simulated_ports

from .disk import SimulatedDisk
from .happenings import Ended
from .network import LINK
from .pipes import Machine
from .threads import Drive, SimulatedThreads

if TYPE_CHECKING:
    from .world import World

HOST: Final = "host"
"""Kind of the host's lives."""

life_of_task: contextvars.ContextVar[Life] = contextvars.ContextVar("semibot_simulated_life")
"""Which process a task belongs to."""


@final
class SteppingClock:
    """A wall clock that goes with Trio's clock, unless somebody sets it."""

    def __init__(self) -> None:
        self.offset: float = 0.0
        """How far it is off, in seconds."""

    def now(self) -> datetime:
        """Return what it shows, in UTC."""
        return EPOCH + timedelta(seconds=trio.current_time() + self.offset)


@final
@attrs.define(eq=False, kw_only=True)
class Life:
    """One life of a host or VM."""

    world: World
    """The simulation."""
    kind: str
    """``host``, or ``vm-`` and the user."""
    number: int
    """Counts the lives of its kind."""
    disk: SimulatedDisk
    """Where its files are."""
    drive: Drive
    """How fast that is."""
    body: Callable[[Life], Awaitable[None]]
    """What it runs."""
    reports: set[str]
    """Reports that are on its disk, or were, and have to arrive."""
    name: str = attrs.field(init=False)
    """Kind and number."""
    machine: Machine = attrs.field(init=False)
    """It, as the network sees it."""
    clock: SteppingClock = attrs.field(factory=SteppingClock, init=False)
    """Its wall clock."""
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    """All of it."""
    ask_to_stop: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set to have it end in order."""
    is_up: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Whether it has started."""
    has_ended: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Whether it is over."""
    frozen_until: float = attrs.field(default=0.0, init=False)
    """Until when its tasks do not run, on Trio's clock."""
    thawed_at: float = attrs.field(default=0.0, init=False)
    """When they last went on."""
    task: trio.lowlevel.Task | None = attrs.field(default=None, init=False)
    """Its outermost task."""
    is_link_up: Callable[[], bool] = attrs.field(default=lambda: False, init=False)
    """Whether a VM takes its link to be up."""

    def __attrs_post_init__(self) -> None:
        """Name it."""
        self.name = f"{self.kind}{self.number}"
        self.machine = Machine(self.name)

    @property
    def directory(self) -> Path:
        """Where its files are."""
        return self.disk.directory

    @property
    def is_host(self) -> bool:
        """Whether it is a host."""
        return self.kind == HOST

    @property
    def user(self) -> str:
        """Whose VM it is."""
        return self.kind.removeprefix("vm-")

    @property
    def is_alive(self) -> bool:
        """Whether it was neither killed nor has ended."""
        return not self.machine.is_dead and not self.has_ended.is_set()

    @property
    def is_frozen(self) -> bool:
        """Whether its tasks do not run now."""
        return trio.current_time() < self.frozen_until

    def ports(self) -> Ports:
        """Return its seams, with what faults change about them."""
        seed = f"{self.world.seed} {self.name}"
        ports = attrs.evolve(
            simulated_ports(zlib.crc32(seed.encode())),
            wall_clock=self.clock,
            threads=SimulatedThreads(self.machine, f"threads {seed}", self.drive),
            disk=self.disk,
            dial=self.world.network.dial(self.machine, LINK),
            listen=self.world.network.listen(self.machine),
        )
        for change in self.world.port_changes:
            ports = change(self, ports)
        return ports

    def kill(self, how: str) -> None:
        """End it; see :meth:`.pipes.Machine.die`."""
        self.machine.die(how)
        listening = self.world.network.listening
        if listening is not None and listening.machine is self.machine:
            self.world.network.listening = None
        self.frozen_until = 0.0  # a dead process cleans up out of sight
        self.scope.cancel("killed")

    async def run(self) -> None:
        """Live, and die."""
        structlog.contextvars.bind_contextvars(process=self.name)
        life_of_task.set(self)
        self.task = trio.lowlevel.current_task()
        violate = self.world.violate
        try:
            with self.scope:
                await self.body(self)
        except LinkRefused as exc:
            if not self.machine.is_dead:
                self.world.processes.refused(self, exc)
        except Exception as exc:  # noqa: BLE001 - a finding like any other
            if not self.machine.is_dead:
                self.world.processes.failed(self, exc)
        finally:
            if not self.machine.is_dead:
                for end in tuple(self.machine.ends):
                    violate("nothing_left", f"{self.name} left {end.out.name} open")
                    end.close_now()
                self.machine.is_dead = True
            self.has_ended.set()
            self.world.tell(Ended(life=self))
