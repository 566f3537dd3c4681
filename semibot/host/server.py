"""Listen, and serve an ASGI app on every connection with sends that end.

The HTTP and WebSocket protocols are hypercorn's. Listening is ours, because hypercorn sends
without a bound and shielded from cancellation: one peer that stops reading would hold up a
drain, a stop and every close code for ever. So hypercorn gets a stream whose ``send_all``
gives a peer ``http.stall_timeout`` to accept something and then ends the connection, and
whose request heads have been through :class:`~semibot.host.heads.HeadFilter`.
"""

from __future__ import annotations

import math
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final, TypeAlias, cast, final

import attrs
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework

from semibot.config import Deadlines
from semibot.lifetimes import grace, open_services
from semibot.logs import get_logger
from semibot.ports import ByteStream, Listener, Ports
from semibot.wire.codec import dump_json
from semibot.wire.frames import MAX_FRAME_BYTES

from .heads import MAX_HEAD_BYTES, BadHead, HeadFilter

log: Final = get_logger(__name__)

MAX_CONNECTIONS: Final = 8192
"""How many connections are served at once; more wait in the kernel's queue."""

LAST_WORDS: Final = 1.0
"""What answers under way may take to end when the server ends, in seconds."""

SEND_PIECE: Final = 16 * 1024
"""Bytes that a peer has to accept within ``http.stall_timeout``."""

MAX_STRANGER_BYTES: Final = 64 * 1024
"""Bytes of a WebSocket that are read before the app says that its peer is let in."""

_CLOSE_FRAME: Final = b"\x88"  # hypercorn hands every frame of a WebSocket over by itself

# ASGI's own types are open mappings; hypercorn and quart say the same with TypedDicts.
Scope: TypeAlias = MutableMapping[str, Any]  # type: ignore[explicit-any]
Message: TypeAlias = MutableMapping[str, Any]  # type: ignore[explicit-any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


@final
@attrs.frozen
class _Endpoint:
    """What hypercorn asks a socket, for streams that have none."""

    family: int = socket.AF_INET

    def getpeername(self) -> tuple[str, int]:
        """Return where the peer is."""
        return ("127.0.0.1", 0)

    def getsockname(self) -> tuple[str, int]:
        """Return where we are."""
        return ("127.0.0.1", 0)


