"""VM processes that a host starts, which are processes only in name; a name with two addresses."""

from __future__ import annotations

import signal
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import trio
import trio.testing
from trials import Trial

from semibot.ports import Ports
from semibot.testing import simulated_ports


class MemoryVmProcess:
    """A VM process that is one only in name; it connects as soon as it is started."""

    pid = 4243

    def __init__(self, heeds: Sequence[int]) -> None:
        self.heeds = heeds
        self.stdin = trio.testing.MemorySendStream()
        self.stdout = trio.testing.MemoryReceiveStream()
        self.stderr = trio.testing.MemoryReceiveStream()
        self.signals: list[int] = []
        self.was_asked = trio.Event()
        self.has_ended = trio.Event()
        self.status = 0

    def end(self, status: int) -> None:
        if not self.has_ended.is_set():
            self.status = status
            self.stdout.put_eof()
            self.stderr.put_eof()
            self.has_ended.set()

    async def wait(self) -> int:
        await self.has_ended.wait()
        return self.status

    def signal_group(self, signum: int) -> None:
        self.signals.append(signum)
        if signum == signal.SIGTERM:
            self.was_asked.set()
        if signum in self.heeds:
            self.end(-signum)


@attrs.define(eq=False)
class Starter:
    """Starts VM processes, and tells of it."""

    heeds: Sequence[int] = (signal.SIGTERM, signal.SIGKILL)
    fails: int = 0
    processes: list[MemoryVmProcess] = attrs.field(factory=list[MemoryVmProcess])
    tickets: list[str] = attrs.field(factory=list[str])
    _started: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    async def spawn(
        self, argv: Sequence[str], *, environment: Mapping[str, str], **_: object
    ) -> MemoryVmProcess:
        await trio.lowlevel.checkpoint()
        if self.fails:
            self.fails -= 1
            raise FileNotFoundError(2, "No such file or directory")
        self.processes.append(MemoryVmProcess(self.heeds))
        self.tickets.append(environment["VM_TICKET"])
        self._started.unpark_all()
        return self.processes[-1]

    async def wait_started(self, count: int) -> MemoryVmProcess:
        while len(self.processes) < count:
            await self._started.park()
        return self.processes[count - 1]

    def ports(self) -> Ports:
        return attrs.evolve(simulated_ports(), spawn=self.spawn)


def new_starter(trial: Trial, **changes: Any) -> Starter:
    starter = trial.parts["starter"] = Starter(**changes)
    return starter


class TwoAddresses(trio.abc.HostnameResolver):
    """Knows one name, and two addresses of it."""

    async def getaddrinfo(self, host: Any, port: Any, *_: object, **__: object) -> Any:
        await trio.lowlevel.checkpoint()
        stream = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(*stream, (address, port)) for address in ("127.0.0.1", "127.0.0.2")]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError
