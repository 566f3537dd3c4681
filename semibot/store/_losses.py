"""What becomes of sessions whose holder is gone (protocol section 4, "A VM is lost").

A session that loses its holder gets the next term, so that nothing more of the old holder is
taken; then its written runs are ended in the new term, in the host's name. What was never
written waits for the next holder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from semibot.wire.codec import dump_json
from semibot.wire.events import ExecutionComplete, ExecutionError

from ._database import Database
from ._rows import LEVEL_1_BOOT, find_session, open_runs, run_row
from ._runs import insert_host_events
from .base import RunRow, SessionLoss, StoredEvent, VmStatus


def lose_vm(
    db: Database,
    vm_id: str,
    *,
    status: VmStatus,
    last_error: str | None,
    code: str,
    message: str,
) -> tuple[SessionLoss, ...]:
    """See :meth:`~semibot.store.base.Store.lose_vm`; a row that is history is left alone.

    ``boot_hash`` stays in the row: should the process wake up, the epoch, the holders and the
    terms keep its old links and sessions out, and it is still the VM's own process.
    """
    is_over = status in {"failed", "terminated"}
    moved = db.change(
        "UPDATE user_vm_instances SET epoch = epoch + 1, status = ?,"
        " bootstrap_last_error = coalesce(?, bootstrap_last_error),"
        " disconnected_at = coalesce(disconnected_at, ?),"
        " terminated_at = CASE WHEN ? THEN ? ELSE terminated_at END"
        " WHERE id = ? AND status NOT IN ('failed', 'terminated')",
        (status, last_error, db.now(), int(is_over), db.now(), vm_id),
    )
    return lose_sessions(db, vm_id, code, message) if moved else ()


def lose_sessions(db: Database, vm_id: str, code: str, message: str) -> tuple[SessionLoss, ...]:
    """Lose every session that a VM holds; its process is gone, or is not the VM's any more.

    Whatever was sent to it will not be answered, and what it was to stop has stopped.

    Args:
        db: The transaction.
        vm_id: The row.
        code: Of the ``execution_error`` events.
        message: Their text.
    """
    held = db.execute("SELECT id FROM sessions WHERE holder_vm = ? ORDER BY id", (vm_id,))
    losses = [lose_session(db, row.text("id"), code=code, message=message) for row in held]
    db.change(
        "UPDATE commands SET is_done = 1 WHERE is_done = 0"
        " AND user_id = (SELECT user_id FROM user_vm_instances WHERE id = ?)"
        " AND (boot_hash IS NOT NULL OR kind = 'stop_session')",
        (vm_id,),
    )
    return tuple(loss for loss in losses if loss is not None)


def lose_session(db: Database, session_id: str, *, code: str, message: str) -> SessionLoss | None:
    """See :meth:`~semibot.store.base.Store.lose_session`; None if nobody holds it."""
    session = find_session(db, session_id)
    if session is None or session.holder_vm is None:
        return None
    db.change(
        "UPDATE sessions SET term = term + 1, holder_vm = NULL, holder_boot = NULL, updated_at = ?"
        " WHERE id = ?",
        (db.now(), session_id),
    )
    events: list[StoredEvent] = []
    ended: list[str] = []
    for run in open_runs(db, session_id):
        if run.is_written:
            events += insert_host_events(db, session_id, run, _end_of(run, code, message))
            ended.append(run.id)
    _answer_cancels(db, session_id, ended)
    db.change(
        "UPDATE commands SET is_done = 1"
        " WHERE session_id = ? AND is_done = 0"
        " AND (boot_hash IS NOT NULL OR kind = 'stop_session')",
        (session_id,),
    )
    return SessionLoss(
        session_id=session_id,
        user_id=session.user_id,
        term=session.term + 1,
        base_seq=session.last_seq,
        events=tuple(events),
        ended_runs=tuple(ended),
    )


def end_unwritten_runs(
    db: Database, session_id: str, *, outcome: Literal["cancelled", "interrupted"]
) -> SessionLoss | None:
    """See :meth:`~semibot.store.base.Store.end_unwritten_runs`.

    None if there is nothing to end, or if a level 2 process holds the session: only the
    holder may then make events.
    """
    session = find_session(db, session_id)
    if session is None or session.holder_boot not in {None, LEVEL_1_BOOT}:
        return None
    events: list[StoredEvent] = []
    ended: list[str] = []
    for run in open_runs(db, session_id):
        if run.is_written or not run.wants_cancel:
            break
        events += insert_host_events(db, session_id, run, _unwritten_end(run, outcome))
        ended.append(run.id)
        db.change(
            "UPDATE commands SET is_done = 1 WHERE session_id = ? AND run_id = ? AND is_done = 0",
            (session_id, run.id),
        )
    if not ended:
        return None
    return SessionLoss(
        session_id=session_id,
        user_id=session.user_id,
        term=session.term,
        base_seq=session.last_seq,
        events=tuple(events),
        ended_runs=tuple(ended),
    )


def _end_of(run: RunRow, code: str, message: str) -> ExecutionComplete | ExecutionError:
    if run.receipt is not None and run.receipt.get("started") is False:
        # Somebody was told already that it is cancelled and never began; it stays true.
        return ExecutionComplete(run_id=run.id, cancelled=True)
    return ExecutionError(run_id=run.id, code=code, error=message, retryable=True)


def _unwritten_end(
    run: RunRow, outcome: Literal["cancelled", "interrupted"]
) -> ExecutionComplete | ExecutionError:
    if outcome == "cancelled":
        return ExecutionComplete(run_id=run.id, cancelled=True)
    return ExecutionError(
        run_id=run.id,
        code="INTERRUPTED",
        error="the run was stopped before it began; send the message again",
        retryable=True,
    )


def _answer_cancels(db: Database, session_id: str, ended: Sequence[str]) -> None:
    """Answer the cancels that no VM will answer any more: of *ended* runs, and earlier ones."""
    rows = db.execute(
        "SELECT * FROM runs WHERE session_id = ? AND outcome IS NOT NULL AND wants_cancel = 1"
        " AND receipt IS NULL AND (id IN (SELECT value FROM json_each(?)) OR id IN"
        " (SELECT run_id FROM commands WHERE session_id = ? AND kind = 'cancel' AND is_done = 0))",
        (session_id, dump_json(list(ended)), session_id),
    )
    for run in map(run_row, rows):
        receipt = dump_json({"run_id": run.id, "outcome": run.outcome, "vm_lost": True})
        db.change("UPDATE runs SET receipt = ? WHERE id = ?", (receipt, run.id))
    db.change(
        "UPDATE commands SET is_done = 1 WHERE session_id = ? AND kind = 'cancel' AND is_done = 0"
        " AND run_id IN (SELECT id FROM runs WHERE session_id = ? AND outcome IS NOT NULL)",
        (session_id, session_id),
    )
