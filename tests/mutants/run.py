# ruff: noqa: T201 - it prints on purpose
"""Plant every bug of the table, one after the other, and say what finds it.

``python tests/mutants/run.py [--only NAME,..] [--ablation] [--seeds 100] [--from 1]`` prints
one line for each: which invariants found it, at which seed, after how many seconds; with
``--ablation`` also whether it survives the same seeds without them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from planting import Mutant, ablate, hunt
from table import MUTANTS


def main() -> int:
    """Run the command; return how many mutants did not do what the table says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="names, separated by commas")
    parser.add_argument("--ablation", action="store_true", help="also without the invariants")
    parser.add_argument("--seeds", type=int, default=100, help="how many seeds are tried")
    parser.add_argument("--from", dest="first", type=int, help="the first; by default the table's")
    parser.add_argument("--list", action="store_true", help="only list the table")
    options = parser.parse_args()
    wanted = None if options.only is None else set(options.only.split(","))
    mutants = [each for each in MUTANTS if wanted is None or each.name in wanted]
    if options.list:
        for each in mutants:
            print(f"{each.place:9} {each.name:28} {', '.join(each.invariants)}")
        return 0
    bad = 0
    for mutant in mutants:
        is_good, line = _try(mutant, options.seeds, options.first, with_ablation=options.ablation)
        bad += not is_good
        print(line, flush=True)
    print(f"{len(mutants) - bad} of {len(mutants)} mutants found as the table says")
    return bad


def _try(mutant: Mutant, seeds: int, first: int | None, *, with_ablation: bool) -> tuple[bool, str]:
    first = mutant.seed if first is None else first
    found = hunt(mutant, seeds=seeds, first=first)
    name = f"{mutant.place:9} {mutant.name:28}"
    if found.failure is not None:
        return False, f"{name} FAILED {found.failure}"
    if found.seed is None:
        return False, f"{name} SURVIVED {seeds} seeds ({found.seconds:.0f} s)"
    others = set(found.invariants) - set(mutant.invariants)
    said = ", ".join(found.invariants)
    line = f"{name} found by {said} at seed {found.seed} after {found.seconds:.0f} s"
    if others:
        line += f"; NOT NAMED: {', '.join(sorted(others))}"
    if not with_ablation:
        return not others, line
    left = ablate(mutant, seeds=found.seed - first + 1, first=first)
    if left.failure is not None:
        return False, f"{line}; without FAILED {left.failure}"
    if left.seed is None:
        return not others, f"{line}; survives without"
    return False, f"{line}; STILL FOUND without, by {', '.join(left.invariants)}"


if __name__ == "__main__":
    sys.exit(main())
