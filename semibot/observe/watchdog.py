"""Measure how long the event loop stands still, and name who stopped it.

A task beats every :data:`INTERVAL`; a thread looks at the beat. When it is overdue the
thread takes the main thread's stack, because by the time the loop runs again the culprit
is gone from it. A thread that is late itself blames nobody: then the whole process stood
still, and the stack shows where it woke up. One watchdog serves everything below the block
that opened it: an inner :func:`open_watchdog` joins the outer one.

A stack is made of file names, line numbers and names of functions. It has no values, no
source and no directories, so that it may be shown to whoever runs the program.
"""

from __future__ import annotations

import contextvars
import sys
import threading
import time
import weakref
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import PurePath
from types import FrameType
from typing import Final, final

import attrs
import trio

from semibot.lifetimes import open_services
from semibot.logs import get_logger
from semibot.ports import Ports

from .standstill import FROZEN_AFTER

log: Final = get_logger(__name__)

INTERVAL: Final = 0.25
"""Seconds between two beats of the loop."""

THRESHOLD: Final = 1.0
"""Seconds without a beat that count as a block."""

MAX_LINES: Final = 32
"""Functions of a stack that are kept, the innermost."""

MAX_LINE_LENGTH: Final = 200
"""Characters of each that are kept."""

NOBODY: Final = "unknown: the whole process stood still"
"""Who is to blame for a block that the watching thread slept through: the process was stopped
from outside, or code that is not Python kept every thread from running."""


@attrs.frozen(kw_only=True)
class LoopBlock:
    """A time during which the event loop stood still."""

    seconds: float
    """How long, in seconds."""
    where: str
    """Innermost function outside the standard library, ``file.py:12 in name``, or
    :data:`NOBODY`."""
    stack: tuple[str, ...]
    """The stack, innermost last; empty if nobody is to blame."""


@attrs.frozen(kw_only=True)
class LoopHealth:
    """How the loop ran for a while."""

    worst_lag: float
    """How late it was at worst, in seconds."""
    worst_block: LoopBlock | None
    """The longest block; None if there was none."""


@final
class LoopTally:
    """What one reader has not been told yet. Made by :meth:`Watchdog.tally`."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog
        self._lag = 0.0
        self._block: LoopBlock | None = None

    def note(self, lag: float, block: LoopBlock | None) -> None:
        """Add what a beat has found; the watchdog calls it."""
        self._lag = max(self._lag, lag)
        if block is not None and (self._block is None or block.seconds > self._block.seconds):
            self._block = block

    def take_worst(self) -> LoopHealth:
        """Return what was worst since this was called last, up to this moment."""
        self._watchdog.look()
        health = LoopHealth(worst_lag=self._lag, worst_block=self._block)
        self._lag, self._block = 0.0, None
        return health


@final
class Watchdog:
    """Made by :func:`open_watchdog`."""

    def __init__(self) -> None:
        self._loop_thread = threading.get_ident()
        self._clock = time.monotonic  # not Trio's, which a thread cannot ask
        self._beat = self._clock()
        self._stop = threading.Event()
        self._seen: FrozenStack | None = None
        self._tallies: weakref.WeakSet[LoopTally] = weakref.WeakSet()
        self._beats = trio.lowlevel.ParkingLot()
        self.ticked: threading.Event = threading.Event()
        """Set by the thread whenever it has looked."""
        self.worst_block: LoopBlock | None = None
        """The longest block so far; None if there was none."""

    async def beat(self) -> None:
        """Beat until cancelled, and report each block once it is over."""
        while True:
            await trio.sleep(INTERVAL)
            self.look()
            self._seen = None  # what the thread saw too late is nobody's
            self._beat = self._clock()
            self._beats.unpark_all()

    def look(self) -> None:
        """Report a block that is over, whoever runs first afterwards; on the loop."""
        now = self._clock()
        late = now - self._beat - INTERVAL
        if late <= 0:
            return
        self._beat = now
        seen, self._seen = self._seen, None
        block = None
        if seen is not None and late >= THRESHOLD / 2:
            block = LoopBlock(seconds=round(late, 3), where=seen.where, stack=seen.stack)
        elif seen is None and late >= FROZEN_AFTER:
            block = LoopBlock(seconds=round(late, 3), where=NOBODY, stack=())
        self.record(late, block)

    def record(self, lag: float, block: LoopBlock | None) -> None:
        """Take into account how late the loop was, and the block that was the cause, if any."""
        for tally in self._tallies:
            tally.note(lag, block)
        if block is None:
            return
        if self.worst_block is None or block.seconds > self.worst_block.seconds:
            self.worst_block = block
        log.warning("event loop was blocked", seconds=block.seconds, where=block.where)

    def tally(self) -> LoopTally:
        """Return a reader's own account of lag and blocks, from now on."""
        tally = LoopTally(self)
        self._tallies.add(tally)
        return tally

    def watch(self) -> None:
        """Look at the beat until told to stop; runs in a thread."""
        slept_at = self._clock()
        while not self._stop.wait(INTERVAL):
            now = self._clock()
            was_late, slept_at = now - slept_at >= THRESHOLD + INTERVAL, now
            overdue = now - self._beat
            self.ticked.set()
            if was_late or overdue < THRESHOLD + INTERVAL or self._seen is not None:
                continue
            frame = sys._current_frames().get(self._loop_thread)
            if frame is not None:
                self._seen = FrozenStack.of(frame)
                log.warning(
                    "event loop is blocked", seconds=round(overdue, 1), where=self._seen.where
                )

    @property
    def has_seen_block(self) -> bool:
        """Whether the loop stands still right now; for other threads."""
        return self._seen is not None

    async def wait_beat(self) -> None:
        """Wait until the loop has beaten once more; cancel to give up."""
        await self._beats.park()

    def stop(self) -> None:
        """Let :meth:`watch` return."""
        self._stop.set()


