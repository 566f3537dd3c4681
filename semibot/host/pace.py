"""How often readers are written to while events keep coming.

A write costs a hundred times what one more event in it costs. So a first event goes out at
once, and what follows it closely is gathered: always for a moment, and for longer the more
readers are busy, once events come faster than each could have a write of its own.
"""

from __future__ import annotations

from typing import Final, final

import trio

SHORTEST: Final = 0.002
"""The least time between two writes to one reader, in seconds."""

LONGEST: Final = 0.1
"""The most, in seconds; text still flows for who reads it."""

AFFORDED: Final = 1500.0
"""Writes a second, to all readers together, that leave time for everything else."""

BUSY: Final = 2 * AFFORDED
"""Events a second from which on writes are rationed."""

WINDOW: Final = 0.05
"""Over how long things are counted, in seconds."""


@final
class Pace:
    """Counts what readers take, over all sessions."""

    def __init__(self) -> None:
        self._window = 0
        self._readers = self._events = 0
        self._readers_before = self._events_before = 0
        self._has_keeper = False
        self._resting = trio.lowlevel.ParkingLot()

    async def rest(self, until: float) -> None:
        """Wait until about *until*, or until the first of those who rest has waited.

        So there is one timer for all, and they write together.
        """
        if self._has_keeper:
            await self._resting.park()
            return
        self._has_keeper = True
        try:
            await trio.sleep_until(until)
        finally:
            self._has_keeper = False
            self._resting.unpark_all()

    def next_write(self, now: float, last_write: float, events: int) -> float:
        """Note a write, and return when the next one to this reader may be.

        Args:
            now: On Trio's clock.
            last_write: When this reader was written to before.
            events: How many events the write has.
        """
        window = int(now / WINDOW)
        if window != self._window:
            was_before = window == self._window + 1
            self._readers_before = self._readers if was_before else 0
            self._events_before = self._events if was_before else 0
            self._window, self._readers, self._events = window, 0, 0
        self._events += events
        self._readers += int(last_write / WINDOW) != window
        rest = SHORTEST
        if max(self._events, self._events_before) > BUSY * WINDOW:
            readers = max(self._readers, self._readers_before)
            rest = min(max(SHORTEST, readers / AFFORDED), LONGEST)
        return now + rest
