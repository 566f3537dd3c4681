# ruff: noqa: T201 - it prints on purpose
"""Drop many VMs at once, and say when they dialled and when they were back.

``python tests/storm/run.py --vms 1000`` simulates; ``--outage`` says for how many seconds nobody
answers, ``--how unanswered`` that dials are not even refused, ``--disk`` how many seconds the
host's disk takes. ``--real 200`` kills and restarts a real host that so many sockets are linked
to. Exit 1 if a bound is broken.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parent))

from real_storm import REAL_BOUND, measure
from storm import BACK_BOUND, MOST_SHARE, MOST_STRANGERS, SPREAD_AFTER, Plan, percentile, simulate

MEMORY = Path("/dev/shm")


def histogram(counts: Sequence[int], name: str) -> None:
    most = max(counts, default=1) or 1
    print(f"{'second':>6} {name:>6}")
    for second, count in enumerate(counts):
        print(f"{second:6} {count:6} {'#' * (count * 60 // most)}")


def run_simulated(plan: Plan, seed: int) -> bool:
    parent = MEMORY if MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=parent) as directory:
        outcome = simulate(plan, Path(directory), seed=seed, say=print)
    histogram(outcome.per_second, "dials")
    after = [at - outcome.outage for at in outcome.back]
    print(f"{outcome}")
    print(
        f"busiest second from {SPREAD_AFTER:.0f} s on: {outcome.busiest_share:.1%} of the VMs"
        f" (bound {MOST_SHARE:.0%})"
    )
    print(
        f"back after the outage: p50 {percentile(after, 50):.1f} s,"
        f" p99 {percentile(after, 99):.1f} s, last {after[-1]:.1f} s (bound {BACK_BOUND:.0f} s)"
    )
    return (
        len(after) == plan.vms
        and after[-1] <= BACK_BOUND
        and outcome.busiest_share <= MOST_SHARE
        and outcome.most_strangers <= MOST_STRANGERS
    )


def run_real(vms: int) -> bool:
    with tempfile.TemporaryDirectory() as directory:
        outcome = trio.run(measure, vms, Path(directory))
    histogram(outcome.per_second, "back")
    print(
        f"{vms} VMs; the host listens again after {outcome.listens_after:.1f} s; back:"
        f" p50 {outcome.percentile(50):.1f} s, p99 {outcome.percentile(99):.1f} s,"
        f" last {outcome.back[-1]:.1f} s; {len(outcome.dials)} dials"
    )
    return outcome.back[-1] <= outcome.listens_after + REAL_BOUND


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, default=1000)
    parser.add_argument("--outage", type=float, default=90.0)
    parser.add_argument("--how", choices=["refused", "unanswered"], default="refused")
    parser.add_argument("--disk", type=float, default=0.002)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--real", type=int)
    options = parser.parse_args()
    if options.real is not None:
        return 0 if run_real(options.real) else 1
    plan = Plan(vms=options.vms, outage=options.outage, how=options.how, disk_delay=options.disk)
    return 0 if run_simulated(plan, options.seed) else 1


if __name__ == "__main__":
    sys.exit(main())
