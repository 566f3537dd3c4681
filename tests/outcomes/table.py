"""Print the table of causes and outcomes, each run for real: ``python tests/outcomes/table.py``."""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

from causes import CAUSES, run_cause


def main() -> None:
    logging.getLogger("semibot").setLevel(logging.CRITICAL)
    is_well = True
    say("| # | cause | outcome | code | terminal events | left | remarks |")
    say("|---|---|---|---|---|---|---|")
    for number, cause in enumerate(CAUSES, 1):
        with tempfile.TemporaryDirectory() as directory:
            row = run_cause(cause, Path(directory))
        is_well &= row.is_as_expected
        verdict = "" if row.is_as_expected else f" (EXPECTED {cause.outcome} {cause.code})"
        say(
            f"| {number} | {cause.name} | {row.outcome}{verdict} | {row.code or '-'} "
            f"| {row.terminals} | {row.left or 'nothing'} | {row.extra or '-'} |"
        )
    sys.exit(0 if is_well else 1)


def say(line: str) -> None:
    """Print a row as soon as it is there."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
