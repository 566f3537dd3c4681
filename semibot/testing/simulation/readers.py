"""People who follow a conversation: they come and go, and check what they are shown."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, final

import trio

from semibot.wire.sse import EventId, SseDecoder

from .browsers import BROKEN, Browser
from .happenings import Read
from .pipes import Pipe

if TYPE_CHECKING:
    from .world import World

LARGEST_EVENT = 2 * 1024 * 1024
"""Bytes of one event that a reader takes."""


@final
class Reader:
    """Somebody who follows a session; connects again and again, with the last id.

    Args:
        world: The simulation.
        user: Who it is.
        session_id: What is followed.
        name: What the trace calls the reader.
    """

    def __init__(self, world: World, user: str, session_id: str, name: str) -> None:
        self._world = world
        self.session_id = session_id
        self.name = name
        self._browser = Browser(world, user, name)
        self.seen: list[tuple[EventId, dict[str, object]]] = []
        """What was shown, ``resync`` included, in that order."""
        self.is_gone: bool = False
        """Whether the session is."""
        self.visits: int = 0
        """How often it has come, and gone again."""

    @property
    def last_id(self) -> EventId | None:
        """The newest event that was shown."""
        return self.seen[-1][0] if self.seen else None

    async def follow(self, seconds: float, stall: float = 0.0) -> None:
        """Read for a while; for the first *stall* seconds nothing is taken."""
        last = "" if self.last_id is None else str(self.last_id)
        path = f"/api/v1/sessions/{self.session_id}/stream"
        with trio.move_on_after(seconds):  # noqa: ASYNC912 - it connects
            try:
                async with self._browser.open("GET", path, last_event_id=last) as exchange:
                    if exchange.status in {204, 404}:
                        self.is_gone = True
                        return
                    if exchange.status != 200:
                        self._world.trace.note("stream refused", exchange.status)
                        return
                    if stall:
                        await self._stall(exchange.stream.into, stall)
                    decoder = SseDecoder(LARGEST_EVENT)
                    while data := await exchange.receive():
                        for message in decoder.feed(data):
                            self._take(message.id, message.event, message.data)
            except BROKEN:
                pass
        self.visits += 1

    async def _stall(self, pipe: Pipe, seconds: float) -> None:
        """Take nothing for a while; that counts if the host had something to say."""
        await trio.sleep(seconds)
        if pipe.in_flight:
            self._world.hit("stalled_reader")

    def _take(self, event_id: str, name: str, data: bytes) -> None:
        event = json.loads(data)
        this = EventId.parse(event_id)
        self._world.trace.note(self.name, event_id, event["type"])
        self._world.tell(
            Read(
                who=self.name,
                session_id=self.session_id,
                id=this,
                name=name,
                event=event,
                reader=self,
            )
        )
        self.seen.append((this, event))

    async def live(self, draw: random.Random, until: trio.Event) -> None:
        """Come and go until *until* is set."""
        while not until.is_set() and not self.is_gone:
            await self.follow(draw.choice([0.05, 1.0, 10.0, 40.0, 90.0, 200.0]))
            await trio.sleep(draw.expovariate(1 / draw.choice([0.5, 10.0])))
