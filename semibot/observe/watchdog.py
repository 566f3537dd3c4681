"""Measure how long the event loop stands still, and name who stopped it.

A task beats every :data:`INTERVAL`; a thread looks at the beat. When it is overdue the
thread takes the main thread's stack, because by the time the loop runs again the culprit
is gone from it. One watchdog serves everything below the block that opened it: an inner
:func:`open_watchdog` joins the outer one.
"""

from __future__ import annotations

import contextvars
import sys
import threading
import time
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

log: Final = get_logger(__name__)

INTERVAL: Final = 0.25
"""Seconds between two beats of the loop."""

THRESHOLD: Final = 1.0
"""Seconds without a beat that count as a block."""


@attrs.frozen(kw_only=True)
class LoopBlock:
    """A time during which the event loop stood still."""

    seconds: float
    """How long, in seconds."""
    where: str
    """Innermost function outside the standard library: ``file.py:12 in name``."""
    stack: tuple[str, ...]
    """The whole stack, innermost last."""


@final
class Watchdog:
    """Made by :func:`open_watchdog`."""

    def __init__(self) -> None:
        self._loop_thread = threading.get_ident()
        self._beat = time.monotonic()
        self._stop = threading.Event()
        self._seen: FrozenStack | None = None
        self._beats = trio.lowlevel.ParkingLot()
        self.ticked: threading.Event = threading.Event()
        """Set by the thread whenever it has looked."""
        self.worst_block: LoopBlock | None = None
        """The longest block so far; None if there was none."""

    async def beat(self) -> None:
        """Beat until cancelled, and report each block once it is over."""
        while True:
            await trio.sleep(INTERVAL)
            now = time.monotonic()
            stood_still = now - self._beat - INTERVAL
            self._beat = now
            seen, self._seen = self._seen, None
            if seen is not None and stood_still >= THRESHOLD / 2:
                self._report(
                    LoopBlock(seconds=round(stood_still, 3), where=seen.where, stack=seen.stack)
                )
            self._beats.unpark_all()

    def watch(self) -> None:
        """Look at the beat until told to stop; runs in a thread."""
        while not self._stop.wait(INTERVAL):
            overdue = time.monotonic() - self._beat
            self.ticked.set()
            if overdue < THRESHOLD + INTERVAL or self._seen is not None:
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

    def _report(self, block: LoopBlock) -> None:
        if self.worst_block is None or block.seconds > self.worst_block.seconds:
            self.worst_block = block
        log.warning("event loop was blocked", seconds=block.seconds, where=block.where)


@attrs.frozen
class FrozenStack:
    """A stack as text, taken while it stood still."""

    where: str
    """The function to blame."""
    stack: tuple[str, ...]
    """All functions, innermost last."""

    @classmethod
    def of(cls, frame: FrameType) -> FrozenStack:
        """Return the stack whose innermost frame is *frame*."""
        lines: list[str] = []
        where = ""
        current: FrameType | None = frame
        while current is not None:
            code = current.f_code
            line = f"{PurePath(code.co_filename).name}:{current.f_lineno} in {code.co_qualname}"
            lines.append(line)
            if not where and not _is_standard_library(code.co_filename):
                where = line
            current = current.f_back
        return cls(where or lines[0], tuple(reversed(lines)))


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
