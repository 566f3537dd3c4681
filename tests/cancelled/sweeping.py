"""Sweep one scenario: as a test does, in short, or as the command does, in full."""

from __future__ import annotations

import time
import zlib
from collections.abc import Sequence
from typing import Final

import attrs
from trials import Case

from semibot.testing import FaultReport, SweepReport, cancel_everywhere, fail_everywhere

SHORT: Final = 30
"""About how many steps a test tries."""

SHORT_REAL: Final = 8
"""The same for scenarios whose children, threads or sockets are real."""

SHORT_ERRORS: Final = 12
"""About how many broken streams a test tries."""


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
    """Return the seed of a short sweep; not the same for all scenarios."""
    return zlib.crc32(case.name.encode()) % 3


def sweep(
    case: Case, seeds: Sequence[int], *, with_errors: bool = True, is_short: bool = False
) -> Result:
    """Sweep one scenario.

    Args:
        case: The scenario.
        seeds: Orders of tasks; the whole is done for each.
        with_errors: Whether streams are broken too.
        is_short: Whether only some steps are tried.
    """
    began = time.process_time()
    scenario, audit = case.bind()
    points = SHORT_REAL if case.is_real else SHORT
    cancelled = cancel_everywhere(
        scenario,
        audit=audit,
        mock_clock=not case.is_real,
        seeds=seeds,
        within=case.within,
        at_most=points if is_short else None,
        threads=case.threads,
        grandchildren=case.grandchildren,
    )
    broken = None
    if with_errors and case.errors_within is not None:
        broken = fail_everywhere(
            scenario,
            audit=audit,
            mock_clock=not case.is_real,
            seeds=seeds,
            within=case.errors_within,
            at_most=SHORT_ERRORS if is_short else None,
            threads=case.threads,
            grandchildren=case.grandchildren,
        )
    return Result(case, cancelled, broken, time.process_time() - began)


def check(case: Case) -> None:
    """Sweep one scenario in short, and fail if anything is left."""
    result = sweep(case, [seed_of(case)], is_short=True)
    assert result.problems == ()
    assert result.cancelled.cancel_points > 2
    assert result.errors > 2 or case.errors_within is None
