"""Sessions, their messages and runs: made, cancelled and deleted by people."""

from __future__ import annotations

from typing import Final

from semibot.errors import IdempotencyConflict, NotFound, SessionBusy
from semibot.wire.codec import JsonObject, dump_json

from ._database import Database
from ._rows import find_run, find_session_of, json_or_none, open_runs
from .base import (
    CancelAsked,
    MessageAccepted,
    NewMessage,
    NewSession,
    RunRow,
    SessionRow,
)

MAX_WAITING: Final = 16
"""Most runs of a session that wait for an earlier one."""

TITLE_LENGTH: Final = 50
"""Most characters of a session's title."""

DAY: Final = 24 * 60 * 60 * 1000
"""Milliseconds; for so long an idempotency key is known."""

TOMBSTONE_LIFE: Final = 30 * DAY
"""Milliseconds; for so long late frames of a deleted session are told from foreign ones."""


# --- messages -------------------------------------------------------------------------


def accept_message(db: Database, message: NewMessage) -> MessageAccepted:
    """See :meth:`~semibot.store.base.Store.accept_message`.

    A key of a message whose session was deleted since is :exc:`NotFound`: sending the message
    again under that key must not run it a second time.
    """
    repeat = find_accepted(db, message)
    if repeat is not None:
        return repeat
    if message.create is not None:
        _create_session(db, message, message.create)
    session = _require_session(db, message.user_id, message.session_id)
    earlier = open_runs(db, session.id)
    if len(earlier) > (0 if message.on_busy == "reject" else MAX_WAITING):
        raise SessionBusy(session.id, len(earlier))
    if message.on_busy == "interrupt":
        for run, cancel_id in zip(earlier, message.cancel_ids, strict=False):
            _interrupt(db, session, run, cancel_id)
    position = _insert_run(db, message)
    db.change(
        "INSERT INTO messages (id, session_id, position, run_id, role, content, created_at)"
        " VALUES (?, ?, ?, ?, 'user', ?, ?)",
        (message.message_id, session.id, 2 * position, message.run_id, message.message, db.now()),
    )
    payload = {"message": message.message, "message_id": message.message_id}
    insert_command(db, session, message.command_id, "user_message", message.run_id, payload)
    db.change("UPDATE sessions SET updated_at = ? WHERE id = ?", (db.now(), session.id))
    _remember_key(db, message)
    return MessageAccepted(
        session_id=session.id,
        run_id=message.run_id,
        message_id=message.message_id,
        after_seq=session.last_seq,
        is_repeat=False,
    )


def find_accepted(db: Database, message: NewMessage) -> MessageAccepted | None:
    """See :meth:`~semibot.store.base.Store.find_accepted`."""
    if message.idempotency is None:
        return None
    key, body_hash = message.idempotency
    known = db.one(
        "SELECT * FROM idempotency_keys WHERE user_id = ? AND key = ? AND expires_at > ?",
        (message.user_id, key, db.now()),
    )
    if known is None:
        return None
    session_id, run_id = known.text_or_none("session_id"), known.text_or_none("run_id")
    is_elsewhere = message.create is None and session_id != message.session_id
    if known.text("body_hash") != body_hash or session_id is None or run_id is None or is_elsewhere:
        raise IdempotencyConflict("this Idempotency-Key came with another request before")
    session, run = find_session_of(db, message.user_id, session_id), find_run(db, run_id)
    if session is None or run is None:
        raise NotFound(f"there is no session {session_id}")
    return MessageAccepted(
        session_id=session.id,
        run_id=run.id,
        message_id=run.message_id,
        after_seq=session.last_seq if run.first_seq is None else run.first_seq - 1,
        is_repeat=True,
    )


def _remember_key(db: Database, message: NewMessage) -> None:
    if message.idempotency is not None:
        key, body_hash = message.idempotency
        db.change(
            "INSERT OR REPLACE INTO idempotency_keys"
            " (user_id, key, body_hash, session_id, run_id, expires_at) VALUES (?, ?, ?, ?, ?, ?)",
            (
                message.user_id,
                key,
                body_hash,
                message.session_id,
                message.run_id,
                db.now() + DAY,
            ),
        )


def _create_session(db: Database, message: NewMessage, new: NewSession) -> None:
    user = db.one("SELECT org_id FROM users WHERE id = ?", (message.user_id,))
    if user is None:
        raise NotFound(f"there is no user {message.user_id}")
    db.change(
        "INSERT INTO sessions (id, user_id, org_id, agent_id, title, runtime_type,"
        " openclaw_config, created_at, updated_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            message.session_id,
            message.user_id,
            user.text("org_id"),
            new.agent_id,
            _title(message.message),
            new.runtime_type,
            json_or_none(new.openclaw_config),
            db.now(),
            db.now(),
        ),
    )


def _title(message: str) -> str:
    lines = message.strip().splitlines()
    return lines[0][:TITLE_LENGTH].rstrip() if lines else ""


def _insert_run(db: Database, message: NewMessage) -> int:
    row = db.execute(
        "INSERT INTO runs (id, session_id, position, message_id, expires_at, created_at)"
        " VALUES (?, ?, (SELECT coalesce(max(position), 0) + 1 FROM runs WHERE session_id = ?),"
        " ?, ?, ?) RETURNING position",
        (
            message.run_id,
            message.session_id,
            message.session_id,
            message.message_id,
            message.expires_at,
            db.now(),
        ),
    )[0]
    return row.integer("position")


