"""A network in memory: seeded delays, and every way in which connections go wrong.

A connection is two pipes. What was sent waits in its pipe until it is due; a pipe holds a
bounded number of bytes, as the kernels of two machines do. Nothing here knows real time.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import deque
from collections.abc import Callable

import trio

CAPACITY = 64 * 1024
"""Bytes on their way in one direction; more make the sender wait."""


class Trace:
    """What happened, as a running hash; the same seed gives the same one."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=8)
        self.count = 0
        self.listener: Callable[[float, tuple[object, ...]], None] | None = None
        self._happenings = trio.lowlevel.ParkingLot()

    def note(self, *event: object) -> None:
        self.count += 1
        now = round(trio.current_time(), 9)
        self._hash.update(repr((now, *event)).encode())
        if self.listener is not None:
            self.listener(now, event)
        self._happenings.unpark_all()

    async def wait_next(self) -> None:
        """Wait until something happens."""
        await self._happenings.park()

    def digest(self) -> str:
        return self._hash.hexdigest()


class Pipe:
    """One direction of a connection."""

    def __init__(self, name: str, draw_delay: Callable[[], float], trace: Trace) -> None:
        self.name = name
        self._draw_delay = draw_delay
        self._trace = trace
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._last_due = 0.0
        self._fin_due: float | None = None
        self.clogged_until = 0.0
        self.is_reset = False  # for whoever reads
        self.is_refused = False  # for whoever writes
        self._changes = trio.lowlevel.ParkingLot()

    def changed(self) -> None:
        self._changes.unpark_all()

    def _due(self) -> float:
        self._last_due = max(self._last_due, trio.current_time() + self._draw_delay())
        return self._last_due

    @property
    def room(self) -> int:
        return CAPACITY - self._size

    def put(self, data: bytes) -> None:
        self._chunks.append((self._due(), data))
        self._size += len(data)
        self._trace.note("send", self.name, len(data))
        self.changed()

    def finish(self) -> None:
        if self._fin_due is None:
            self._fin_due = self._due()
            self.changed()

    def reset(self) -> None:
        """Lose what is on its way; reader and writer learn of it now."""
        self._chunks.clear()
        self._size = 0
        self.is_reset = self.is_refused = True
        self.changed()

    def take(self, most: int) -> bytes | None:
        """Return what has arrived, b"" at the end, or None if there is nothing yet."""
        now = trio.current_time()
        if now < self.clogged_until:
            return None
        if self._chunks:
            due, data = self._chunks[0]
            if due > now:
                return None
            self._chunks.popleft()
            if len(data) > most:
                self._chunks.appendleft((due, data[most:]))
                data = data[:most]
            self._size -= len(data)
            self._trace.note("receive", self.name, len(data))
            self.changed()
            return data
        if self._fin_due is not None and self._fin_due <= now:
            return b""
        return None

    async def wait(self) -> None:
        """Wait until something may have arrived, or something has changed."""
        due = math.inf
        if self._chunks:
            due = self._chunks[0][0]
        elif self._fin_due is not None:
            due = self._fin_due
        due = max(due, self.clogged_until)
        now = trio.current_time()
        with trio.CancelScope(deadline=due if due > now else math.inf):
            await self._changes.park()


class End:
    """One end of a connection; a byte stream as the port wants it."""

    def __init__(self, owner: Owner, out: Pipe, into: Pipe) -> None:
        self.owner = owner
        self.out = out
        self.into = into
        self.is_closed = False
        owner.ends[self] = None

    def _check(self) -> None:
        if self.is_closed:
            raise trio.ClosedResourceError("closed here")
        if self.owner.is_dead:
            raise trio.BrokenResourceError("this process is dead")

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        rest = bytes(data)
        while True:
            self._check()
            if self.out.is_refused:
                raise trio.BrokenResourceError("the other side is gone")
            if not rest:
                return
            room = self.out.room
            if room > 0:
                piece, rest = rest[:room], rest[room:]
                self.out.put(piece)
            else:
                await self.out.wait()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()
        while self.out.room <= 0 and not self.out.is_refused:
            self._check()
            await self.out.wait()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        await trio.lowlevel.checkpoint()
        while True:
            self._check()
            if self.into.is_reset:
                raise trio.BrokenResourceError("connection reset")
            data = self.into.take(max_bytes or 65536)
            if data is not None:
                return data
            await self.into.wait()

    async def send_eof(self) -> None:
        self.out.finish()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self.close_now()
        await trio.lowlevel.checkpoint()

    def close_now(self) -> None:
        """Close as the operating system does: what was sent still arrives."""
        if not self.is_closed:
            self.is_closed = True
            self.owner.ends.pop(self, None)
            if not self.owner.is_dead:
                self.out.finish()
                self.into.is_refused = True
            self.into.changed()
            self.out.changed()


