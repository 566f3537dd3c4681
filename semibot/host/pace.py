"""How often readers are written to while events keep coming.

A write costs a hundred times what one more event in it costs. As long as each event can have
a write of its own, it gets one at once. Once events come faster, a reader that was written to
rests for a while, longer the more readers are busy, and what comes meanwhile is gathered.
"""

from __future__ import annotations

from typing import Final, final

import trio

AFFORDED: Final = 1500.0
"""Writes a second, to all readers together, that leave time for everything else."""

BUSY: Final = 2 * AFFORDED
"""Events taken by readers in a second from which on they rest."""

LONGEST: Final = 0.1
"""The longest rest, in seconds; text still flows for who reads it."""

WINDOW: Final = 0.05
"""Over how long things are counted, in seconds."""


@final
class Pace:
    """Counts what readers take, over all sessions, and lets them rest."""

    def __init__(self) -> None:
        self._window = 0
        self._readers = self._events = 0
        self._readers_before = self._events_before = 0
        self._has_keeper = False
        self._resting = trio.lowlevel.ParkingLot()

    def rest_after(self, now: float, last_write: float, events: int) -> float:
        """Note a write to a reader, and return how long it is to rest, in seconds; mostly 0.

        Args:
            now: On Trio's clock.
            last_write: When this reader was written to before.
            events: How many events the write has.
        """
        window = int(now / WINDOW)
        if window != self._window:
            is_next = window == self._window + 1
            self._readers_before = self._readers if is_next else 0
            self._events_before = self._events if is_next else 0
            self._window, self._readers, self._events = window, 0, 0
        self._events += events
        self._readers += int(last_write / WINDOW) != window
        if max(self._events, self._events_before) <= BUSY * WINDOW:
            return 0.0
        return min(max(self._readers, self._readers_before) / AFFORDED, LONGEST)

    async def rest(self, until: float) -> None:
        """Wait until *until*, or until another reader that rests has waited long enough.

        So one timer does for all, and they write together, with time for input in between.
        """
        if self._has_keeper:
            # The keeper wakes us, also when it is cancelled.
            await self._resting.park()
            return
        self._has_keeper = True
        try:
            await trio.sleep_until(until)
        finally:
            self._has_keeper = False
            self._resting.unpark_all()
