"""What a scenario has left behind: descriptors, children, threads, tasks, warnings.

On systems without ``/proc`` descriptors and children are not looked for.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs
import trio

_SELF: Final = Path("/proc/self")
_SET_SUBREAPER: Final = 36
_GET_SUBREAPER: Final = 37
_THREADS_SETTLE: Final = 0.5
"""How long a thread may take to go back to Trio's idle ones after its last result, in seconds."""


@attrs.frozen(kw_only=True)
class Belongings:
    """What the process has at one moment."""

    descriptors: Mapping[int, str]
    """What each open descriptor is."""
    children: Mapping[int, str]
    """State and name of each child, zombies and adopted grandchildren too."""
    threads: frozenset[int]
    """Threads that do something; Trio's idle workers do nothing."""


def take_stock() -> Belongings:
    """Return what the process has now."""
    return Belongings(descriptors=_descriptors(), children=_children(), threads=_threads())


def find_leftovers(before: Belongings, *, threads: int) -> list[str]:
    """Return what was not there *before*, in words, and kill the children among it.

    Args:
        before: What there was.
        threads: How many threads may be left.
    """
    found = [
        f"descriptor {number} is left: {target}"
        for number, target in _descriptors().items()
        if before.descriptors.get(number) != target
    ]
    for pid, what in _children().items():
        if pid not in before.children:
            found.append(f"child {pid} is left: {what}")
            _bury(pid)
    left = _threads_after(before, threads)
    if len(left) > threads:
        names = sorted(thread.name for thread in threading.enumerate() if thread.ident in left)
        found.append(f"{len(left)} threads are left, {threads} may be: {', '.join(names)}")
    return found


def _descriptors() -> dict[int, str]:
    found: dict[int, str] = {}
    if not _SELF.exists():
        return found
    for name in os.listdir(_SELF / "fd"):  # noqa: PTH208 - names only, thousands of times
        with contextlib.suppress(OSError):  # the one that lists them
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115 - see above
    return found


def _children() -> dict[int, str]:
    found: dict[int, str] = {}
    for task in (_SELF / "task").iterdir() if _SELF.exists() else ():
        with contextlib.suppress(OSError):  # a thread that has ended
            for pid in (task / "children").read_text().split():
                found[int(pid)] = _what_is(int(pid))
    return found


def _what_is(pid: int) -> str:
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().partition("(")[2].rpartition(")")
    except OSError:
        return "gone"
    return f"{name} ({'zombie' if rest.split()[0] == 'Z' else 'alive'})"


def _bury(pid: int) -> None:
    with contextlib.suppress(OSError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _threads() -> frozenset[int]:
    """Return the threads that do something."""
    frames = sys._current_frames()
    return frozenset(
        ident
        for ident, frame in frames.items()
        if not (
            frame.f_code.co_name == "_work"
            and frame.f_code.co_filename.endswith("_thread_cache.py")
        )
    )


def _threads_after(before: Belongings, allowed: int) -> frozenset[int]:
    give_up = time.monotonic() + _THREADS_SETTLE
    while True:
        left = _threads() - before.threads
        if len(left) <= allowed or time.monotonic() > give_up:
            return left
        threading.Event().wait(0.001)  # a thread says its result before it is idle


# --- tasks -----------------------------------------------------------------------------


def tasks_below(root: trio.lowlevel.Task | None) -> Iterator[trio.lowlevel.Task]:
    """Return *root* and all tasks of its nurseries, and of theirs."""
    if root is None:
        return
    yield root
    for nursery in root.child_nurseries:
        for task in nursery.child_tasks:
            yield from tasks_below(task)


# --- what Python complains about -------------------------------------------------------


@contextmanager
def heard_complaints() -> Generator[list[str]]:
    """Collect warnings about resources and coroutines, and exceptions that nobody can catch.

    Garbage is collected at the end, so that what nobody closed complains here.
    """
    found: list[str] = []

    def note(unraisable: sys.UnraisableHookArgs) -> None:
        found.append(f"unraisable {unraisable.exc_value!r} in {unraisable.object!r}")

    hook, sys.unraisablehook = sys.unraisablehook, note
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield found
            finally:
                gc.collect()
                found += [
                    f"warned {warning.message}"
                    for warning in caught
                    if issubclass(warning.category, ResourceWarning | RuntimeWarning)
                ]
    finally:
        sys.unraisablehook = hook


@contextmanager
def only_new_garbage() -> Generator[None]:
    """Spare collections all that is there already; a sweep collects at every step."""
    gc.collect()
    is_outermost = gc.get_freeze_count() == 0
    gc.freeze()
    try:
        yield
    finally:
        if is_outermost:
            gc.unfreeze()


@contextmanager
def adopted_grandchildren() -> Generator[None]:
    """Become the parent of grandchildren whose parent dies, instead of the system's first process.

    Linux only; elsewhere nothing changes.
    """
    if sys.platform != "linux":
        yield
        return
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    was = ctypes.c_int()
    prctl(_GET_SUBREAPER, ctypes.byref(was), 0, 0, 0)
    prctl(_SET_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        prctl(_SET_SUBREAPER, was.value, 0, 0, 0)
