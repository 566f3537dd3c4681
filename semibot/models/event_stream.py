"""Read server-sent events from bytes, with a bound on their size. Does no I/O."""

from __future__ import annotations

from typing import Final, final

import attrs

from semibot.errors import RemoteProtocolError
from semibot.wire.jsonl import LineFramer

MAX_EVENT_BYTES: Final = 1024 * 1024
"""Longest data of one event, in bytes."""


@attrs.frozen(kw_only=True)
class ServerEvent:
    """One event of the stream."""

    data: bytes
    """The event's data lines, joined by newlines."""
    name: str = "message"
    """The event's type."""


@final
class EventStreamReader:
    """Collect bytes and hand out whole events. An event cut off by the end is dropped.

    Args:
        max_event_bytes: Longest data of one event that is accepted, in bytes.
    """

    def __init__(self, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max = max_event_bytes
        self._framer = LineFramer(max_event_bytes)
        self._name = ""
        self._lines: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> list[ServerEvent]:
        """Take the next bytes and return the events that they complete.

        Raises:
            RemoteProtocolError: If an event is too long; the stream cannot be read on.
        """
        events: list[ServerEvent] = []
        for line in self._framer.feed(data):
            if line:
                self._take(line)
            elif self._lines:
                events.append(
                    ServerEvent(data=b"\n".join(self._lines), name=self._name or "message")
                )
                self._lines, self._name, self._size = [], "", 0
        return events

    def _take(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._size += len(value)
            if self._size > self._max:
                raise RemoteProtocolError(f"an event is longer than {self._max} bytes")
            self._lines.append(value)
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")
