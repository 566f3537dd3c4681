"""An HTTP client that shows everything: one connection a request, closed when the test says."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

import attrs
import h11
import trio

BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError)
"""What reading from a host raises that has died."""


@attrs.frozen
class Answer:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        return json.loads(self.body)

    @property
    def data(self) -> dict[str, object]:
        return self.json["data"]

    @property
    def code(self) -> str:
        return self.json["error"]["code"]


@attrs.define(eq=False)
class Exchange:
    """A request that was sent, and its answer as it comes."""

    stream: trio.SocketStream
    connection: h11.Connection
    status: int = 0
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])

    async def read_head(self) -> None:
        event = await self._next_event()
        assert isinstance(event, h11.Response), event
        self.status = event.status_code
        self.headers = {name.decode(): value.decode() for name, value in event.headers}

    async def receive(self) -> bytes:
        """Return the next bytes of the body, or nothing at its end."""
        event = await self._next_event()
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def _next_event(self) -> object:
        while (event := self.connection.next_event()) is h11.NEED_DATA:
            self.connection.receive_data(await self.stream.receive_some(65536))
        return event


@asynccontextmanager
async def open_exchange(
    port: int,
    method: str,
    path: str,
    body: object = None,
    headers: Mapping[str, str] | None = None,
    *,
    reads: bool = True,
    receive_buffer: int | None = None,
) -> AsyncGenerator[Exchange]:
    """Send a request; leaving the block closes the connection at once.

    With ``reads=False`` nothing of the answer is read, not even its head.
    """
    plain = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if receive_buffer is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await plain.connect(("127.0.0.1", port))
    except BaseException:
        plain.close()
        raise
    stream = trio.SocketStream(plain)
    try:
        connection = h11.Connection(h11.CLIENT)
        data = b"" if body is None else json.dumps(body).encode()
        fields = {"Host": f"127.0.0.1:{port}", **(headers or {})}
        if method != "GET":
            fields |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
        request = h11.Request(method=method, target=path, headers=list(fields.items()))
        parts = [connection.send(request)]
        if data:
            parts.append(connection.send(h11.Data(data)))
        parts.append(connection.send(h11.EndOfMessage()))
        await stream.send_all(b"".join(part for part in parts if part))
        exchange = Exchange(stream, connection)
        if reads:
            await exchange.read_head()
        yield exchange
    finally:
        stream.socket.close()


async def ask(
    port: int, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """Send a request and return the whole answer."""
    async with open_exchange(port, method, path, body, headers) as exchange:
        data = bytearray()
        while piece := await exchange.receive():
            data += piece
        return Answer(exchange.status, exchange.headers, bytes(data))
