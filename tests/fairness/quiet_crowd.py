"""Readers of one run on simulated wires, one of whom stops reading: what the others feel.

Host, VM and wires are in one process on Trio's clock, which stands still while they compute:
whatever makes a reader wait longer here was waited for on account of somebody else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import attrs
import trio
import trio.testing
from world import SmallWorld, open_world

from semibot.config import Deadlines
from semibot.session import ActiveRun
from semibot.testing.scheduling import seeded_scheduler
from semibot.testing.simulation.browsers import Exchange
from semibot.wire.events import Thinking
from semibot.wire.sse import EventId, SseDecoder

TICK = 0.05
"""How often somebody looks whether a connection was ended, in seconds."""


@attrs.frozen(kw_only=True)
class Plan:
    """What is simulated."""

    live: int = 99
    """Readers that read."""
    has_stalled: bool = True
    """Whether there is one more that stops reading; else it reads like the others."""
    events: int = 80
    """Of the run."""
    event_bytes: int = 16 * 1024
    """Text of each."""
    period: float = 0.25
    """Between two, in seconds."""
    stalls_after: int = 8
    """Events that the stalled one reads before it stops."""
    stall_timeout: float = 10.0
    """Of the host, in seconds."""


@attrs.frozen(kw_only=True)
class Outcome:
    """What came of it; times are simulated seconds."""

    waits: Sequence[float] = attrs.field(repr=False)
    """What each event took to each live reader."""
    seen: Sequence[Sequence[EventId]] = attrs.field(repr=False)
    """What each live reader saw, in order."""
    closed_after: float | None
    """From the last read of the stalled one to the end of its connection."""
    seen_stalled: Sequence[EventId] = attrs.field(repr=False)
    """What it saw, over both connections."""
    came_back_with: str | None
    """Type of what it saw first when it came back."""


@attrs.define(eq=False)
class _Crowd:
    """One simulation."""

    plan: Plan
    run_begins: trio.Event = attrs.field(factory=trio.Event)
    may_begin: trio.Event = attrs.field(factory=trio.Event)
    session_id: str = ""
    attached: int = 0
    waits: list[float] = attrs.field(factory=list[float])
    seen: list[list[EventId]] = attrs.field(factory=list[list[EventId]])
    seen_stalled: list[EventId] = attrs.field(factory=list[EventId])
    closed_after: float | None = None
    came_back_with: str | None = None

    async def handle(self, run: ActiveRun) -> None:
        """Say the events, once everybody is there."""
        await self.may_begin.wait()
        for _ in range(self.plan.events):
            text = f"{trio.current_time()} ".ljust(self.plan.event_bytes, "x")
            await run.emit(Thinking(content=text, stage="reasoning"))
            await trio.sleep(self.plan.period)
        await run.complete()

    async def ask(self, world: SmallWorld) -> None:
        """Begin the run, and read it to its end."""
        body = {"message": "go on", "on_disconnect": "continue"}
        async with world.ask("POST", "/api/v1/chat/start", body) as exchange:
            self.session_id = exchange.headers["x-session-id"]
            self.run_begins.set()
            await self._read(exchange, [], [])

    async def follow(self, world: SmallWorld, waits: list[float]) -> None:
        """Read the session to the end of the run."""
        seen: list[EventId] = []
        self.seen.append(seen)
        async with world.ask("GET", self._path) as exchange:
            await self._read(exchange, seen, waits)

    async def stall(self, world: SmallWorld) -> None:
        """Read a little, then nothing until the host has had enough, then come back."""
        seen = self.seen_stalled
        async with world.ask("GET", self._path) as exchange:
            await self._read(exchange, seen, [], upto=self.plan.stalls_after)
            began = trio.current_time()
            while not exchange.stream.out.is_refused:  # noqa: ASYNC110 - nobody tells us
                await trio.sleep(TICK)
            self.closed_after = trio.current_time() - began
            await self._read(exchange, seen, [])
        async with world.ask("GET", self._path, Last_Event_ID=str(seen[-1])) as exchange:
            await self._read(exchange, seen, [], is_back=True)

    @property
    def _path(self) -> str:
        return f"/api/v1/sessions/{self.session_id}/stream"

    async def _read(
        self,
        exchange: Exchange,
        seen: list[EventId],
        waits: list[float],
        *,
        upto: int = 1_000_000,
        is_back: bool = False,
    ) -> None:
        """Read events until the run ends, the connection does, or *upto* were read."""
        decoder = SseDecoder(1024 * 1024)
        while True:
            try:
                data = await exchange.receive()
            except OSError:
                return
            for item in decoder.feed(data):
                event = json.loads(item.data)
                if is_back:
                    self.came_back_with, is_back = event["type"], False
                if event["type"] == "resync":
                    self._count()
                    continue
                seen.append(EventId.parse(item.id))
                if event["type"] == "thinking":
                    waits.append(trio.current_time() - float(event["content"].split()[0]))
                if event["type"] == "execution_complete":
                    return
            if not data or len(seen) >= upto:
                return

    def _count(self) -> None:
        self.attached += 1
        if self.attached == self.plan.live + 1:
            self.may_begin.set()


async def _simulate(plan: Plan, directory: Path) -> Outcome:
    crowd = _Crowd(plan)
    with trio.fail_after(60 + 3 * plan.events * plan.period):
        async with (
            open_world(
                directory,
                crowd.handle,
                speed=float("inf"),
                latency=0.01,
                deadlines=Deadlines(http_stall_timeout=plan.stall_timeout),
            ) as world,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(crowd.ask, world)
            await crowd.run_begins.wait()
            for _ in range(plan.live):
                nursery.start_soon(crowd.follow, world, crowd.waits)
            if plan.has_stalled:
                nursery.start_soon(crowd.stall, world)
            else:
                nursery.start_soon(crowd.follow, world, [])
    return Outcome(
        waits=crowd.waits,
        seen=crowd.seen,
        closed_after=crowd.closed_after,
        seen_stalled=crowd.seen_stalled,
        came_back_with=crowd.came_back_with,
    )


def simulate(plan: Plan, directory: Path, *, seed: int = 1) -> Outcome:
    """Stream a run to a crowd, and return what its readers felt.

    Args:
        plan: Who reads, and what.
        directory: For files; empty.
        seed: Decides the order of tasks that could run at the same time.
    """
    clock = trio.testing.MockClock(autojump_threshold=0)
    with seeded_scheduler(seed):
        return trio.run(_simulate, plan, directory, clock=clock)
