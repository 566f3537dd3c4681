"""What people and models read of a conversation: pages, history, events, and how to begin anew.

Theory of operation. Messages are ordered by run, the question before the answer, and not by when
they were stored: a message that waits was stored before the answer to the one it waits for.

Every event id that is given out is ``<term>-<seq>`` *of that event*: the term it was committed
in, not the session's present one. The term rises without an event, and an id with the new term
and an old number would be an id of no event; after another rise it would lie beyond the end of
its term (:func:`term_end`), and its reader would be told to begin anew for nothing. Only before
the first event there is no such term, and the session's own stands with number 0. So whoever
joins with an id from here gets exactly what comes after that event, whatever happens to the term.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Final

import attrs

from semibot.errors import NotFound
from semibot.wire.codec import JsonObject, JsonValue, dump_json

from ._cursors import make_cursor, read_cursor
from ._database import Database, Row
from ._rows import event_row, find_session, find_session_of, message_row, session_row
from ._runs import event_fields, text_of_run
from .base import (
    MessageRow,
    MessagesPage,
    ResyncView,
    SessionRow,
    SessionsPage,
    StoredEvent,
)

EVENTS_AT_ONCE: Final = 64
"""Most events that are fetched at a time where their sizes decide how many are wanted."""

FIRST_EVENTS: Final = 2
"""Events that are fetched before anything is known of their sizes; one may have 1 MiB."""

MESSAGES_AT_ONCE: Final = 16
"""The same for messages, which are longer."""

LAST_POSITION: Final = 2**63 - 1
"""Beyond every message of a session."""

MESSAGE_FRAME: Final = 64
"""Bytes that a message may take for names and punctuation beyond what is counted."""

VIEW_FRAME: Final = 256
"""Bytes that what a reader gets may take beyond its messages and its run."""


# --- pages ----------------------------------------------------------------------------


def list_sessions(db: Database, user_id: str, cursor: str | None, limit: int) -> SessionsPage:
    """See :meth:`~semibot.store.base.Store.list_sessions`."""
    before, after_id = (None, "") if cursor is None else read_cursor("sessions", cursor)
    rows = db.execute(
        "SELECT * FROM sessions WHERE user_id = ?"
        " AND (? IS NULL OR updated_at < ? OR (updated_at = ? AND id > ?))"
        " ORDER BY updated_at DESC, id LIMIT ?",
        (user_id, before, before, before, after_id, limit + 1),
    )
    sessions = tuple(session_row(row) for row in rows[:limit])
    has_more = len(rows) > limit
    return SessionsPage(
        sessions=sessions,
        next_cursor=make_cursor("sessions", sessions[-1].updated_at, sessions[-1].id)
        if has_more
        else None,
    )


def list_messages(
    db: Database, user_id: str, session_id: str, cursor: str | None, limit: int
) -> MessagesPage:
    """See :meth:`~semibot.store.base.Store.list_messages`."""
    session = find_session_of(db, user_id, session_id)
    if session is None:
        raise NotFound(f"there is no session {session_id}")
    before = None if cursor is None else read_cursor("messages", cursor)[0]
    rows = db.execute(
        "SELECT * FROM messages WHERE session_id = ? AND (? IS NULL OR position < ?)"
        " ORDER BY position DESC LIMIT ?",
        (session_id, before, before, limit + 1),
    )
    page = rows[:limit]
    has_more = len(rows) > limit
    return MessagesPage(
        messages=tuple(message_row(row) for row in reversed(page)),
        next_cursor=make_cursor("messages", page[-1].integer("position")) if has_more else None,
        last_event_id=_covered_event_id(db, session),
    )


def _covered_event_id(db: Database, session: SessionRow) -> str:
    run = _begun_run(db, session.id)
    seq = session.last_seq if run is None else run.integer("first_seq") - 1
    return f"{_term_of(db, session, seq)}-{seq}"


def _begun_run(db: Database, session_id: str) -> Row | None:
    """Return the oldest run that has begun and not ended."""
    return db.one(
        "SELECT * FROM runs WHERE session_id = ? AND outcome IS NULL AND first_seq IS NOT NULL"
        " ORDER BY position LIMIT 1",
        (session_id,),
    )


def _term_of(db: Database, session: SessionRow, seq: int) -> int:
    """Return the term of a committed event; before the first, the session's own."""
    row = db.one("SELECT term FROM events WHERE session_id = ? AND seq = ?", (session.id, seq))
    return session.term if row is None else row.integer("term")


