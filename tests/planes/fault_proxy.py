"""A TCP proxy that does to connections what networks do: delay, drip, swallow, reset, close.

As a program: ``python tests/planes/fault_proxy.py TARGET_PORT [--listen PORT]``. It says where
it listens and then does what each line of its input says::

    delay up 0.1 0.02       from now on: 100 ms, and up to 20 ms more
    drip down 100 0.05      100 bytes, then 50 ms nothing, and so on
    blackhole up|down|both  nothing comes through, and nobody is told
    reset                   RST to both ends of every connection, at once
    reset up 1000           the same, after 1000 more bytes in that direction
    close                   FIN to both ends of every connection
    refuse                  new connections are reset
    heal                    all of that is over; what was held comes through

``up`` is from whoever dialled to the target. A blackhole holds what it swallows, as TCP
itself does: after ``heal`` it arrives late, and nothing is missing.
"""
# What it prints is its answer.
# ruff: noqa: T201

from __future__ import annotations

import argparse
import random
import socket
import struct
import sys
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Literal, TypeAlias

import attrs
import trio

Way: TypeAlias = Literal["up", "down"]

WAYS: tuple[Way, ...] = ("up", "down")

PIECE = 65536
"""Most bytes that are read at a time."""

MAX_HELD = 1024 * 1024
"""Bytes on their way in one direction of a connection; beyond that the sender is not read."""

BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)


@attrs.define
class Fault:
    """What happens to one direction."""

    latency: float = 0.0
    """Seconds that everything is on its way."""
    jitter: float = 0.0
    """Up to so many seconds more; the order is kept."""
    chunk: int = PIECE
    """Most bytes that are written at a time."""
    gap: float = 0.0
    """Seconds after each such piece."""
    is_blackhole: bool = False
    """Whether nothing comes through."""


@attrs.frozen
class _Parcel:
    """Bytes on their way; none of them means the end, in order or not."""

    due: float
    data: bytes
    is_broken: bool = False


@attrs.define(eq=False)
class _Lane:
    """One direction of one connection."""

    source: trio.SocketStream
    target: trio.SocketStream
    fault: Fault
    faults: FaultProxy
    parcels: deque[_Parcel] = attrs.field(factory=deque[_Parcel])
    reset_after: int | None = None
    """Bytes until the connection is reset."""
    passed: int = 0
    """Bytes that came through."""

    @property
    def held(self) -> int:
        return sum(len(parcel.data) for parcel in self.parcels)

    async def read(self) -> None:
        """Take from the source until its end."""
        is_broken = False
        while True:
            while self.held >= MAX_HELD:
                await self.faults.wait_news()
            try:
                data = await self.source.receive_some(PIECE)
            except BROKEN:
                data, is_broken = b"", True
            delay = self.fault.latency + self.faults.random.uniform(0, self.fault.jitter)
            due = trio.current_time() + delay
            if self.parcels:
                due = max(due, self.parcels[-1].due)
            self.parcels.append(_Parcel(due, data, is_broken))
            self.faults.tell()
            if not data:
                return

    async def write(self, connection: Connection) -> None:
        """Give to the target until the source's end has come through."""
        is_heard = True
        while True:
            while not self.parcels or self.fault.is_blackhole:
                await self.faults.wait_news()
            await trio.sleep_until(self.parcels[0].due)
            if self.fault.is_blackhole:
                continue
            parcel = self.parcels.popleft()
            self.faults.tell()
            if not parcel.data:
                if parcel.is_broken:
                    abort(self.target)
                else:
                    with suppress(*BROKEN):
                        await self.target.send_eof()
                return
            if is_heard:
                is_heard = await self._give(parcel.data, connection)

    async def _give(self, data: bytes, connection: Connection) -> bool:
        """Write, as slowly as the fault says; return whether the target still takes it."""
        while data:
            size = self.fault.chunk
            if self.reset_after is not None:
                size = min(size, max(self.reset_after, 1))
            piece, data = data[:size], data[size:]
            try:
                await self.target.send_all(piece)
            except BROKEN:
                return False  # which whoever reads from it passes on
            self.passed += len(piece)
            if self.reset_after is not None:
                self.reset_after -= len(piece)
                if self.reset_after <= 0:
                    connection.reset()
                    return False
            if self.fault.gap:
                await trio.sleep(self.fault.gap)
            while self.fault.is_blackhole:
                await self.faults.wait_news()
        return True


