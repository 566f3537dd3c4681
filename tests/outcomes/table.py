"""Print the table of causes and outcomes, each run for real: ``python tests/outcomes/table.py``."""

from __future__ import annotations

import logging
import sys
import tempfile
from pathlib import Path

import structlog

from causes import CAUSES, run_cause


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    is_well = True
    print("| # | cause | outcome | code | terminal events | left | remarks |")
    print("|---|---|---|---|---|---|---|")
    for number, cause in enumerate(CAUSES, 1):
        with tempfile.TemporaryDirectory() as directory:
            row = run_cause(cause, Path(directory))
        is_well &= row.is_as_expected
        verdict = "" if row.is_as_expected else f" (EXPECTED {cause.outcome} {cause.code})"
        print(
            f"| {number} | {cause.name} | {row.outcome}{verdict} | {row.code or '-'} "
            f"| {row.terminals} | {row.left or 'nothing'} | {row.extra or '-'} |",
            flush=True,
        )
    sys.exit(0 if is_well else 1)


if __name__ == "__main__":
    main()