def insert_command(
    db: Database,
    session: SessionRow,
    command_id: str,
    kind: str,
    run_id: str | None,
    payload: JsonObject,
) -> None:
    """Store a command at the end of its session's order."""
    db.change(
        "INSERT INTO commands (id, session_id, user_id, position, kind, run_id, payload,"
        " created_at) VALUES (?, ?, ?,"
        " (SELECT coalesce(max(position), 0) + 1 FROM commands WHERE session_id = ?), ?, ?, ?, ?)",
        (
            command_id,
            session.id,
            session.user_id,
            session.id,
            kind,
            run_id,
            dump_json(payload),
            db.now(),
        ),
    )


# --- cancelling -----------------------------------------------------------------------


def ask_cancel(
    db: Database,
    user_id: str,
    session_id: str,
    run_id: str | None,
    command_id: str,
    reason: str,
) -> CancelAsked:
    """See :meth:`~semibot.store.base.Store.ask_cancel`."""
    session = _require_session(db, user_id, session_id)
    if run_id is None:
        run = next(iter(open_runs(db, session_id)), None)
        if run is None:
            return CancelAsked(
                state="idle",
                run_id=None,
                receipt={"run_id": None, "already": True},
                command_id=None,
            )
    else:
        run = find_run(db, run_id)
        if run is None or run.session_id != session_id:
            raise NotFound(f"the session has no run {run_id}")
    joined = _open_cancel(db, run)
    if joined is None:
        answer = _cancelled_already(run)
        if answer is not None:
            return answer
        if not run.is_written:
            return _cancel_waiting(db, run)
        _want_cancel(db, run)
        joined = command_id
        insert_command(db, session, command_id, "cancel", run.id, {"reason": reason})
    return CancelAsked(state="pending", run_id=run.id, receipt=None, command_id=joined)


def _open_cancel(db: Database, run: RunRow) -> str | None:
    """Return the cancel of the run that is still to be answered; a second one joins it."""
    row = db.one(
        "SELECT id FROM commands"
        " WHERE session_id = ? AND run_id = ? AND kind = 'cancel' AND is_done = 0",
        (run.session_id, run.id),
    )
    return None if row is None else row.text("id")


def _cancelled_already(run: RunRow) -> CancelAsked | None:
    if run.outcome is not None:
        receipt = run.receipt or {"run_id": run.id, "outcome": run.outcome, "already": True}
        return CancelAsked(state="ended", run_id=run.id, receipt=receipt, command_id=None)
    if run.receipt is not None and run.receipt.get("started") is False:
        return CancelAsked(state="not_started", run_id=run.id, receipt=run.receipt, command_id=None)
    return None


def _cancel_waiting(db: Database, run: RunRow) -> CancelAsked:
    """Cancel a run that no VM has: it will be opened and ended without its adapter."""
    receipt: JsonObject = {"run_id": run.id, "started": False, "outcome": "cancelled"}
    db.change(
        "UPDATE runs SET wants_cancel = 1, receipt = ? WHERE id = ?", (dump_json(receipt), run.id)
    )
    return CancelAsked(state="not_started", run_id=run.id, receipt=receipt, command_id=None)


def _want_cancel(db: Database, run: RunRow) -> None:
    db.change("UPDATE runs SET wants_cancel = 1 WHERE id = ?", (run.id,))


def _interrupt(db: Database, session: SessionRow, run: RunRow, cancel_id: str) -> None:
    """Cancel an earlier run for the sake of a new message; nobody waits for a receipt."""
    if run.wants_cancel:
        return
    if run.is_written:
        _want_cancel(db, run)
        insert_command(db, session, cancel_id, "cancel", run.id, {"reason": "interrupted"})
    else:
        _cancel_waiting(db, run)


# --- sessions -------------------------------------------------------------------------


def get_session(db: Database, user_id: str, session_id: str) -> SessionRow | None:
    """See :meth:`~semibot.store.base.Store.get_session`."""
    return find_session_of(db, user_id, session_id)


def _require_session(db: Database, user_id: str, session_id: str) -> SessionRow:
    session = find_session_of(db, user_id, session_id)
    if session is None:
        raise NotFound(f"there is no session {session_id}")
    return session


def was_deleted(db: Database, user_id: str, session_id: str) -> bool:
    """See :meth:`~semibot.store.base.Store.was_deleted`."""
    known = db.one(
        "SELECT 1 FROM tombstones WHERE session_id = ? AND user_id = ? AND expires_at > ?",
        (session_id, user_id, db.now()),
    )
    return known is not None


def delete_session(
    db: Database, user_id: str, session_id: str, command_id: str
) -> tuple[SessionRow, str | None] | None:
    """See :meth:`~semibot.store.base.Store.delete_session`.

    The row that is returned is the one from before. Idempotency keys stay: they keep a late
    repeat of a message from making the session anew.
    """
    session = find_session_of(db, user_id, session_id)
    if session is None:
        return None
    db.change(
        "INSERT INTO tombstones (session_id, user_id, org_id, runtime_type, term, holder_vm,"
        " holder_boot, last_seq, deleted_at, expires_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            session.id,
            session.user_id,
            session.org_id,
            session.runtime_type,
            session.term,
            session.holder_vm,
            session.holder_boot,
            session.last_seq,
            db.now(),
            db.now() + TOMBSTONE_LIFE,
        ),
    )
    db.change("DELETE FROM sessions WHERE id = ? AND user_id = ?", (session.id, user_id))
    stop_id = None if session.holder_vm is None else command_id
    if stop_id is not None:
        insert_command(db, session, stop_id, "stop_session", None, {"reason": "user_closed"})
    db.change("DELETE FROM commands WHERE session_id = ? AND id IS NOT ?", (session.id, stop_id))
    return session, stop_id
