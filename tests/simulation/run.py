# ruff: noqa: T201 - it prints on purpose
"""Run many seeds of the simulation, and say which of them broke a promise.

``python tests/simulation/run.py --seeds 100 --from 1``; ``--show SEED`` prints one in full.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from sim_world import simulate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--from", dest="first", type=int, default=1)
    parser.add_argument("--show", type=int)
    parser.add_argument("--faults", help="kinds, separated by commas")
    arguments = parser.parse_args()
    logging.getLogger("trio-websocket").setLevel(logging.CRITICAL)
    faults = None if arguments.faults is None else frozenset(arguments.faults.split(","))
    if arguments.show is not None:
        lines: list[str] = []
        report = simulate(arguments.show, faults=faults, lines=lines)
        print("\n".join(lines))
        print("\n".join(report.violations), report.digest, report.counts)
        return len(report.violations)
    bad: list[int] = []
    counts: Counter[str] = Counter()
    began = time.perf_counter()
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        report = simulate(seed, faults=faults)
        counts += report.counts
        if report.violations:
            bad.append(seed)
            print(f"seed {seed}: {len(report.violations)} violations")
            for text in report.violations[:4]:
                print("   ", text[:1500])
            sys.stdout.flush()
    took = time.perf_counter() - began
    print(f"{arguments.seeds} seeds in {took:.1f} s; bad: {bad}; {dict(counts)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
