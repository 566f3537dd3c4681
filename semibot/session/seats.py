"""How many sessions of a VM have an adapter at once, and which one makes room."""

from __future__ import annotations

from typing import Final, Protocol, final

import trio

from semibot.errors import AdapterError

MAX_OPEN: Final = 64
"""How many sessions have an adapter at once, if nobody says."""


class Sitter(Protocol):
    """A session that has, or wants, a seat."""

    @property
    def is_idle(self) -> bool:
        """Whether it could be put aside."""
        ...

    @property
    def is_leaving(self) -> bool:
        """Whether its seat will be free soon."""
        ...

    def put_aside(self) -> None:
        """Ask it to close its adapter until the next message; never waits."""
        ...


@final
class Seats:
    """The seats of one VM, the least recently used first.

    Args:
        limit: How many there are, at least 1.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: dict[Sitter, None] = {}
        self._changed = trio.lowlevel.ParkingLot()

    @property
    def taken(self) -> int:
        """How many are taken."""
        return len(self._taken)

    async def take(self, sitter: Sitter) -> None:
        """Take a seat; the session that was idle longest makes room if need be.

        Raises:
            AdapterError: ``TOO_MANY_SESSIONS`` if no session is idle.
        """
        while len(self._taken) >= self._limit:
            if not any(each.is_leaving for each in self._taken):
                oldest = next((each for each in self._taken if each.is_idle), None)
                if oldest is None:
                    raise AdapterError(
                        f"all {self._limit} sessions that this VM runs at once are busy; "
                        "try again when one has ended",
                        code="TOO_MANY_SESSIONS",
                        is_retryable=True,
                    )
                oldest.put_aside()
            # Bounded by the stop bound of the session that leaves.
            await self._changed.park()
        self._taken[sitter] = None

    def use(self, sitter: Sitter) -> None:
        """Note that a session is in use, so that others make room before it."""
        if sitter in self._taken:
            self._taken[sitter] = self._taken.pop(sitter)
        self._changed.unpark_all()  # one that was about to leave may stay after all

    def give_back(self, sitter: Sitter) -> None:
        """Give a seat back."""
        self._taken.pop(sitter, None)
        self._changed.unpark_all()
