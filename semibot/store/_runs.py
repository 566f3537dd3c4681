"""What an event does to its run: its beginning, its end, and the answer that it gave.

Events come from a VM (``_intake``) or, where no VM can say them, from the host
(``_losses``, ``_sessions``). Both ways meet here, so that a run ends in one way only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Final, cast

from semibot.errors import RemoteProtocolError
from semibot.wire.codec import JsonObject, JsonValue, dump_json, load_json, scrub
from semibot.wire.events import (
    ExecutionComplete,
    ExecutionError,
    RunStarted,
    SessionEvent,
    encode_event,
)
from semibot.wire.receipts import Outcome

from ._database import Database
from .base import RunRow, StoredEvent

TERMINAL_TYPES: Final = frozenset({ExecutionComplete.type, ExecutionError.type})
"""Types of the events that end a run."""

INTERRUPTED_CODES: Final = frozenset({"INTERRUPTED", "EXECUTION_PLANE_DISCONNECTED"})
"""Codes of the errors that say that a VM or a host went away."""

_ACTING_TYPES: Final = TERMINAL_TYPES | {RunStarted.type}


def insert_event(db: Database, session_id: str, event: StoredEvent) -> None:
    """Insert an event that has the session's next number, and let it act on its run.

    ``sessions.last_seq`` is the caller's to move, once for all events of a transaction.
    """
    insert_events(db, session_id, (event,))


def insert_events(db: Database, session_id: str, events: Sequence[StoredEvent]) -> None:
    """Insert events that have the session's next numbers, and let them act on their runs.

    ``sessions.last_seq`` is the caller's to move, once for all events of a transaction.
    """
    db.change_many(
        "INSERT INTO events (session_id, seq, term, run_id, type, data) VALUES (?, ?, ?, ?, ?, ?)",
        [
            (session_id, event.seq, event.term, event.run_id, event.type, event.data)
            for event in events
        ],
    )
    for event in events:
        if event.type in _ACTING_TYPES:
            _act_on_run(db, session_id, event)


def _act_on_run(db: Database, session_id: str, event: StoredEvent) -> None:
    if event.type == RunStarted.type:
        db.change(
            "UPDATE runs SET first_seq = ? WHERE id = ? AND session_id = ? AND first_seq IS NULL",
            (event.seq, event.run_id, session_id),
        )
    else:
        _end_run(db, session_id, event)


def insert_host_events(
    db: Database, session_id: str, run: RunRow, end: ExecutionComplete | ExecutionError
) -> tuple[StoredEvent, ...]:
    """End a run in the host's name: ``run_started`` if it is missing, then *end*.

    The events get the session's next numbers, in its present term.
    """
    events: list[SessionEvent] = [end]
    if run.first_seq is None:
        events.insert(0, _question(db, run))
    place = db.execute("SELECT term, last_seq FROM sessions WHERE id = ?", (session_id,))[0]
    inserted = tuple(
        StoredEvent(
            term=place.integer("term"),
            seq=place.integer("last_seq") + index,
            run_id=run.id,
            type=event.type,
            data=encode_event(event),
        )
        for index, event in enumerate(events, 1)
    )
    for event in inserted:
        insert_event(db, session_id, event)
    move_end(db, session_id, inserted[-1].seq)
    return inserted


def move_end(db: Database, session_id: str, last_seq: int) -> None:
    """Note the session's committed maximum, and that something happened in it."""
    db.change(
        "UPDATE sessions SET last_seq = ?, updated_at = ? WHERE id = ?",
        (last_seq, db.now(), session_id),
    )


def event_fields(data: str) -> JsonObject:
    """Return what an event says; nothing, if that is no JSON object."""
    try:
        value = load_json(data)
    except RemoteProtocolError:
        return {}
    return value if isinstance(value, Mapping) else {}


def text_of_run(db: Database, session_id: str, run_id: str, first_seq: int) -> str:
    """Return the text chunks of a run from *first_seq* on, joined: the answer, or its beginning."""
    rows = db.execute(
        "SELECT data FROM events "
        "WHERE session_id = ? AND seq >= ? AND run_id = ? AND type = 'text_chunk' ORDER BY seq",
        (session_id, first_seq, run_id),
    )
    return scrub("".join(_content(row.text("data")) for row in rows))


def _content(data: str) -> str:
    # The codec's checks cost ten times as much, and a long answer has thousands of chunks.
    try:
        value = cast("object", json.loads(data))
    except (ValueError, RecursionError):
        return ""
    content = cast("dict[str, object]", value).get("content") if isinstance(value, dict) else None
    return content if isinstance(content, str) else ""


def _question(db: Database, run: RunRow) -> RunStarted:
    row = db.one("SELECT content FROM messages WHERE id = ?", (run.message_id,))
    message = "" if row is None else row.text("content")
    return RunStarted(run_id=run.id, message_id=run.message_id, message=message)


def _end_run(db: Database, session_id: str, event: StoredEvent) -> None:
    run = db.one(
        "SELECT position, first_seq FROM runs WHERE id = ? AND session_id = ? AND outcome IS NULL",
        (event.run_id, session_id),
    )
    if run is None:  # nobody's run: the event is kept, and ends nothing
        return
    fields = event_fields(event.data)
    outcome = _outcome(event.type, fields)
    db.change(
        "UPDATE runs SET outcome = ?, last_seq = ? WHERE id = ?",
        (outcome, event.seq, event.run_id),
    )
    db.change(  # whether or not the VM has said so: its message has taken effect
        "UPDATE commands SET is_done = 1"
        " WHERE session_id = ? AND run_id = ? AND kind = 'user_message' AND is_done = 0",
        (session_id, event.run_id),
    )
    text = text_of_run(db, session_id, event.run_id, run.integer_or_none("first_seq") or 1)
    if not text:
        text = _text(fields, "final_response") or _text(fields, "partial_response")
    db.change(
        "INSERT INTO messages (id, session_id, position, run_id, role, content, metadata,"
        " created_at) VALUES (?, ?, ?, ?, 'assistant', ?, ?, ?)",
        (
            f"{event.run_id}.answer",
            session_id,
            2 * run.integer("position") + 1,
            event.run_id,
            text,
            dump_json(_answer_metadata(event, outcome, fields)),
            db.now(),
        ),
    )


def _outcome(event_type: str, fields: JsonObject) -> Outcome:
    if event_type == ExecutionComplete.type:
        return "cancelled" if fields.get("cancelled") is True else "completed"
    code = fields.get("code")
    if code == "DEADLINE_EXCEEDED":
        return "timeout"
    return "interrupted" if code in INTERRUPTED_CODES else "failed"


def _answer_metadata(event: StoredEvent, outcome: Outcome, fields: JsonObject) -> JsonObject:
    metadata: dict[str, JsonValue] = {"outcome": outcome}
    if isinstance(fields.get("usage"), Mapping):
        metadata["usage"] = fields["usage"]
    if event.type == ExecutionError.type:
        metadata["error"] = {
            "code": _text(fields, "code"),
            "message": _text(fields, "error"),
            "retryable": fields.get("retryable") is True,
        }
    return metadata


def _text(fields: JsonObject, name: str) -> str:
    value = fields.get(name)
    return value if isinstance(value, str) else ""
