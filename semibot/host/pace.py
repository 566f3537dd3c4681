"""How often readers are written to while events keep coming.

A write costs a hundred times what one more event in it costs. As long as events come slowly,
each is written at once. Once they come faster, a reader that was written to rests for a
moment, and what comes meanwhile is gathered into its next write.
"""

from __future__ import annotations

from typing import Final, final

BUSY: Final = 3000.0
"""Events a second, taken by all readers together, from which on readers rest."""

REST: Final = 0.01
"""How long a reader rests after a write, in seconds; far below what anybody notices."""

WINDOW: Final = 0.05
"""Over how long events are counted, in seconds."""


@final
class Pace:
    """Counts what readers take, over all sessions."""

    def __init__(self) -> None:
        self._window = 0
        self._events = 0
        self._events_before = 0

    def rest_after(self, now: float, events: int) -> float:
        """Note a write to a reader, and return how long it is to rest, in seconds; mostly 0.

        Args:
            now: On Trio's clock.
            events: How many events the write has.
        """
        window = int(now / WINDOW)
        if window != self._window:
            self._events_before = self._events if window == self._window + 1 else 0
            self._window, self._events = window, 0
        self._events += events
        return REST if max(self._events, self._events_before) > BUSY * WINDOW else 0.0
