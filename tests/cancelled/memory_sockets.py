"""Sockets in memory, for libraries that know no port: Trio gives them out instead of real ones."""

from __future__ import annotations

import errno
import itertools
import math
import socket
from typing import Any

import trio
import trio.testing

from semibot.testing import FaultyStream

HOST = "127.0.0.1"


class MemorySockets(trio.abc.SocketFactory):
    """Makes sockets of one network; for :func:`trio.socket.set_custom_socket_factory`."""

    def __init__(self) -> None:
        self.ports = itertools.count(1024)
        self.listening: dict[int, MemorySocket] = {}
        self.open: set[MemorySocket] = set()

    def socket(self, family: Any = 0, type: Any = 0, proto: Any = 0) -> MemorySocket:
        return MemorySocket(self)


class MemorySocket(trio.socket.SocketType):
    """As much of a TCP socket as Trio's streams and listeners use."""

    family = socket.AF_INET
    type = socket.SOCK_STREAM
    proto = socket.IPPROTO_TCP
    did_shutdown_SHUT_WR = False  # noqa: N815 - Trio's name

    def __init__(self, network: MemorySockets) -> None:
        self._network = network
        self._address = (HOST, next(network.ports))
        self._pair: Any = None
        self._stream: Any = None
        self._queue: Any = None
        network.open.add(self)

    # --- options ----------------------------------------------------------------------

    def setsockopt(self, *_: Any) -> None:
        pass

    def getsockopt(self, level: int, option: int, buflen: int = 0) -> int:
        return int(option == socket.SO_ACCEPTCONN and self._queue is not None)

    def getsockname(self) -> Any:
        return self._address

    def getpeername(self) -> Any:
        return self._address

    def fileno(self) -> int:
        return -1

    def is_readable(self) -> bool:
        """Return whether there is something to read, or the end."""
        incoming = self._pair.receive_stream._incoming
        return bool(incoming._data) or incoming._closed

    # --- listening --------------------------------------------------------------------

    async def bind(self, address: Any) -> None:
        await trio.lowlevel.checkpoint()

    def listen(self, backlog: int = 0) -> None:
        self._queue = trio.open_memory_channel[Any](math.inf)
        self._network.listening[self._address[1]] = self

    async def accept(self) -> Any:
        pair = await self._queue[1].receive()
        accepted = MemorySocket(self._network)
        accepted._pair = accepted._stream = pair
        return accepted, accepted._address

    # --- a connection -----------------------------------------------------------------

    async def connect(self, address: Any) -> None:
        await trio.lowlevel.checkpoint()
        listener = self._network.listening.get(address[1])
        if listener is None:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "nobody listens")
        self._pair, theirs = trio.testing.memory_stream_pair()
        self._stream = FaultyStream(self._pair, "socket")
        listener._queue[0].send_nowait(theirs)

    async def send(self, data: Any, flags: int = 0) -> int:
        try:
            await self._stream.send_all(bytes(data))
        except trio.BrokenResourceError as exc:
            raise OSError(errno.EPIPE, str(exc)) from None
        except trio.ClosedResourceError:
            raise OSError(errno.EBADF, "closed") from None
        return len(data)

    async def recv(self, size: int, flags: int = 0) -> bytes:
        try:
            return bytes(await self._stream.receive_some(size))
        except trio.BrokenResourceError as exc:
            raise ConnectionResetError(errno.ECONNRESET, str(exc)) from None
        except trio.ClosedResourceError:
            raise OSError(errno.EBADF, "closed") from None

    def shutdown(self, how: int) -> None:
        self.did_shutdown_SHUT_WR = True
        self._pair.send_stream.close()

    def close(self) -> None:
        self._network.open.discard(self)
        self._network.listening.pop(self._address[1], None)
        if self._pair is not None:
            self._pair.send_stream.close()
            self._pair.receive_stream.close()
