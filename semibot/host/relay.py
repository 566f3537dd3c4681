"""Bring the events of all sessions to their readers: which tails are in memory, and who reads.

A tail is loaded when somebody needs it and stays while it holds what the store does not, or
has readers. Of the others the newest are kept. Wherever a tail is still in use, it is the
only one of its session: that is what the weak references are for.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Final, final
from weakref import WeakValueDictionary

import attrs
import trio

from semibot.config.deadlines import Deadlines
from semibot.errors import NotFound
from semibot.lifetimes import deadline
from semibot.ports import Ports
from semibot.store.base import SessionLoss, Store
from semibot.wire.sse import EventId, retry_line

from .keepalive import Keepalive
from .pace import Pace
from .readers import Reader as Reader
from .tail import Cursor, EndReason, Tail, Tally

MAX_IDLE_TAILS: Final = 1024
"""Most tails without readers and uncommitted events that are kept."""

MAX_COMMITTED_BYTES: Final = 256 * 1024 * 1024
"""Most bytes of committed events in memory, over all tails; older ones are in the store."""

_RETRY_MS: Final = (1000, 3000)


@attrs.define(eq=False)
class _Loading:
    """A tail that somebody is loading, and what has happened meanwhile."""

    done: trio.Event = attrs.field(factory=trio.Event)
    losses: list[SessionLoss] = attrs.field(factory=list[SessionLoss])
    is_forgotten: bool = False


@final
class Relay:
    """All tails and readers of one host.

    Only the methods that are async ever wait; the others are done when they return.

    Args:
        store: Where committed events are.
        ports: For the jitter of ``retry``.
        deadlines: ``http.keepalive`` and ``store.commit``.
        max_idle_tails: Most tails to keep that nobody uses.
        max_committed_bytes: Most bytes of committed events to keep in memory.
    """

    def __init__(
        self,
        store: Store,
        ports: Ports,
        deadlines: Deadlines,
        *,
        max_idle_tails: int = MAX_IDLE_TAILS,
        max_committed_bytes: int = MAX_COMMITTED_BYTES,
    ) -> None:
        self._store = store
        self._ports = ports
        self._deadlines = deadlines
        self._max_idle_tails = max_idle_tails
        self._max_committed_bytes = max_committed_bytes
        self._tails: WeakValueDictionary[str, Tail] = WeakValueDictionary()
        self._kept: OrderedDict[str, Tail] = OrderedDict()  # longest unused first
        self._loading: dict[str, _Loading] = {}
        self._tally = Tally()
        self._keepalive = Keepalive()
        self._pace = Pace()
        self._is_closed = False

    # --- counts -----------------------------------------------------------------------

    @property
    def reader_count(self) -> int:
        """Readers that are open."""
        return sum(len(tail.cursors) for tail in self._tails.values())

    @property
    def events_forwarded(self) -> int:
        """Events that readers have taken, for ever; one taken by two counts twice."""
        return self._tally.events_forwarded

    def buffered_bytes(self, session_id: str) -> int:
        """Return how many bytes of a session's events are in memory."""
        tail = self.loaded(session_id)
        return 0 if tail is None else tail.committed_bytes + tail.uncommitted_bytes

    def buffered(self) -> Mapping[str, int]:
        """Return the same for all sessions that have any."""
        sizes = ((session_id, self.buffered_bytes(session_id)) for session_id in self._kept)
        return {session_id: size for session_id, size in sizes if size}

    # --- tails ------------------------------------------------------------------------

    def loaded(self, session_id: str) -> Tail | None:
        """Return a session's tail if it is in memory."""
        return self._tails.get(session_id)

    async def tail(self, session_id: str) -> Tail:
        """Return a session's tail, loaded if need be; without a checkpoint if it is there.

        Raises:
            NotFound: If there is no such session.
            StoreError: If the store fails.
            DeadlineExceeded: ``store.commit``.
        """
        while (tail := self._tails.get(session_id)) is None:
            loading = self._loading.get(session_id)
            if loading is None:
                return await self._load(session_id)
            # Bounded by the deadline of whoever loads it; if that fails, it is our turn.
            await loading.done.wait()
        self._touch(tail)
        return tail

    async def _load(self, session_id: str) -> Tail:
        """Load a tail. Nobody else does until this returns: *loading* is the lock."""
        loading = self._loading[session_id] = _Loading()
        try:
            with deadline("store.commit", self._deadlines.store_commit):
                start = await self._store.tail_start(session_id)
            if start is None or loading.is_forgotten:
                raise NotFound("there is no such session")
            term, committed_seq = start
            tail = Tail(
                session_id,
                term=term,
                committed_seq=committed_seq,
                tally=self._tally,
                on_use=self._touch,
            )
            for loss in loading.losses:
                tail.lose(loss)
            self._tails[session_id] = tail
            self._touch(tail)
            self._evict()
            return tail
        finally:
            del self._loading[session_id]
            loading.done.set()

    def _touch(self, tail: Tail) -> None:
        """Note that a tail is in use, and see to it that all together stay within bounds."""
        if self._tails.get(tail.session_id) is not tail:
            return  # forgotten, or about to be known
        self._kept[tail.session_id] = tail
        self._kept.move_to_end(tail.session_id)
        if self._tally.committed_bytes > self._max_committed_bytes:
            for other in self._kept.values():
                if self._tally.committed_bytes <= self._max_committed_bytes // 2:
                    break
                other.shed()

    def _evict(self) -> None:
        """Let go of the longest unused tails that nobody needs."""
        if len(self._kept) <= self._max_idle_tails:
            return
        idle = [session_id for session_id, tail in self._kept.items() if tail.is_idle]
        for session_id in idle[: max(0, len(idle) - self._max_idle_tails)]:
            self._kept.pop(session_id).shed()

    # --- what befalls sessions --------------------------------------------------------

    def publish_loss(self, loss: SessionLoss) -> None:
        """Go over into the term after a loss: uncommitted events are gone.

        Readers that have seen more than ``base_seq`` begin anew with a ``resync``; the
        others go on with the loss's events.

        Args:
            loss: What the store said; losses of a session in the order of their commits.
        """
        loading = self._loading.get(loss.session_id)
        if loading is not None:
            loading.losses.append(loss)
        tail = self.loaded(loss.session_id)
        if tail is not None:
            tail.lose(loss)

    def forget(self, session_id: str) -> None:
        """End the readers of a session that was deleted, as ``deleted``."""
        loading = self._loading.get(session_id)
        if loading is not None:
            loading.is_forgotten = True
        self._discard(session_id, "deleted")

    def break_off(self, session_ids: Iterable[str]) -> None:
        """Forget what is not committed, because a commit failed or may have failed.

        The readers end as ``store_failed``. They come again with the last id they have,
        which is held until the VM has sent that event again. What is committed is asked
        of the store anew.
        """
        for session_id in session_ids:
            self._discard(session_id, "store_failed")

    async def compare(self) -> None:
        """Bring all tails to what is stored, after a commit whose result nobody was told.

        Readers of a session that was deleted end as ``deleted``. Those of one that has gone
        over into another term end as ``store_failed``, and come again with the last id they have.

        Raises:
            StoreError: If the store fails; tails that were not reached are as before.
            DeadlineExceeded: ``store.commit``.
        """
        for session_id, tail in list(self._tails.items()):
            with deadline("store.commit", self._deadlines.store_commit):
                start = await self._store.tail_start(session_id)
            if self._tails.get(session_id) is not tail:
                continue
            if start is None:
                self.forget(session_id)
            elif start[0] > tail.term:
                self.break_off([session_id])
            elif tail.received_seq == tail.committed_seq < start[1]:
                tail.commit(start[1])  # readers find in the store what was said for its VM

    def _discard(self, session_id: str, reason: EndReason) -> None:
        self._kept.pop(session_id, None)
        tail = self._tails.pop(session_id, None)
        if tail is not None:
            tail.retire(reason)

    def close(self) -> None:
        """End all readers, those to come as well, as ``closing``: the host stops."""
        self._is_closed = True
        for tail in list(self._tails.values()):
            tail.end_readers("closing")

    # --- readers ----------------------------------------------------------------------

    async def open_reader(self, session_id: str, *, last_event_id: EventId | None) -> Reader:
        """Follow a session (GET).

        Args:
            session_id: The session.
            last_event_id: What the client has; None begins with a ``resync``.

        Raises:
            NotFound: If there is no such session.
            StoreError: If the store fails.
            DeadlineExceeded: ``store.commit``.
        """
        tail = await self.tail(session_id)
        start = last_event_id or EventId(tail.term, 0)
        cursor = Cursor(run_id=None, term=start.term, seq=start.seq, shown=start.seq)
        cursor.needs_resync = last_event_id is None
        return self._reader(tail, cursor, last_event_id)

    async def open_run_reader(self, session_id: str, run_id: str, after_seq: int) -> Reader:
        """Follow one run (POST), from its ``run_started`` to its terminal event.

        Args:
            session_id: The session.
            run_id: The run.
            after_seq: A committed number before the run's first event.

        Raises:
            NotFound: If there is no such session.
            StoreError: If the store fails.
            DeadlineExceeded: ``store.commit``.
        """
        tail = await self.tail(session_id)
        cursor = Cursor(run_id=run_id, term=tail.term, seq=after_seq, shown=0)
        return self._reader(tail, cursor, None)

    def _reader(self, tail: Tail, cursor: Cursor, join_id: EventId | None) -> Reader:
        if self._is_closed:
            cursor.end_reason = "closing"
        return Reader(
            tail,
            cursor,
            join_id=join_id,
            store=self._store,
            deadlines=self._deadlines,
            keepalive=self._keepalive,
            tally=self._tally,
            pace=self._pace,
            greeting=retry_line(self._ports.random.randint(*_RETRY_MS)),
        )

    def is_watched(self, session_id: str, run_id: str, besides: Reader) -> bool:
        """Return whether anybody else sees a run: a GET reader, or another one of that run."""
        tail = self.loaded(session_id)
        return tail is not None and any(
            cursor.run_id in (None, run_id) and cursor.end_reason is None
            for cursor in tail.cursors
            if cursor is not besides.cursor
        )