def abort(stream: trio.SocketStream) -> None:
    """Close a socket with RST."""
    with suppress(OSError):  # it is closed already
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


@attrs.define(eq=False)
class Connection:
    """One connection through the proxy."""

    opened_at: float
    up: _Lane
    down: _Lane
    ended_at: float | None = None
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    @property
    def passed(self) -> dict[Way, int]:
        """Bytes that came through."""
        return {"up": self.up.passed, "down": self.down.passed}

    async def serve(self) -> None:
        """Carry both directions to their ends."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for lane in (self.up, self.down):
                        nursery.start_soon(lane.read)
                        nursery.start_soon(lane.write, self)
        finally:
            self.ended_at = trio.current_time()
            for stream in (self.up.source, self.up.target):
                stream.socket.close()
            self.up.faults.tell()

    def reset(self) -> None:
        """Send RST to both ends, whatever was on its way."""
        for stream in (self.up.source, self.up.target):
            abort(stream)
        self._scope.cancel("reset")

    def close(self) -> None:
        """Send FIN to both ends, whatever was on its way."""
        self._scope.cancel("closed")


@attrs.define(eq=False)
class FaultProxy:
    """A proxy that runs. Made by :func:`open_fault_proxy`."""

    target_port: int
    port: int
    random: random.Random
    connections: list[Connection] = attrs.field(factory=list[Connection])
    """All that there were, the oldest first."""
    is_refusing: bool = False
    """Whether new connections are reset."""
    _faults: dict[Way, Fault] = attrs.field(factory=lambda: {"up": Fault(), "down": Fault()})
    _news: trio.Event = attrs.field(factory=trio.Event)

    @property
    def open_connections(self) -> list[Connection]:
        return [item for item in self.connections if item.ended_at is None]

    def delay(self, *ways: Way, latency: float, jitter: float = 0.0) -> None:
        """Let everything take longer, of new connections too."""
        self._change(ways, latency=latency, jitter=jitter)

    def drip(self, *ways: Way, chunk: int, gap: float) -> None:
        """Let *chunk* bytes through, then nothing for *gap* seconds, and so on."""
        self._change(ways, chunk=chunk, gap=gap)

    def blackhole(self, *ways: Way, is_for_new: bool = False) -> None:
        """Swallow what is sent, without a word.

        Args:
            *ways: Directions.
            is_for_new: Whether connections that are still to come are swallowed, too.
        """
        for connection in self.open_connections:
            for way in ways or WAYS:
                lane = getattr(connection, way)
                lane.fault = attrs.evolve(lane.fault, is_blackhole=True)
        if is_for_new:
            self._change(ways, is_blackhole=True)
        self.tell()

    def reset(self) -> None:
        """Send RST to both ends of every connection."""
        for connection in self.open_connections:
            connection.reset()

    def reset_after(self, way: Way, size: int) -> None:
        """Reset the newest connection when so many more bytes have gone one way."""
        lane: _Lane = getattr(self.open_connections[-1], way)
        lane.reset_after = size

    def close(self) -> None:
        """Send FIN to both ends of every connection."""
        for connection in self.open_connections:
            connection.close()

    def heal(self) -> None:
        """Let everything through again, at once."""
        self.is_refusing = False
        for way in WAYS:
            self._faults[way] = Fault()
            for connection in self.open_connections:
                getattr(connection, way).fault = self._faults[way]
        self.tell()

    async def wait_connection(self, count: int) -> Connection:
        """Wait until there have been *count* connections, and return that one."""
        while len(self.connections) < count:
            await self.wait_news()
        return self.connections[count - 1]

    async def wait_news(self) -> None:
        """Wait until anything has changed."""
        await self._news.wait()

    def tell(self) -> None:
        """Wake whoever waits for news."""
        self._news.set()
        self._news = trio.Event()

    def _change(self, ways: tuple[Way, ...], **changes: float) -> None:
        for way in ways or WAYS:
            before = self._faults[way]
            self._faults[way] = attrs.evolve(before, **changes)
            for connection in self.open_connections:
                lane = getattr(connection, way)
                lane.fault = attrs.evolve(lane.fault, **changes)
        self.tell()

    async def serve(self, listener: trio.SocketListener) -> None:
        """Take connections until cancelled."""
        async with listener, trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(self._connect, await listener.accept())

    async def _connect(self, dialler: trio.SocketStream) -> None:
        if self.is_refusing:
            abort(dialler)
            return
        try:
            target = await trio.open_tcp_stream("127.0.0.1", self.target_port)
        except OSError:
            abort(dialler)
            return
        up = _Lane(dialler, target, self._faults["up"], self)
        down = _Lane(target, dialler, self._faults["down"], self)
        connection = Connection(trio.current_time(), up, down)
        self.connections.append(connection)
        self.tell()
        await connection.serve()


@asynccontextmanager
async def open_fault_proxy(
    target_port: int, *, port: int = 0, seed: int = 0
) -> AsyncGenerator[FaultProxy]:
    """Run a proxy on this machine while the block lasts; it begins without any fault.

    Args:
        target_port: Where connections go to.
        port: Where to listen; 0 takes a free one.
        seed: Of the jitter.
    """
    (listener,) = await trio.open_tcp_listeners(port, host="127.0.0.1")
    own_port = listener.socket.getsockname()[1]
    proxy = FaultProxy(target_port, own_port, random.Random(seed))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(proxy.serve, listener)
        yield proxy
        nursery.cancel_scope.cancel()


# --- as a program ---------------------------------------------------------------------


def obey(proxy: FaultProxy, line: str) -> None:
    """Do what a line says.

    Raises:
        ValueError: If it makes no sense.
    """
    match line.split():
        case ["delay", way, latency, *jitter]:
            extra = float(jitter[0]) if jitter else 0.0
            proxy.delay(*_ways(way), latency=float(latency), jitter=extra)
        case ["drip", way, chunk, gap]:
            proxy.drip(*_ways(way), chunk=int(chunk), gap=float(gap))
        case ["blackhole", way]:
            proxy.blackhole(*_ways(way), is_for_new=True)
        case ["reset"]:
            proxy.reset()
        case ["reset", ("up" | "down") as way, size]:
            proxy.reset_after(way, int(size))
        case ["close"]:
            proxy.close()
        case ["refuse"]:
            proxy.is_refusing = True
        case ["heal"]:
            proxy.heal()
        case _:
            raise ValueError(f"this makes no sense: {line.strip()}")


def _ways(word: str) -> tuple[Way, ...]:
    match word:
        case "both":
            return WAYS
        case "up" | "down":
            return (word,)
        case _:
            raise ValueError(f"up, down or both, not {word}")


async def run_program(target_port: int, port: int) -> None:
    async with open_fault_proxy(target_port, port=port) as proxy:
        print(f"proxy of {target_port} listening on {proxy.port}", flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            try:
                obey(proxy, line)
            except (ValueError, IndexError) as exc:
                print(exc, flush=True)
            else:
                print(f"done; {len(proxy.open_connections)} connections", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target_port", type=int)
    parser.add_argument("--listen", type=int, default=0)
    options = parser.parse_args()
    trio.run(run_program, options.target_port, options.listen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
