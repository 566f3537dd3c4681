"""A network in memory: seeded delays, and every way in which connections go wrong."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Final, final

import trio

from semibot.ports import Dial, Listen

from .pipes import End, Machine, Pipe
from .trace import Trace

LINK: Final = "link"
"""Kind of the connections of VMs."""

HTTP: Final = "http"
"""Kind of the connections of browsers."""


@final
class Listening:
    """Takes connections for a process."""

    def __init__(self, network: Network, machine: Machine, port: int) -> None:
        self._network = network
        self.machine = machine
        self._port = port
        self._to, self._from = trio.open_memory_channel[End](math.inf)

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._port

    def offer(self, end: End) -> None:
        """Let a connection wait to be taken."""
        self._to.send_nowait(end)

    async def accept(self) -> End:
        """Return the next connection; waits for it."""
        try:
            return await self._from.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError from None

    async def aclose(self) -> None:
        """Take no more connections."""
        if self._network.listening is self:
            self._network.listening = None
        self._to.close()
        await trio.lowlevel.checkpoint()


@final
class Connection:
    """Both directions of one connection, for whoever watches or breaks it.

    Args:
        kind: ``link`` or ``http``.
        number: Counts the connections of a simulation.
        client: The end that dialled.
        server: The end that was dialled.
    """

    def __init__(self, kind: str, number: int, client: End, server: End) -> None:
        self.kind = kind
        self.number = number
        self.client = client
        self.server = server
        self.broken_at: float | None = None
        """When somebody last broke it, on Trio's clock."""

    @property
    def is_open(self) -> bool:
        """Whether one of the ends is open."""
        return not (self.client.is_closed and self.server.is_closed)

    @property
    def in_flight(self) -> int:
        """Bytes on their way, in both directions."""
        return self.client.out.in_flight + self.server.out.in_flight

    def cut(self) -> None:
        """Lose the connection and what is on its way."""
        self.broken_at = trio.current_time()
        self.client.out.reset()
        self.server.out.reset()

    def clog(
        self, until: float, *, up: bool, down: bool, on_hold: Callable[[], None] | None = None
    ) -> None:
        """Let nothing arrive until then: at the server (*up*), at the client (*down*)."""
        self.broken_at = trio.current_time()
        for pipe, wanted in ((self.client.out, up), (self.server.out, down)):
            if wanted:
                pipe.clog(until, on_hold)

    def haunt(self, until: float) -> None:
        """The client loses the connection; what it had sent arrives much later."""
        self.clog(until, up=True, down=False)
        self.server.out.reset()
        self.client.out.is_refused = True


@final
class Network:
    """All connections of one simulation. One process listens at a time: the host.

    Args:
        seed: Decides delays.
        trace: Is told what is sent and received.
        on_connect: Is told every connection before anything is sent.
        on_dial: Is told who dials what, before anything comes of it.
    """

    def __init__(
        self,
        seed: int,
        trace: Trace,
        *,
        on_connect: Callable[[Connection], None],
        on_dial: Callable[[Machine, str], None],
    ) -> None:
        self._random = random.Random(f"network {seed}")  # noqa: S311 - reproducible on purpose
        self._trace = trace
        self._on_connect = on_connect
        self._on_dial = on_dial
        self.listening: Listening | None = None
        """Who takes connections."""
        self._connections: list[Connection] = []
        self.refuses_until: dict[str, float] = {}
        """Until when connections of a kind are refused, on Trio's clock."""
        self.on_refusal: Callable[[], None] | None = None
        """Is told that one was refused for that."""
        self.swallows_until: dict[str, float] = {}
        """Until when dialling a kind is not even answered, on Trio's clock."""
        self.slow_until: float = 0.0
        """Until when some bytes take seconds, on Trio's clock."""
        self.on_slow: Callable[[], None] | None = None
        """Is told that some do."""
        self._usual_delay = self._random.choice([0.004, 0.004, 0.05])
        self._count = 0

    def _draw_delay(self) -> float:
        if trio.current_time() < self.slow_until and self._random.random() < 0.2:
            if self.on_slow is not None:
                self.on_slow()
            return self._random.uniform(0.2, 6.0)
        return self._random.expovariate(1 / self._usual_delay)

    def living(self, kind: str) -> list[Connection]:
        """Return the open connections of a kind, the oldest first."""
        self._connections = [each for each in self._connections if each.is_open]
        return [each for each in self._connections if each.kind == kind]

    async def connect(self, machine: Machine, kind: str) -> End:
        """Connect *machine* to whoever listens, and return its end.

        Raises:
            OSError: If nobody does.
        """
        self._on_dial(machine, kind)
        await trio.sleep(self._random.uniform(0.0005, 0.02))
        now = trio.current_time()
        if machine.is_dead or now < self.swallows_until.get(kind, 0.0):
            await trio.sleep_forever()
        if now < self.refuses_until.get(kind, 0.0):
            if self.on_refusal is not None:
                self.on_refusal()
            raise ConnectionRefusedError("a firewall in the way")
        if self.listening is None:
            raise ConnectionRefusedError("nobody listens")
        self._count += 1
        up = Pipe(f"{kind}{self._count}>", self._draw_delay, self._trace)
        down = Pipe(f"{kind}{self._count}<", self._draw_delay, self._trace)
        client, server = End(machine, up, down), End(self.listening.machine, down, up)
        connection = Connection(kind, self._count, client, server)
        self._connections.append(connection)
        self._on_connect(connection)
        self.listening.offer(server)
        return client

    def dial(self, machine: Machine, kind: str) -> Dial:
        """Return the port through which *machine* connects."""

        async def dial(host: str, port: int, *, use_tls: bool) -> End:
            return await self.connect(machine, kind)

        return dial

    def listen(self, machine: Machine) -> Listen:
        """Return the port through which *machine* listens."""

        async def listen(host: str, port: int) -> Listening:
            await trio.lowlevel.checkpoint()
            if self.listening is not None and not self.listening.machine.is_dead:
                raise OSError("address in use")
            self.listening = Listening(self, machine, port)
            return self.listening

        return listen

    def heal(self) -> None:
        """Break nothing any more; what is lost for ever stays lost."""
        self.refuses_until.clear()
        self.swallows_until.clear()
        self.slow_until = 0.0
        for connection in self._connections:
            for pipe in (connection.client.out, connection.server.out):
                if pipe.clogged_until < math.inf:
                    pipe.clogged_until = 0.0
                    pipe.changed()
