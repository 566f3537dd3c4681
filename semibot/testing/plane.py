"""A host in memory: the link that a session manager takes, and what arrives over it."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Final, TypeAlias, final

import attrs
import trio

from semibot.errors import LocalProtocolError, RequestFailed, StoreError
from semibot.wire.codec import JsonObject, JsonValue, dump_json
from semibot.wire.events import SessionEvent, decode_event
from semibot.wire.frames import MAX_EVENT_BYTES, Cancelled, Command, CommandAck, FireAndForget
from semibot.wire.plane import CommandHandler, PlaneSettings


@attrs.frozen(kw_only=True)
class LaneEvent:
    """An event in a lane."""

    seq: int
    """Its number."""
    run_id: str
    """The run that says it."""
    event: SessionEvent
    """The event."""


LaneItem: TypeAlias = LaneEvent | CommandAck | Cancelled | FireAndForget
"""What stands in a lane."""

Responder: TypeAlias = Callable[[str, str, JsonObject], Awaitable[JsonValue]]
"""Answers a request; takes the session, the method and the params."""


@final
class MemoryLane:
    """A session's way out that collects, and checks what every lane relies on."""

    def __init__(self, session_id: str, term: int, next_seq: int) -> None:
        self.session_id: Final = session_id
        """The session."""
        self.term: Final = term
        """Fencing counter of its events."""
        self.items: list[LaneItem] = []
        """Everything in order; no snapshot replaces another."""
        self.is_closed: bool = False
        """Whether it was closed."""
        self.is_discarded: bool = False
        """Whether it was discarded."""
        self.next_seq: int = next_seq
        """Number that the next event must have."""
        self._is_full = False
        self._room = trio.lowlevel.ParkingLot()
        self._news = trio.lowlevel.ParkingLot()

    # --- what the manager calls -------------------------------------------------------

    def put_event(self, seq: int, run_id: str, data: str) -> None:
        """Keep an event."""
        if seq != self.next_seq:
            raise AssertionError(f"event {seq} was put where {self.next_seq} is next")
        if len(data.encode()) > MAX_EVENT_BYTES:
            raise AssertionError(f"event {seq} is too large")
        self.next_seq += 1
        self._put(LaneEvent(seq=seq, run_id=run_id, event=decode_event(data)))

    async def wait_room(self) -> None:
        """Wait while the lane is full."""
        while self._is_full and not self.is_discarded:
            # Unbounded on purpose: the test decides.
            await self._room.park()

    def put_note(self, note: CommandAck | Cancelled) -> None:
        """Keep an answer."""
        self._put(note)

    def put_snapshot(self, frame: FireAndForget) -> None:
        """Keep a snapshot."""
        dump_json(frame.params)
        self._put(frame)

    def _put(self, item: LaneItem) -> None:
        if self.is_discarded:
            raise AssertionError(f"something was put into a discarded lane: {item!r}")
        self.items.append(item)
        self._news.unpark_all()

    # --- what the test calls ----------------------------------------------------------

    def fill(self) -> None:
        """Let nothing in that can wait, until :meth:`drain`."""
        self._is_full = True

    def drain(self) -> None:
        """Let everything in again."""
        self._is_full = False
        self._room.unpark_all()

    @property
    def events(self) -> list[SessionEvent]:
        """The events in order."""
        return [item.event for item in self.items if isinstance(item, LaneEvent)]

    @property
    def notes(self) -> list[CommandAck | Cancelled]:
        """The answers in order."""
        return [item for item in self.items if isinstance(item, CommandAck | Cancelled)]

    @property
    def snapshots(self) -> list[FireAndForget]:
        """The snapshots in order."""
        return [item for item in self.items if isinstance(item, FireAndForget)]

    def said(self, run_id: str) -> list[SessionEvent]:
        """Return the events of one run."""
        return [
            item.event
            for item in self.items
            if isinstance(item, LaneEvent) and item.run_id == run_id
        ]

    async def wait(self, kind: type[object], count: int = 1) -> None:
        """Wait until there are so many events or answers of a class.

        Args:
            kind: Class of an event, of an answer, or ``FireAndForget``.
            count: How many.
        """
        while sum(isinstance(each, kind) for each in [*self.items, *self.events]) < count:
            # Bounded by the test.
            await self._news.park()


