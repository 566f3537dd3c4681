# ruff: noqa: T201 - it prints on purpose
"""Cancel every scenario at every step, break every stream at every use, and print what is left.

    python tests/cancelled/run.py [--seeds 3] [--only TEXT] [--errors]

``--seeds N`` takes N orders of tasks instead of one, ``--only`` the scenarios whose name has
the text in it, ``--errors`` breaks streams too. The exit status is 1 if anything is found.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path

import attrs

sys.path.insert(0, str(Path(__file__).parent))

from scenarios import all_cases
from trials import Case

from semibot.testing import FaultReport, SweepReport, cancel_everywhere, fail_everywhere


@attrs.frozen
class Result:
    """What the sweeps of one scenario found."""

    case: Case
    cancelled: SweepReport
    broken: FaultReport | None
    seconds: float
    """What they took of a processor."""

    @property
    def problems(self) -> tuple[str, ...]:
        return self.cancelled.problems + (self.broken.problems if self.broken else ())

    @property
    def errors(self) -> int:
        return self.broken.errors if self.broken else 0


def seed_of(case: Case) -> int:
    """Return the seed that a short sweep uses; not the same for all scenarios."""
    return zlib.crc32(case.name.encode()) % 3


def sweep(case: Case, seeds: Sequence[int], *, with_errors: bool) -> Result:
    """Sweep one scenario."""
    began = time.process_time()
    scenario, audit = case.bind()
    cancelled = cancel_everywhere(
        scenario,
        audit=audit,
        mock_clock=not case.is_real,
        seeds=seeds,
        within=case.within,
        threads=case.threads,
        grandchildren=case.grandchildren,
    )
    broken = None
    if with_errors and case.errors_within is not None:
        scenario, audit = case.bind()
        broken = fail_everywhere(
            scenario,
            audit=audit,
            mock_clock=not case.is_real,
            seeds=seeds,
            within=case.errors_within,
            threads=case.threads,
            grandchildren=case.grandchildren,
        )
    return Result(case, cancelled, broken, time.process_time() - began)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweeps that the command line asks for; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=0, help="how many; by default one of three")
    parser.add_argument("--only", default="", help="a part of the names")
    parser.add_argument("--errors", action="store_true", help="break streams as well")
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)  # they say what is being broken, thousands of times
    results: list[Result] = []
    print(
        f"{'scenario':<62} {'points':>6} {'errors':>6} {'longest / bound':>17} {'left':>4}    CPU"
    )
    for case in all_cases():
        if options.only in case.name:
            seeds = range(options.seeds) if options.seeds else [seed_of(case)]
            results.append(sweep(case, seeds, with_errors=options.errors))
            show(results[-1])
    leaks = sum(len(result.problems) for result in results)
    points = sum(result.cancelled.cancel_points for result in results)
    errors = sum(result.errors for result in results)
    print(f"{len(results)} scenarios, {points} cancel points, {errors} errors, {leaks} leaks")
    return 1 if leaks or not results else 0


def show(result: Result) -> None:
    """Print a line for the scenario, and one for each kind of thing that is wrong."""
    bound = f"{result.cancelled.longest:.2f} / {result.case.within:.2f} s"
    points, left = result.cancelled.cancel_points, len(result.problems)
    print(
        f"{result.case.name:<62} {points:>6} {result.errors:>6} {bound:>17} {left:>4}"
        f"  {result.seconds:.1f} s",
        flush=True,
    )
    for problem in result.problems[:10]:
        print(f"    {problem}")
    if left > 10:
        print(f"    and {left - 10} more")


if __name__ == "__main__":
    sys.exit(main())
