"""What happened in a simulation, as a running hash: the same seed gives the same one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import final

import trio


@final
class Trace:
    """The happenings of one simulation, in their order.

    Args:
        most: How many there may be.
        on_too_many: Is told when there are more.
    """

    def __init__(self, most: int, on_too_many: Callable[[str], None]) -> None:
        self._hash = hashlib.blake2b(digest_size=8)
        self._most = most
        self._on_too_many = on_too_many
        self.count: int = 0
        """How many there were."""
        self.listener: Callable[[float, tuple[object, ...]], None] | None = None
        """Is told each of them, with its time."""
        self._happenings = trio.lowlevel.ParkingLot()

    def note(self, *event: object) -> None:
        """Add what happened. Its parts are values whose ``repr`` says nothing of addresses."""
        self.count += 1
        now = round(trio.current_time(), 9)
        self._hash.update(repr((now, *event)).encode())
        if self.listener is not None:
            self.listener(now, event)
        self._happenings.unpark_all()
        if self.count == self._most:
            self._on_too_many(f"more than {self._most} things happened")

    def remark(self, *event: object) -> None:
        """Tell the listener only, as of what is not the same in every process."""
        if self.listener is not None:
            self.listener(round(trio.current_time(), 9), event)

    async def wait_next(self) -> None:
        """Wait until something happens."""
        await self._happenings.park()

    def digest(self) -> str:
        """Return the hash of all that happened, 16 hexadecimal digits."""
        return self._hash.hexdigest()
