"""A hundred readers of one long run, of whom one stops reading now and then.

The host is a real one in a process of its own; the VM is scripted, so that a run of any size
costs nothing to make. The hundredth reader reads like the others for a while, then reads
nothing until the host closes its stream, then comes back with the last id it has, and so on.
So the other 99 are measured with and without a stalled one beside them in the same run.
"""

from __future__ import annotations

import json
import math
import socket
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import attrs
import trio

BENCH = Path(__file__).parent.parent / "bench"
if str(BENCH) not in sys.path:
    sys.path.append(str(BENCH))

from bench_peers import SemibotPlane  # noqa: E402
from bench_wire import Line, Reader, open_reader, text_frame  # noqa: E402
from host_process import ORG, HostProcess, open_host_process  # noqa: E402

from semibot.wire.sse import EventId, SseDecoder  # noqa: E402

SMALL_BUFFER = 32 * 1024
"""Of the kernel, for the reader that stalls, so that it soon accepts nothing any more."""

MOST_GROWTH = 64 * 1024 * 1024
"""Bytes by which the host may grow."""

STEP = 1e-4
"""Width of the classes that waits are counted in, in seconds."""

Phase = Literal["live", "stalled", "between"]
"""Whether all read, one does not, or one is catching up; the last is not measured."""


@attrs.frozen(kw_only=True)
class Plan:
    """How much is streamed, and to whom."""

    megabytes: float = 10.0
    """The run, in millions of bytes."""
    rate: float = 1.0
    """How many of them a second."""
    event_bytes: int = 32 * 1024
    """Text of each event."""
    readers: int = 100
    """All of them, the one that stalls included."""
    stall_timeout: float = 2.0
    """``http.stall_timeout`` of the host, in seconds."""
    live_seconds: float = 2.0
    """How long the hundredth reader reads at a stretch."""


@attrs.frozen(kw_only=True)
class Stall:
    """What became of the reader that accepted nothing."""

    closed_after: float
    """Seconds from its last read to the end of its connection on the host."""
    came_back_with: str
    """What it saw first when it came back: ``next``, or ``resync``."""


@attrs.frozen(kw_only=True)
class Outcome:
    """What was measured."""

    events: int
    """Events of the run."""
    seconds: float
    """What streaming them took."""
    rss_before: int
    """Bytes of the host before the run's first event."""
    rss_most: int
    """The most that it had during the run."""
    stalls: Sequence[Stall]
    """In their order."""
    waits: dict[str, Counter[int]] = attrs.field(repr=False)
    """By phase, how many deliveries took so many steps of :data:`STEP`, sent to seen."""

    @property
    def rss_growth(self) -> int:
        """Bytes by which the host grew at most."""
        return self.rss_most - self.rss_before

    def wait(self, phase: Phase, percent: float) -> float:
        """Return what so many percent of the deliveries did not take longer than, in seconds."""
        counts = self.waits[phase]
        left = math.ceil(counts.total() * percent / 100)
        for steps in sorted(counts):
            left -= counts[steps]
            if left <= 0:
                return (steps + 1) * STEP
        return math.nan


