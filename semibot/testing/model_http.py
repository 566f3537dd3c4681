"""The little of HTTP/1.1 that a fake server on a loopback socket needs."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Final, final

import attrs
import trio

from semibot.errors import RemoteProtocolError

MAX_HEAD_BYTES: Final = 64 * 1024
"""Longest head of a request, in bytes."""

MAX_BODY_BYTES: Final = 64 * 1024 * 1024
"""Longest body of a request, in bytes."""


@attrs.frozen(kw_only=True)
class HttpRequest:
    """A request with its whole body."""

    method: str
    """Such as ``POST``."""
    path: str
    """Such as ``/v1/chat/completions``."""
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes
    """The body."""


@final
@attrs.define(eq=False)
class Connection:
    """One connection to a fake server, and what became of it."""

    opened_at: float
    """Trio's clock when it was accepted."""
    peer_closed: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when the peer's end of the connection is seen."""
    peer_closed_at: float | None = attrs.field(default=None, init=False)
    """Trio's clock when that was."""
    was_reset: bool = attrs.field(default=False, init=False)
    """Whether the peer reset the connection, and did not end it in order."""

    def note_close(self, *, was_reset: bool) -> None:
        """Note that the peer's end was seen."""
        self.was_reset = was_reset
        self.peer_closed_at = trio.current_time()
        self.peer_closed.set()


@final
@attrs.define(eq=False)
class HttpPeer:
    """The server's end of one connection, read by a task of its own.

    Reading never pauses, which is how a close is noticed at once, in the middle of an
    answer too.
    """

    connection: Connection
    """What becomes of the connection."""
    _stream: trio.SocketStream
    _arrived: trio.MemoryReceiveChannel[bytes]
    _buffer: bytearray = attrs.field(factory=bytearray, init=False)

    async def next_request(self) -> HttpRequest | None:
        """Return the next request, or None if the peer sends no more.

        Raises:
            RemoteProtocolError: If it is not HTTP, or too long.
        """
        head = await self._read_head()
        if head is None:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3:
            raise RemoteProtocolError("a request line has three words")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines)
        }
        body = await self._read_body(headers)
        return HttpRequest(method=words[0], path=words[1], headers=headers, body=body)

    async def send_head(
        self, status: int, headers: Mapping[str, str], *, length: int | None = None
    ) -> None:
        """Send the head of an answer.

        Args:
            status: The status.
            headers: The headers.
            length: Length of the body in bytes; None if it is not known.
        """
        phrase = HTTPStatus(status).phrase
        lines = [f"HTTP/1.1 {status} {phrase}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if length is not None:
            lines.append(f"content-length: {length}")
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def send(self, data: bytes) -> None:
        """Send bytes.

        Raises:
            trio.BrokenResourceError: If the peer is gone.
        """
        await self._stream.send_all(data)

    async def cut(self, *, is_reset: bool) -> None:
        """Close the connection now.

        Args:
            is_reset: Whether the peer sees a reset and not an orderly end.
        """
        if is_reset:
            # A linger time of zero makes the close an RST.
            self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self._stream.aclose()

    async def _read_head(self) -> bytes | None:
        while True:
            head, separator, rest = self._buffer.partition(b"\r\n\r\n")
            if separator:
                self._buffer = rest
                return bytes(head)
            if len(head) > MAX_HEAD_BYTES:
                raise RemoteProtocolError("the head of a request is too long")
            if not await self._read_more():
                return None

    async def _read_body(self, headers: Mapping[str, str]) -> bytes:
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            raise RemoteProtocolError("the length of a request is malformed or too long")
        if "transfer-encoding" in headers:
            raise RemoteProtocolError("the fake server reads no chunked requests")
        while len(self._buffer) < int(length):
            if not await self._read_more():
                raise RemoteProtocolError("a request was cut off")
        body = bytes(self._buffer[: int(length)])
        del self._buffer[: int(length)]
        return body

    async def _read_more(self) -> bool:
        try:
            self._buffer += await self._arrived.receive()
        except trio.EndOfChannel:
            return False
        return True


@asynccontextmanager
async def open_http_peer(
    stream: trio.SocketStream, connection: Connection
) -> AsyncGenerator[HttpPeer]:
    """Read *stream* in a task of its own. Leaving the block closes it at once.

    Args:
        stream: An accepted connection.
        connection: Where to note what becomes of it.

    Yields:
        The server's end.
    """
    # Without a bound: a reader that waits for space would not see the peer close.
    sender, receiver = trio.open_memory_channel[bytes](float("inf"))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_reading, stream, sender, connection)
        try:
            yield HttpPeer(connection, stream, receiver)
        finally:
            nursery.cancel_scope.cancel()
            stream.socket.close()  # without a checkpoint, which would swallow the body's error


async def _keep_reading(
    stream: trio.SocketStream, sender: trio.MemorySendChannel[bytes], connection: Connection
) -> None:
    with sender:
        try:
            while data := await stream.receive_some():
                sender.send_nowait(bytes(data))
        except trio.ClosedResourceError:  # we closed it ourselves
            return
        except trio.BrokenResourceError:
            connection.note_close(was_reset=True)
        else:
            connection.note_close(was_reset=False)
