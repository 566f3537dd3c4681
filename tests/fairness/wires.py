"""Connections between simulated machines, each with a speed, a latency and bounded buffers."""

from __future__ import annotations

import math

import trio

from semibot.testing.simulation.pipes import End, Machine, Pipe

PIECE = 8 * 1024
"""Bytes that arrive together: a few packets."""

MOST_HAPPENINGS = 5_000_000
"""A simulation in which more pieces are sent and received has gone astray."""


class Count:
    """Takes the place of a trace: nobody asks what happened when."""

    def __init__(self) -> None:
        self._count = 0

    def note(self, *_: object) -> None:
        self._count += 1
        assert self._count < MOST_HAPPENINGS


class Wire(Pipe):
    """One direction of a connection, which carries so many bytes a second, in their order.

    It holds 64 KiB that are on their way or not read, as two kernels do for a connection whose
    sender keeps little unsent (``TCP_NOTSENT_LOWAT``); more makes the sender wait.

    Args:
        trace: Counts.
        speed: Bytes a second.
        latency: From one end to the other, in seconds.
    """

    def __init__(self, trace: Count, speed: float, latency: float) -> None:
        super().__init__("", self._delay, trace)
        self._speed = speed
        self._latency = latency
        self._busy_until = 0.0
        self._put = 0

    def _delay(self) -> float:
        return self._busy_until - trio.current_time() + self._latency

    @property
    def carried(self) -> int:
        """Bytes that were read at the other end."""
        return self._put - self.in_flight

    def put(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            begun = max(self._busy_until, trio.current_time())
            self._busy_until = begun + len(piece) / self._speed
            self._put += len(piece)
            super().put(piece)


class Wires:
    """All connections to one listener.

    Args:
        latency: Of each, one way, in seconds.
    """

    port = 8080

    def __init__(self, latency: float) -> None:
        self._latency = latency
        self._trace = Count()
        self._host = Machine("host")
        self._offer, self._offered = trio.open_memory_channel[End](math.inf)

    def connect(self, speed: float = math.inf) -> End:
        """Return the dialling end of a new connection of so many bytes a second each way."""
        up, down = (Wire(self._trace, speed, self._latency) for _ in range(2))
        self._offer.send_nowait(End(self._host, down, up))
        return End(Machine("client"), up, down)

    async def listen(self, host: str, port: int) -> Wires:
        """Be the listener, as the host's port."""
        await trio.lowlevel.checkpoint()
        return self

    async def accept(self) -> End:
        try:
            return await self._offered.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError from None

    async def aclose(self) -> None:
        self._offer.close()
        await trio.lowlevel.checkpoint()
