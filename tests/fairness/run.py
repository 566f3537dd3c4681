# ruff: noqa: T201 - it prints on purpose
"""Let one session pour while others talk on the same link, and say how long those wait.

``python tests/fairness/run.py`` pours 50 MB in events of at most 4 KiB over a link of 1 MB/s
beside 19 other sessions. Exit 1 if a bound is broken.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from flood import LATEST_BEAT, LONGEST_WAIT, Plan, simulate

MEMORY = Path("/dev/shm")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=50.0)
    parser.add_argument("--speed", type=float, default=1.0, help="megabytes a second")
    parser.add_argument("--talkers", type=int, default=19)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    plan = Plan(
        flood_bytes=int(options.megabytes * 1e6),
        speed=options.speed * 1e6,
        talkers=options.talkers,
    )
    parent = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        outcome = simulate(plan, Path(directory), seed=options.seed)
    waits = ", ".join(f"p{percent} {outcome.wait(percent) * 1e3:.0f}" for percent in (50, 99, 100))
    print(outcome)
    print(
        f"{len(outcome.waits)} events of {plan.talkers} other sessions took, in ms: {waits}"
        f" (bound of p99: {LONGEST_WAIT * 1e3:.0f})"
    )
    print(
        f"{len(outcome.beats)} heartbeats every {plan.heartbeat:.0f} s, at most"
        f" {outcome.longest_pause:.2f} s apart; the link was used to {outcome.link_share:.1%},"
        f" {outcome.flood_share:.1%} of it for the text that was poured"
    )
    is_good = (
        outcome.wait(99) < LONGEST_WAIT and outcome.longest_pause <= plan.heartbeat + LATEST_BEAT
    )
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