# --- history --------------------------------------------------------------------------


def read_history(
    db: Database, session_id: str, run_id: str, max_bytes: int
) -> tuple[JsonObject, ...]:
    """See :meth:`~semibot.store.base.Store.read_history`.

    The message of *run_id* is there even if it does not fit; answers without a text are left
    out; nothing that does not fit is skipped to get at something older. Empty for a run that
    does not exist.
    """
    newest = db.one(
        "SELECT position FROM messages WHERE session_id = ? AND run_id = ? AND role = 'user'",
        (session_id, run_id),
    )
    if newest is None:
        return ()
    history: list[JsonObject] = []
    room = max_bytes
    for row in _messages_back(db, session_id, newest.integer("position")):
        item: JsonObject = {"role": row.text("role"), "content": row.text("content")}
        room -= _size(item) + 1
        if room < 0 and history:
            break
        if item["content"]:
            history.append(item)
    return tuple(reversed(history))


def _messages_back(db: Database, session_id: str, position: int) -> Iterator[Row]:
    """Return messages from *position* backwards, fetched as they are asked for."""
    while True:
        rows = db.execute(
            "SELECT * FROM messages WHERE session_id = ? AND position <= ?"
            " ORDER BY position DESC LIMIT ?",
            (session_id, position, MESSAGES_AT_ONCE),
        )
        yield from rows
        if len(rows) < MESSAGES_AT_ONCE:
            return
        position = rows[-1].integer("position") - 1


def _size(value: JsonValue) -> int:
    """Return how many bytes *value* has on the wire."""
    return len(dump_json(value).encode())


# --- events ---------------------------------------------------------------------------


def tail_start(db: Database, session_id: str) -> tuple[int, int] | None:
    """See :meth:`~semibot.store.base.Store.tail_start`; the term is the session's present one."""
    session = find_session(db, session_id)
    return None if session is None else (session.term, session.last_seq)


def term_end(db: Database, session_id: str, term: int) -> int:
    """See :meth:`~semibot.store.base.Store.term_end`.

    Found by bisection: terms never fall from one number to the next, and an index of them
    would cost every event of every session as much as its own row does.
    """
    session = find_session(db, session_id)
    if session is None:
        return 0
    first, last = 0, session.last_seq  # the end is among these; 0 stands for none
    while first < last:
        middle = (first + last + 1) // 2
        if _term_of(db, session, middle) <= term:
            first = middle
        else:
            last = middle - 1
    return first if first and _term_of(db, session, first) == term else 0


