"""Notice that this process itself did not run, so that no peer is judged by an old clock.

A process that was stopped (SIGSTOP, a debugger, a machine that swaps) or whose loop was held
up has not listened meanwhile. When it goes on, its clock says that everybody has been silent
for long, while what they said waits in the sockets. So whoever is responsible looks here
every :data:`TICK`; a look that is late by more than :data:`FROZEN_AFTER` counts as a
standstill, after which peers have :data:`WAKE_GRACE` to be heard. Both ends of a link judge
silence by this. All times are Trio's.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final, final

TICK: Final = 1.0
"""Seconds between two looks."""

FROZEN_AFTER: Final = 3.0
"""How late a look may be before this process counts as having stood still, in seconds."""

WAKE_GRACE: Final = 5.0
"""How long a peer has to be heard after that, in seconds."""

_REMEMBERED: Final = 32


@final
class Standstill:
    """When this process stood still."""

    def __init__(self) -> None:
        self._looked_at = math.inf
        self._forgives_until = -math.inf
        self._times: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)

    def look(self, now: float) -> float:
        """Note that this process runs; called every :data:`TICK`, and before each judgement.

        Returns:
            How long it has stood still until now, in seconds; 0 if it has not.
        """
        late = now - self._looked_at - TICK
        self._looked_at = now
        if late <= FROZEN_AFTER:
            return 0.0
        self._times.append((now - late, now))
        self._forgives_until = now + WAKE_GRACE
        return late

    def is_silent(self, heard_at: float, limit: float, now: float) -> bool:
        """Return whether a peer counts as silent.

        Args:
            heard_at: When something was heard last.
            limit: The silence that is too long, in seconds.
            now: The time, which was looked at.
        """
        return now >= self.silent_at(heard_at, limit)

    def silent_at(self, heard_at: float, limit: float) -> float:
        """Return from when on a peer counts as silent, as far as is known now."""
        return max(heard_at + limit, self._forgives_until)

    def missed(self, since: float) -> float:
        """Return for how much of the time after *since* this process stood still, in seconds."""
        return sum(max(0.0, end - max(begin, since)) for begin, end in self._times)
