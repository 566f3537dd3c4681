"""One WebSocket over a connection that was dialled; the only user of ``trio_websocket``.

The library leaves four things to us. It does not look at pongs, so the stream below it
notes when bytes arrived. A send that is cancelled leaves half a frame behind, so the stream
breaks itself off then. Its closing handshake waits for ever, so ours has a grace. And it
counts characters where the protocol counts bytes.
"""

from __future__ import annotations

import struct
import typing
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, NoReturn, final

import trio
import trio_websocket

from semibot.lifetimes import grace, open_services
from semibot.logs import get_logger
from semibot.ports import ByteStream
from semibot.wire.frames import MAX_FRAME_BYTES
from semibot.wire.outgoing import utf8_size

log: Final = get_logger(__name__)

ABNORMAL: Final = 1006
"""Close code that stands for "no close code" (RFC 6455)."""

_RECEIVE_BYTES: Final = 64 * 1024
_QUEUED_MESSAGES: Final = 4
_LAST_WORDS: Final = 1.0  # what a broken connection gets to tell why, in seconds


class LinkEnded(Exception):
    """Raised when a link is over, for whatever reason; it never leaves the channel.

    Attributes:
        code: The close code, of the host or our own; :data:`ABNORMAL` if there is none.
        reason: What happened.
        is_from_host: Whether the host said so.
    """

    def __init__(self, code: int, reason: str, *, is_from_host: bool = False) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason
        self.is_from_host = is_from_host

    def __str__(self) -> str:
        code = "" if self.code == ABNORMAL else f" (close code {self.code})"
        return f"{self.reason}{code}"


