"""One session's newest events in memory, ready to be sent, for all readers of the session.

Theory of operation. A tail is a window over the session's gapless numbers: the events that
are not committed yet, and the newest committed ones. Each is formatted once, when it
arrives, and every reader sends the same bytes. Three numbers say how far things are::

    committed_seq <= published_seq <= received_seq

Readers see what is published. An event is published on arrival, but one that waits for
its commit holds back itself and all later ones (protocol section 5). Readers are cursors:
positions without a buffer. One that has fallen behind the window reads the store instead,
so the window may shrink at any time, and a reader that stands still costs nothing.

When a session loses its holder its term goes up, and what was not committed by then is
void (section 4). A cursor that has shown more than that begins anew, with a ``resync``;
all others go on into the new term as if nothing had happened.

Only :meth:`Tail.wait_change` waits. Everything else is done when it returns, without an
await in between, so nobody ever sees a tail half changed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Collection
from typing import Final, Literal, TypeAlias, final

import attrs
import trio

from semibot.store.base import SessionLoss, StoredEvent
from semibot.wire.events import ExecutionComplete, ExecutionError
from semibot.wire.sse import EventId, encode_sse, sse_name

CHUNK_BYTES: Final = 64 * 1024
"""Most bytes that a reader gets at once, unless one event alone is larger."""

KEPT_BYTES: Final = 4 * 1024 * 1024
"""Most bytes of committed events that one tail keeps."""

TERMINAL_TYPES: Final = frozenset({ExecutionComplete.type, ExecutionError.type})
"""Types of the events that end a run."""

EndReason: TypeAlias = Literal["run_ended", "deleted", "closing", "store_failed"]
"""Why a reader gets no more: its run has ended, the session is gone, the host stops, or
something could not be committed or read and the client is to come again."""

_NOTHING: Final = (-1, -1, b"")


def encode_stored(event: StoredEvent) -> bytes:
    """Return *event* as the bytes that a reader is sent."""
    # What has no line end, and no name of its own, is nearly everything.
    if event.type in TERMINAL_TYPES or not event.data.isprintable():
        return encode_sse(EventId(event.term, event.seq), sse_name(event.type), event.data)
    return f"id: {event.term}-{event.seq}\nevent: message\ndata: {event.data}\n\n".encode()


@final
@attrs.define(eq=False)
class Tally:
    """Counts over all tails of a relay."""

    events_forwarded: int = 0
    """Events that readers have taken, for ever."""
    committed_bytes: int = 0
    """Bytes of committed events that are in memory."""


@final
@attrs.define(eq=False, kw_only=True)
class Cursor:
    """Where a reader is."""

    run_id: str | None
    """The one run that it shows, or None for everything."""
    term: int
    """Term whose history it agrees with; above the tail's if it knows more than the tail."""
    seq: int
    """It needs no event up to this number."""
    shown: int
    """Newest number that its client has seen, as far as that may be taken back."""
    needs_resync: bool = False
    """Whether its client has seen something that is void."""
    end_reason: EndReason | None = None
    """Why it gets no more."""

    def enter_term(self, term: int, base_seq: int) -> None:
        """Go over into *term*, which begins after *base_seq*.

        A cursor of one run, which does not show everything, goes back to the end of what
        holds, so that it finds the end of its run in the new term.
        """
        if term <= self.term:
            return
        self.term: int = term
        if self.shown > base_seq:
            self.needs_resync = True
            self.shown = base_seq
        self.seq = min(self.seq, base_seq)