def read_events(
    db: Database, session_id: str, after_seq: int, max_bytes: int
) -> tuple[StoredEvent, ...]:
    """See :meth:`~semibot.store.base.Store.read_events`; sizes are those of ``data``."""
    events: list[StoredEvent] = []
    room = max_bytes
    at_once = FIRST_EVENTS
    while True:
        rows = db.execute(
            "SELECT * FROM events WHERE session_id = ? AND seq > ? ORDER BY seq LIMIT ?",
            (session_id, after_seq, at_once),
        )
        for row in rows:
            event = event_row(row)
            room -= len(event.data.encode())
            if room < 0 and events:
                return tuple(events)
            events.append(event)
            after_seq = event.seq
        if len(rows) < at_once or room <= 0:
            return tuple(events)
        # As many as will fit if they are like those so far: what is too much is read in vain.
        usual = (max_bytes - room) // len(events) + 1
        at_once = min(EVENTS_AT_ONCE, room // usual + 1)


# --- resync ---------------------------------------------------------------------------


def resync_view(db: Database, session_id: str, max_bytes: int) -> ResyncView | None:
    """See :meth:`~semibot.store.base.Store.resync_view`.

    ``term`` is that of the event ``last_seq``, as in every event id. The open run may take half
    of *max_bytes*, of which its text gets what its open calls leave; of both the end is kept.
    Messages get the rest, newest first. If not even the newest fits, its beginning is kept,
    with ``truncated`` in its ``metadata``.
    """
    session = find_session(db, session_id)
    if session is None:
        return None
    room = max_bytes - VIEW_FRAME
    run, run_size, is_run_cut = _view_run(db, session_id, room // 2)
    messages, is_cut = _view_messages(db, session_id, room - run_size)
    return ResyncView(
        term=_term_of(db, session, session.last_seq),
        last_seq=session.last_seq,
        messages=messages,
        run=run,
        truncated=is_run_cut or is_cut,
    )


def _view_run(db: Database, session_id: str, room: int) -> tuple[JsonObject | None, int, bool]:
    """Return the open run as far as it fits, its size in bytes, and whether it was cut."""
    row = _begun_run(db, session_id)
    if row is None:
        return None, 0, False
    run_id, first_seq = row.text("id"), row.integer("first_seq")
    calls = _open_calls(db, session_id, run_id, first_seq)
    kept = len(calls)
    while kept and _size(calls[-kept:]) > room // 2:
        kept //= 2
    whole_text = text_of_run(db, session_id, run_id, first_seq)
    run: dict[str, JsonValue] = {
        "run_id": run_id,
        "message_id": row.text("message_id"),
        "text": "",
        "open_calls": calls[len(calls) - kept :],
    }
    text = _longest_that_fits(
        whole_text, room - _size(run), lambda length: whole_text[len(whole_text) - length :]
    )
    run["text"] = text
    return run, _size(run), kept < len(calls) or len(text) < len(whole_text)


def _open_calls(db: Database, session_id: str, run_id: str, first_seq: int) -> list[JsonObject]:
    rows = db.execute(
        "SELECT type, data FROM events WHERE session_id = ? AND seq >= ? AND run_id = ?"
        " AND type IN ('tool_call_start', 'tool_call_complete') ORDER BY seq",
        (session_id, first_seq, run_id),
    )
    calls: dict[str, JsonObject] = {}
    for row in rows:
        fields = event_fields(row.text("data"))
        call_id, tool_name = fields.get("call_id"), fields.get("tool_name")
        if not isinstance(call_id, str):
            continue
        if row.text("type") == "tool_call_complete":
            calls.pop(call_id, None)
        elif isinstance(tool_name, str):
            calls[call_id] = {"call_id": call_id, "tool_name": tool_name}
    return list(calls.values())


def _view_messages(db: Database, session_id: str, room: int) -> tuple[tuple[MessageRow, ...], bool]:
    messages: list[MessageRow] = []
    for row in _messages_back(db, session_id, LAST_POSITION):
        message = message_row(row)
        size = _size_of_message(message)
        if size > room:
            if not messages:
                messages.append(_cut(message, room))
            return tuple(reversed(messages)), True
        room -= size
        messages.append(message)
    return tuple(reversed(messages)), False


def _size_of_message(message: MessageRow) -> int:
    parts: list[JsonValue] = [
        message.id,
        message.run_id,
        message.role,
        message.content,
        message.metadata,
        message.created_at,
    ]
    return _size(parts) + MESSAGE_FRAME


def _cut(message: MessageRow, room: int) -> MessageRow:
    metadata = {**message.metadata, "truncated": True}
    frame = _size_of_message(attrs.evolve(message, content="", metadata=metadata))
    content = _longest_that_fits(
        message.content, room - frame, lambda length: message.content[:length]
    )
    return attrs.evolve(message, content=content, metadata=metadata)


def _longest_that_fits(text: str, room: int, piece: Callable[[int], str]) -> str:
    """Return the longest ``piece(length)`` of *text* that takes at most *room* bytes in JSON."""
    lengths = range(min(len(text), max(room, 0)) + 1)  # a character takes at least one byte
    count = bisect_right(lengths, room + 2, key=lambda length: _size(piece(length)))
    return piece(max(count - 1, 0))
