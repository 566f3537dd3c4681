"""Attack everything that reads what strangers say.

``python tests/hostile/run.py --examples 20000``

Ends with 1, and shows the smallest input that does it, if something does not hold.
"""
# What it prints is its answer.
# ruff: noqa: T201

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback
from functools import partial

import hostile_paths  # noqa: F401 - first, because it says where the rest is
from hostile_costs import OTHERS, READERS, cost, frames
from hostile_links import attack_host, attack_vm
from hostile_targets import MEGABYTES, SECONDS, TARGETS, attack


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=20_000, help="inputs for each reader")
    parser.add_argument("--only", default="", help="readers whose names contain this")
    options = parser.parse_args()
    logging.lastResort = None  # what is logged is looked at, not shown
    failures = 0
    links = options.examples // 100  # conversations, which are much slower
    attacks = {target.name: partial(attack, target, options.examples) for target in TARGETS}
    attacks["a host with a VM that talks nonsense"] = partial(attack_host, links)
    attacks["a VM with a host that talks nonsense"] = partial(attack_vm, links)
    for name, strike in attacks.items():
        if options.only not in name:
            continue
        start = time.monotonic()
        try:
            outcome = strike()
        except Exception:  # noqa: BLE001 - whatever it is, it is the finding
            failures += 1
            traceback.print_exc()
            print(f"{name}: FAILED", flush=True)
            continue
        slowest = f", slowest {outcome.slowest * 1000:.1f} ms" if outcome.slowest else ""
        print(
            f"{name}: {outcome.accepted} accepted, {outcome.refused} refused{slowest}, "
            f"{time.monotonic() - start:.0f} s",
            flush=True,
        )
    costs = {
        f"{name} ({reader})": (READERS[reader], data)
        for name, data in frames().items()
        for reader in READERS
    }
    for name, (read, data) in {**costs, **OTHERS}.items():
        if options.only in name:
            seconds, megabytes = cost(read, data)
            is_good = seconds < SECONDS and megabytes < MEGABYTES
            failures += not is_good
            print(
                f"{name}: {seconds * 1000:.0f} ms, {len(data)} bytes", "" if is_good else "FAILED"
            )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