@attrs.define(eq=False)
class _Crowd:
    """One measurement."""

    plan: Plan
    host: HostProcess
    line: Line
    phase: Phase = "live"
    sent: list[tuple[float, Phase]] = attrs.field(factory=list[tuple[float, Phase]])
    waits: dict[str, Counter[int]] = attrs.field(
        factory=lambda: {"live": Counter(), "stalled": Counter(), "between": Counter()}
    )
    stalls: list[Stall] = attrs.field(factory=list[Stall])
    rss_most: int = 0
    arrived: int = 0
    all_arrived: trio.Event = attrs.field(factory=trio.Event)

    @property
    def count(self) -> int:
        """How many events there will be."""
        return int(self.plan.megabytes * 1e6 / self.plan.event_bytes)

    @property
    def left(self) -> float:
        """For how many more seconds events are sent."""
        return (self.count - len(self.sent)) * self.plan.event_bytes / (self.plan.rate * 1e6)

    @property
    def last_seq(self) -> int:
        return self.line.next_seq + self.count - 1

    # --- the VM ---

    async def pour(self, stream: trio.SocketStream) -> None:
        """Send every event when its time has come, and heartbeats after the last one."""
        line = self.line
        event = {"type": "thinking", "content": "~".ljust(self.plan.event_bytes, "x")}
        data = json.dumps(json.dumps({**event, "stage": "reasoning"}))
        head = f'{{"type":"sse_event","session_id":"{line.session_id}","term":{line.term},"seq":'
        tail = f',"run_id":"{line.run_id}","data":{data}}}'
        pause = self.plan.event_bytes / (self.plan.rate * 1e6)
        due = trio.current_time()
        for number in range(self.count):
            frame = text_frame(f"{head}{line.next_seq + number}{tail}")
            due += pause
            await trio.sleep_until(due)
            self.sent.append((trio.current_time(), self.phase))
            await stream.send_all(frame)
        while True:
            await trio.sleep(5)
            await stream.send_all(text_frame('{"type":"heartbeat","active_sessions":[]}'))

    # --- those who read ---

    def note(self, reader: Reader) -> Callable[[int], None]:
        """Return what notes how long *reader* waited for each event."""
        seen = 0

        def take(number: int) -> None:
            nonlocal seen
            now = trio.current_time()
            for at, phase in self.sent[seen : seen + number]:
                self.waits[phase][int((now - at) / STEP)] += 1
            seen += number
            self.arrived += number
            if self.arrived == self.count * (self.plan.readers - 1):
                self.all_arrived.set()

        return take

    async def watch_memory(self) -> None:
        while True:
            self.rss_most = max(self.rss_most, self.host.rss_bytes)
            await trio.sleep(0.05)

    # --- the one who stalls ---

    async def waver(self, wavering: Wavering) -> None:
        """Read, stall, come back, until everything was read."""
        await wavering.connect()
        while True:
            self.phase = "live"
            with trio.move_on_after(self.plan.live_seconds):
                if await wavering.read(self.last_seq):
                    return
            if self.left < self.plan.stall_timeout + 1.0:
                continue  # too little would be sent meanwhile for the host to notice
            self.phase = "stalled"
            await self._stall(wavering)

    async def _stall(self, wavering: Wavering) -> None:
        sockets, began = self.host.sockets, trio.current_time()
        with trio.move_on_after(3 * self.plan.stall_timeout + 10) as patience:
            while self.host.sockets >= sockets:  # noqa: ASYNC110 - nobody tells us
                await trio.sleep(0.02)
        assert not patience.cancelled_caught, "a reader that accepts nothing is not closed"
        took = trio.current_time() - began
        self.phase = "between"
        await wavering.read_out()
        newest = self.line.next_seq + len(self.sent) - 1
        await wavering.connect()
        await wavering.read(newest)
        self.stalls.append(Stall(closed_after=took, came_back_with=wavering.came_back_with))