@final
class _WatchedStream(trio.abc.Stream):
    """A connection that notes when it last heard something, and never sends half a frame."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self.heard_at: float = trio.current_time()
        self.has_ended: trio.Event = trio.Event()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.send_all(bytes(data))
        except trio.BrokenResourceError:
            with trio.move_on_after(_LAST_WORDS):  # why it broke may be there to be read
                await self.has_ended.wait()
            raise
        except BaseException:  # part of a frame may be out, so nothing may follow
            await trio.aclose_forcefully(self)
            raise

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        try:
            data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.has_ended.set()
            raise
        if data:
            self.heard_at = trio.current_time()
        else:
            self.has_ended.set()
        return data

    async def aclose(self) -> None:
        self.has_ended.set()
        await self._stream.aclose()


@final
class _Reading:
    """The library's reader, and what became of it."""

    def __init__(self, stream: _WatchedStream) -> None:
        self._stream = stream
        self._connection: trio_websocket.WebSocketConnection | None = None
        self._is_ready = trio.Event()
        self.failure: str | None = None

    async def serve(self, host: str, resource: str) -> None:
        """Read from the connection until it ends; a service."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._break_off_handshake, nursery.cancel_scope)
                self._connection = await trio_websocket.wrap_client_stream(
                    nursery,
                    typing.cast("trio.SocketStream", self._stream),
                    host,
                    resource,
                    message_queue_size=_QUEUED_MESSAGES,
                    max_message_size=MAX_FRAME_BYTES,  # in characters; receive() counts bytes
                    receive_buffer_size=_RECEIVE_BYTES,
                )
                self._is_ready.set()
        except* Exception as group:  # noqa: BLE001 - the library's and wsproto's, from its reader
            self.failure = _describe(group)
        self._is_ready.set()
        await trio.sleep_forever()  # the reader ends with the connection, the body takes note

    async def _break_off_handshake(self, scope: trio.CancelScope) -> None:
        await self._stream.has_ended.wait()
        if self._connection is None:
            scope.cancel("the connection ended before the handshake did")

    async def wait_open(self) -> trio_websocket.WebSocketConnection:
        """Wait for the handshake."""
        await self._is_ready.wait()
        if self._connection is None:
            reason = self.failure or "the host closed the connection before the handshake"
            raise LinkEnded(ABNORMAL, reason)
        return self._connection


@final
class WebSocket:
    """An open WebSocket. Made by :func:`open_web_socket`.

    One task receives and one sends.
    """

    def __init__(
        self,
        connection: trio_websocket.WebSocketConnection,
        stream: _WatchedStream,
        reading: _Reading,
        close_grace: float,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._reading = reading
        self._close_grace = close_grace
        self._is_closed: trio.Event | None = None  # there from the first aclose() on
        self._pings = 0

    @property
    def heard_at(self) -> float:
        """When the last byte arrived, on Trio's clock."""
        return self._stream.heard_at

    async def receive(self) -> str:
        """Return the next message.

        Waits as long as it takes; whoever uses this watches :attr:`heard_at`.

        Raises:
            LinkEnded: If there is none any more, or it is not what the protocol allows.
        """
        try:
            message = await self._connection.get_message()
        except trio_websocket.ConnectionClosed as exc:
            if self._is_closed is not None:  # the closing handshake needs the library's reader
                await self._is_closed.wait()
            raise self._ended(exc.reason) from None
        if not isinstance(message, str):
            await self.aclose(1003, "text frames only")
            raise LinkEnded(1003, "the host sent a binary frame")
        if utf8_size(message) > MAX_FRAME_BYTES:
            await self.aclose(1009, "frame too big")
            raise LinkEnded(1009, "the host sent a frame that is too big")
        return message

    async def send(self, text: str) -> None:
        """Send one message. Cancelled, it breaks the connection off.

        Waits as long as it takes: a host that stops reading falls silent, too.

        Raises:
            LinkEnded: If the connection is over.
        """
        try:
            await self._connection.send_message(text)
        except Exception as exc:  # noqa: BLE001 - wsproto's too, which the library lets through
            await self._sending_failed(exc)

    async def ping(self) -> None:
        """Send a ping and wait for its pong; whoever uses this bounds the wait.

        Raises:
            LinkEnded: If the connection is over.
        """
        self._pings += 1
        try:
            await self._connection.ping(struct.pack("!Q", self._pings))
        except Exception as exc:  # noqa: BLE001 - wsproto's too, which the library lets through
            await self._sending_failed(exc)

    async def _sending_failed(self, error: Exception) -> NoReturn:
        """Say that the connection is over, unless that is why the caller is being stopped."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if isinstance(error, trio_websocket.ConnectionClosed):
            raise self._ended(error.reason) from None
        raise LinkEnded(ABNORMAL, f"sending failed: {type(error).__name__}") from error

    async def aclose(self, code: int, reason: str) -> None:
        """Say goodbye and close the connection, within ``channel.close``.

        Args:
            code: The close code.
            reason: At most 123 bytes.
        """
        self._is_closed = self._is_closed or trio.Event()
        try:
            with grace("channel.close", self._close_grace):
                await self._say_goodbye(code, reason)
        finally:
            await trio.aclose_forcefully(self._stream)
            self._is_closed.set()

    async def _say_goodbye(self, code: int, reason: str) -> None:
        try:
            await self._connection.aclose(code, reason)
        except Exception as exc:  # noqa: BLE001 - it is being closed; what broke stays broken
            log.debug("closing handshake failed", error=repr(exc))

    def _ended(self, reason: trio_websocket.CloseReason | None) -> LinkEnded:
        if reason is None or reason.code == ABNORMAL:
            return LinkEnded(ABNORMAL, self._reading.failure or "the connection was lost")
        text = reason.reason or "the host closed the link"
        return LinkEnded(reason.code, text, is_from_host=True)


def _describe(group: BaseExceptionGroup[Exception]) -> str:
    for exc in group.exceptions:
        if isinstance(exc, trio_websocket.ConnectionRejected):
            return f"the host answered {exc.status_code} instead of opening a WebSocket"
    return f"the WebSocket failed: {group.exceptions[0]!r}"


@asynccontextmanager
async def open_web_socket(
    stream: ByteStream, *, host: str, resource: str, handshake: float, close_grace: float
) -> AsyncGenerator[WebSocket]:
    """Shake hands on a connection, and close it in the end without a word.

    Say goodbye with :meth:`WebSocket.aclose`. Exit closes the connection and waits for the
    task that reads from it.

    Args:
        stream: The connection; it is closed in any case.
        host: What the header ``Host`` says.
        resource: Path and question.
        handshake: Until when the handshake must be done, on Trio's clock.
        close_grace: ``channel.close``, in seconds.

    Yields:
        The open WebSocket.

    Raises:
        LinkEnded: If the host does not agree.
    """
    watched = _WatchedStream(stream)
    reading = _Reading(watched)
    try:
        async with open_services() as services:
            services.start_soon(reading.serve, host, resource, name="web socket")
            try:
                with trio.fail_at(handshake):
                    connection = await reading.wait_open()
            except trio.TooSlowError:
                reason = "the host did not answer the WebSocket handshake in time"
                raise LinkEnded(ABNORMAL, reason) from None
            yield WebSocket(connection, watched, reading, close_grace)
    finally:
        await trio.aclose_forcefully(watched)
