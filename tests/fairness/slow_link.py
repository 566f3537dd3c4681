"""A connection between two simulated machines, with a speed, a latency and bounded buffers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import trio

SIMULATION = Path(__file__).parent.parent / "simulation"
if str(SIMULATION) not in sys.path:
    sys.path.append(str(SIMULATION))

from sim_network import End, Listening, Network, Owner, Pipe, Trace  # noqa: E402

PIECE = 8 * 1024
"""Bytes that arrive together: a few packets."""


class QuietTrace(Trace):
    """Hashes nothing: what these tests measure is not what happened when."""

    def note(self, *event: object) -> None:
        self.count += 1


class SlowPipe(Pipe):
    """One direction of a link: a wire that takes so many bytes a second, one after the other.

    It holds what :data:`sim_network.CAPACITY` says, on its way and arrived, as two kernels do
    for a connection whose sender keeps little unsent; more makes the sender wait.

    Args:
        name: For the trace.
        trace: Counts.
        speed: Bytes a second.
        latency: From one end to the other, in seconds.
    """

    def __init__(self, name: str, trace: Trace, speed: float, latency: float) -> None:
        super().__init__(name, self._draw, trace)
        self._speed = speed
        self._latency = latency
        self._busy_until = 0.0
        self.carried = 0
        """Bytes so far."""

    def _draw(self) -> float:
        return self._busy_until - trio.current_time() + self._latency

    def put(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            begun = max(self._busy_until, trio.current_time())
            self._busy_until = begun + len(piece) / self._speed
            self.carried += len(piece)
            super().put(piece)


class SlowLink:
    """What a VM dials and a host listens on: a slow wire for each connection.

    Args:
        speed: Bytes a second, each way.
        latency: One way, in seconds.
    """

    def __init__(self, speed: float, latency: float) -> None:
        self._speed = speed
        self._latency = latency
        self._trace = QuietTrace()
        self._network = Network(0, self._trace)
        self._host = Owner("host")
        self._vm = Owner("vm")
        self.up: SlowPipe | None = None
        """From the VM to the host, of the newest connection."""

    @property
    def listen(self) -> Callable[..., object]:
        """The port through which the host listens."""
        return self._network.listen(self._host)

    async def dial(self, host: str, port: int, *, use_tls: bool = False) -> End:
        """Connect, as the VM's port."""
        await trio.sleep(2 * self._latency)
        listening: Listening | None = self._network.listening
        assert listening is not None
        self.up = SlowPipe("up", self._trace, self._speed, self._latency)
        down = SlowPipe("down", self._trace, self._speed, self._latency)
        listening.offer(End(self._host, down, self.up))
        return End(self._vm, self.up, down)
