"""Server-sent events: event ids, what readers are sent, and how to read it (protocol section 7).

Writing and reading follow the event-stream format of the HTML standard. No I/O.
"""

from __future__ import annotations

import re
from typing import Final, Self, final

import attrs

from semibot.errors import LocalProtocolError, RemoteProtocolError

from .events import ExecutionComplete, ExecutionError

MAX_EVENT_BYTES: Final = 1024 * 1024
"""Longest data of one event, in bytes."""

KEEPALIVE: Final = b": keepalive\n\n"
"""A comment; says that the connection lives."""

_ID: Final = re.compile(r"([0-9]{1,9})-([0-9]{1,18})")
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_TERMINAL: Final = frozenset({ExecutionComplete.type, ExecutionError.type})


@attrs.frozen(order=True)
class EventId:
    """The id of an event: which number, under which term. A later event has a greater id."""

    term: int
    """Fencing counter of the session, at least 1."""
    seq: int
    """Number of the event, from 1; 0 stands before the first."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the id that *text* says, such as ``2-17``.

        Raises:
            RemoteProtocolError: If it is none.
        """
        match = _ID.fullmatch(text)
        if match is None:
            raise RemoteProtocolError("not an event id, which looks like 1-23")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        """Return the id as it stands on the wire."""
        return f"{self.term}-{self.seq}"


# --- writing --------------------------------------------------------------------------


def sse_name(event_type: str) -> str:
    """Return under which name readers get an event: terminal events have their own."""
    return event_type if event_type in _TERMINAL else "message"


def encode_sse(event_id: EventId | None, name: str, data: str) -> bytes:
    """Return one event as bytes of the stream.

    Args:
        event_id: What a reader repeats as ``Last-Event-ID``; None leaves the last one.
        name: The event's name, from :func:`sse_name`.
        data: The event as JSON text; line ends in it become further ``data:`` lines.

    Raises:
        LocalProtocolError: If *name* contains a line end, or something is no Unicode.
    """
    if name != "message" and _LINE_END.search(name):
        raise LocalProtocolError("the name of an event is one line")
    if "\n" in data or "\r" in data:
        data = _LINE_END.sub("\ndata: ", data)
    start = "" if event_id is None else f"id: {event_id.term}-{event_id.seq}\n"
    try:
        return f"{start}event: {name}\ndata: {data}\n\n".encode()
    except UnicodeEncodeError as exc:
        raise LocalProtocolError("an event with a lone surrogate cannot be sent") from exc


def retry_line(milliseconds: int) -> bytes:
    """Return what tells a reader how long to wait before it connects again."""
    return f"retry: {milliseconds}\n\n".encode()


# --- reading --------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class SseMessage:
    """One event of a stream."""

    data: bytes
    """The data lines as they came, UTF-8 by the standard, joined by newlines."""
    event: str = "message"
    """The event's name."""
    id: str = ""
    """Id of this event or, if it has none, of the last one that had; empty if none had."""
    retry: int | None = None
    """How long to wait before connecting again, in milliseconds, as last said."""


@final
class SseDecoder:
    """Collect bytes of a stream and hand out whole events; one cut off by the end is dropped.

    Args:
        max_event_bytes: Longest data of one event that is accepted, in bytes. No line may
            be much longer either.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._start: bytes | None = b""  # until it is clear whether the stream begins with a BOM
        self._line = bytearray()  # what there is of the line that is not complete
        self._has_ended_in_cr = False
        self._id = ""
        self._retry: int | None = None
        self._event = ""
        self._lines: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes | bytearray) -> list[SseMessage]:
        """Take the next bytes and return the events that they complete.

        Raises:
            RemoteProtocolError: If an event or a line is too long; the stream cannot be
                read on.
        """
        chunk = self._without_bom(bytes(data))
        if chunk and self._has_ended_in_cr:
            chunk = chunk.removeprefix(b"\n")  # the other half of a CRLF
            self._has_ended_in_cr = False
        messages: list[SseMessage] = []
        for piece in chunk.splitlines(keepends=True):
            content = piece.rstrip(b"\r\n")
            self._line += content
            if len(self._line) > self._max + _LONGEST_FIELD:
                raise RemoteProtocolError(f"a line is longer than {self._max} bytes")
            if len(content) < len(piece):
                line = bytes(self._line)
                self._line.clear()
                self._take(line, messages)
        self._has_ended_in_cr = self._has_ended_in_cr or chunk.endswith(b"\r")
        return messages

    def _without_bom(self, data: bytes) -> bytes:
        if self._start is None:
            return data
        start = self._start + data
        if len(start) < len(_BOM) and _BOM.startswith(start):
            self._start = start
            return b""
        self._start = None
        return start.removeprefix(_BOM)

    def _take(self, line: bytes, messages: list[SseMessage]) -> None:
        if not line:
            self._dispatch(messages)
            return
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        match field:
            case b"data":
                self._size += len(value) + bool(self._lines)
                if self._size > self._max:
                    raise RemoteProtocolError(f"an event is longer than {self._max} bytes")
                self._lines.append(value)
            case b"event":
                self._event = value.decode("utf-8", "replace")
            case b"id" if b"\0" not in value:
                self._id = value.decode("utf-8", "replace")
            case b"retry" if value.isdigit() and len(value) <= _LONGEST_RETRY:
                self._retry = int(value)
            case _:  # a comment, or a field that nobody knows
                pass

    def _dispatch(self, messages: list[SseMessage]) -> None:
        if self._lines:
            messages.append(
                SseMessage(
                    data=b"\n".join(self._lines),
                    event=self._event or "message",
                    id=self._id,
                    retry=self._retry,
                )
            )
        self._lines, self._event, self._size = [], "", 0


_BOM: Final = b"\xef\xbb\xbf"
_LONGEST_FIELD: Final = len(b"data: ")
_LONGEST_RETRY: Final = 9
