"""What is measured of one server: throughput, latency and memory."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable

import attrs
import trio
from bench_peers import Peer
from bench_wire import Line, Link, Reader, advance, in_pieces, make_frames

PATIENCE = 300.0
"""What one measurement may take, in seconds; never waited for in vain."""


@attrs.frozen
class Throughput:
    """As fast as it goes."""

    cpu_us_per_event: float
    """Of the server process, user and system, until everything is acknowledged."""
    events_per_second: float
    """Until every reader has everything. Server and generator share the machine."""


@attrs.frozen
class Latency:
    """At a steady pace, from before the write of an event to its arrival, in microseconds."""

    p50_us: float
    p99_us: float
    cpu_us_per_event: float


@attrs.define(eq=False)
class _Arrivals:
    """Counts events over all readers."""

    missing: int = 0
    done: trio.Event = attrs.field(factory=trio.Event)

    def expect(self, count: int) -> None:
        self.missing, self.done = count, trio.Event()

    def take(self, number: int) -> None:
        self.missing -= number
        if self.missing <= 0:
            self.done.set()


async def _pour(
    link: Link, lines: list[Line], arrivals: _Arrivals, count: int, batch: int, turn: int
) -> Callable[[], object]:
    """Prepare *count* events and return what sends them and waits for them."""
    pieces = in_pieces(make_frames(lines, count, batch, turn))

    async def go() -> None:
        arrivals.expect(count)
        for piece in pieces:
            await link.stream.send_all(piece)
        await arrivals.done.wait()

    return go


async def measure_throughput(
    peer: Peer, sessions: int, batch: int, count: int, turn: int
) -> Throughput:
    """Pour *count* events, after a tenth of that to warm up; see :func:`make_frames`."""
    with trio.fail_after(PATIENCE):
        async with peer.open(1) as plane:
            link, lines, readers = await plane.open_sessions(sessions)
            arrivals = _Arrivals()
            async with trio.open_nursery() as nursery:
                for reader in readers:
                    pause = 0.002 if sessions == 1 else 0.02
                    nursery.start_soon(reader.read, pause, arrivals.take)
                warm_up = max(count // 10, sessions)
                await (await _pour(link, lines, arrivals, warm_up, batch, turn))()
                lines = advance(lines, warm_up, turn)
                await plane.drain(link, lines)
                go = await _pour(link, lines, arrivals, count, batch, turn)
                lines = advance(lines, count, turn)
                cpu, start = plane.server.cpu_seconds(), trio.current_time()
                async with trio.open_nursery() as draining:
                    draining.start_soon(plane.drain, link, lines)
                    await go()
                    elapsed = trio.current_time() - start
                cpu = plane.server.cpu_seconds() - cpu
                nursery.cancel_scope.cancel()
            return Throughput(cpu / count * 1e6, count / elapsed)


async def measure_latency(peer: Peer, sessions: int, rate: int, seconds: float) -> Latency:
    """Send one event a frame at a steady *rate*; sessions take turns."""
    count = int(rate * seconds)
    with trio.fail_after(PATIENCE):
        async with peer.open(1) as plane:
            link, lines, readers = await plane.open_sessions(sessions)
            arrivals = _Arrivals()
            waits: list[float] = []
            # Per session when each event that is under way was sent.
            sent: list[deque[float]] = [deque() for _ in readers]

            def note(which: int, number: int) -> None:
                now = trio.current_time()
                waits.extend(now - sent[which].popleft() for _ in range(number))
                arrivals.take(number)

            async with trio.open_nursery() as nursery:
                for which, reader in enumerate(readers):
                    nursery.start_soon(_read_promptly, reader, which, note)
                warm_up = rate // 2
                frames = make_frames(lines, warm_up + count, 1)
                arrivals.expect(warm_up + count)
                cpu, start = 0.0, trio.current_time()
                for number, frame in enumerate(frames):
                    if number == warm_up:
                        cpu = plane.server.cpu_seconds()
                    await trio.sleep_until(start + number / rate)
                    sent[number % sessions].append(trio.current_time())
                    await link.stream.send_all(frame)
                await arrivals.done.wait()
                await plane.drain(link, advance(lines, warm_up + count))
                cpu = plane.server.cpu_seconds() - cpu
                nursery.cancel_scope.cancel()
            cuts = statistics.quantiles(waits[warm_up:], n=100)
            return Latency(cuts[49] * 1e6, cuts[98] * 1e6, cpu / count * 1e6)


async def _read_promptly(reader: Reader, which: int, note: Callable[[int, int], None]) -> None:
    await reader.read(0.0, lambda number: note(which, number))


async def measure_memory(peer: Peer, links: int) -> float:
    """Return what an idle VM connection takes, in KiB: growth by *links* more, for each."""
    some = max(links // 10, 1)
    with trio.fail_after(PATIENCE):
        async with peer.open(some + links) as plane:
            held = [await plane.open_idle_link(number) for number in range(some)]
            await trio.sleep(0.5)  # let what came last be dealt with
            before = plane.server.rss_bytes()
            held += [await plane.open_idle_link(some + number) for number in range(links)]
            await trio.sleep(0.5)
            grown = plane.server.rss_bytes() - before
            return grown / links / 1024
