"""How long a VM waits before it dials again (protocol section 2, "Reconnecting")."""

from __future__ import annotations

import random
from typing import Final, final

import attrs

BASE_DELAY: Final = 1.0
"""Longest delay after the first failure, in seconds."""

MAX_DELAY: Final = 30.0
"""Longest delay, in seconds."""

STABLE_AFTER: Final = 60.0
"""How long a link must have been up for the next failure to count as the first, in seconds."""

_MAX_DOUBLINGS: Final = 30


@final
@attrs.define(eq=False)
class Backoff:
    """Full jitter over ``min(30 s, 1 s * 2**n)``: whoever lost the same host spreads out.

    Args:
        random: Where the jitter comes from.
    """

    _random: random.Random
    failures: int = attrs.field(default=0, init=False)
    """Failures since the last reset."""

    def next_delay(self, spent: float = 0.0) -> float:
        """Count a failure and return how long to wait, in seconds, 0 to 30.

        Args:
            spent: What the attempt that failed has taken, in seconds. A long one counts as
                several: VMs that waited for the same silent host would else all dial again
                within the second after their deadline.
        """
        while self._longest < min(spent, MAX_DELAY):
            self.failures += 1
        longest = self._longest
        self.failures += 1
        return self._random.uniform(0.0, longest)

    @property
    def _longest(self) -> float:
        return min(MAX_DELAY, BASE_DELAY * (1 << min(self.failures, _MAX_DOUBLINGS)))

    def reset(self) -> None:
        """Begin anew, because a link has held."""
        self.failures = 0
