"""What follows a session: readers, which are cursors without a buffer.

A reader hands out what its tail has published, or what the store has if it has fallen
behind, in chunks that the caller writes before it asks for more. So a client that accepts
nothing holds nothing in memory and delays nobody (protocol section 7).
"""

from __future__ import annotations

from collections.abc import Awaitable
from types import TracebackType
from typing import Final, Self, TypeVar, final

import trio

from semibot.config.deadlines import Deadlines
from semibot.errors import DeadlineExceeded, StoreError
from semibot.lifetimes import deadline
from semibot.logs import get_logger
from semibot.store.base import ResyncView, Store, StoredEvent
from semibot.wire.sse import KEEPALIVE, EventId

from .keepalive import Keepalive
from .pace import Pace
from .resync import RESYNC_BYTES, encode_resync
from .tail import CHUNK_BYTES, TERMINAL_TYPES, Cursor, EndReason, Tail, Tally, encode_stored

log: Final = get_logger(__name__)

HOLD_SECONDS: Final = 10.0
"""How long an id that nobody knows yet is held (protocol section 7)."""

T = TypeVar("T")


@final
class Reader:
    """One client's position in a session; :class:`~semibot.host.relay.Relay` makes them.

    For one task. Leaving the ``with`` block, or :meth:`close`, takes the reader off.
    """

    def __init__(
        self,
        tail: Tail,
        cursor: Cursor,
        *,
        join_id: EventId | None,
        store: Store,
        deadlines: Deadlines,
        keepalive: Keepalive,
        tally: Tally,
        greeting: bytes,
        pace: Pace,
    ) -> None:
        self._tail = tail
        self._cursor = cursor
        self._join_id = join_id  # not yet known to be part of the session's history
        self._is_own_id = False  # whether the store named it, in a resync
        self._held_until: float | None = None
        self._store = store
        self._deadlines = deadlines
        self._keepalive = keepalive
        self._tally = tally
        self._greeting = greeting
        self._pace = pace
        self._rests_until = 0.0
        self._is_closed = False
        tail.attach(cursor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def end_reason(self) -> EndReason | None:
        """Why there is no more, once :meth:`next_chunk` has returned None, or soon will."""
        return self._cursor.end_reason

    @property
    def cursor(self) -> Cursor:
        """Where it is."""
        return self._cursor

    @property
    def session_id(self) -> str:
        """The session that it follows."""
        return self._tail.session_id

    def close(self) -> None:
        """Take the reader off; :meth:`next_chunk` then returns None."""
        self._is_closed = True
        self._tail.detach(self._cursor)

    async def next_chunk(self) -> bytes | None:
        """Wait for the next bytes to be sent.

        The first call does not wait for an event: it returns at least the ``retry`` line.
        If it is cancelled, nothing is lost: the next call returns the same.

        Returns:
            Whole events, at most 64 KiB or one event; or a keepalive comment after
            ``http.keepalive`` without any; None at the end, for ``end_reason``.
        """
        try:
            return await self._next_chunk()
        except (StoreError, DeadlineExceeded) as exc:
            log.warning("reader ends", session_id=self.session_id, error=repr(exc))
            self._cursor.end_reason = "store_failed"
            return None
        finally:
            self._keepalive.leave(self._cursor)

    async def _next_chunk(self) -> bytes | None:
        """Return as :meth:`next_chunk`.

        The cursor moves and the bytes are returned without an await in between, which is
        why whatever has to wait does so before.
        """
        cursor, tail = self._cursor, self._tail
        has_yielded = False
        wake_at: float | None = None
        while cursor.end_reason is None and not self._is_closed:
            chunk = b""
            if cursor.needs_resync:
                chunk = await self._resync()
            elif self._join_id is not None and not self._is_ahead(self._join_id):
                await self._join(self._join_id)
            elif self._join_id is None and cursor.seq + 1 < tail.start_seq:
                chunk = await self._read_store()
            elif self._join_id is None and tail.has_news(cursor):
                now = trio.current_time()
                if now < self._rests_until:
                    await trio.sleep_until(self._rests_until)
                    has_yielded = True
                elif has_yielded:
                    before = cursor.seq
                    chunk = tail.take(cursor)
                    has_yielded = bool(chunk)
                    if chunk:
                        rest = self._pace.rest_after(now, cursor.seq - before)
                        self._rests_until = now + rest
                else:
                    await trio.lowlevel.checkpoint()
                    has_yielded = True
            elif self._greeting:
                await trio.lowlevel.checkpoint()
                return self._greet(b"")
            else:
                now = trio.current_time()
                if wake_at is None:
                    wake_at = now + self._deadlines.http_keepalive
                elif now >= wake_at:
                    return KEEPALIVE
                if self._join_id is None:
                    await self._keepalive.wait(cursor, tail, wake_at)
                else:
                    await self._hold(now, wake_at)
                has_yielded = True
            if chunk:
                return self._greet(chunk)
        await trio.lowlevel.checkpoint()
        return self._rest()

    def _rest(self) -> bytes | None:
        """Return what a reader that only the host's stop ends has not been handed yet."""
        cursor, tail = self._cursor, self._tail
        is_in_line = self._join_id is None and not cursor.needs_resync
        if cursor.end_reason != "closing" or self._is_closed or not is_in_line:
            return None
        while cursor.seq + 1 >= tail.start_seq and tail.has_news(cursor):
            if chunk := tail.take(cursor):
                return self._greet(chunk)
        return None

    def _greet(self, chunk: bytes) -> bytes:
        """Put the ``retry`` line before the first chunk."""
        if self._greeting:
            chunk, self._greeting = self._greeting + chunk, b""
        return chunk

    # --- joining ----------------------------------------------------------------------

    def _is_ahead(self, join_id: EventId) -> bool:
        """Return whether the id is above what this node knows."""
        return join_id > EventId(self._tail.term, self._tail.received_seq)

    async def _hold(self, now: float, wake_at: float) -> None:
        """Wait until more is known, or give the id up; or until *wake_at*."""
        if self._held_until is None:
            self._held_until = now + HOLD_SECONDS
        has_settled = self._tail.is_settled and not self._is_own_id
        if has_settled or now >= self._held_until:
            self._join_id = None
            self._cursor.needs_resync = True
            await trio.lowlevel.checkpoint()
            return
        with trio.CancelScope(deadline=min(self._held_until, wake_at)):
            await self._tail.wait_change()

    async def _join(self, join_id: EventId) -> None:
        """Find out whether an id that is not above what is known is part of the history.

        It is if the event of its number is of its term, or of an earlier one: a ``resync``
        in a term without events has the number of an older event.
        """
        tail, cursor = self._tail, self._cursor
        is_known = join_id.term == tail.term or join_id.seq == 0 or self._is_own_id
        if not is_known:
            event = await self._read_event(join_id.seq)
            is_known = event is not None and event.term <= join_id.term
        if not is_known:
            cursor.needs_resync = True
        cursor.term = max(cursor.term, tail.term)
        self._join_id = None

    async def _read_event(self, seq: int) -> StoredEvent | None:
        events = await self._ask(self._store.read_events(self.session_id, seq - 1, 1))
        return next((event for event in events if event.seq == seq), None)

    # --- the store --------------------------------------------------------------------

    async def _ask(self, answer: Awaitable[T]) -> T:
        with deadline("store.commit", self._deadlines.store_commit):
            return await answer

    async def _read_store(self) -> bytes:
        """Return committed events from before the tail's window, and move past them."""
        cursor, tail = self._cursor, self._tail
        answer = self._store.read_events(self.session_id, cursor.seq, CHUNK_BYTES)
        events = await self._ask(answer)
        if cursor.needs_resync or cursor.end_reason is not None:
            return b""
        if not events or events[0].seq != cursor.seq + 1:
            # The session is gone, or lacks a part of its past; a run's reader skips that.
            cursor.needs_resync = True
            cursor.seq = events[0].seq - 1 if events else tail.start_seq - 1
            return b""
        run_id = cursor.run_id
        frames: list[bytes] = []
        size = 0
        for event in events:
            # What the window has is taken from there: only there it is known to be in line.
            if event.seq >= tail.start_seq:
                break
            if run_id is None or event.run_id == run_id:
                frame = encode_stored(event)
                size += len(frame)
                if frames and size > CHUNK_BYTES:
                    break
                frames.append(frame)
                cursor.shown = event.seq
                if run_id is not None and event.type in TERMINAL_TYPES:
                    cursor.end_reason = "run_ended"
                    break
            cursor.seq = event.seq
        self._tally.events_forwarded += len(frames)
        return b"".join(frames)

    async def _resync(self) -> bytes:
        """Return the state of the session; the reader goes on from there.

        A reader of one run goes on from the end of what holds instead, so that it shows
        the end of its run, which may be part of the state already.
        """
        view = await self._ask(self._store.resync_view(self.session_id, RESYNC_BYTES))
        if view is None:
            self._cursor.end_reason = "deleted"
            return b""
        chunk = encode_resync(view)
        self._cursor.needs_resync = False
        if self._cursor.run_id is None:
            self._go_on_after(view)
        return chunk

    def _go_on_after(self, view: ResyncView) -> None:
        """Join with the id of *view*, which the tail may not have heard of yet."""
        cursor = self._cursor
        cursor.term = max(view.term, self._tail.term)
        cursor.seq = cursor.shown = view.last_seq
        self._join_id = EventId(view.term, view.last_seq)
        self._is_own_id = True
        self._held_until = None
