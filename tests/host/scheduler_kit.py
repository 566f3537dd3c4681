"""A scheduler with a real store and real links; VMs are small programs, their links by hand."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import trio
from host_kit import open_core
from link_kit import BrokenStore, Plane, Vm

from semibot.config import Deadlines
from semibot.config.settings import HostSettings
from semibot.host.host import run_core
from semibot.host.scheduler import Scheduler
from semibot.live import live_ports
from semibot.testing import simulated_ports
from semibot.testing.ports import SimulatedWallClock

URL = "ws://127.0.0.1:1/ws/vm"

SAY_AND = (
    "import json, os, sys\n"
    "with open(sys.argv[1], 'w') as file: file.write(json.dumps(dict(os.environ)) + '\\n')\n"
)
STAY = "sys.stdin.read()"
"""A VM that ends when its input does."""


class Pipe:
    """Where the programs say with what they were started."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self.path = path
        self._rest = ""

    async def started(self) -> dict[str, str]:
        """Return the environment of the next program."""
        while "\n" not in self._rest:
            with trio.fail_after(10):
                await trio.lowlevel.wait_readable(self.descriptor)
            self._rest += os.read(self.descriptor, 65536).decode()
        line, _, self._rest = self._rest.partition("\n")
        return json.loads(line)

    def nothing_more(self) -> bool:
        with suppress(BlockingIOError):
            self._rest += os.read(self.descriptor, 65536).decode()
        return not self._rest


@attrs.define
class Bench:
    """A scheduler, what is around it, and what was started."""

    plane: Plane
    scheduler: Scheduler
    pipe: Pipe
    clock: Any

    @property
    def store(self) -> Any:
        return self.plane.store

    async def row(self, user: str = "ann") -> Any:
        return await self.store.newest_vm(user)

    async def connect(self, environment: dict[str, str], boot: str = "boot-a", dial: int = 1) -> Vm:
        """Connect as a program of that environment would."""
        return await self.plane.up(
            boot,
            dial,
            ticket=environment["VM_TICKET"],
            user=environment["VM_USER_ID"],
            resume={},
        )

    async def bring_up(self, user: str = "ann", boot: str = "boot-a") -> Vm:
        """Have the VM started, and connect it."""
        found: list[Any] = []
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                found.append(await self.scheduler.ensure_ready(user))

            nursery.start_soon(ask)
            vm = await self.connect(await self.pipe.started(), boot)
        assert found[0].status == "ready"
        return vm

    async def wait_ended(self, user: str = "ann") -> None:
        """Wait until the user's VM has ended, and its row says so."""
        attempt = self.scheduler._attempts.get(user)
        if attempt is not None:
            with trio.fail_after(10):
                await attempt.has_ended.wait()


class MovableClock(SimulatedWallClock):
    """A wall clock that people set."""

    offset = 0.0

    def now(self):
        return super().now() + timedelta(seconds=self.offset)


def program(pipe: Pipe, behaviour: str) -> tuple[str, ...]:
    return (sys.executable, "-I", "-S", "-c", SAY_AND + behaviour, str(pipe.path))


@asynccontextmanager
async def open_bench(
    path: Path,
    behaviour: str | None = STAY,
    *,
    mode: str | None = "local",
    is_live: bool = True,
    user: str | None = "ann",
    deadlines: Deadlines | None = None,
    serves: bool = True,
    **settings: Any,
) -> AsyncGenerator[Bench]:
    """Run a scheduler; without *is_live* there are no programs, and a mock clock may be used."""
    clock = MovableClock()
    ports = attrs.evolve(simulated_ports(), wall_clock=clock)
    if is_live:  # threads stay on the loop, so that a test sees when nothing more happens
        ports = attrs.evolve(ports, spawn=live_ports().spawn, is_simulated=False)
    deadlines = deadlines or Deadlines(vm_stop=5.0)
    pipe = Pipe(path / "pipe")
    if behaviour is not None:
        settings = {"vm_bootstrap_cmd": program(pipe, behaviour), **settings}
    host_settings = HostSettings(data_dir=path, deadlines=deadlines, **settings)
    try:
        async with (
            open_core(host_settings, ports, BrokenStore) as core,
            trio.open_nursery() as nursery,
        ):
            if user is not None:
                await core.store.ensure_user(user, "org", vm_mode=mode)
            bench = Bench(Plane(core, nursery), core.scheduler, pipe, clock)
            if not serves:  # the test runs what it wants
                nursery.start_soon(core.links.serve)
                nursery.start_soon(core.dispatcher.serve)
                yield bench
                await core.links.close_all(1012, "restarting")
            else:
                async with run_core(core):
                    core.scheduler.announce(URL)
                    yield bench
                    bench.store.released.set()
                    bench.store.error = None
                    with trio.fail_after(10):
                        await core.scheduler.stop_all()
            nursery.cancel_scope.cancel()
    finally:
        os.close(pipe.descriptor)
