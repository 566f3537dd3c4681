"""Cut a byte stream into JSON lines, with a bound on their length (protocol section 8)."""

from __future__ import annotations

from typing import Final, final

from semibot.errors import RemoteProtocolError
from semibot.wire.codec import JsonValue, dump_json

MAX_LINE_BYTES: Final = 1024 * 1024
"""Longest line, in bytes without its newline."""


def encode_line(value: JsonValue) -> bytes:
    """Return *value* as one UTF-8 line with its newline.

    Raises:
        LocalProtocolError: If JSON cannot say it.
    """
    return dump_json(value).encode() + b"\n"


@final
class LineFramer:
    """Collect bytes and hand out whole lines; does no I/O.

    Args:
        max_line_bytes: Longest line that is accepted, in bytes without its newline.
    """

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max = max_line_bytes
        self._pending = bytearray()
        self._scanned = 0

    def feed(self, data: bytes | bytearray) -> list[bytes]:
        """Take the next bytes and return the lines they complete, without newlines.

        Raises:
            RemoteProtocolError: If a line is longer than allowed. What was buffered is
                dropped; the stream cannot be read any further.
        """
        self._pending += data
        lines: list[bytes] = []
        start = 0
        while (end := self._pending.find(b"\n", max(start, self._scanned))) >= 0:
            if end - start > self._max:
                self._refuse()
            lines.append(bytes(self._pending[start:end]).removesuffix(b"\r"))
            start = end + 1
        del self._pending[:start]
        self._scanned = len(self._pending)
        if self._scanned > self._max:
            self._refuse()
        return lines

    def close(self) -> bytes | None:
        """Return what stands after the last newline, or None if nothing does."""
        rest = bytes(self._pending)
        self._pending.clear()
        self._scanned = 0
        return rest or None

    def _refuse(self) -> None:
        self._pending.clear()
        self._scanned = 0
        raise RemoteProtocolError(f"a line is longer than {self._max} bytes")
