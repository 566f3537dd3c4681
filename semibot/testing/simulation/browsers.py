"""A browser of the simulation: one HTTP/1.1 request per connection."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, cast, final

import trio

from semibot.wire.codec import JsonObject, dump_json

from .network import HTTP
from .pipes import End, Machine

if TYPE_CHECKING:
    from .world import World

BROKEN: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What a browser meets when a connection breaks."""

PATIENCE: Final = 100.0
"""How long somebody waits for an answer, in seconds."""


@final
class Exchange:
    """A request and its answer as it comes."""

    def __init__(self, stream: End) -> None:
        self.stream = stream
        self.status: int = 0
        """The status of the answer."""
        self.headers: Mapping[str, str] = {}
        """The headers of the answer, their names in lower case."""
        self._buffer = bytearray()
        self._is_chunked = False
        self._left = 0

    async def _more(self) -> None:
        data = await self.stream.receive_some()
        if not data:
            raise ConnectionResetError("the answer broke off")
        self._buffer += data

    async def _take_until(self, mark: bytes) -> bytes:
        while (end := self._buffer.find(mark)) < 0:
            await self._more()
        found = bytes(self._buffer[:end])
        del self._buffer[: end + len(mark)]
        return found

    async def read_head(self) -> None:
        """Wait for status and headers."""
        first, *rest = (await self._take_until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        self.status = int(first.split()[1])
        pairs = (line.partition(":") for line in rest)
        self.headers = {name.lower(): value.strip() for name, _, value in pairs}
        self._is_chunked = self.headers.get("transfer-encoding") == "chunked"
        self._left = int(self.headers.get("content-length", "0"))

    async def receive(self) -> bytes:
        """Return the next piece of the body, empty at its end."""
        if self._is_chunked and not self._left:
            size = int(await self._take_until(b"\r\n"), 16)
            if not size:
                await self._take_until(b"\r\n")
                return b""
            self._left = size + 2
        if not self._left:
            return b""
        if not self._buffer:
            await self._more()
        if not self._is_chunked:
            return self._take(self._left)
        if self._left > 2:
            return self._take(self._left - 2)
        await self._take_until(b"\r\n")
        self._left = 0
        return await self.receive()

    def _take(self, most: int) -> bytes:
        data = bytes(self._buffer[:most])
        del self._buffer[:most]
        self._left -= len(data)
        return data

    async def read_all(self) -> bytes:
        """Return the rest of the body."""
        data = bytearray()
        while piece := await self.receive():
            data += piece
        return bytes(data)


@final
class Browser:
    """What a user's requests go through.

    Args:
        world: The simulation.
        user: Whose requests they are.
        name: What the trace calls it.
    """

    def __init__(self, world: World, user: str, name: str) -> None:
        self._world = world
        self._user = user
        self._machine = Machine(name)

    @asynccontextmanager
    async def open(
        self, method: str, path: str, body: JsonObject | None = None, **headers: str
    ) -> AsyncGenerator[Exchange]:
        """Send a request; yields the answer when its head has come, and hangs up in the end."""
        stream = await self._world.network.connect(self._machine, HTTP)
        try:
            data = b"" if body is None else dump_json(body).encode()
            fields = {
                "Host": "host:8080",
                "Authorization": f"Bearer {self._world.user_token(self._user)}",
                **{name.replace("_", "-"): value for name, value in headers.items() if value},
            }
            if method != "GET":
                fields |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
            head = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items()), "", ""]
            exchange = Exchange(stream)
            await stream.send_all("\r\n".join(head).encode("latin-1") + data)
            await exchange.read_head()
            yield exchange
        finally:
            stream.close_now()

    async def ask(
        self, method: str, path: str, body: JsonObject | None = None
    ) -> tuple[int, dict[str, object]]:
        """Return status and data; status 0 if the connection broke, -1 if nothing came."""
        found: tuple[int, dict[str, object]] = (-1, {})
        with trio.move_on_after(PATIENCE):  # noqa: ASYNC912 - it connects
            try:
                async with self.open(method, path, body) as exchange:
                    data = await exchange.read_all()
                    answer = cast("dict[str, dict[str, object] | None]", json.loads(data or b"{}"))
                    found = exchange.status, answer.get("data") or answer.get("error") or {}
            except BROKEN:
                found = 0, {}
        return found
