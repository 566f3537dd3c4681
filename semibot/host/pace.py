"""How often readers are written to, and links committed, while events keep coming.

A write, and a commit, costs a hundred times what one more event in it costs. As long as events
come slowly, each is written and committed at once. Once they come faster, who was served rests
for a moment, and what comes meanwhile is gathered into its next write or commit.
"""

from __future__ import annotations

from typing import Final, final

BUSY: Final = 3000.0
"""Events a second, counted by one :class:`Pace`, from which on it asks for rests."""

REST: Final = 0.01
"""How long a rest is, in seconds; far below what anybody notices."""

WINDOW: Final = 0.05
"""Over how long events are counted, in seconds."""


@final
class Pace:
    """Counts events: what all readers of a host take, or what one link commits."""

    def __init__(self) -> None:
        self._window = 0
        self._events = 0
        self._events_before = 0

    def rest_after(self, now: float, events: int) -> float:
        """Note a write or commit, and return how long to rest then, in seconds; mostly 0.

        Args:
            now: On Trio's clock.
            events: How many events it has.
        """
        window = int(now / WINDOW)
        if window != self._window:
            self._events_before = self._events if window == self._window + 1 else 0
            self._window, self._events = window, 0
        self._events += events
        return REST if max(self._events, self._events_before) > BUSY * WINDOW else 0.0
