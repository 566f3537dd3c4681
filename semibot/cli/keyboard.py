"""Read what the user types, cancellably, and without changing the terminal's mode."""

from __future__ import annotations

import os
from typing import Final, TextIO, final

import trio

from semibot.errors import UsageError

MAX_MESSAGE: Final = 1024 * 1024
"""Longest message that is read from a pipe or file, in bytes."""

_CHUNK: Final = 64 * 1024


@final
class Keyboard:
    """Standard input. Used by one task at a time.

    The terminal keeps its own line editing, so that there is nothing to restore,
    however the program ends. No thread is left waiting for a key.

    Args:
        stream: ``sys.stdin``; None, as Python sets it for a closed stream, has nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._descriptor = None if stream is None else stream.fileno()
        self._encoding = "utf-8" if stream is None else stream.encoding
        self._is_pollable = True
        self._pending = bytearray()
        self.is_terminal: bool = stream is not None and stream.isatty()
        """Whether a person types."""

    async def read_line(self) -> str | None:
        """Return the next line without its end, or None at the end of the input."""
        while b"\n" not in self._pending:
            data = await self._read_some()
            if not data:
                rest = bytes(self._pending)
                self._pending.clear()
                return rest.decode(self._encoding, "replace") if rest else None
            self._pending += data
        line, _, rest = bytes(self._pending).partition(b"\n")
        self._pending[:] = rest
        return line.decode(self._encoding, "replace").removesuffix("\r")

    async def read_all(self) -> str:
        """Return everything up to the end of the input.

        Raises:
            UsageError: If it is longer than :data:`MAX_MESSAGE`.
        """
        while data := await self._read_some():
            self._pending += data
            if len(self._pending) > MAX_MESSAGE:
                raise UsageError(
                    f"the message on standard input is longer than {MAX_MESSAGE} bytes; "
                    "put it into a file of the workspace and ask about that"
                )
        return bytes(self._pending).decode(self._encoding, "replace")

    def forget(self) -> None:
        """Drop what was typed of a line, as the terminal does when Ctrl-C is pressed."""
        self._pending.clear()

    async def _read_some(self) -> bytes:
        if self._descriptor is None:
            return b""
        while True:
            await trio.lowlevel.checkpoint()
            # Unbounded on purpose: the user's next message.
            if self._is_pollable:
                try:
                    await trio.lowlevel.wait_readable(self._descriptor)
                except OSError:  # a regular file cannot be waited for, and is always ready
                    self._is_pollable = False
            try:
                return os.read(self._descriptor, _CHUNK)
            except BlockingIOError:  # somebody who shares the stream made it non-blocking
                continue
            except OSError:  # the terminal is gone
                return b""
