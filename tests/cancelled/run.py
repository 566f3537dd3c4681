# ruff: noqa: T201 - it prints on purpose
"""Cancel every scenario at every step, break every stream at every use, and print what is left.

    python tests/cancelled/run.py [--seeds 3] [--only TEXT] [--errors] [--short]

``--seeds N`` takes N orders of tasks instead of one, ``--only`` the scenarios whose name has
the text in it, ``--errors`` breaks streams too, ``--short`` tries as few steps as the tests
do. The exit status is 1 if anything is found.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from scenarios import all_cases
from sweeping import Result, seed_of, sweep

LINE = "{:<62} {:>6} {:>6} {:>17} {:>4} {:>6}"

SHOWN = 10
"""How many findings of one scenario are printed."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweeps that the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=0, help="how many; by default one of three")
    parser.add_argument("--only", default="", help="a part of the names")
    parser.add_argument("--errors", action="store_true", help="break streams as well")
    parser.add_argument("--short", action="store_true", help="not every step")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)  # they say what is being broken, thousands of times
    results: list[Result] = []
    began = time.perf_counter()
    print(
        f"{'scenario':<62} {'points':>6} {'errors':>6} {'longest / bound':>17} {'left':>4}    CPU"
    )
    for case in all_cases():
        if options.only in case.name:
            seeds = range(options.seeds) if options.seeds else [seed_of(case)]
            result = sweep(case, seeds, with_errors=options.errors, is_short=options.short)
            results.append(result)
            show(result)
    leaks = sum(len(result.problems) for result in results)
    points = sum(result.cancelled.cancel_points for result in results)
    errors = sum(result.errors for result in results)
    took = f"{time.perf_counter() - began:.0f} s, {sum(each.seconds for each in results):.0f} s CPU"
    print(
        f"{len(results)} scenarios, {points} cancel points, {errors} errors, {leaks} leaks; {took}"
    )
    return 1 if leaks or not results else 0


def show(result: Result) -> None:
    """Print a line for the scenario, and one for each thing that is wrong."""
    bound = f"{result.cancelled.longest:.2f} / {result.case.within:.2f} s"
    points, left = result.cancelled.cancel_points, len(result.problems)
    cpu = f"{result.seconds:.1f} s"
    print(LINE.format(result.case.name, points, result.errors, bound, left, cpu), flush=True)
    for problem in result.problems[:SHOWN]:
        print(f"    {problem}")
    if left > SHOWN:
        print(f"    and {left - SHOWN} more")


if __name__ == "__main__":
    sys.exit(main())
