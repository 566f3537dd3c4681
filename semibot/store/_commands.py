"""What a VM is to do for a session, and the steps in which it gets told."""

from __future__ import annotations

from collections.abc import Sequence

from semibot.errors import LinkFenced, LocalProtocolError, NotFound
from semibot.wire.codec import JsonObject, JsonValue, dump_json

from ._database import Database, Row
from ._rows import (
    boot_of,
    command_row,
    find_run,
    find_session,
    find_session_of,
    open_runs,
    require_link,
)
from ._vms import get_agent
from .base import CommandRow, LinkRef, RunRow, SessionHeld, SessionRow, SessionWork


def get_run(db: Database, run_id: str) -> RunRow | None:
    """See :meth:`~semibot.store.base.Store.get_run`."""
    return find_run(db, run_id)


def sessions_with_work(db: Database, user_id: str) -> tuple[str, ...]:
    """See :meth:`~semibot.store.base.Store.sessions_with_work`; longest waiting first."""
    rows = db.execute(
        "SELECT session_id FROM commands WHERE user_id = ? AND is_done = 0"
        " GROUP BY session_id ORDER BY min(created_at), min(rowid)",
        (user_id,),
    )
    return tuple(row.text("session_id") for row in rows)


def session_work(db: Database, session_id: str) -> SessionWork | None:
    """See :meth:`~semibot.store.base.Store.session_work`.

    A deleted session has work as long as its ``stop_session`` is not done; its row is then
    what the tombstone still knows: owner, runtime, term and holder, without agent and title.
    """
    rows = db.execute(
        "SELECT * FROM commands WHERE session_id = ? AND is_done = 0 ORDER BY position",
        (session_id,),
    )
    commands = tuple(command_row(row) for row in rows)
    session = find_session(db, session_id)
    if session is None and commands:
        session = _find_deleted(db, session_id)
    if session is None:
        return None
    return SessionWork(
        session=session, commands=commands, open_runs=tuple(open_runs(db, session_id))
    )


def _find_deleted(db: Database, session_id: str) -> SessionRow | None:
    row = db.one("SELECT * FROM tombstones WHERE session_id = ?", (session_id,))
    if row is None:
        return None
    return SessionRow(
        id=session_id,
        user_id=row.text("user_id"),
        org_id=row.text("org_id"),
        agent_id=None,
        title="",
        runtime_type=row.text("runtime_type"),
        openclaw_config=None,
        term=row.integer("term"),
        holder_vm=row.text_or_none("holder_vm"),
        holder_boot=row.text_or_none("holder_boot"),
        last_seq=row.integer("last_seq"),
        created_at=row.integer("deleted_at"),
        updated_at=row.integer("deleted_at"),
    )


def hold_session(db: Database, session_id: str, link: LinkRef) -> SessionHeld:
    """See :meth:`~semibot.store.base.Store.hold_session`; a repeat changes nothing.

    Raises:
        NotFound: If the session was deleted.
        LocalProtocolError: If another process holds it, which is to lose it first.
    """
    require_link(db, link)
    session = find_session_of(db, link.user_id, session_id)
    if session is None:
        raise NotFound(f"there is no session {session_id}")
    if session.holder_vm is None:
        db.change(
            "UPDATE sessions SET holder_vm = ?, holder_boot = ? WHERE id = ?",
            (link.vm_id, boot_of(link), session_id),
        )
        session = find_session(db, session_id) or session
    elif not _holds(link, session):
        raise LocalProtocolError("another process holds this session; it has to lose it first")
    agent_id = session.agent_id
    return SessionHeld(
        session=session,
        agent=None if agent_id is None else get_agent(db, session.org_id, agent_id),
        next_seq=session.last_seq + 1,
        snapshot=_newest_snapshot(db, session_id),
    )


def _holds(link: LinkRef, session: SessionRow) -> bool:
    return (session.holder_vm, session.holder_boot) == (link.vm_id, boot_of(link))


def _newest_snapshot(db: Database, session_id: str) -> JsonObject | None:
    row = db.one(
        "SELECT * FROM session_snapshots WHERE session_id = ?"
        " ORDER BY term DESC, covers_seq DESC LIMIT 1",
        (session_id,),
    )
    if row is None:
        return None
    snapshot: dict[str, JsonValue] = {
        "covers_seq": row.integer("covers_seq"),
        "checkpoint": row.object("checkpoint"),
        "short_term_memory": row.object("short_term_memory"),
    }
    for name in ("conversation_state", "file_manifest"):
        if not row.is_null(name):
            snapshot[name] = row.json(name)
    return snapshot


def mark_written(db: Database, command_id: str, link: LinkRef) -> None:
    """See :meth:`~semibot.store.base.Store.mark_written`.

    A cancel may have come between reading a ``user_message`` and marking it: whether to write
    it with ``cancelled`` is to be read from its run after this.

    Raises:
        LinkFenced: If the link is no longer the VM's, or its process does not hold the session.
        NotFound: If the command is done, or its session was deleted: it must not be written.
    """
    require_link(db, link)
    command = _find_open_command(db, link, command_id)
    if command is None:
        raise NotFound(f"nothing is to be done about command {command_id} any more")
    session = find_session(db, command.session_id)
    if session is not None and not _holds(link, session):
        raise LinkFenced("the process of this link does not hold the session")
    db.change("UPDATE commands SET boot_hash = ? WHERE id = ?", (boot_of(link), command_id))
    if command.kind == "user_message":
        db.change("UPDATE runs SET is_written = 1 WHERE id = ?", (command.run_id,))


def _find_open_command(db: Database, link: LinkRef, command_id: str) -> CommandRow | None:
    row: Row | None = db.one(
        "SELECT * FROM commands WHERE id = ? AND user_id = ? AND is_done = 0",
        (command_id, link.user_id),
    )
    return None if row is None else command_row(row)


def finish_commands(db: Database, command_ids: Sequence[str]) -> None:
    """See :meth:`~semibot.store.base.Store.finish_commands`."""
    db.change(
        "UPDATE commands SET is_done = 1 WHERE id IN (SELECT value FROM json_each(?))",
        (dump_json(list(command_ids)),),
    )