class Owner:
    """A process, as the network sees it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = False
        self.ends: dict[End, None] = {}

    def die(self, how: str) -> None:
        """End every connection: ``fin``, ``reset``, or ``silent`` as in a power cut."""
        ends = tuple(self.ends)
        for end in ends:
            if how == "fin":
                end.out.finish()
                end.into.is_refused = True
            elif how == "reset":
                end.out.reset()
                end.into.reset()
            else:
                end.out.clogged_until = end.into.clogged_until = math.inf
        self.is_dead = True
        for end in ends:
            end.into.changed()
            end.out.changed()


class Listening:
    """Takes connections for a process."""

    def __init__(self, network: Network, owner: Owner, port: int) -> None:
        self._network = network
        self.owner = owner
        self.port = port
        self._to, self._from = trio.open_memory_channel[End](math.inf)

    def offer(self, end: End) -> None:
        self._to.send_nowait(end)

    async def accept(self) -> End:
        try:
            return await self._from.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError from None

    async def aclose(self) -> None:
        if self._network.listening is self:
            self._network.listening = None
        self._to.close()
        await trio.lowlevel.checkpoint()


class Connection:
    """Both directions of one connection, for whoever breaks it."""

    def __init__(self, kind: str, number: int, client: End, server: End) -> None:
        self.kind = kind
        self.number = number
        self.client = client
        self.server = server

    @property
    def is_open(self) -> bool:
        return not (self.client.is_closed and self.server.is_closed)

    def cut(self) -> None:
        """Lose the connection and what is on its way."""
        self.client.out.reset()
        self.server.out.reset()

    def clog(self, until: float, *, up: bool, down: bool) -> None:
        """Let nothing arrive until then: to the server (*up*), to the client (*down*)."""
        for pipe, wanted in ((self.client.out, up), (self.server.out, down)):
            if wanted:
                pipe.clogged_until = max(pipe.clogged_until, until)
                pipe.changed()

    def haunt(self, until: float) -> None:
        """The client loses the connection; what it had sent arrives much later."""
        self.clog(until, up=True, down=False)
        self.server.out.reset()
        self.client.out.is_refused = True


class Network:
    """All connections of one simulation."""

    def __init__(self, seed: object, trace: Trace) -> None:
        self._random = random.Random(f"network {seed}")
        self.trace = trace
        self.listening: Listening | None = None
        self.connections: list[Connection] = []
        self.refuses_until: dict[str, float] = {}
        self.swallows_until: dict[str, float] = {}
        self.slow_until = 0.0
        self.usual_delay = self._random.choice([0.004, 0.004, 0.05])
        self._count = 0

    def draw_delay(self) -> float:
        if trio.current_time() < self.slow_until and self._random.random() < 0.2:
            return self._random.uniform(0.2, 6.0)
        return self._random.expovariate(1 / self.usual_delay)

    def living(self, kind: str) -> list[Connection]:
        """Return the open connections of a kind, oldest first."""
        self.connections = [each for each in self.connections if each.is_open]
        return [each for each in self.connections if each.kind == kind]

    def dial(self, owner: Owner, kind: str) -> Callable[..., object]:
        """Return the port through which *owner* connects."""

        async def dial(host: str, port: int, *, use_tls: bool = False) -> End:
            await trio.sleep(self._random.uniform(0.0005, 0.02))
            now = trio.current_time()
            if owner.is_dead or now < self.swallows_until.get(kind, 0.0):
                await trio.sleep_forever()
            if self.listening is None or now < self.refuses_until.get(kind, 0.0):
                raise ConnectionRefusedError("nobody listens")
            self._count += 1
            up = Pipe(f"{kind}{self._count}>", self.draw_delay, self.trace)
            down = Pipe(f"{kind}{self._count}<", self.draw_delay, self.trace)
            client, server = End(owner, up, down), End(self.listening.owner, down, up)
            self.connections.append(Connection(kind, self._count, client, server))
            self.listening.offer(server)
            return client

        return dial

    def listen(self, owner: Owner) -> Callable[..., object]:
        """Return the port through which *owner* listens."""

        async def listen(host: str, port: int) -> Listening:
            await trio.lowlevel.checkpoint()
            if self.listening is not None and not self.listening.owner.is_dead:
                raise OSError("address in use")
            self.listening = Listening(self, owner, port)
            return self.listening

        return listen

    def heal(self) -> None:
        """Break nothing any more; what is lost for ever stays lost."""
        self.refuses_until.clear()
        self.swallows_until.clear()
        self.slow_until = 0.0
        for connection in self.connections:
            for pipe in (connection.client.out, connection.server.out):
                if pipe.clogged_until < math.inf:
                    pipe.clogged_until = 0.0
                    pipe.changed()