@final
class BoundedStream:
    """A connection as hypercorn gets it: every wait on the peer ends.

    Args:
        stream: The connection.
        deadlines: ``http.stall_timeout`` and ``http.request_head``.
    """

    def __init__(self, stream: ByteStream, deadlines: Deadlines) -> None:
        self._stream = stream
        self._deadlines = deadlines
        self._heads = HeadFilter()
        self._head_began = math.inf
        self._reads_until = math.inf
        self._reading: trio.CancelScope | None = None
        self._is_aborted = False
        self._strange = 0
        self.heard_at: float = trio.current_time()
        """When the last byte came."""
        self.let_in: trio.Event = trio.Event()
        """Set when the peer of a WebSocket has said who it is."""
        self.life: trio.CancelScope = trio.CancelScope()
        """Ends everything that is done for the connection."""
        self.is_stalled: bool = False
        """Whether the connection was ended because the peer accepted nothing."""

    @property
    def socket(self) -> object:
        """The socket, for its addresses."""
        return getattr(self._stream, "socket", None) or _Endpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return the next bytes for the parser, or nothing at the end.

        A head that takes longer than ``http.request_head``, or is refused, is answered
        here, and the connection ends.
        """
        data: bytes | bytearray = b""
        while not self._is_aborted:
            if self._heads.is_inside_head:
                self._head_began = min(self._head_began, trio.current_time())
            else:
                self._head_began = math.inf
            until = self._head_began + self._deadlines.http_request_head
            with trio.CancelScope(deadline=min(until, self._reads_until)) as self._reading:
                if self._strange >= MAX_STRANGER_BYTES:  # a whole message would be kept
                    await self.let_in.wait()
                data = await self._stream.receive_some(max_bytes)
                self.heard_at = trio.current_time()
            if self._reading.cancelled_caught:
                if trio.current_time() < self._reads_until:
                    await self._refuse(408, "the request head took too long")
                return b""
            if not data:
                return b""
            try:
                passed = self._heads.feed(data)
            except BadHead as exc:
                await self._refuse(exc.status, exc.reason)
                return b""
            if self._heads.is_upgraded:
                self._strange += len(passed)
            if passed:
                return passed
        return b""

    async def _refuse(self, status: int, reason: str) -> None:
        """Answer a request that nobody else sees, and end the connection."""
        if self._heads.requests:  # an earlier answer may be under way
            await self.abort()
            return
        body = dump_json(
            {"success": False, "error": {"code": f"HTTP_{status}", "message": reason}}
        ).encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        await self.send_all(head.encode() + body)
        send_eof = getattr(self._stream, "send_eof", self._stream.aclose)
        await send_eof()

    async def send_all(self, data: bytes) -> None:
        """Send *data*; a peer that accepts nothing for ``http.stall_timeout`` is cut off.

        Raises:
            trio.BrokenResourceError: If the peer is gone, or was cut off.
            trio.ClosedResourceError: If the connection was closed here.
        """
        for start in range(0, len(data), SEND_PIECE):
            until = trio.current_time() + self._deadlines.http_stall_timeout
            with trio.CancelScope(deadline=until) as scope:
                await self._stream.send_all(data[start : start + SEND_PIECE])
            if scope.cancelled_caught:
                self.is_stalled = True
                await self.abort()
                raise trio.BrokenResourceError("the peer accepts nothing")
        if self._heads.is_upgraded and data.startswith(_CLOSE_FRAME):
            # Hypercorn refuses messages that are too big without telling the app.
            self.stop_reading_in(self._deadlines.channel_close)

    def stop_reading_in(self, seconds: float) -> None:
        """Let the connection end after *seconds*, whatever the peer does."""
        self._reads_until = trio.current_time() + seconds
        # Hypercorn may be waiting to hand over what nobody will take any more.
        self.life.deadline = min(self.life.deadline, self._reads_until + LAST_WORDS)
        if self._reading is not None:
            self._reading.deadline = min(self._reading.deadline, self._reads_until)

    async def abort(self) -> None:
        """End the connection now; whoever sends or reads finds it closed."""
        self._is_aborted = True
        await trio.aclose_forcefully(cast("trio.abc.AsyncResource", self._stream))

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()


@final
class Server:
    """The listening part of a host. Made by :func:`open_server`."""

    def __init__(self, listener: Listener, app: App, deadlines: Deadlines) -> None:
        self._listener = listener
        self._app = app
        self._deadlines = deadlines
        self._context = WorkerContext(None)
        self._streams: set[BoundedStream] = set()
        self._has_ended = trio.lowlevel.ParkingLot()

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return self._listener.port

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._streams)

    async def serve(self) -> None:
        """Take connections until cancelled; the end of one is never the end of others."""
        slots = trio.CapacityLimiter(MAX_CONNECTIONS)
        async with trio.open_nursery() as nursery:
            while True:
                token = object()
                await slots.acquire_on_behalf_of(token)
                try:
                    stream = await self._listener.accept()
                except OSError as exc:  # too many open files: some will be closed
                    log.warning("cannot take a connection", error=exc.strerror)
                    slots.release_on_behalf_of(token)
                    await trio.sleep(0.1)
                    continue
                except trio.ClosedResourceError:
                    break
                nursery.start_soon(self._serve_one, stream, slots, token)
        await trio.sleep_forever()

    async def _serve_one(
        self, stream: ByteStream, slots: trio.CapacityLimiter, token: object
    ) -> None:
        bounded = BoundedStream(stream, self._deadlines)
        self._streams.add(bounded)
        try:
            with bounded.life:
                await TCPServer(
                    ASGIWrapper(cast("ASGIFramework", self._app_for(bounded))),
                    _make_config(),
                    self._context,
                    {},
                    cast("trio.SSLStream[trio.SocketStream]", bounded),
                )
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            log.debug("connection ended", error=repr(exc))
        except Exception as exc:  # noqa: BLE001 - the parser's own troubles with a hostile peer
            log.warning("a connection failed", error=repr(exc))
        finally:
            self._streams.discard(bounded)
            self._has_ended.unpark_all()
            slots.release_on_behalf_of(token)
            await bounded.abort()

    def _app_for(self, stream: BoundedStream) -> App:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            extensions = scope.setdefault("extensions", {})
            extensions["semibot"] = {
                "stalled": lambda: stream.is_stalled,
                "let_in": stream.let_in.set,
                "heard_at": lambda: stream.heard_at,
            }
            is_answered = False

            async def send_to_end(message: Message) -> None:
                nonlocal is_answered
                if message["type"] != "http.response.body" or message.get("more_body", False):
                    await send(message)
                    return
                # Before it is sent, because some frameworks cancel the task that does so as soon
                # as they hear of the end.
                is_answered = True
                # Hypercorn says so behind the rest of the request, for which it has no room if
                # that was never read.
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_drop_all, receive)
                    await send(message)
                    nursery.cancel_scope.cancel("answered")

            await self._app(scope, receive, send_to_end)
            if not is_answered:
                # Hypercorn would wait for the peer's part of the closing handshake for ever.
                stream.stop_reading_in(self._deadlines.channel_close)

        return app

    async def stop_listening(self) -> None:
        """Take no more connections, and end those that are idle."""
        await self._listener.aclose()
        await self._context.terminated.set()

    async def wait_quiet(self) -> None:
        """Wait until no connection is open."""
        while self._streams:
            await self._has_ended.park()

    async def abort_all(self) -> None:
        """End every connection now, also in a scope that is cancelled."""
        async with trio.open_nursery() as nursery:
            for stream in tuple(self._streams):
                nursery.start_soon(stream.abort)


async def _drop_all(receive: Receive) -> None:
    while True:
        await receive()


def _make_config() -> Config:
    config = Config()
    config.errorlog = None  # what fails is logged here, once
    config.include_server_header = False
    config.h11_max_incomplete_size = 2 * MAX_HEAD_BYTES  # the filter is stricter
    config.max_app_queue_size = 2  # what is read of a link and not dispatched stays small
    config.websocket_max_message_size = MAX_FRAME_BYTES
    return config


@asynccontextmanager
async def open_server(
    app: App, host: str, port: int, *, deadlines: Deadlines, ports: Ports
) -> AsyncGenerator[Server]:
    """Listen on an address and serve *app* there while the block lasts.

    On exit no connection is taken any more. Answers under way, such as event streams that
    were told to end, have a second to do so; then all connections are ended, and exit waits
    at most ``channel.close`` in all.

    Args:
        app: The ASGI app.
        host: Address to bind.
        port: Port; 0 takes a free one.
        deadlines: The bounds.
        ports: The seams.

    Yields:
        The server, which is listening already.

    Raises:
        OSError: If the address is taken or not ours.
    """
    server = Server(await ports.listen(host, port), app, deadlines)
    try:
        async with open_services() as services:
            services.start_soon(server.serve, name="server")
            try:
                yield server
            finally:
                with grace("channel.close", deadlines.channel_close):
                    await server.stop_listening()
                    try:
                        with trio.move_on_after(min(LAST_WORDS, deadlines.channel_close / 2)):
                            await server.wait_quiet()
                    finally:
                        await server.abort_all()
    finally:
        with grace("channel.close", deadlines.channel_close):
            await server.stop_listening()
