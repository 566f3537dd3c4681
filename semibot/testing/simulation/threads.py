"""Worker threads of a simulated process, which run on the loop and take a little time."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Final, TypeVar, TypeVarTuple, final

import trio

from semibot.lifetimes import grace

from .pipes import Machine

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_ON_DISK: Final = frozenset({"store", "files"})
_LONGEST: Final = 60.0


@final
class Drive:
    """How fast the disk of one process is, and what it is doing.

    Args:
        usual_delay: What a job usually takes, in seconds, on average.
    """

    def __init__(self, usual_delay: float) -> None:
        self.usual_delay = usual_delay
        self.slow_until: float = 0.0
        """Until when jobs may take seconds, on Trio's clock."""
        self.bad_until: float = -100.0
        """Until when something is wrong with it, on Trio's clock."""
        self.on_slow: Callable[[], None] | None = None
        """Is told that one does."""
        self._phases = {phase: trio.lowlevel.ParkingLot() for phase in ("begun", "done")}

    def note_failure(self) -> None:
        """Take note that something has failed on it."""
        self.bad_until = max(self.bad_until, trio.current_time())

    async def wait_commit(self, phase: str) -> None:
        """Wait until a commit has ``begun``, or is ``done`` but nobody knows it yet."""
        await self._phases[phase].park()

    def note_commit(self, phase: str) -> None:
        """Wake those that wait for it."""
        self._phases[phase].unpark_all()


@final
class SimulatedThreads:
    """Runs blocking work on the loop, after and before a little time; a kill may hit either.

    Args:
        machine: The process.
        seed: Decides how long things take.
        drive: How fast its disk is.
    """

    def __init__(self, machine: Machine, seed: str, drive: Drive) -> None:
        self._machine = machine
        self._random = random.Random(seed)  # noqa: S311 - reproducible on purpose
        self._drive = drive

    def _draw_delay(self, limiter: str) -> float:
        if limiter in _ON_DISK and trio.current_time() < self._drive.slow_until:
            if self._drive.on_slow is not None:
                self._drive.on_slow()
            return self._random.choice([0.05, 1.0, 7.0, 15.0])
        return self._random.expovariate(1 / self._drive.usual_delay)

    async def run_sync(
        self,
        fn: Callable[[*Ts], T],
        *args: *Ts,
        limiter: str,
        abandon_on_cancel: bool = False,
        on_exit: Callable[[], None] | None = None,
    ) -> T:
        """Run ``fn(*args)`` between two waits. A kill may hit either."""
        is_commit = limiter == "store"
        if abandon_on_cancel:
            try:
                await self._wait(limiter, "begun" if is_commit else "")
            except trio.Cancelled:  # the thread that is left behind goes on all the same
                _call(fn, args, on_exit)
                raise
            result = _call(fn, args, on_exit)
            await self._wait(limiter, "done" if is_commit else "")
            return result
        # A thread that may not be left behind is waited for whatever happens.
        with grace("simulated.thread", _LONGEST):
            await self._wait(limiter, "begun" if is_commit else "")
        result = _call(fn, args, on_exit)
        with grace("simulated.thread", _LONGEST):
            await self._wait(limiter, "done" if is_commit else "")
        return result

    async def _wait(self, limiter: str, phase: str) -> None:
        if self._machine.is_dead:
            return
        if phase:
            self._drive.note_commit(phase)
        await trio.sleep(self._draw_delay(limiter))

    def in_use(self) -> Mapping[str, int]:
        """Return nothing: no thread is ever out."""
        return {}


def _call(fn: Callable[[*Ts], T], args: tuple[*Ts], on_exit: Callable[[], None] | None) -> T:
    try:
        return fn(*args)
    finally:
        if on_exit is not None:
            on_exit()