@final
class Tail:
    """The newest events of one session.

    Args:
        session_id: The session.
        term: Its fencing counter.
        committed_seq: Its committed maximum.
        tally: Counts to keep up.
        on_use: Called with the tail when it is no longer idle, and after each commit.
    """

    def __init__(
        self,
        session_id: str,
        *,
        term: int,
        committed_seq: int,
        tally: Tally,
        on_use: Callable[[Tail], None],
    ) -> None:
        self.session_id: Final = session_id
        self.term: int = term
        """Fencing counter of the events to come."""
        self.start_seq: int = committed_seq + 1
        """First number of the window; what is older is in the store."""
        self.committed_seq: int = committed_seq
        """Everything up to here is in the store."""
        self.published_seq: int = committed_seq
        """Everything up to here may be shown."""
        self.received_seq: int = committed_seq
        """Newest number that has arrived."""
        self.is_settled: bool = False
        """Whether the VM has said everything that it had from before this tail (section 4)."""
        # Of each event in the window; a list beats a deque, because readers slice.
        self._frames: list[bytes] = []
        self._run_ids: list[str] = []
        self._ends: list[int] = []  # bytes up to its end, counted from the tail's beginning
        self._start_bytes = 0  # the same before the first frame, ...
        self._committed_bytes = 0  # ... at the end of the committed ones ...
        self._received_bytes = 0  # ... and of all.
        self._terminals: dict[str, int] = {}  # runs that end within the window, and where
        self._waiting: deque[int] = deque()  # numbers that wait for their commit
        self._is_retired = False
        self._cursors: set[Cursor] = set()
        self._parked = trio.lowlevel.ParkingLot()
        self._joined = _NOTHING  # (after, up to, bytes) of the newest chunk
        self._tally = tally
        self._on_use = on_use

    @property
    def uncommitted_bytes(self) -> int:
        """Bytes of events that are not committed yet."""
        return self._received_bytes - self._committed_bytes

    @property
    def committed_bytes(self) -> int:
        """Bytes of committed events that are kept."""
        return self._committed_bytes - self._start_bytes

    @property
    def cursors(self) -> Collection[Cursor]:
        """The readers that are attached."""
        return self._cursors

    @property
    def is_retired(self) -> bool:
        """Whether there will be another tail of this session, or none."""
        return self._is_retired

    @property
    def is_idle(self) -> bool:
        """Whether nothing would be lost without this tail."""
        return not self._cursors and self.received_seq == self.committed_seq

    # --- what comes in ----------------------------------------------------------------

    def receive(self, event: StoredEvent, *, waits_for_commit: bool) -> None:
        """Take the next event, and publish it unless it or an earlier one has to wait.

        Several events without an await in between wake each reader once.

        Args:
            event: Number :attr:`received_seq` + 1, of this :attr:`term`.
            waits_for_commit: Whether nobody may see it before its commit.

        Raises:
            ValueError: If it is another number or term; nothing is taken.
        """
        seq = event.seq
        if seq != self.received_seq + 1 or event.term != self.term:
            message = f"event {event.term}-{seq} is not next after {self.term}-{self.received_seq}"
            raise ValueError(message)
        if seq == self.committed_seq + 1:
            self._on_use(self)
        self._append(event)
        if waits_for_commit:
            self._waiting.append(seq)
        if not self._waiting:
            self.published_seq = seq
            if self._parked:
                self._parked.unpark_all()

    def _append(self, event: StoredEvent) -> None:
        frame = encode_stored(event)
        self._frames.append(frame)
        self._run_ids.append(event.run_id)
        self._received_bytes = end = self._received_bytes + len(frame)
        self._ends.append(end)
        self.received_seq = event.seq
        if event.type in TERMINAL_TYPES:
            self._terminals[event.run_id] = event.seq

    def commit(self, seq: int) -> None:
        """Note that everything up to *seq* is in the store, and publish what waited for it.

        Args:
            seq: Committed maximum; one that is known already changes nothing.
        """
        if seq <= self.committed_seq or self._is_retired:
            return
        if seq > self.received_seq:  # somebody else's: readers will find it in the store
            self._begin_window(seq)
        else:
            self._note_committed(seq)
            self._shrink_if_large()
        self._joined = _NOTHING  # an idle session keeps no bytes twice
        waiting = self._waiting
        while waiting and waiting[0] <= seq:
            waiting.popleft()
        published = waiting[0] - 1 if waiting else self.received_seq
        if published > self.published_seq:
            self.published_seq = published
            self.wake()
        self._on_use(self)

    def settle(self) -> None:
        """Note that the VM has said everything that it had from before.

        Readers that wait for a number nobody knows then begin anew.
        """
        self.is_settled = True
        self.wake()

    def retire(self, reason: EndReason) -> None:
        """Forget all events and end all readers; there will be another tail, or none."""
        self._cut(self.committed_seq)
        self.published_seq = self.committed_seq
        self.shed()
        self._is_retired = True
        self.end_readers(reason)

    def lose(self, loss: SessionLoss) -> None:
        """Go over into the term after a loss, with the events that were said for the VM.

        What is not committed is gone. A loss that this tail knows already changes nothing.
        """
        last_seq = loss.base_seq + len(loss.events)
        is_new_term = loss.term > self.term
        if not is_new_term and (loss.term < self.term or last_seq <= self.committed_seq):
            return
        base_seq = loss.base_seq if is_new_term else max(loss.base_seq, self.committed_seq)
        if self.start_seq - 1 <= base_seq <= self.received_seq:
            self._cut(base_seq)
        else:
            self._begin_window(base_seq)
        self.term = loss.term
        for cursor in self._cursors:
            cursor.enter_term(loss.term, base_seq)
        for event in loss.events:
            if event.seq > base_seq:
                self._append(event)
        self._note_committed(self.received_seq)
        self._shrink_if_large()
        self.published_seq = self.received_seq
        self.is_settled = self.is_settled or is_new_term  # whoever knew more is fenced
        self.wake()
        self._on_use(self)

    # --- the window -------------------------------------------------------------------

    def shed(self) -> None:
        """Keep no committed events; readers find them in the store."""
        self._joined = _NOTHING
        self._shrink(0)

    def _note_committed(self, seq: int) -> None:
        end = self._ends[seq - self.start_seq] if seq >= self.start_seq else self._start_bytes
        self._tally.committed_bytes += end - self._committed_bytes
        self._committed_bytes = end
        self.committed_seq = seq

    def _shrink_if_large(self) -> None:
        if self.committed_bytes > KEPT_BYTES:
            self._shrink(KEPT_BYTES * 7 // 8)  # rarely and much, as each time moves the rest

    def _shrink(self, keep: int) -> None:
        """Drop the oldest committed events until *keep* bytes of them are left at most."""
        if self.committed_bytes <= keep:
            return
        count = bisect_left(self._ends, self._committed_bytes - keep) + 1
        self._tally.committed_bytes -= self._ends[count - 1] - self._start_bytes
        self._start_bytes = self._ends[count - 1]
        self.start_seq += count
        del self._frames[:count], self._run_ids[:count], self._ends[:count]
        self._forget_terminals()

    def _cut(self, seq: int) -> None:
        """Drop what came after *seq*, which is in the window or right before it."""
        count = seq - self.start_seq + 1
        del self._frames[count:], self._run_ids[count:], self._ends[count:]
        self.received_seq = seq
        self._received_bytes = self._ends[-1] if self._ends else self._start_bytes
        self._waiting.clear()
        self._joined = _NOTHING
        self._forget_terminals()
        self._note_committed(min(seq, self.committed_seq))

    def _begin_window(self, seq: int) -> None:
        """Drop everything, and go on behind *seq*, which is committed."""
        self.shed()
        self._cut(self.start_seq - 1)
        self.start_seq = seq + 1
        self.received_seq = self.committed_seq = seq

    def _forget_terminals(self) -> None:
        first, last = self.start_seq, self.received_seq
        self._terminals = {
            run_id: seq for run_id, seq in self._terminals.items() if first <= seq <= last
        }

    # --- readers ----------------------------------------------------------------------

    def attach(self, cursor: Cursor) -> None:
        """Tell *cursor* of losses and ends from now on."""
        self._cursors.add(cursor)
        self._on_use(self)

    def detach(self, cursor: Cursor) -> None:
        """Forget *cursor*."""
        self._cursors.discard(cursor)

    def end_readers(self, reason: EndReason) -> None:
        """End all readers that are attached."""
        for cursor in self._cursors:
            cursor.end_reason = cursor.end_reason or reason
        self.wake()

    def wake(self) -> bool:
        """Let all waiting readers look again; return whether there were any."""
        return bool(self._parked) and bool(self._parked.unpark_all())

    async def wait_change(self) -> None:
        """Wait until something has changed for a reader; it may turn out to be nothing."""
        # Unbounded on purpose: the caller decides about keepalives.
        await self._parked.park()

    def has_news(self, cursor: Cursor) -> bool:
        """Return whether something is published that *cursor* has not passed."""
        return self.published_seq > cursor.seq

    def take(self, cursor: Cursor) -> bytes:
        """Return what is next for *cursor*, and move it past that.

        Args:
            cursor: One that has news, within the window.

        Returns:
            At most :data:`CHUNK_BYTES`, or one event; empty if only others' events were
            passed. A cursor of one run that has passed the run's end is ended.
        """
        after = cursor.seq
        if self._joined[0] == after and cursor.run_id is None:
            _, upto, chunk = self._joined
            if upto == self.published_seq or len(chunk) * 2 > CHUNK_BYTES:
                self._tally.events_forwarded += upto - after
                cursor.seq = cursor.shown = upto
                return chunk
        first = after + 1 - self.start_seq
        begin = self._ends[first - 1] if first else self._start_bytes
        stop = self.published_seq + 1 - self.start_seq
        stop = max(first + 1, bisect_right(self._ends, begin + CHUNK_BYTES, first, stop))
        if cursor.run_id is not None:
            return self._take_of_run(cursor, cursor.run_id, first, stop)
        chunk = b"".join(self._frames[first:stop])
        cursor.seq = cursor.shown = upto = self.start_seq + stop - 1
        self._tally.events_forwarded += stop - first
        self._joined = (after, upto, chunk)
        return chunk

    def _take_of_run(self, cursor: Cursor, run_id: str, first: int, stop: int) -> bytes:
        terminal = self._terminals.get(run_id)
        if terminal is not None and first <= terminal - self.start_seq < stop:
            stop = terminal - self.start_seq + 1
            cursor.end_reason = cursor.end_reason or "run_ended"
        frames = self._frames[first:stop]
        run_ids = self._run_ids[first:stop]
        if run_ids.count(run_id) != len(run_ids):
            frames = [
                frame for frame, owner in zip(frames, run_ids, strict=True) if owner == run_id
            ]
        cursor.seq = self.start_seq + stop - 1
        if frames:
            cursor.shown = cursor.seq
        self._tally.events_forwarded += len(frames)
        return b"".join(frames)
