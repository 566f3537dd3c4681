"""Worker threads of a simulated process, which run on the loop and take a little time."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Final, TypeVar, TypeVarTuple, final

import trio

from .pipes import Machine

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_ON_DISK: Final = frozenset({"store", "files"})


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
        self.on_slow: Callable[[], None] | None = None
        """Is told that one does."""
        self._phases = {phase: trio.lowlevel.ParkingLot() for phase in ("begun", "done")}

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
        """Run ``fn(*args)`` between two waits."""
        # A thread is not cancelled, unless its caller may leave it behind. This is what
        # trio.to_thread does, so it is bounded by what the caller promises.
        with trio.CancelScope(shield=not abandon_on_cancel):
            is_abandoned = False
            is_commit = limiter == "store"
            if not self._machine.is_dead:
                if is_commit:
                    self._drive.note_commit("begun")
                try:
                    await trio.sleep(self._draw_delay(limiter))
                except trio.Cancelled:  # the thread that was left behind goes on all the same
                    is_abandoned = True
            try:
                return fn(*args)
            finally:
                if on_exit is not None:
                    on_exit()
                if is_abandoned:
                    await trio.lowlevel.checkpoint_if_cancelled()
                elif not self._machine.is_dead:
                    if is_commit:
                        self._drive.note_commit("done")
                    await trio.sleep(self._draw_delay(limiter))

    def in_use(self) -> Mapping[str, int]:
        """Return nothing: no thread is ever out."""
        return {}
