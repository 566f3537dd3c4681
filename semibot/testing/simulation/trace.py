"""What happened in a simulation, as a running hash: the same seed gives the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import final

import trio


@final
class TooMuchHappened(Exception):
    """Raised when a simulation passes its cap on what may happen."""


@final
class Trace:
    """The happenings of one simulation, in their order.

    Args:
        most: How many there may be; one more ends the simulation.
    """

    def __init__(self, most: int) -> None:
        self._hash = hashlib.blake2b(digest_size=8)
        self._most = most
        self.count: int = 0
        """How many there were."""
        self.listener: Callable[[float, tuple[object, ...]], None] | None = None
        """Is told each of them, with its time."""
        self._happenings = trio.lowlevel.ParkingLot()

    def note(self, *event: object) -> None:
        """Add what happened. Its parts are values whose ``repr`` says nothing of addresses.

        Raises:
            TooMuchHappened: If it is one too many.
        """
        self.count += 1
        now = round(trio.current_time(), 9)
        self._hash.update(repr((now, *event)).encode())
        if self.listener is not None:
            self.listener(now, event)
        self._happenings.unpark_all()
        if self.count > self._most:
            raise TooMuchHappened(f"more than {self._most} things happened")

    async def wait_next(self) -> None:
        """Wait until something happens."""
        await self._happenings.park()

    def digest(self) -> str:
        """Return the hash of all that happened, 16 hexadecimal digits."""
        return self._hash.hexdigest()
