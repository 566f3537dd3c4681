"""A store of one session in memory, and clients that read a relay's streams."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping

import attrs
import trio

from semibot.config import Deadlines
from semibot.errors import StoreError
from semibot.host.readers import Reader
from semibot.host.relay import Relay
from semibot.store.base import MessageRow, ResyncView, SessionLoss, StoredEvent
from semibot.testing import simulated_ports
from semibot.wire.sse import EventId, SseDecoder, SseMessage

SESSION = "s1"


def event(seq: int, *, term: int = 1, run_id: str = "r1", type: str = "text_chunk", text="hi"):
    data = json.dumps({"type": type, "content": text})
    return StoredEvent(term=term, seq=seq, run_id=run_id, type=type, data=data)


def loss(base_seq: int, *events: StoredEvent, term: int = 2) -> SessionLoss:
    return SessionLoss(
        session_id=SESSION,
        user_id="u1",
        term=term,
        base_seq=base_seq,
        events=events,
        ended_runs=tuple(each.run_id for each in events if each.type == "execution_error"),
    )


class EventStore:
    """What a relay needs of a store; every method is a checkpoint before and after."""

    def __init__(self) -> None:
        self.term = 1
        self.events: list[StoredEvent] = []
        self.exists = True
        self.failure: Exception | None = None
        self.calls: list[str] = []
        self.gate: trio.Event | None = None
        """While set and not set off, answers are ready but do not arrive."""
        self.view_text: str | None = None

    def add(self, *events: StoredEvent) -> None:
        for each in events:
            assert each.seq == len(self.events) + 1
            self.events.append(each)
            self.term = each.term

    async def _answer(self, name: str, value):
        self.calls.append(name)
        if self.gate is not None:
            await self.gate.wait()
        await trio.lowlevel.checkpoint()
        if self.failure is not None:
            raise self.failure
        return value

    async def tail_start(self, session_id: str) -> tuple[int, int] | None:
        known = self.exists and session_id.startswith("s")
        return await self._answer("tail_start", (self.term, len(self.events)) if known else None)

    async def read_events(self, session_id: str, after_seq: int, max_bytes: int):
        found: list[StoredEvent] = []
        first = bisect_right(self.events, after_seq, key=lambda each: each.seq)
        for each in self.events[first:] if self.exists else ():
            max_bytes -= len(each.data)
            if found and max_bytes < 0:
                break
            found.append(each)
        return await self._answer("read_events", tuple(found))

    async def term_end(self, session_id: str, term: int) -> int:
        ends = [each.seq for each in self.events if each.term == term]
        return await self._answer("term_end", max(ends, default=0))

    async def resync_view(self, session_id: str, max_bytes: int) -> ResyncView | None:
        """The one message says which events the state is made of."""
        content = json.dumps([[each.term, each.seq] for each in self.events])
        view = ResyncView(
            term=self.term,
            last_seq=len(self.events),
            messages=(
                MessageRow(
                    id="m1",
                    run_id="r1",
                    role="user",
                    content=self.view_text or content,
                    metadata={},
                    created_at=7,
                ),
            ),
            run=None,
            truncated=False,
        )
        return await self._answer("resync_view", view if self.exists else None)


@attrs.define(eq=False)
class Client:
    """Reads a stream; ``got`` are its events, as ``type id`` or the type alone."""

    reader: Reader
    chunks: list[bytes] = attrs.field(factory=list)
    messages: list[SseMessage] = attrs.field(factory=list)
    decoder: SseDecoder = attrs.field(factory=lambda: SseDecoder(2 * 1024 * 1024))
    has_ended: bool = False

    async def step(self) -> bytes | None:
        chunk = await self.reader.next_chunk()
        if chunk is None:
            self.has_ended = True
        else:
            self.chunks.append(chunk)
            self.messages += self.decoder.feed(chunk)
        return chunk

    async def read_on(self) -> None:
        with self.reader:
            while await self.step() is not None:
                pass

    async def read_some(self, count: int) -> None:
        for _ in range(count):
            await self.step()

    @property
    def got(self) -> list[str]:
        return [f"{self._type(each)} {each.id}" for each in self.messages]

    @property
    def ids(self) -> list[str]:
        return [each.id for each in self.messages]

    @staticmethod
    def _type(message: SseMessage) -> str:
        body = json.loads(message.data)
        assert isinstance(body, Mapping)
        return body["type"]


@attrs.define(eq=False)
class Kit:
    """A relay with its store."""

    store: EventStore = attrs.field(factory=EventStore)
    deadlines: Deadlines = attrs.field(factory=Deadlines)
    relay: Relay = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.relay = Relay(self.store, simulated_ports(), self.deadlines)

    def restart(self, **bounds: int) -> None:
        self.relay = Relay(self.store, simulated_ports(), self.deadlines, **bounds)

    async def receive(self, *events: StoredEvent, waits: bool = False) -> None:
        tail = await self.relay.tail(SESSION)
        for each in events:
            tail.receive(each, waits_for_commit=waits)

    async def commit(self, *events: StoredEvent) -> None:
        """Commit events that the tail has received already."""
        self.store.add(*events)
        (await self.relay.tail(SESSION)).commit(len(self.store.events))

    async def lose(self, *events: StoredEvent, term: int = 2) -> None:
        """Lose the session's holder; *events* are what is said for it."""
        lost = loss(len(self.store.events), *events, term=term)
        self.store.add(*events)
        self.store.term = term
        self.relay.publish_loss(lost)

    async def reader(self, after: str | None) -> Client:
        event_id = None if after is None else EventId.parse(after)
        return Client(await self.relay.open_reader(SESSION, last_event_id=event_id))

    async def run_reader(self, run_id: str = "r1", after_seq: int = 0) -> Client:
        return Client(await self.relay.open_run_reader(SESSION, run_id, after_seq))


def failing() -> StoreError:
    return StoreError("the disk is full")
