"""One direction of a simulated connection, and the ends of both.

What was sent waits in its pipe until it is due; a pipe holds a bounded number of bytes, as
the kernels of two machines do.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Final, final

import trio

from .trace import Trace

CAPACITY: Final = 64 * 1024
"""Bytes on their way in one direction; more make the sender wait."""

_LARGEST_RECEIVE: Final = 64 * 1024


@final
class Machine:
    """A process, as the network sees it.

    Args:
        name: What the trace calls it.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead: bool = False
        """Whether it was killed, or has ended."""
        self.ends: dict[End, None] = {}
        """Its open connections, the oldest first."""

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


@final
class Pipe:
    """One direction of a connection.

    Args:
        name: What the trace calls it.
        draw_delay: How long the next bytes take, in seconds.
        trace: Is told what is sent and received.
    """

    def __init__(self, name: str, draw_delay: Callable[[], float], trace: Trace) -> None:
        self.name = name
        self._draw_delay = draw_delay
        self._trace = trace
        self._chunks: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._last_due = 0.0
        self._fin_due: float | None = None
        self.clogged_until: float = 0.0
        """Until when nothing arrives, on Trio's clock."""
        self.is_reset: bool = False
        """Whether whoever reads finds the connection broken."""
        self.is_refused: bool = False
        """Whether whoever writes finds the connection broken."""
        self.on_put: Callable[[bytes], bytes | None] | None = None
        """Is shown what is sent; what it returns is sent after it, as if said twice."""
        self.on_hold: Callable[[], None] | None = None
        """Is told once that something does not arrive because the pipe is clogged."""
        self.on_take: Callable[[], None] | None = None
        """Is told that something arrived."""
        self.full_at: float = -1.0
        """When it was last full, on Trio's clock; -1 before the first time."""
        self.received_at: float = 0.0
        """When something last arrived, on Trio's clock."""
        self._changes = trio.lowlevel.ParkingLot()

    def changed(self) -> None:
        """Let whoever waits look again."""
        self._changes.unpark_all()

    def _due(self) -> float:
        self._last_due = max(self._last_due, trio.current_time() + self._draw_delay())
        return self._last_due

    @property
    def room(self) -> int:
        """How many more bytes it takes."""
        return CAPACITY - self._size

    @property
    def in_flight(self) -> int:
        """How many bytes are on their way."""
        return self._size

    @property
    def has_arrived(self) -> bool:
        """Whether whoever reads would get something now."""
        now = trio.current_time()
        if self.is_reset:
            return True
        if now < self.clogged_until:
            return False
        if self._chunks:
            return self._chunks[0][0] <= now
        return self._fin_due is not None and self._fin_due <= now

    def put(self, data: bytes) -> None:
        """Send bytes."""
        self._chunks.append((self._due(), data))
        self._size += len(data)
        self._trace.note("send", self.name, len(data))
        if self.on_put is not None:
            again = self.on_put(data)
            if again is not None:
                self._chunks.append((self._due(), again))
                self._size += len(again)
        if self.room <= 0:
            self.full_at = trio.current_time()
        self._note_hold()
        self.changed()

    def _note_hold(self) -> None:
        if self.on_hold is not None and trio.current_time() < self.clogged_until and self._chunks:
            on_hold, self.on_hold = self.on_hold, None
            on_hold()

    def clog(self, until: float, on_hold: Callable[[], None] | None = None) -> None:
        """Let nothing arrive until then.

        Args:
            until: On Trio's clock.
            on_hold: Is told once that this keeps something back.
        """
        self.clogged_until = max(self.clogged_until, until)
        if on_hold is not None:
            self.on_hold = on_hold
        self._note_hold()
        self.changed()

    def finish(self) -> None:
        """Send the end."""
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
            if self.room <= 0:
                self.full_at = now
            self._size -= len(data)
            self.received_at = now
            self._trace.note("receive", self.name, len(data))
            if self.on_take is not None:
                self.on_take()
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


@final
class End:
    """One end of a connection; a byte stream as the port wants it.

    Args:
        machine: Whose end it is.
        out: What it sends into.
        into: What it reads from.
    """

    def __init__(self, machine: Machine, out: Pipe, into: Pipe) -> None:
        self.machine = machine
        self.out = out
        self.into = into
        self.opened_at: float = trio.current_time()
        """When it was opened, on Trio's clock."""
        self.closed_at: float | None = None
        """When it was closed by its own side, on Trio's clock."""
        self.listening_since: float | None = None
        """Since when somebody waits for bytes, on Trio's clock; None if nobody does."""
        machine.ends[self] = None

    @property
    def is_closed(self) -> bool:
        """Whether its own side has closed it."""
        return self.closed_at is not None

    def _check(self) -> None:
        if self.is_closed:
            raise trio.ClosedResourceError("closed here")
        if self.machine.is_dead:
            raise trio.BrokenResourceError("this process is dead")

    async def send_all(self, data: bytes) -> None:
        """Send bytes; waits while the pipe is full."""
        await trio.lowlevel.checkpoint()
        rest = bytes(data)
        while True:  # noqa: ASYNC913 - a checkpoint comes first
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
        """Wait until the pipe takes something."""
        await trio.lowlevel.checkpoint()
        while self.out.room <= 0 and not self.out.is_refused:
            self._check()
            await self.out.wait()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what has arrived; waits until something has."""
        await trio.lowlevel.checkpoint()
        self.listening_since = trio.current_time()
        try:
            while True:
                self._check()
                if self.into.is_reset:
                    raise trio.BrokenResourceError("connection reset")
                data = self.into.take(max_bytes or _LARGEST_RECEIVE)
                if data is not None:
                    return data
                await self.into.wait()
        finally:
            self.listening_since = None

    async def send_eof(self) -> None:
        """Send the end, and read on."""
        self.out.finish()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close as the operating system does: what was sent still arrives."""
        self.close_now()
        await trio.lowlevel.checkpoint()

    def close_now(self) -> None:
        """Close without a checkpoint."""
        if self.closed_at is None:
            self.closed_at = trio.current_time()
            self.machine.ends.pop(self, None)
            if not self.machine.is_dead:
                self.out.finish()
                self.into.is_refused = True
            self.into.changed()
            self.out.changed()
