"""The order in which Trio runs its tasks, drawn from a seed."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from trio._core import _run


@contextmanager
def seeded_scheduler(seed: int) -> Generator[None]:
    """Let Trio draw the order of tasks that can run at the same time from *seed*.

    Trio shuffles them on purpose, and offers no public way to repeat a shuffle: two private
    names of Trio are used here and nowhere else. Put it around :func:`trio.run`, not inside.

    Args:
        seed: The same seed, the same program and a mock clock give the same order.
    """
    state, flag = _run._r.getstate(), _run._ALLOW_DETERMINISTIC_SCHEDULING
    # Sorts what can run by the age of its task before it is shuffled; else it comes from a set.
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    _run._r.seed(seed)
    try:
        yield
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = flag  # type: ignore[misc]
        _run._r.setstate(state)