@attrs.frozen
class FrozenStack:
    """A stack as text, taken while it stood still."""

    where: str
    """The function to blame."""
    stack: tuple[str, ...]
    """At most :data:`MAX_LINES` functions, innermost last."""

    @classmethod
    def of(cls, frame: FrameType) -> FrozenStack:
        """Return the stack whose innermost frame is *frame*."""
        lines: list[str] = []
        where = ""
        current: FrameType | None = frame
        while current is not None:
            code = current.f_code
            line = f"{PurePath(code.co_filename).name}:{current.f_lineno} in {code.co_qualname}"
            line = line[:MAX_LINE_LENGTH]
            lines.append(line)
            if not where and not _is_standard_library(code.co_filename):
                where = line
            current = current.f_back
        return cls(where or lines[0], tuple(reversed(lines[:MAX_LINES])))


def _is_standard_library(filename: str) -> bool:
    return filename.startswith(("<frozen", str(PurePath(threading.__file__).parent))) and (
        "site-packages" not in filename
    )


_enclosing: contextvars.ContextVar[Watchdog] = contextvars.ContextVar("semibot_watchdog")


@asynccontextmanager
async def open_watchdog(ports: Ports) -> AsyncGenerator[Watchdog]:
    """Watch the event loop while the body runs; joins a watchdog that is open already.

    Exit tells the thread to stop and waits for it, at most two intervals. Nothing is
    watched in a simulation, whose time is not real.

    Args:
        ports: The seams; the thread is one of the limiter ``watchdog``.

    Yields:
        The watchdog that counts here.
    """
    joined = _enclosing.get(None)
    if joined is not None or ports.is_simulated:
        yield joined or Watchdog()
        return
    watchdog = Watchdog()
    token = _enclosing.set(watchdog)
    try:
        async with open_services() as services:
            services.start_soon(watchdog.beat, name="watchdog beat")
            services.start_soon(_watch, watchdog, ports, name="watchdog")
            try:
                yield watchdog
            finally:
                watchdog.stop()  # before the services are: the thread ignores cancellation
    finally:
        _enclosing.reset(token)


async def _watch(watchdog: Watchdog, ports: Ports) -> None:
    await ports.threads.run_sync(watchdog.watch, limiter="watchdog")
