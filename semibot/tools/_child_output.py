"""Keep a bounded part of what a child says, however much that is."""

from __future__ import annotations

from contextlib import suppress
from typing import final

import trio

from semibot.ports import ByteReceiver


@final
class Tail:
    """The newest bytes of a stream.

    Args:
        limit: How many are kept, in bytes, at least 1.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()

    def add(self, data: bytes | bytearray) -> None:
        """Take the next bytes."""
        self._kept += data
        del self._kept[: -self._limit]

    def content(self) -> bytes:
        """Return what is kept."""
        return bytes(self._kept)


@final
class Head:
    """The first bytes of a stream.

    Args:
        limit: How many are kept, in bytes.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()
        self.is_truncated = False
        """Whether there were more than are kept."""

    def add(self, data: bytes | bytearray) -> None:
        """Take the next bytes."""
        room = self._limit - len(self._kept)
        self._kept += data[:room]
        self.is_truncated = self.is_truncated or len(data) > room

    def content(self) -> bytes:
        """Return what is kept."""
        return bytes(self._kept)


async def empty(stream: ByteReceiver, *sinks: Tail | Head) -> None:
    """Read *stream* to its end, so that whoever writes to it is never held up.

    Args:
        stream: The stream; closed by somebody else counts as ended.
        *sinks: Who gets to see the bytes.
    """
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while data := await stream.receive_some():
            for sink in sinks:
                sink.add(data)
