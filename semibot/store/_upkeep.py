"""Looking after the database: answers that are remembered, what expires, whether it writes."""

from __future__ import annotations

from typing import Final

from semibot.errors import IdempotencyConflict
from semibot.store._database import Database
from semibot.store._reports import DAY_MS, KEPT_SNAPSHOTS
from semibot.wire.codec import JsonValue, dump_json, load_json

KEPT_COMMANDS_MS: Final = 30 * DAY_MS
"""How long a command that is done is kept, like the tombstone of a deleted session."""


def check(db: Database) -> None:
    """See :meth:`~semibot.store.base.Store.check`."""
    db.change(
        "INSERT INTO store_check (id, checked_at) VALUES (1, ?)"
        " ON CONFLICT (id) DO UPDATE SET checked_at = excluded.checked_at",
        (db.now(),),
    )


def remember_answer(
    db: Database, user_id: str, key: str, body_hash: str, answer: JsonValue
) -> JsonValue:
    """See :meth:`~semibot.store.base.Store.remember_answer`."""
    text = dump_json(answer)
    db.change(
        "DELETE FROM idempotency_keys WHERE user_id = ? AND key = ? AND expires_at <= ?",
        (user_id, key, db.now()),
    )
    db.change(
        "INSERT INTO idempotency_keys (user_id, key, body_hash, answer, expires_at)"
        " VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (user_id, key, body_hash, text, db.now() + DAY_MS),
    )
    row = db.execute(
        "SELECT body_hash, answer FROM idempotency_keys WHERE user_id = ? AND key = ?",
        (user_id, key),
    )[0]
    # The key of a message that was sent has a run instead of an answer: another request.
    if row.text("body_hash") != body_hash or row.is_null("answer"):
        raise IdempotencyConflict("this Idempotency-Key came with another request before")
    return load_json(row.text("answer"))


def prune(db: Database) -> None:
    """See :meth:`~semibot.store.base.Store.prune`; done commands go after 30 days as well.

    The newest ticket of a row that is not history stays, because a level 1 VM may come back as
    long as it is spent.
    """
    now = db.now()
    db.change("DELETE FROM tombstones WHERE expires_at <= ?", (now,))
    db.change("DELETE FROM idempotency_keys WHERE expires_at <= ?", (now,))
    db.change(
        "DELETE FROM vm_tickets WHERE expires_at <= ? AND NOT EXISTS"
        " (SELECT 1 FROM user_vm_instances AS vm WHERE vm.id = vm_id"
        " AND vm.attempt = vm_tickets.attempt AND vm.status NOT IN ('failed', 'terminated'))",
        (now,),
    )
    db.change(
        "DELETE FROM commands WHERE is_done = 1 AND created_at <= ?", (now - KEPT_COMMANDS_MS,)
    )
    db.change(
        "DELETE FROM session_snapshots WHERE (session_id, term, covers_seq) IN"
        " (SELECT session_id, term, covers_seq FROM (SELECT session_id, term, covers_seq,"
        " row_number() OVER (PARTITION BY session_id ORDER BY term DESC, covers_seq DESC) AS age"
        " FROM session_snapshots) WHERE age > ?)",
        (KEPT_SNAPSHOTS,),
    )
