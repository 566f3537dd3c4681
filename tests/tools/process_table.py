"""What the operating system says about processes and descriptors; Linux only."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import attrs


@attrs.frozen
class ProcessEntry:
    pid: int
    parent: int
    state: str
    command: str


def process_table() -> list[ProcessEntry]:
    entries = []
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                command = (directory / "cmdline").read_bytes()
                state, parent = (directory / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:  # it has ended since the listing
                continue
            text = command.replace(b"\0", b" ").decode(errors="replace")
            entries.append(ProcessEntry(int(directory.name), int(parent), state, text))
    return entries


def alive(mark: str) -> list[ProcessEntry]:
    """Return the living processes, other than this one, with *mark* in their command line."""
    return [
        entry
        for entry in process_table()
        if mark in entry.command and entry.state not in "ZX" and entry.pid != os.getpid()
    ]


def children() -> list[ProcessEntry]:
    """Return our children, zombies too."""
    return [entry for entry in process_table() if entry.parent == os.getpid()]


def guards_of(owner: int) -> list[ProcessEntry]:
    """Return the guards that a process has started, also after it has died."""
    return [
        entry
        for entry in process_table()
        if "guard.py" in entry.command and entry.command.split()[-1:] == [str(owner)]
    ]


def descriptors() -> dict[int, str]:
    """Return this process's descriptors and what they are."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            found[int(link.name)] = str(link.readlink())
        except OSError:  # the one that lists them
            continue
    return found


def seconds_until(condition: Callable[[], bool], limit: float) -> float | None:
    """Look again and again; return how long it took, or None after *limit* seconds.

    For what the operating system tells nobody about, such as the end of a stranger's child.
    """
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > limit:
            return None
        time.sleep(0.002)
    return time.monotonic() - start
