"""Say in one event everything that a reader needs to begin anew (protocol section 7)."""

from __future__ import annotations

from typing import Final

from semibot.store.base import MessageRow, ResyncView
from semibot.wire.codec import JsonObject, dump_json
from semibot.wire.sse import EventId, encode_sse

RESYNC_BYTES: Final = 1024 * 1024
"""Most bytes of a ``resync``."""


def encode_resync(view: ResyncView, max_bytes: int = RESYNC_BYTES) -> bytes:
    """Return *view* as an event; what does not fit is left out, oldest messages first.

    Args:
        view: The state of a session.
        max_bytes: Most bytes of the result; at least 1 KiB.
    """
    messages = [_message(row) for row in view.messages]
    run = view.run
    frame = _encode(view, messages, run, is_truncated=view.truncated)
    if len(frame) <= max_bytes:
        return frame
    excess = len(frame) - max_bytes
    for count, message in enumerate(messages):
        if excess <= 0:
            del messages[:count]
            break
        excess -= len(dump_json(message).encode())
    else:
        messages.clear()
    if excess > 0 and run is not None:
        run = _shorten(run, excess)
    return _encode(view, messages, run, is_truncated=True)


def _message(row: MessageRow) -> JsonObject:
    return {
        "id": row.id,
        "run_id": row.run_id,
        "role": row.role,
        "content": row.content,
        "metadata": row.metadata,
        "created_at": row.created_at,
    }


def _shorten(run: JsonObject, excess: int) -> JsonObject:
    """Return *run* at least *excess* bytes shorter, if it has as many.

    First goes the beginning of its text, as readers append to the end, then its open calls.
    """
    text = run.get("text")
    text = text if isinstance(text, str) else ""
    room = _size(text) - excess
    if room < 0:
        return {**run, "text": "", "open_calls": ()}
    text = text[max(0, len(text) - room) :]  # a character takes at least one byte
    while _size(text) > room:
        text = text[len(text) // 8 + 1 :]
    return {**run, "text": text}


def _size(text: str) -> int:
    """Return how many bytes *text* takes inside a JSON string."""
    return len(dump_json(text).encode()) - len('""')


def _encode(
    view: ResyncView, messages: list[JsonObject], run: JsonObject | None, *, is_truncated: bool
) -> bytes:
    data = dump_json(
        {"type": "resync", "messages": messages, "run": run, "truncated": is_truncated}
    )
    return encode_sse(EventId(view.term, view.last_seq), "message", data)
