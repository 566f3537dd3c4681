"""Write to the program's output streams without ever holding up the event loop.

A pipe whose reader is slow, and a terminal that was stopped with Ctrl-S, block whoever
writes to them. If that were the loop, Ctrl-C would no longer be heard. So a write waits
until the operating system says that there is room, and then writes no more than fits.
"""

from __future__ import annotations

import os
import select
from typing import TextIO, final

import trio

from .failures import OutputClosed


@final
class Output:
    """One output stream. Used by one task at a time.

    Args:
        stream: Such as ``sys.stdout``; None, as Python sets it for a closed stream,
            drops everything.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._encoding = "utf-8" if stream is None else stream.encoding
        self._is_pollable = True
        self._descriptor: int | None = None
        self.is_terminal: bool = False
        """Whether a person reads along."""
        if stream is not None:
            stream.flush()
            self._descriptor = stream.fileno()
            self.is_terminal = stream.isatty()

    async def write(self, text: str) -> None:
        """Write all of *text*. Waits as long as there is no room: bound it with a scope.

        Raises:
            OutputClosed: If nobody reads any more.
        """
        await trio.lowlevel.checkpoint()
        if self._descriptor is None:
            return
        data = memoryview(text.encode(self._encoding, "replace"))
        try:
            while data:
                data = data[await self._write_some(self._descriptor, data) :]
        except OSError as exc:
            raise OutputClosed from exc

    async def _write_some(self, descriptor: int, data: memoryview) -> int:
        # Unbounded on purpose: a reader may take its time, and Ctrl-C ends the wait.
        if self._is_pollable:
            try:
                await trio.lowlevel.wait_writable(descriptor)
            except OSError:  # a regular file cannot be waited for, and has room always
                self._is_pollable = False
        try:
            # This much fits once there is room, so that the write does not block.
            return os.write(descriptor, data[: select.PIPE_BUF])
        except BlockingIOError:  # somebody who shares the stream made it non-blocking
            return 0
