"""What scenarios share: a fresh directory for each run, and a look at what the run has left."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Awaitable, Callable
from functools import cache, partial
from pathlib import Path
from typing import Final

import attrs
import trio

from semibot.config import Deadlines
from semibot.store.sqlite import open_sqlite_store
from semibot.testing import simulated_ports

MEMORY: Final = Path("/dev/shm")
"""Where files cost nothing, on Linux; these scenarios are not about the disk."""

TESTS: Final = Path(__file__).parent.parent

for _room in ("adapters", "channel", "host", "session", "tools", "vm"):  # whose kits are used here
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

    @property
    def database(self) -> Path:
        """Where its host keeps its data."""
        return self.directory / "data" / "semibot.db"


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
    has_database: bool = False
    """Whether there is an empty database to begin with, which saves making one each time."""
    threads: int = 0
    """How many threads a run may leave: those that it abandons on purpose."""
    grandchildren: bool = True
    """Whether orphans are adopted, and so seen; False if a parent is killed on purpose."""
    errors_within: float | None = None
    """How long it may go on after a stream broke, in seconds; None if it uses none that breaks."""

    def bind(self) -> tuple[Callable[[], Awaitable[object]], Callable[[], str | None]]:
        """Return the scenario and the audit for :func:`semibot.testing.cancel_everywhere`."""
        trials: list[Trial] = []
        database = empty_database() if self.has_database else b""

        async def scenario() -> None:
            trial = Trial(new_directory())
            trials.append(trial)
            if database:
                trial.database.parent.mkdir(mode=0o700)
                trial.database.write_bytes(database)
                trial.database.chmod(0o600)
            await self.act(trial)

        return scenario, partial(_audit, trials, self.look)


def new_directory() -> Path:
    """Return a new directory, in memory where that is possible."""
    base = MEMORY if MEMORY.is_dir() else None
    return Path(tempfile.mkdtemp(prefix="cancelled-", dir=base))


@cache
def empty_database() -> bytes:
    """Return a database that is up to date and empty."""
    directory = new_directory()

    async def make() -> None:
        path = directory / "semibot.db"
        async with open_sqlite_store(path, ports=simulated_ports(), deadlines=Deadlines()):
            pass

    try:
        trio.run(make)
        return (directory / "semibot.db").read_bytes()
    finally:
        shutil.rmtree(directory)


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
