"""A network in memory: one who listens, and connections that are pairs of streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio
import trio.testing

Pair = Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]]

WAITING: Final = 16
"""Connections that may wait to be taken."""


class MemoryListener:
    """Takes connections that :meth:`connect` and :meth:`dial` make."""

    port = 8080

    def __init__(self) -> None:
        self._put, self._taken = trio.open_memory_channel[trio.abc.Stream](WAITING)
        self.is_open = False

    # --- the ports --------------------------------------------------------------------

    async def listen(self, host: str, port: int) -> MemoryListener:
        """Be the listener, anew each time."""
        await trio.lowlevel.checkpoint()
        self._put, self._taken = trio.open_memory_channel[trio.abc.Stream](WAITING)
        self.is_open = True
        return self

    async def dial(self, host: str, port: int, *, use_tls: bool) -> trio.abc.Stream:
        if not self.is_open:
            await trio.lowlevel.checkpoint()
            raise ConnectionRefusedError("nobody listens")
        return await self.connect()

    # --- for those who listen ---------------------------------------------------------

    async def accept(self) -> trio.abc.Stream:
        try:
            return await self._taken.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError from None

    async def aclose(self) -> None:
        self.is_open = False
        self._put.close()
        await trio.lowlevel.checkpoint()

    # --- for those who connect --------------------------------------------------------

    async def connect(self, make_pair: Pair = trio.testing.memory_stream_pair) -> trio.abc.Stream:
        """Connect over a new pair of streams, and return our end."""
        ours, theirs = make_pair()
        await self._put.send(theirs)
        return ours
