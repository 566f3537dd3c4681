"""Trio's scheduler, from a seed, and with tasks that stand still.

Trio shuffles the tasks that can run, so that nobody relies on their order; it has a switch for
having that reproducible, which is for Hypothesis and has no public name. With it on, each round
begins with the runnable tasks in the order of their birth, handed to the ``shuffle`` of a
generator. That generator is ours here: it shuffles from the seed, and it takes out tasks that
must not run now and puts them back in when they may: so a process can be frozen. The
private names of Trio that semibot needs are used here and nowhere else. A test finds out if Trio
changes them.
"""

from __future__ import annotations

import contextlib
import importlib
import random
from collections.abc import Callable, Generator
from typing import final

import trio


@final
class _Scheduler:
    """What Trio calls to bring the tasks of a round into an order.

    Args:
        seed: Decides the order.
        is_frozen: Whether a task must not run now.
    """

    def __init__(self, seed: int, is_frozen: Callable[[trio.lowlevel.Task], bool]) -> None:
        self._random = random.Random(seed)  # noqa: S311 - reproducible on purpose
        self._is_frozen = is_frozen
        self._held: list[trio.lowlevel.Task] = []

    def shuffle(self, batch: list[trio.lowlevel.Task]) -> None:
        """Order the tasks of a round, and leave out those that stand still."""
        if self._held:
            batch[:0] = self._held
            self._held = []
        still = [task for task in batch if self._is_frozen(task)]
        if still:
            self._held = still
            batch[:] = [task for task in batch if task not in still]
        self._random.shuffle(batch)

    def random(self) -> float:
        """Return a number from 0 to 1; Trio asks only without the switch."""
        return self._random.random()

    def uniform(self, low: float, high: float) -> float:
        """Return a number between two; Trio's real clock begins at one."""
        return self._random.uniform(low, high)


@contextlib.contextmanager
def seeded_scheduler(
    seed: int, is_frozen: Callable[[trio.lowlevel.Task], bool] = lambda _: False
) -> Generator[None]:
    """Let Trio draw the order of tasks that can run at the same time from *seed*.

    Put it around :func:`trio.run`, not inside.

    Args:
        seed: The same seed, the same program and a mock clock give the same order.
        is_frozen: Says of a task that could run whether it must not, now. Once it may, another
            task has to run before Trio looks again.
    """
    trios = importlib.import_module("trio._core._run")  # it has no public name
    before = {name: getattr(trios, name) for name in ("_r", "_ALLOW_DETERMINISTIC_SCHEDULING")}
    setattr(trios, "_r", _Scheduler(seed, is_frozen))  # noqa: B010 - a private name of Trio
    setattr(trios, "_ALLOW_DETERMINISTIC_SCHEDULING", True)  # noqa: B010 - likewise
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(trios, name, value)


def scopes_around(task: trio.lowlevel.Task) -> list[trio.CancelScope]:
    """Return the cancel scopes that a task is in, the innermost first.

    Trio keeps them in a chain without a public name.
    """
    scopes: list[trio.CancelScope] = []
    status = getattr(task, "_cancel_status")  # noqa: B009 - a private name of Trio
    while status is not None:
        scopes.append(getattr(status, "_scope"))  # noqa: B009 - likewise
        status = getattr(status, "_parent")  # noqa: B009 - likewise
    return scopes
