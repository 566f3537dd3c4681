"""What scenarios share: a fresh directory for each run, and a look at what the run has left."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import attrs

MEMORY: Final = Path("/dev/shm")
"""Where files cost nothing, on Linux; these scenarios are not about the disk."""

TESTS: Final = Path(__file__).parent.parent

for _room in ("adapters", "host", "tools", "vm"):  # whose kits are used here
    if str(TESTS / _room) not in sys.path:
        sys.path.append(str(TESTS / _room))


@attrs.define(eq=False)
class Trial:
    """One run of a scenario, and what it says for the look at it."""

    directory: Path
    """Its own, and empty."""
    problems: list[str] = attrs.field(factory=list[str])
    """What went wrong on the way."""
    kept: list[str] = attrs.field(factory=list[str])
    """What was acknowledged, and so has to be found afterwards."""
    parts: dict[str, object] = attrs.field(factory=dict[str, object])
    """Whatever else the look wants to see."""


Look = Callable[[Trial], str | None]
"""Finds what a run has left behind; returns a problem or None."""


@attrs.frozen(kw_only=True)
class Case:
    """A scenario that may be cancelled at any step, and what has to hold afterwards."""

    name: str
    """``room: what happens``."""
    act: Callable[[Trial], Awaitable[object]]
    """What happens."""
    look: Look = lambda _: None
    """What has to hold."""
    within: float
    """What ending may take after the cancel, in seconds."""
    because: str
    """Where that bound comes from: fields of ``Deadlines``, or why there is nothing to wait for."""
    is_real: bool = False
    """Whether children, threads or sockets are real, so that time is too."""
    threads: int = 0
    """How many threads a run may leave: those that it abandons on purpose."""
    errors_within: float | None = None
    """How long it may go on after a stream broke, in seconds; None if it uses none that breaks."""

    def bind(self) -> tuple[Callable[[], Awaitable[object]], Callable[[], str | None]]:
        """Return the scenario and the audit for :func:`semibot.testing.cancel_everywhere`."""
        trials: list[Trial] = []

        async def scenario() -> None:
            trials.append(Trial(new_directory()))
            await self.act(trials[-1])

        return scenario, partial(_audit, trials, self.look)


def new_directory() -> Path:
    """Return a new directory, in memory where that is possible."""
    base = MEMORY if MEMORY.is_dir() else None
    return Path(tempfile.mkdtemp(prefix="cancelled-", dir=base))


def _audit(trials: list[Trial], look: Look) -> str | None:
    """Look at the newest run, and take its directory away."""
    if not trials:  # it was cancelled before it began
        return None
    trial = trials.pop()
    try:
        found = look(trial)
        problems = [*trial.problems, *([] if found is None else [found])]
        return "; ".join(problems) or None
    finally:
        shutil.rmtree(trial.directory)
