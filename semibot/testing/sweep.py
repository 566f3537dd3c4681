"""Cancel a scenario at every step it takes, and look at what is left each time.

A step is what one task does between two checkpoints. The scenario runs once for every
``k``, each time on a fresh Trio loop with a mock clock, and its scope is cancelled just
before the ``k``-th step, until it gets through without being reached.
"""

from __future__ import annotations

import contextvars
import gc
import warnings
from collections.abc import Awaitable, Callable
from typing import Final, final

import attrs
import trio
import trio.testing

from semibot.errors import SemibotError

MAX_STEPS: Final = 5000
"""Most steps of a scenario; one that takes more does not end."""

_in_scenario: contextvars.ContextVar[bool] = contextvars.ContextVar("semibot_sweep", default=False)


@attrs.frozen(kw_only=True)
class SweepReport:
    """What a sweep found."""

    cancel_points: int
    """Steps at which the scenario was cancelled."""
    problems: tuple[str, ...]
    """What was left or went wrong, with the step; empty if all is well."""
    longest: float
    """Longest that an ending took after its cancel, in seconds of the mock clock."""


class SweepDidNotEnd(SemibotError):
    """Raised when a scenario takes more than 5000 steps."""


@final
class _CancelAt(trio.abc.Instrument):
    def __init__(self, step: int) -> None:
        self.step = step
        self.count = 0
        self.scope = trio.CancelScope()
        self.cancelled_at: float | None = None

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if not task.context.get(_in_scenario, False):
            return
        self.count += 1
        if self.count == self.step:
            self.cancelled_at = trio.current_time()
            self.scope.cancel(f"step {self.step}")


def cancel_everywhere(
    scenario: Callable[[], Awaitable[object]],
    *,
    audit: Callable[[], str | None] = lambda: None,
    mock_clock: bool = True,
) -> SweepReport:
    """Cancel *scenario* at its first step, its second, and so on, until it gets through.

    After each run there must be no exception but the cancellation, no task left in the
    scenario's nursery, no ``ResourceWarning`` or ``RuntimeWarning``, and nothing that
    *audit* finds.

    Args:
        scenario: What to run; called afresh each time.
        audit: Looks at what is left, after each run; returns a problem or None.
        mock_clock: Whether time jumps; False for scenarios with real children.

    Raises:
        SweepDidNotEnd: If the scenario never gets through.
    """
    problems: list[str] = []
    longest = 0.0
    for step in range(1, MAX_STEPS):
        instrument = _CancelAt(step)
        found, seconds = _run_once(scenario, instrument, mock_clock=mock_clock)
        left = audit()
        problems += [f"step {step}: {text}" for text in (*found, *((left,) if left else ()))]
        longest = max(longest, seconds)
        if instrument.cancelled_at is None:
            return SweepReport(cancel_points=step - 1, problems=tuple(problems), longest=longest)
    raise SweepDidNotEnd(f"the scenario takes more than {MAX_STEPS} steps")


def _run_once(
    scenario: Callable[[], Awaitable[object]], instrument: _CancelAt, *, mock_clock: bool
) -> tuple[list[str], float]:
    async def main() -> float:
        async with trio.open_nursery() as nursery:  # noqa: ASYNC112 - it sees tasks that are left
            nursery.start_soon(body)
        ended = trio.current_time()
        return 0.0 if instrument.cancelled_at is None else ended - instrument.cancelled_at

    async def body() -> None:
        with instrument.scope:
            _in_scenario.set(True)
            await trio.lowlevel.checkpoint()
            await scenario()

    clock = trio.testing.MockClock(autojump_threshold=0) if mock_clock else None
    problems: list[str] = []
    seconds = 0.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            seconds = trio.run(main, clock=clock, instruments=[instrument])
        except Exception as exc:  # noqa: BLE001 - whatever it is, it is a finding
            problems.append(f"raised {exc!r}")
        gc.collect()
    problems += [
        f"warned {warning.message}"
        for warning in caught
        if issubclass(warning.category, ResourceWarning | RuntimeWarning)
    ]
    return problems, seconds