@attrs.define(eq=False)
class Wavering:
    """The reader that stalls: one position in the session over several connections."""

    _port: int
    _path: str
    _token: str
    _stream: trio.SocketStream | None = None
    _decoder: SseDecoder | None = None
    _chunks: Chunks | None = None
    last: EventId | None = None
    came_back_with: str = ""

    async def connect(self) -> None:
        """Ask for what comes after the last event that was seen."""
        raw = trio.socket.socket()
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
        await raw.connect(("127.0.0.1", self._port))
        self._stream = trio.SocketStream(raw)
        self.came_back_with = ""
        last = "" if self.last is None else f"Last-Event-ID: {self.last}\r\n"
        await self._stream.send_all(
            f"GET {self._path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\n"
            f"Authorization: Bearer {self._token}\r\n{last}\r\n".encode()
        )
        data = b""
        while b"\r\n\r\n" not in data:
            data += await self._stream.receive_some(1)
        assert data.startswith(b"HTTP/1.1 200"), data
        self._decoder = SseDecoder(4 * 1024 * 1024)
        self._chunks = Chunks()

    async def read(self, upto: int) -> bool:
        """Read on until an event number has come; return whether it has."""
        while self.last is None or self.last.seq < upto:
            data = await self._stream.receive_some(256 * 1024)
            assert data, "the host ended a stream that was read"
            self._take(data)
        return True

    async def read_out(self) -> None:
        """Read what the kernels still have of a connection that the host has ended."""
        try:
            while data := await self._stream.receive_some(256 * 1024):
                self._take(data)
        except trio.BrokenResourceError:
            pass
        await self._stream.aclose()

    async def aclose(self) -> None:
        if self._stream is not None:
            await trio.aclose_forcefully(self._stream)

    def _take(self, data: bytes) -> None:
        for item in self._decoder.feed(self._chunks.feed(data)):
            this = EventId.parse(item.id)
            is_resync = item.data.startswith(b'{"type":"resync"')
            self.came_back_with = self.came_back_with or ("resync" if is_resync else "next")
            if not is_resync and self.last is not None:
                assert this == EventId(self.last.term, self.last.seq + 1), (self.last, this)
            self.last = this


class Chunks:
    """Takes the chunks of an answer apart."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._left = 0

    def feed(self, data: bytes) -> bytes:
        """Return what *data* says."""
        self._buffer += data
        found = bytearray()
        while self._buffer:
            if not self._left:
                end = self._buffer.find(b"\r\n")
                if end < 0:
                    break
                self._left = int(self._buffer[:end], 16) + 2
                del self._buffer[: end + 2]
            piece = self._buffer[: self._left]
            del self._buffer[: len(piece)]
            found += piece[: max(0, self._left - 2)]
            self._left -= len(piece)
        return bytes(found)


async def measure(plan: Plan, directory: Path) -> Outcome:
    """Stream one run to a crowd, and return what came of it.

    Args:
        plan: How much.
        directory: For the host's files; empty.
    """
    deadlines = {"http_stall_timeout": plan.stall_timeout}
    async with open_host_process(directory, deadlines=deadlines) as host:
        plane = SemibotPlane(host, host.tokens)
        link, (line,), readers = await plane.open_sessions(1)
        token = host.tokens.make_user_token("user-0", ORG)
        path = f"/api/v1/sessions/{line.session_id}/stream"
        for _ in range(plan.readers - 2):
            readers.append(await open_reader(host.port, "GET", path, token=token))
        crowd = _Crowd(plan, host, line)
        wavering = Wavering(host.port, path, token)
        try:
            async with trio.open_nursery() as nursery:
                for reader in readers:
                    nursery.start_soon(reader.read, 0.0, crowd.note(reader))
                nursery.start_soon(_drop_all, link)
                await trio.sleep(0.5)  # until the host has nothing left to do
                before = host.rss_bytes
                nursery.start_soon(crowd.watch_memory)
                began = trio.current_time()
                nursery.start_soon(crowd.pour, link.stream)
                await crowd.waver(wavering)
                await crowd.all_arrived.wait()
                took = trio.current_time() - began
                nursery.cancel_scope.cancel()
        finally:
            await wavering.aclose()
            for stream in (*plane.streams, *(reader.stream for reader in readers)):
                stream.socket.close()
    return Outcome(
        events=crowd.count,
        seconds=took,
        rss_before=before,
        rss_most=crowd.rss_most,
        stalls=crowd.stalls,
        waits=crowd.waits,
    )


async def _drop_all(link) -> None:
    """Read acknowledgements, as every VM does."""
    while True:
        await link.receive()
