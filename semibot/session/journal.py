"""A session's events: appended once, numbered gaplessly, read through cursors.

The journal is the only way events are kept and read. Appending never waits and knows no
readers; a reader is a cursor, a position without a buffer, so a slow one holds nobody
up. In process the journal keeps the running and the last ended run, at most
:data:`MAX_BYTES`; beyond that the oldest events go, and a cursor that was left behind
raises :exc:`~semibot.errors.CursorExpired` (protocol section 5, "Without a host").

With a host every event also goes into the session's lane, where the channel keeps it until
the host has acknowledged it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Self, final

import attrs
import trio

from semibot.errors import CursorExpired, LocalProtocolError
from semibot.wire.events import ExecutionComplete, ExecutionError, SessionEvent, encode_event
from semibot.wire.frames import MAX_EVENT_BYTES
from semibot.wire.plane import Lane

MAX_BYTES: Final = 16 * 1024 * 1024
"""Most bytes of encoded events that are kept."""


@attrs.frozen(kw_only=True)
class JournalEntry:
    """One event with its identity."""

    term: int
    """Fencing counter of the session, from 1."""
    seq: int
    """Number within the session, gapless from 1."""
    run_id: str
    """The run that said it."""
    event: SessionEvent
    """The event."""
    data: str = attrs.field(repr=False)
    """The event as JSON, encoded once."""
    size: int
    """Bytes of *data* in UTF-8."""

    @property
    def id(self) -> str:
        """The event id, ``<term>-<seq>``; never used for two different events."""
        return f"{self.term}-{self.seq}"


@final
class Journal:
    """The live tail of one session's events.

    Args:
        term: Fencing counter, from 1.
        next_seq: Number of the first event to come, from 1.
        max_bytes: Most bytes of encoded events to keep; the newest event always stays.
    """

    def __init__(self, *, term: int, next_seq: int, max_bytes: int = MAX_BYTES) -> None:
        self._term = term
        self._next_seq = next_seq
        self._max_bytes = max_bytes
        self._entries: deque[JournalEntry] = deque()
        self._bytes = 0
        self._is_closed = False
        self._readers = trio.lowlevel.ParkingLot()
        self._lane: Lane | None = None

    def lead_into(self, lane: Lane | None) -> None:
        """Put every event from here on into *lane* too; None ends that.

        Args:
            lane: A lane whose next number is :attr:`next_seq`.
        """
        self._lane = lane

    @property
    def event_limit(self) -> float:
        """Largest event that may be appended, in bytes; infinite without a lane."""
        return math.inf if self._lane is None else MAX_EVENT_BYTES

    async def wait_room(self) -> None:
        """Wait until the lane takes more, if there is one; else it is no checkpoint."""
        if self._lane is not None:
            await self._lane.wait_room()

    @property
    def term(self) -> int:
        """Fencing counter of every event appended here."""
        return self._term

    @property
    def next_seq(self) -> int:
        """Number that the next event will get."""
        return self._next_seq

    @property
    def kept_bytes(self) -> int:
        """Bytes of encoded events that are kept now."""
        return self._bytes

    def append(self, run_id: str, event: SessionEvent, *, limit: float = math.inf) -> JournalEntry:
        """Number *event*, keep it and wake the readers; never waits.

        Args:
            run_id: The run that says it.
            event: What it says.
            limit: Most bytes that it may have, encoded.

        Raises:
            LocalProtocolError: If JSON cannot say it, or it is too large; nothing is
                appended.
        """
        data = encode_event(event)
        size = len(data.encode())
        if size > limit:
            raise LocalProtocolError(
                f"an event of {size} bytes is too large for a host, which takes {limit:.0f}; "
                "write a file instead"
            )
        entry = JournalEntry(
            term=self._term, seq=self._next_seq, run_id=run_id, event=event, data=data, size=size
        )
        self._next_seq += 1
        self._entries.append(entry)
        self._bytes += entry.size
        while self._bytes > self._max_bytes and len(self._entries) > 1:
            self._drop_oldest()
        self._readers.unpark_all()
        if self._lane is not None:
            self._lane.put_event(entry.seq, run_id, data)
        return entry

    def forget_before(self, seq: int) -> None:
        """Drop the events before *seq*; cursors that still need them expire."""
        while self._entries and self._entries[0].seq < seq:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        self._bytes -= self._entries.popleft().size

    def close(self) -> None:
        """End the stream: readers get what is left and then the end."""
        self._is_closed = True
        self._readers.unpark_all()

    def cursor(self, *, after: int | None = None) -> Cursor:
        """Return a new reader.

        Args:
            after: Sequence number that the reader has; None starts with the next event.
        """
        return Cursor(self, self._next_seq - 1 if after is None else after)

    async def _wait_entry(self, seq: int) -> JournalEntry | None:
        """Return the entry *seq* once it exists, or None if it never will."""
        while seq >= self._next_seq:
            if self._is_closed:
                return None
            # Unbounded on purpose: the next event comes when somebody says something.
            await self._readers.park()
        oldest = self._entries[0].seq if self._entries else self._next_seq
        if seq < oldest:
            raise CursorExpired(seq - 1, oldest)
        return self._entries[seq - oldest]


@final
class Cursor:
    """A position in a journal: an async iterator over :class:`JournalEntry`."""

    def __init__(self, journal: Journal, after: int) -> None:
        self._journal = journal
        self._after = after

    @property
    def after(self) -> int:
        """Sequence number of the newest event that was handed out."""
        return self._after

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> JournalEntry:
        """Return the next entry, waiting for it if need be.

        Raises:
            CursorExpired: If it is no longer kept.
            StopAsyncIteration: When the journal is closed and read to its end.
        """
        await trio.lowlevel.checkpoint()
        entry = await self._journal._wait_entry(self._after + 1)
        if entry is None:
            raise StopAsyncIteration
        self._after = entry.seq
        return entry


@final
class RunEvents:
    """One run's events: an async iterator over :data:`~semibot.wire.events.SessionEvent`.

    Args:
        open_cursor: Waits for the run's turn and returns a cursor before its first event.
    """

    def __init__(self, open_cursor: Callable[[], Awaitable[Cursor]]) -> None:
        self._open_cursor = open_cursor
        self._cursor: Cursor | None = None
        self._is_done = False
        self._last_id: str | None = None

    @property
    def last_id(self) -> str | None:
        """Id of the newest event that was handed out, ``<term>-<seq>``."""
        return self._last_id

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionEvent:
        """Return the next event of the run.

        Raises:
            CursorExpired: If the reader was so slow that it is no longer kept.
            StopAsyncIteration: After the terminal event.
        """
        if self._is_done:
            raise StopAsyncIteration
        if self._cursor is None:
            self._cursor = await self._open_cursor()
        entry = await self._cursor.__anext__()
        self._last_id = entry.id
        self._is_done = isinstance(entry.event, ExecutionComplete | ExecutionError)
        return entry.event
