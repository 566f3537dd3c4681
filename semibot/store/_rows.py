"""How rows of conversations become values, and how a link proves that it may write."""

from __future__ import annotations

from typing import Final, Literal, cast

from semibot.errors import LinkFenced
from semibot.wire.codec import JsonObject, dump_json
from semibot.wire.receipts import Outcome

from ._database import Database, Row
from .base import CommandRow, LinkRef, MessageRow, RunRow, SessionRow, StoredEvent

LEVEL_1_BOOT: Final = "level1"
"""Stands for the process of a level 1 VM, which has no boot id."""


def session_row(row: Row) -> SessionRow:
    """Return a row of ``sessions``."""
    return SessionRow(
        id=row.text("id"),
        user_id=row.text("user_id"),
        org_id=row.text("org_id"),
        agent_id=row.text_or_none("agent_id"),
        title=row.text("title"),
        runtime_type=row.text("runtime_type"),
        openclaw_config=row.object_or_none("openclaw_config"),
        term=row.integer("term"),
        holder_vm=row.text_or_none("holder_vm"),
        holder_boot=row.text_or_none("holder_boot"),
        last_seq=row.integer("last_seq"),
        created_at=row.integer("created_at"),
        updated_at=row.integer("updated_at"),
    )


def run_row(row: Row) -> RunRow:
    """Return a row of ``runs``."""
    return RunRow(
        id=row.text("id"),
        session_id=row.text("session_id"),
        message_id=row.text("message_id"),
        is_written=row.flag("is_written"),
        wants_cancel=row.flag("wants_cancel"),
        first_seq=row.integer_or_none("first_seq"),
        last_seq=row.integer_or_none("last_seq"),
        outcome=cast("Outcome | None", row.text_or_none("outcome")),
        receipt=row.object_or_none("receipt"),
        expires_at=row.integer_or_none("expires_at"),
    )


def command_row(row: Row) -> CommandRow:
    """Return a row of ``commands``."""
    return CommandRow(
        id=row.text("id"),
        session_id=row.text("session_id"),
        kind=cast(
            "Literal['user_message', 'cancel', 'stop_session', 'config_update']", row.text("kind")
        ),
        run_id=row.text_or_none("run_id"),
        payload=row.object("payload"),
        boot_hash=row.text_or_none("boot_hash"),
    )


def message_row(row: Row) -> MessageRow:
    """Return a row of ``messages``."""
    return MessageRow(
        id=row.text("id"),
        run_id=row.text("run_id"),
        role=cast("Literal['user', 'assistant']", row.text("role")),
        content=row.text("content"),
        metadata=row.object("metadata"),
        created_at=row.integer("created_at"),
    )


def event_row(row: Row) -> StoredEvent:
    """Return a row of ``events``."""
    return StoredEvent(
        term=row.integer("term"),
        seq=row.integer("seq"),
        run_id=row.text("run_id"),
        type=row.text("type"),
        data=row.text("data"),
    )


def find_session(db: Database, session_id: str) -> SessionRow | None:
    """Return a session, whoever's it is: for the host's own use."""
    row = db.one("SELECT * FROM sessions WHERE id = ?", (session_id,))
    return None if row is None else session_row(row)


def find_session_of(db: Database, user_id: str, session_id: str) -> SessionRow | None:
    """Return a session of the user."""
    row = db.one("SELECT * FROM sessions WHERE id = ? AND user_id = ?", (session_id, user_id))
    return None if row is None else session_row(row)


def find_run(db: Database, run_id: str) -> RunRow | None:
    """Return a run."""
    row = db.one("SELECT * FROM runs WHERE id = ?", (run_id,))
    return None if row is None else run_row(row)


def open_runs(db: Database, session_id: str) -> list[RunRow]:
    """Return the session's runs without a terminal event, in order."""
    rows = db.execute(
        "SELECT * FROM runs WHERE session_id = ? AND outcome IS NULL ORDER BY position",
        (session_id,),
    )
    return [run_row(row) for row in rows]


def json_or_none(value: JsonObject | None) -> str | None:
    """Return what a JSON column that may be NULL holds."""
    return None if value is None else dump_json(value)


def boot_of(link: LinkRef) -> str:
    """Return what rows say that a link's process holds, or was sent."""
    return link.boot_hash or LEVEL_1_BOOT


def require_link(db: Database, link: LinkRef) -> None:
    """Check, first thing in a transaction, that *link* is still its VM's.

    Raises:
        LinkFenced: If it is not.
    """
    row = db.one(
        "SELECT epoch FROM user_vm_instances WHERE id = ? AND user_id = ?",
        (link.vm_id, link.user_id),
    )
    if row is None or row.integer("epoch") != link.epoch:
        raise LinkFenced("another link has taken the place of this one, or its VM was lost")