@final
class MemoryPlane:
    """A :class:`~semibot.wire.plane.PlaneLink` whose other end is the test.

    Args:
        respond: Answers requests; by default each fails with ``UNSUPPORTED_METHOD``.
    """

    def __init__(self, respond: Responder | None = None) -> None:
        self._respond = respond
        self._handler: CommandHandler | None = None
        self._waiting: deque[Command] = deque()
        self.lanes: list[MemoryLane] = []
        """Every lane that was opened, in order."""
        self.reports: list[tuple[str, str, JsonObject]] = []
        """Session, method and params of every report."""
        self.requests: list[tuple[str, str, JsonObject]] = []
        """Session, method and params of every request."""
        self.refuses_lanes: bool = False
        """Whether opening a lane fails, as if an older one still had something to say."""

        self.fails_reports: bool = False
        """Whether reports cannot be kept."""

    # --- what the manager calls -------------------------------------------------------

    @contextmanager
    def attach(self, handler: CommandHandler) -> Generator[None]:
        """Give *handler* the commands, those that were said before first."""
        self._handler = handler
        try:
            while self._waiting:
                handler.command(self._waiting.popleft())
            yield
        finally:
            self._handler = None

    def open_lane(self, session_id: str, term: int, next_seq: int) -> MemoryLane:
        """Begin a lane; the one before it must have ended."""
        if self.refuses_lanes:
            raise LocalProtocolError("an older lane still has something to say")
        before = self.lane(session_id) if self.has_lane(session_id) else None
        if before is not None and not (before.is_closed or before.is_discarded):
            raise AssertionError(f"session {session_id} has a lane already")
        lane = MemoryLane(session_id, term, next_seq)
        self.lanes.append(lane)
        return lane

    def close_lane(self, session_id: str) -> None:
        """End a lane."""
        self.lane(session_id).is_closed = True

    def discard_lane(self, session_id: str) -> None:
        """End a lane, if there is one, and take nothing more in it."""
        if self.has_lane(session_id):
            lane = self.lane(session_id)
            lane.is_discarded = True
            lane.drain()

    async def request(self, session_id: str, method: str, params: JsonObject) -> JsonValue:
        """Answer a request."""
        await trio.lowlevel.checkpoint()
        self.requests.append((session_id, method, params))
        if self._respond is None:
            raise RequestFailed("UNSUPPORTED_METHOD", f"nobody answers {method}")
        return await self._respond(session_id, method, params)

    async def fire_and_forget(self, session_id: str, method: str, params: JsonObject) -> None:
        """Take a report."""
        await trio.lowlevel.checkpoint()
        if self.fails_reports:
            raise StoreError("this plane keeps no reports")
        self.reports.append((session_id, method, params))

    # --- what the test calls ----------------------------------------------------------

    def configure(self, settings: PlaneSettings) -> None:
        """Say ``init``."""
        self._attached().configure(settings)

    def say(self, *commands: Command) -> None:
        """Say commands; nobody attached gets them when somebody is."""
        for command in commands:
            if self._handler is None:
                self._waiting.append(command)
            else:
                self._handler.command(command)

    def drop(self, session_id: str) -> None:
        """Say that a session is fenced or gone."""
        self._attached().drop_session(session_id)

    def active_sessions(self) -> tuple[str, ...]:
        """Return what a heartbeat would say."""
        return tuple(self._attached().active_sessions())

    def has_lane(self, session_id: str) -> bool:
        """Return whether a session has had a lane."""
        return any(lane.session_id == session_id for lane in self.lanes)

    def lane(self, session_id: str) -> MemoryLane:
        """Return a session's newest lane."""
        return next(lane for lane in reversed(self.lanes) if lane.session_id == session_id)

    def _attached(self) -> CommandHandler:
        if self._handler is None:
            raise AssertionError("nobody is attached to this plane")
        return self._handler
