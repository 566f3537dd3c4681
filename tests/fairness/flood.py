"""One session pours, nineteen talk, all over one slow link: how long do the nineteen wait?

Host and VM are the real ones, in one process on Trio's clock, which stands still while they
compute: what is measured is what waits for the link and behind other sessions, and nothing
else. An event's way ends where a reader close to the host gets it.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import attrs
import trio
import trio.testing
from world import SmallWorld, open_world

from semibot.config import Deadlines
from semibot.host.server import App, Message, Receive, Scope, Send
from semibot.session import ActiveRun
from semibot.testing.scheduling import seeded_scheduler
from semibot.wire.events import TextChunk, Thinking
from semibot.wire.sse import SseDecoder

DONE = "that was all"

LONGEST_WAIT = 0.25
"""What 99 % of the events of other sessions take at most, in seconds."""

LATEST_BEAT = 1.0
"""How late a heartbeat is at most, in seconds."""


@attrs.frozen(kw_only=True)
class Plan:
    """What is simulated."""

    flood_bytes: int = 50_000_000
    """What one session pours out."""
    event_bytes: int = 4000
    """Text of each of its events; with what is around it, it has less than 4 KiB."""
    speed: float = 1e6
    """Of the link, in bytes a second each way."""
    latency: float = 0.01
    """Of the link, one way, in seconds."""
    talkers: int = 19
    """Sessions that say a little at a time."""
    period: float = 0.1
    """Between two events of a talker, in seconds."""
    heartbeat: float = 10.0
    """Between two heartbeats, in seconds."""


@attrs.frozen(kw_only=True)
class Outcome:
    """What came of it; times are simulated seconds."""

    flood_seconds: float
    """From the first event that was poured to the arrival of the last one."""
    flood_events: int
    """Events that were poured and have arrived."""
    waits: Sequence[float] = attrs.field(repr=False)
    """What each event of a talker took while it was poured."""
    beats: Sequence[float] = attrs.field(repr=False)
    """When heartbeats arrived at the host."""
    link_share: float
    """What the link carried meanwhile, as a share of what it could have."""
    flood_share: float
    """The same, for the bytes of text that were poured."""
    real_seconds: float
    """What the simulation took."""

    def wait(self, percent: float) -> float:
        """Return what so many percent of the talkers' events did not take longer than."""
        return percentile(self.waits, percent)

    @property
    def longest_pause(self) -> float:
        """The longest time between two heartbeats."""
        return max(later - earlier for earlier, later in itertools.pairwise(self.beats))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return what so many percent of *values* do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


@attrs.define(eq=False)
class _Flood:
    """One simulation."""

    plan: Plan
    begun: trio.Event = attrs.field(factory=trio.Event)
    is_over: trio.Event = attrs.field(factory=trio.Event)
    flood_begun: float = math.inf
    flood_events: int = 0
    talking: int = 0
    waits: list[float] = attrs.field(factory=list[float])
    beats: list[float] = attrs.field(factory=list[float])

    # --- the VM ---

    async def handle(self, run: ActiveRun) -> None:
        """Do what the message says: ``pour``, or ``talk NUMBER``."""
        what, _, number = run.message.partition(" ")
        if what == "pour":
            await self._pour(run)
        else:
            await self._talk(run, int(number))
        await run.complete()

    async def _pour(self, run: ActiveRun) -> None:
        await self.begun.wait()
        self.flood_begun = trio.current_time()
        # Not the answer, which is bounded: what an agent thinks may be as long as it likes.
        event = Thinking(content="x" * self.plan.event_bytes, stage="reasoning")
        for _ in range(self.plan.flood_bytes // self.plan.event_bytes):
            await run.emit(event)
        await run.emit(TextChunk(content=DONE))

    async def _talk(self, run: ActiveRun, number: int) -> None:
        self.talking += 1
        if self.talking == self.plan.talkers:
            self.begun.set()
        await trio.sleep(self.plan.period * number / self.plan.talkers)
        while not self.is_over.is_set():
            await run.emit(TextChunk(content=f"{trio.current_time()} a few words"))
            await trio.sleep(self.plan.period)

    # --- who reads, and who listens in ---

    async def converse(self, world: SmallWorld, message: str) -> None:
        """Begin a session with *message*, and read its run to the end."""
        body = {"message": message, "on_disconnect": "continue"}
        decoder = SseDecoder(1024 * 1024)
        async with world.ask("POST", "/api/v1/chat/start", body) as exchange:
            assert exchange.status == 200, await exchange.read_all()
            while data := await exchange.receive():
                for item in decoder.feed(data):
                    self._saw(json.loads(item.data))

    def _saw(self, event: dict[str, str]) -> None:
        if event["type"] == "thinking":
            self.flood_events += 1
        elif event["type"] == "text_chunk" and event["content"] == DONE:
            self.is_over.set()
        elif event["type"] == "text_chunk":
            said = float(event["content"].split()[0])
            if said >= self.flood_begun and not self.is_over.is_set():
                self.waits.append(trio.current_time() - said)

    def listening_in(self, app: App) -> App:
        """Return *app* with somebody who notes when heartbeats arrive."""

        async def listened_to(scope: Scope, receive: Receive, send: Send) -> None:
            async def heard() -> Message:
                message = await receive()
                if '"heartbeat"' in (message.get("text") or "")[:200]:
                    self.beats.append(trio.current_time())
                return message

            await app(scope, heard if scope["type"] == "websocket" else receive, send)

        return listened_to


async def _simulate(plan: Plan, directory: Path) -> Outcome:
    began = time.perf_counter()
    flood = _Flood(plan)
    with trio.fail_after(60 + 4 * plan.flood_bytes / plan.speed):
        async with (
            open_world(
                directory,
                flood.handle,
                speed=plan.speed,
                latency=plan.latency,
                deadlines=Deadlines(link_heartbeat=plan.heartbeat),
                dress=flood.listening_in,
            ) as world,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(flood.converse, world, "pour")
            for number in range(plan.talkers):
                nursery.start_soon(flood.converse, world, f"talk {number}")
            await flood.begun.wait()
            before = world.link.out.carried
            await flood.is_over.wait()
            took = trio.current_time() - flood.flood_begun
            carried = world.link.out.carried - before
            assert world.channel.statistics().links == 1
    poured = flood.flood_events * plan.event_bytes
    return Outcome(
        flood_seconds=took,
        flood_events=flood.flood_events,
        waits=flood.waits,
        beats=flood.beats,
        link_share=carried / took / plan.speed,
        flood_share=poured / took / plan.speed,
        real_seconds=time.perf_counter() - began,
    )


def simulate(plan: Plan, directory: Path, *, seed: int = 1) -> Outcome:
    """Let one session pour while the others talk, and return what the others felt.

    Args:
        plan: How much.
        directory: For files; empty.
        seed: Decides the order of tasks that could run at the same time.
    """
    clock = trio.testing.MockClock(autojump_threshold=0)
    with seeded_scheduler(seed):
        return trio.run(_simulate, plan, directory, clock=clock)
