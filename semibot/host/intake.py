"""Take what a link brings, commit it in groups, and only then acknowledge (protocol section 5).

Theory of operation. The link's reader appends operations and publishes events at once; one
committer takes *everything* that has come since its last commit, in one transaction. So an
idle link commits at once and a busy one commits in groups; one that pours events out rests
for a moment after each commit, as readers do after each write. Events of one session are kept
together in one operation per commit: they may only move *before* operations of other
sessions, and before acknowledgements and snapshots that came between them, all of which stand
for events that came earlier and are committed with them.

A commit that fails ends the link: nothing of it was acknowledged, readers are broken off, and
the VM sends it all again on the next one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias, final

import attrs
import trio

from semibot.config import Deadlines
from semibot.errors import StoreError
from semibot.lifetimes import grace
from semibot.logs import get_logger
from semibot.store.base import (
    CancelAnswered,
    CommandsDone,
    EventsIn,
    IntakeOp,
    IntakeResult,
    LinkRef,
    ReportIn,
    Store,
    StoredEvent,
)

from .pace import Pace
from .relay import Relay
from .tail import Tail

log: Final = get_logger(__name__)

MAX_LINK_BYTES: Final = 16 * 1024 * 1024
"""Uncommitted bytes of one link at which its reading pauses."""

MAX_HOST_BYTES: Final = 64 * 1024 * 1024
"""Uncommitted bytes of all links at which all reading pauses."""

OVERHEAD: Final = 128
"""Bytes that an operation counts for beside its text, so that empty ones are bounded, too."""

Note: TypeAlias = CommandsDone | CancelAnswered | ReportIn
"""An operation that is no event."""

AfterCommit: TypeAlias = Callable[[Sequence[IntakeOp], IntakeResult], Awaitable[None]]
"""Told of every commit, with what was committed and what became of it."""


@final
class InputBudget:
    """How much of what links brought is not committed yet, for one host.

    Reading may pass the bound by one frame a link, as a frame is counted once it is taken.
    """

    def __init__(self, limit: int = MAX_HOST_BYTES) -> None:
        self._limit = limit
        self._used = 0
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def used(self) -> int:
        """Bytes that are not committed."""
        return self._used

    def take(self, size: int) -> None:
        """Count *size* bytes; never waits."""
        self._used += size

    def give_back(self, size: int) -> None:
        """Count *size* bytes no more."""
        self._used -= size
        if self._used < self._limit:
            self._waiting.unpark_all()

    async def wait_room(self) -> None:
        """Wait until there is room for all links together."""
        while self._used >= self._limit:
            await self._waiting.park()


@final
@attrs.define(eq=False)
class _Group:
    """The events of one session since the last commit."""

    session_id: str
    term: int
    events: list[StoredEvent]
    size: int = 0


@final
class Intake:
    """What one link has brought and is not committed yet. :meth:`serve` commits it.

    Args:
        store: Where it goes.
        relay: Publishes events.
        link: Which link writes.
        deadlines: ``store_commit`` bounds each commit.
        budget: Of the host.
        after_commit: Told of each commit; what it does synchronously happens before
            anything else can.
        on_failure: Told once why nothing more is committed; it ends the link.
    """

    def __init__(
        self,
        *,
        store: Store,
        relay: Relay,
        link: LinkRef,
        deadlines: Deadlines,
        budget: InputBudget,
        after_commit: AfterCommit,
        on_failure: Callable[[StoreError], None],
    ) -> None:
        self._store = store
        self._relay = relay
        self._link = link
        self._deadlines = deadlines
        self._budget = budget
        self._after_commit = after_commit
        self._on_failure = on_failure
        self._ops: list[_Group | Note] = []
        self._groups: dict[str, _Group] = {}
        self._pending = 0
        self._in_flight = 0
        self._publishing: set[str] = set()
        self._is_closed = False
        self._committing = trio.Lock()
        self._pace = Pace()
        self._work = trio.lowlevel.ParkingLot()
        self._room = trio.lowlevel.ParkingLot()

    @property
    def uncommitted_bytes(self) -> int:
        """Bytes that have been taken and are not committed."""
        return self._pending + self._in_flight

    @property
    def is_closed(self) -> bool:
        """Whether nothing more is taken."""
        return self._is_closed

    # --- taking -----------------------------------------------------------------------

    def put_event(self, session_id: str, event: StoredEvent, size: int) -> None:
        """Take the next event of a session; never waits. Publishing is the caller's.

        Args:
            session_id: The session.
            event: The event.
            size: Bytes of its text.
        """
        if self._is_closed:
            return
        group = self._groups.get(session_id)
        if group is None or group.term != event.term:
            group = self._groups[session_id] = _Group(session_id, event.term, [])
            self._ops.append(group)
        group.events.append(event)
        group.size += self._count(size)

    def put_repeat(self, session_id: str, event: StoredEvent, size: int) -> None:
        """Take an event whose number is committed, so that the store compares its bytes."""
        if self._is_closed:
            return
        self._ops.append(_Group(session_id, event.term, [event], self._count(size)))

    def put(self, note: Note, size: int) -> None:
        """Take anything else; never waits.

        Args:
            note: The operation; it stands behind the events so far.
            size: Bytes of the frame that brought it.
        """
        if self._is_closed:
            return
        self._ops.append(note)
        self._count(size)

    def _count(self, size: int) -> int:
        counted = size + OVERHEAD
        self._pending += counted
        self._budget.take(counted)
        if self._work:  # unparking nobody costs as much as all else here
            self._work.unpark_all()
        return counted

    def drop_events(self, session_id: str) -> None:
        """Forget a session's events that no commit has begun with: its term has ended."""
        kept: list[_Group | Note] = []
        for op in self._ops:
            if isinstance(op, _Group) and op.session_id == session_id:
                self._pending -= op.size
                self._budget.give_back(op.size)
            else:
                kept.append(op)
        self._ops = kept
        self._groups.pop(session_id, None)

    async def wait_room(self) -> None:
        """Wait until the link, and the host, hold less than they may."""
        while self.uncommitted_bytes >= MAX_LINK_BYTES and not self._is_closed:
            await self._room.park()
        await self._budget.wait_room()

    # --- committing -------------------------------------------------------------------

    async def serve(self) -> None:
        """Commit until cancelled. A commit under way is always brought to its end."""
        while True:
            while not self._ops:
                # Unbounded on purpose: the next frame may be hours away.
                await self._work.park()
            events = sum(len(op.events) for op in self._ops if isinstance(op, _Group))
            await self.commit()
            rest = self._pace.rest_after(trio.current_time(), events)
            if rest:
                await trio.sleep(rest)

    async def commit(self) -> bool:
        """Commit what has come so far.

        Returns:
            Whether everything is committed; if not, the link has ended.
        """
        async with self._committing:
            if self._is_closed:
                return False
            if not self._ops:
                return True
            ops = tuple(_as_op(op) for op in self._ops)
            self._publishing = {op.session_id for op in ops if isinstance(op, EventsIn)}
            self._ops, self._groups = [], {}
            self._pending, self._in_flight = 0, self._pending
            result: IntakeResult | None = None
            error = StoreError("the commit took too long; whether it happened is not known")
            try:
                with grace("store.commit", self._deadlines.store_commit):
                    result = await self._store.commit_intake(self._link, ops)
            except StoreError as exc:
                error = exc
            finally:
                size, self._in_flight = self._in_flight, 0
                self._budget.give_back(size)
                self._room.unpark_all()
            if result is None:
                self._fail(error)
                return False
            self._publish(result)
            # The rest may wait for the store, and is made good by the VM if it is cancelled.
            await self._after_commit(ops, result)
        return not self._is_closed

    def _publish(self, result: IntakeResult) -> None:
        self._publishing = set()
        for session_id, seq in result.committed.items():
            tail = self._relay.loaded(session_id)
            if tail is not None:
                tail.commit(seq)

    async def close(self) -> None:
        """Commit the rest, and take nothing more. :meth:`abandon` if that cannot be done."""
        while await self.commit():
            if not self._ops:  # nothing has come during the commit
                self._is_closed = True
                self._room.unpark_all()

    def abandon(self) -> None:
        """Take nothing more, and forget what is not committed; its readers are broken off."""
        if not self._is_closed:
            self._drop()

    def _fail(self, error: StoreError) -> None:
        log.warning(
            "what a VM said could not be committed",
            user_id=self._link.user_id,
            vm_id=self._link.vm_id,
            error=str(error),
        )
        self._drop()
        self._on_failure(error)

    def _drop(self) -> None:
        self._is_closed = True
        broken = self._publishing | self._groups.keys()
        self._ops, self._groups, self._publishing = [], {}, set()
        self._budget.give_back(self._pending)
        self._pending = 0
        self._room.unpark_all()
        if broken:
            self._relay.break_off(sorted(broken))


def _as_op(op: _Group | Note) -> IntakeOp:
    if isinstance(op, _Group):
        return EventsIn(session_id=op.session_id, term=op.term, events=tuple(op.events))
    return op


async def adopt_tail(relay: Relay, session_id: str, term: int, committed: int) -> Tail:
    """Return a session's tail, brought to where a link that begins to carry it begins.

    Args:
        relay: Who has it.
        session_id: The session.
        term: Its fencing counter.
        committed: Committed maximum. What the tail has beyond it came from a link that ended
            without committing it; it is dropped, and its readers come again.

    Raises:
        NotFound: If the session was deleted.
        StoreError: If the store fails.
        DeadlineExceeded: ``store.commit``.
    """
    tail = await relay.tail(session_id)
    if tail.term == term:
        tail.commit(committed)
    if (tail.term, tail.received_seq) != (term, committed):
        relay.break_off([session_id])
        tail = await relay.tail(session_id)
    return tail
