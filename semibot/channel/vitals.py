"""What a VM tells about its own health with every heartbeat."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, final

import trio

from semibot.observe.watchdog import LoopBlock, Watchdog
from semibot.wire.frames import BlockReport, VmHeartbeat

_STATM: Final = Path("/proc/self/statm")


@final
class Vitals:
    """Collects what a heartbeat says.

    Args:
        watchdog: Knows when the event loop stood still; None if nobody watches.
        is_simulated: Whether this runs in a simulation, where memory means nothing.
    """

    def __init__(self, watchdog: Watchdog | None, *, is_simulated: bool) -> None:
        self._tally = None if watchdog is None else watchdog.tally()
        self._is_simulated = is_simulated
        self._worst_lag = 0.0

    def note_lag(self, seconds: float) -> None:
        """Take note of how late the loop was, in seconds."""
        self._worst_lag = max(self._worst_lag, seconds)

    def heartbeat(self, active_sessions: tuple[str, ...], level: int) -> VmHeartbeat:
        """Return the next heartbeat; what was worst since the last one is forgotten.

        Args:
            active_sessions: Sessions that are held.
            level: The level of the link; level 1 knows nothing but the sessions.
        """
        if level < 2:
            return VmHeartbeat(active_sessions=active_sessions)
        lag, self._worst_lag = self._worst_lag, 0.0
        block: LoopBlock | None = None
        if self._tally is not None:
            health = self._tally.take_worst()
            lag, block = max(lag, health.worst_lag), health.worst_block
        return VmHeartbeat(
            active_sessions=active_sessions,
            lag_ms=round(lag * 1000, 1),
            rss_bytes=None if self._is_simulated else resident_bytes(),
            sent_at=trio.current_time(),
            blocked=None if block is None else _report_of(block),
        )


def _report_of(block: LoopBlock) -> BlockReport:
    return BlockReport(seconds=block.seconds, where=block.where, stack=block.stack)


def resident_bytes() -> int | None:
    """Return how much memory this process uses, or None if the system does not say.

    The file is made by the kernel when it is read, so this does not wait for a disk.
    """
    try:
        pages = int(_STATM.read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
