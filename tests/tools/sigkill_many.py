"""Kill programs that own stubborn children with SIGKILL, and see what is left of them.

As a program: ``python tests/tools/sigkill_many.py --runs 50``.
"""
# What it prints is its answer.
# ruff: noqa: T201

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import attrs
from process_table import ProcessEntry, alive, guards_of, seconds_until

HOST = Path(__file__).parent / "programs" / "doomed_host.py"
PATIENCE = 20.0
LIMIT = 1.0


@attrs.frozen
class Aftermath:
    seconds: float | None
    left: list[ProcessEntry]


def kill_host(how: str, is_time: Callable[[int, str], bool]) -> Aftermath:
    """Start a host, kill it when *is_time*, and look at what it had started for a second."""
    mark = uuid.uuid4().hex
    host = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(HOST), how, mark],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    copy = None
    try:
        words = host.stdout.readline().split()
        assert words[:1] == [b"ready"], "the host has failed"
        copy = int(words[1]) if words[1:] else None
        assert seconds_until(lambda: is_time(host.pid, mark), PATIENCE) is not None
        host.kill()
        host.wait()
        return look_at_remains(host.pid, mark, copy)
    finally:
        host.kill()
        host.wait()
        host.stdout.close()
        for entry in [*alive(mark), *guards_of(host.pid)]:
            with suppress(ProcessLookupError):
                os.kill(entry.pid, signal.SIGKILL)


def look_at_remains(host: int, mark: str, copy: int | None) -> Aftermath:
    def remains() -> list[ProcessEntry]:
        return [entry for entry in [*alive(mark), *guards_of(host)] if entry.pid != copy]

    seconds = seconds_until(lambda: not remains(), LIMIT)
    return Aftermath(seconds, remains())


def has_settled(host: int, mark: str) -> bool:
    """Whether all run: a rude child, a forker and its grandchild, and a sleeper."""
    programs = [entry for entry in alive(mark) if HOST.name not in entry.command]
    return len(programs) == 4 and len(guards_of(host)) == 3


def is_starting(host: int, _: str) -> bool:
    return bool(guards_of(host))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    runs = parser.parse_args().runs
    slowest, good = 0.0, 0
    for _ in range(runs):
        aftermath = kill_host("settled", has_settled)
        if aftermath.seconds is None:
            print("left alive:", aftermath.left)
        else:
            good += 1
            slowest = max(slowest, aftermath.seconds)
    print(f"{good} of {runs}: nothing alive after 1 s (slowest {slowest * 1000:.0f} ms)")
    return 0 if good == runs else 1


if __name__ == "__main__":
    sys.exit(main())
