"""What a link brings is committed here: events, answers to commands, reports.

Theory of operation. A batch mixes sessions, and a session that has to be refused takes nothing
from it, while its neighbours do. So the events are all checked before anything is written: per
session against its row, then number by number against the committed maximum and what the batch
itself brought before. What passes cannot fail any more, and is written in the order in which
it came, because a receipt or a snapshot means something only after the events before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never, final

import attrs

from semibot.wire.codec import dump_json

from ._database import Database
from ._reports import apply_report
from ._rows import LEVEL_1_BOOT, boot_of, event_row, find_session_of, require_link
from ._runs import TERMINAL_TYPES, insert_events, move_end
from .base import (
    CancelAnswered,
    CommandsDone,
    EventsIn,
    IntakeOp,
    IntakeResult,
    LinkRef,
    ReportIn,
    StoredEvent,
)


def commit_intake(db: Database, link: LinkRef, ops: Sequence[IntakeOp]) -> IntakeResult:
    """See :meth:`~semibot.store.base.Store.commit_intake`.

    ``gone`` are sessions of the user that were deleted; ``fenced`` those that the link's
    process does not hold at this term, or that are no sessions of the user; ``conflict`` those
    with other bytes under a committed number, a number that is not the next, or an event of
    a run that has ended.
    """
    require_link(db, link)
    checks: dict[str, _Check] = {}
    new_events: dict[int, list[StoredEvent]] = {}
    for index, op in enumerate(ops):
        if isinstance(op, EventsIn):
            check = checks.setdefault(op.session_id, _Check(op.session_id))
            new_events[index] = check.take(db, link, op)
    refused = {check.session_id: check.refusal for check in checks.values() if check.refusal}
    done_ids: list[str] = []
    dropped: list[tuple[str, str]] = []
    ended_runs: list[tuple[str, str]] = []
    for index, op in enumerate(ops):
        match op:
            case EventsIn():
                if op.session_id not in refused:
                    _insert(db, op.session_id, new_events[index])
                    # Of repeats too: whoever sent it first may not know that it was committed.
                    ended_runs += [
                        (op.session_id, event.run_id)
                        for event in op.events
                        if event.type in TERMINAL_TYPES
                    ]
            case CommandsDone():
                for command_id in op.command_ids:
                    _finish(db, link, command_id)
                done_ids += op.command_ids
            case CancelAnswered():
                if refused.get(op.session_id, "gone") == "gone":
                    _store_receipt(db, link, op)
                done_ids.append(op.command_id)
            case ReportIn():
                problem = refused.get(op.session_id) if op.method == "snapshot_sync" else None
                problem = problem or apply_report(db, link, op)
                if problem is not None:
                    dropped.append((op.id or op.method, problem))
                if op.id is not None:
                    done_ids.append(op.id)
            case _:
                assert_never(op)
    return IntakeResult(
        committed={
            check.session_id: check.last_seq for check in checks.values() if not check.refusal
        },
        refused=refused,
        done_ids=tuple(done_ids),
        dropped=tuple(dropped),
        ended_runs=tuple(ended_runs),
    )


@final
@attrs.define(eq=False)
class _Check:
    """What a batch says in the name of one session, as far as it has been read."""

    session_id: str
    refusal: str | None = None
    last_seq: int = -1
    """Committed maximum with what the batch adds; -1 before the session was looked up."""
    _committed: int = -1
    _added: list[StoredEvent] = attrs.field(factory=list[StoredEvent])
    _term: int = 0
    _over: dict[str, bool] = attrs.field(factory=dict[str, bool])
    """Whether runs that the host knows have ended."""

    def take(self, db: Database, link: LinkRef, op: EventsIn) -> list[StoredEvent]:
        """Return the events of *op* that are new; set ``refusal`` if the session is refused."""
        if self.last_seq < 0 and self.refusal is None:
            self._look_up(db, link)
        if self.refusal is None and op.term != self._term:
            self.refusal = "fenced"
        start = len(self._added)
        for event in op.events:
            if self.refusal is not None:
                break
            self._take_event(db, event)
        return self._added[start:]

    def _look_up(self, db: Database, link: LinkRef) -> None:
        session = find_session_of(db, link.user_id, self.session_id)
        if session is None:
            is_gone = db.one(
                "SELECT 1 FROM tombstones WHERE session_id = ? AND user_id = ?",
                (self.session_id, link.user_id),
            )
            self.refusal = "fenced" if is_gone is None else "gone"
        elif (session.holder_vm, session.holder_boot) != (link.vm_id, boot_of(link)):
            self.refusal = "fenced"
        else:
            self._term = session.term
            self._committed = self.last_seq = session.last_seq

    def _take_event(self, db: Database, event: StoredEvent) -> None:
        if event.seq <= self.last_seq:
            if self._earlier(db, event.seq) != event:
                self.refusal = "conflict"
        elif event.seq > self.last_seq + 1 or event.term != self._term or self._is_over(db, event):
            self.refusal = "conflict"
        else:
            self.last_seq = event.seq
            self._added.append(event)
            if event.type in TERMINAL_TYPES and event.run_id in self._over:
                self._over[event.run_id] = True

    def _earlier(self, db: Database, seq: int) -> StoredEvent | None:
        if seq > self._committed:
            return self._added[seq - self._committed - 1]
        row = db.one(
            "SELECT * FROM events WHERE session_id = ? AND seq = ?", (self.session_id, seq)
        )
        return None if row is None else event_row(row)

    def _is_over(self, db: Database, event: StoredEvent) -> bool:
        """Return whether the event's run has ended: nothing of it may follow."""
        if event.run_id not in self._over:
            row = db.one(
                "SELECT outcome FROM runs WHERE id = ? AND session_id = ?",
                (event.run_id, self.session_id),
            )
            if row is None:  # of no run that the host knows: kept, and nothing depends on it
                return False
            self._over[event.run_id] = not row.is_null("outcome")
        return self._over[event.run_id]


def _insert(db: Database, session_id: str, events: Sequence[StoredEvent]) -> None:
    if events:
        insert_events(db, session_id, events)
        move_end(db, session_id, events[-1].seq)


def _finish(db: Database, link: LinkRef, command_id: str) -> int:
    """Note that a command that was written to the link's process took effect.

    For a level 1 VM the host says so itself, also of what it did not need to write.
    """
    return db.change(
        "UPDATE commands SET is_done = 1"
        " WHERE id = ? AND user_id = ? AND coalesce(boot_hash, ?) = ? AND is_done = 0",
        (command_id, link.user_id, LEVEL_1_BOOT, boot_of(link)),
    )


def _store_receipt(db: Database, link: LinkRef, op: CancelAnswered) -> None:
    """Keep a receipt in its run; one that was answered or never asked changes nothing."""
    if _finish(db, link, op.command_id):
        db.change(
            "UPDATE runs SET receipt = ? WHERE id = coalesce("
            "?, (SELECT run_id FROM commands WHERE id = ?))"
            " AND session_id = (SELECT session_id FROM commands WHERE id = ?)",
            (dump_json(op.receipt), op.run_id, op.command_id, op.command_id),
        )
