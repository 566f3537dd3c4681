# ruff: noqa: T201 - it prints on purpose
"""Stream a large run to a hundred readers, one of whom stalls again and again.

``python tests/fairness/readers.py --megabytes 1000 --rate 2`` takes about as many seconds as
there are megabytes in the run for each megabyte a second. Exit 1 if the host grew too much, if a
stalled reader was closed too early or too late, or if the others waited much longer meanwhile.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parent))

from crowd import MOST_GROWTH, Plan, measure

TOLERANCE = 1.5
"""By how much waits differ between two measurements of the same thing, as a factor."""

SLACK = 0.02
"""The same, in seconds, for waits that are too short to have a factor."""

LATE = 2.0
"""What kernels accept for a reader that stalls, and the look for its end, take in seconds."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=1.0, help="megabytes a second")
    parser.add_argument("--readers", type=int, default=100)
    parser.add_argument("--event-bytes", type=int, default=32 * 1024)
    parser.add_argument("--stall-timeout", type=float, default=2.0)
    options = parser.parse_args()
    plan = Plan(
        megabytes=options.megabytes,
        rate=options.rate,
        readers=options.readers,
        event_bytes=options.event_bytes,
        stall_timeout=options.stall_timeout,
    )
    with tempfile.TemporaryDirectory() as directory:
        outcome = trio.run(measure, plan, Path(directory))
    print(
        f"{outcome.events} events to {plan.readers} readers in {outcome.seconds:.1f} s; the host"
        f" grew by {outcome.rss_growth / 2**20:.1f} MiB (bound {MOST_GROWTH / 2**20:.0f})"
    )
    for phase in ("live", "stalled"):
        waits = ", ".join(
            f"p{percent} {outcome.wait(phase, percent) * 1e3:.1f}" for percent in (50, 99, 100)
        )
        count = outcome.waits[phase].total()
        print(f"others wait, {phase:>7}: {waits} ms ({count} deliveries)")
    live, stalled = (outcome.wait(phase, 99) for phase in ("live", "stalled"))
    if not outcome.stalls:
        print("the run was too short for a stall")
        return 1
    closed = [stall.closed_after for stall in outcome.stalls]
    backs = sorted({stall.came_back_with for stall in outcome.stalls})
    print(
        f"p99 with one stalled / with all live: {stalled / live:.2f}; {len(closed)} stalls, closed"
        f" after {min(closed):.2f} to {max(closed):.2f} s (timeout {plan.stall_timeout:.0f} s),"
        f" none with a gap; they came back with: {', '.join(backs)}"
    )
    is_good = (
        outcome.rss_growth < MOST_GROWTH
        and stalled <= live * TOLERANCE + SLACK
        and all(0 <= each - plan.stall_timeout + 0.1 <= LATE for each in closed)
    )
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
