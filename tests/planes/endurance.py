"""Do everything that real processes and networks do to a host and a VM, at full size.

``python tests/planes/endurance.py`` kills 200 times at random moments (host, VM, or both),
200 times a bridge or its guard, stops a VM for a minute, and runs the tests of networks and
of stubborn bridges. It prints a line for each part, and the exit code is 1 if any was bad.
``--only any --from 40 --kills 20`` does a piece of it.
"""
# What it prints is its answer.
# ruff: noqa: T201

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pytest
import trio
from freeze import run_freeze
from kill import kill_many

HERE = Path(__file__).parent
PARTS = ("any", "bridge", "freeze", "proxy", "bridges")
PIECE = 25
"""Kills in one plane; then come others, so that each part begins anew now and then."""


def kill(what: str, first: int, count: int, seed: int) -> list[str]:
    """Kill so many times, and return a summary for each piece."""
    summaries = []
    for start in range(first, first + count, PIECE):
        times = min(PIECE, first + count - start)
        with tempfile.TemporaryDirectory(prefix="semibot-kill-") as directory:
            go = partial(kill_many, what, Path(directory), first=start, times=times, seed=seed)
            summaries.append(trio.run(go))
        print(summaries[-1], flush=True)
    return summaries


def freeze(seconds: float) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="semibot-freeze-") as directory:
        frozen = trio.run(run_freeze, Path(directory) / "plane", seconds)
    return [f"{'BAD' if frozen.audit.problems else 'good'} freeze: {frozen}"]


def run_tests(name: str) -> list[str]:
    start = time.monotonic()
    code = pytest.main(["-q", str(HERE / name)])
    verdict = "good" if code == 0 else "BAD"
    return [f"{verdict} {name}: {time.monotonic() - start:.0f} s"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="of each kind")
    parser.add_argument("--from", dest="first", type=int, default=0, help="number of the first")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=60.0, help="that a VM stands still")
    parser.add_argument("--only", choices=PARTS, action="append")
    options = parser.parse_args()
    results = []
    for part in options.only or PARTS:
        start = time.monotonic()
        match part:
            case "any" | "bridge":
                found = kill(part, options.first, options.kills, options.seed)
            case "freeze":
                found = freeze(options.seconds)
            case "proxy":
                found = run_tests("test_proxy.py")
            case _:
                found = run_tests("test_bridges.py")
        results += found
        print(f"{part} took {time.monotonic() - start:.0f} s", flush=True)
    print(*results, sep="\n")
    return 0 if all(result.startswith("good") for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
