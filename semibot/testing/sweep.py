"""Cancel a scenario at every step it takes, or break its streams, and look at what is left.

A step is what one task does between two checkpoints. The scenario runs once for every
``k``, each time on a fresh Trio loop, and its scope is cancelled just before the ``k``-th
step or just after it, until it gets through without being reached. The other sweep breaks a
stream at its ``k``-th use. All of that is done for each seed, which decides the order in which
Trio runs tasks.
"""

from __future__ import annotations

import contextvars
import itertools
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Final, cast, final

import attrs
import trio
import trio.testing

from semibot.errors import SemibotError

from ._leftovers import (
    adopted_grandchildren,
    find_leftovers,
    heard_complaints,
    only_new_garbage,
    take_stock,
    tasks_below,
)
from .faulty import FaultPlan, follow
from .scheduling import scopes_around, seeded_scheduler

MAX_STEPS: Final = 5000
"""Most steps of a scenario; one that takes more does not end."""

MOST_STEPS_IN_ALL: Final = 100_000
"""Most steps that one run takes, what is around the scenario included; more never wait."""

HANGS_AFTER: Final = 3600.0
"""After how long a run counts as hanging, in seconds of the mock clock."""

HANGS_REALLY_AFTER: Final = 60.0
"""The same for scenarios with real children, in seconds."""

Scenario = Callable[[], Awaitable[object]]
Audit = Callable[[], str | None]


@attrs.frozen(kw_only=True)
class SweepReport:
    """What a sweep found."""

    cancel_points: int
    """Steps at which the scenario was cancelled, of all seeds together."""
    points_by_seed: Mapping[int, int]
    """The same for each seed."""
    problems: tuple[str, ...]
    """What was left or went wrong, with the seed and the step; empty if all is well."""
    longest: float
    """Longest that an ending took after its cancel, in seconds of the scenario's clock."""


@attrs.frozen(kw_only=True)
class FaultReport:
    """What a sweep with broken streams found."""

    errors: int
    """Errors that were injected, of all seeds together."""
    errors_by_seed: Mapping[int, int]
    """The same for each seed."""
    outcomes: Mapping[str, int]
    """How often the scenario got through, as ``done``, or raised which error."""
    problems: tuple[str, ...]
    """What was left or went wrong, with the seed and the operation; empty if all is well."""
    longest: float
    """Longest that the scenario went on after its error, in seconds of its clock."""


class SweepDidNotEnd(SemibotError):
    """Raised when a scenario takes more than 5000 steps."""


# --- what is cancelled -------------------------------------------------------------------


@final
@attrs.define(eq=False)
class _Part:
    """What a cancel ends: the whole scenario, or a block of it."""

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    is_block: bool = False
    ended_at: float | None = None


_part: contextvars.ContextVar[_Part | None] = contextvars.ContextVar("semibot_sweep", default=None)


@contextmanager
def cut_here() -> Generator[trio.CancelScope]:
    """Say that only this block of a scenario is to be cancelled, and only its steps count.

    What is around it lives on: a peer that goes on talking, a reader that looks at the end.
    The bound of the sweep counts until the block ends. Outside of a sweep it is a plain scope.

    Yields:
        The scope that a sweep cancels.
    """
    part = _Part(is_block=True)
    outer = _part.get()
    _part.set(part)
    try:
        with part.scope:
            yield part.scope
    finally:
        part.ended_at = trio.current_time()
        _part.set(outer)


@final
class _CancelAt(trio.abc.Instrument):
    """Cancels before a step or after one; counts the steps of blocks only, if there are any.

    Before a step the task has got what it waited for; after one it waits.
    """

    def __init__(self, step: int, *, blocks_only: bool, is_late: bool = False) -> None:
        self.step = step
        self.blocks_only = blocks_only
        self.is_late = is_late
        self.count = 0
        self.count_in_blocks = 0
        self.cancelled: _Part | None = None
        self.cancelled_at = 0.0
        self.where = ""

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if not self.is_late:
            self._count(task)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if self.is_late:
            self._count(task)

    def _count(self, task: trio.lowlevel.Task) -> None:
        part = task.context.get(_part)
        if part is None:
            return
        self.count_in_blocks += part.is_block
        if self.blocks_only and not part.is_block:
            return
        self.count += 1
        if self.count == self.step:
            self.cancelled = part
            self.cancelled_at = trio.current_time()
            self.where = task.name.rpartition(".")[2] + (", waiting" if self.is_late else "")
            part.scope.cancel(f"step {self.step}")


@final
class _Cap(trio.abc.Instrument):
    """Ends a run that goes on and on without waiting, so that its clock stands still."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._count = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._count += 1
        if self._count == MOST_STEPS_IN_ALL:
            self._run.problems.append(f"does not wait: takes more than {self._count} steps")
            scope = self._run.whole.scope
            _end(set(tasks_below(trio.lowlevel.current_root_task())), scope)
            scope.cancel("a sweep gives up")


# --- one run -----------------------------------------------------------------------------


@final
@attrs.define(eq=False)
class _Run:
    """One run of a scenario, and how it went."""

    scenario: Scenario
    audit: Audit
    seed: int
    mock_clock: bool
    threads: int
    allowed: tuple[type[Exception], ...] = ()
    """Errors that the scenario may end with."""
    problems: list[str] = attrs.field(factory=list[str])
    outcome: str = "done"
    whole: _Part = attrs.field(factory=_Part)

    def play(self, *, instrument: _CancelAt | None = None, plan: FaultPlan | None = None) -> None:
        """Run the scenario on a fresh loop and look at what it leaves."""
        before = take_stock()
        clock = trio.testing.MockClock(autojump_threshold=0) if self.mock_clock else None
        instruments: list[trio.abc.Instrument] = [_Cap(self)]
        instruments += [] if instrument is None else [instrument]
        with heard_complaints() as complaints, seeded_scheduler(self.seed):
            try:
                trio.run(self._main, plan, clock=clock, instruments=instruments)
            except (Exception, trio.Cancelled) as exc:  # noqa: ASYNC103,BLE001 - whatever it is, it is a finding
                complaints.append(f"the loop raised {exc!r}")
        self.problems += complaints
        self.problems += find_leftovers(before, threads=self.threads)
        left = self.audit()
        if left:
            self.problems.append(left)

    async def _main(self, plan: FaultPlan | None) -> None:
        is_done = trio.Event()
        others = set(tasks_below(trio.lowlevel.current_root_task()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._body, plan, is_done)
            with trio.move_on_after(HANGS_AFTER if self.mock_clock else HANGS_REALLY_AFTER):
                await is_done.wait()
            left = set(tasks_below(trio.lowlevel.current_root_task())) - others
            if left:
                names = ", ".join(sorted(task.name for task in left))
                did = "are left" if is_done.is_set() else "hang"
                self.problems.append(f"tasks {did}: {names}")
                _end(left, nursery.cancel_scope)
            nursery.cancel_scope.cancel("the run is over")

    async def _body(self, plan: FaultPlan | None, is_done: trio.Event) -> None:
        try:
            with self.whole.scope:
                _part.set(self.whole)
                if plan is not None:
                    follow(plan)
                await trio.lowlevel.checkpoint()
                await self.scenario()
        except Exception as exc:  # noqa: BLE001 - kept as text: its frames would keep what they hold
            self._judge(exc)
        finally:
            self.whole.ended_at = trio.current_time()
            is_done.set()

    def _judge(self, exc: Exception) -> None:
        leaves = list(_leaves(exc))
        self.outcome = " and ".join(sorted({type(leaf).__name__ for leaf in leaves}))
        if not all(isinstance(leaf, self.allowed) for leaf in leaves):
            self.problems.append(f"raised {exc!r}{_origin(leaves[0])}")

    def seconds_since(self, moment: float, part: _Part, within: float | None) -> float:
        """Return how long *part* went on, and complain if that was too long."""
        seconds = (moment if part.ended_at is None else part.ended_at) - moment
        if within is not None and seconds > within + 1e-6:
            self.problems.append(f"took {seconds:.3f} s to end, {within:.3f} s is the bound")
        return seconds


def _leaves(exc: BaseException) -> Iterator[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        for each in cast("BaseExceptionGroup[BaseException]", exc).exceptions:
            yield from _leaves(each)
    else:
        yield exc


def _origin(exc: BaseException) -> str:
    """Return where an error was raised, in words."""
    traceback = exc.__traceback__
    if traceback is None:
        return ""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    code = traceback.tb_frame.f_code
    return f" in {code.co_qualname} ({code.co_filename.rpartition('/')[2]}:{traceback.tb_lineno})"


def _end(tasks: set[trio.lowlevel.Task], root: trio.CancelScope) -> None:
    """Cancel every scope below *root* that a task is in, so that one behind a shield ends too."""
    for task in tasks:
        scopes = scopes_around(task)
        if root in scopes:  # else it is no task of the scenario's own tree
            for scope in scopes[: scopes.index(root)]:
                scope.cancel("a sweep gives up")


# --- the sweeps --------------------------------------------------------------------------


def cancel_everywhere(
    scenario: Scenario,
    *,
    audit: Audit = lambda: None,
    mock_clock: bool = True,
    seeds: Sequence[int] = (0,),
    within: float | None = None,
    at_most: int | None = None,
    threads: int = 0,
    grandchildren: bool = True,
) -> SweepReport:
    """Cancel *scenario* at its first step, its second, and so on, until it gets through.

    At each of them it is cancelled once just before the step, when its task has got what it
    waited for, and once just after it, when the task has begun to wait for the next.
    After each run there must be no exception but the cancellation; no task, descriptor,
    child (zombies and adopted grandchildren too) or thread that was not there before; no
    ``ResourceWarning``, ``RuntimeWarning`` or exception that nobody could catch; and nothing
    that *audit* finds. With :func:`cut_here` a scenario says that only a part of it is cancelled.

    Args:
        scenario: What to run; called afresh each time.
        audit: Looks at what is left, after each run; returns a problem or None.
        mock_clock: Whether time jumps; False for scenarios with real children.
        seeds: Orders in which Trio runs tasks; the whole sweep is done for each.
        within: Longest that an ending may take after its cancel, in seconds of the
            scenario's clock; None leaves it to the caller to look at ``longest``.
        at_most: About how many steps are tried with each seed, for a test that has to be
            short: every second one, or third, before and after in turn. None tries all.
        threads: How many threads a run may leave: those that it abandons on purpose.
        grandchildren: Whether this process adopts grandchildren that lose their parent, so
            that they are seen; False for a scenario that kills a parent itself.

    Raises:
        SweepDidNotEnd: If the scenario never gets through.
    """
    problems: list[str] = []
    points: dict[int, int] = {}
    longest = 0.0

    def play(seed: int, instrument: _CancelAt) -> None:
        nonlocal longest
        run = _Run(scenario, audit, seed, mock_clock, threads)
        run.play(instrument=instrument)
        part = instrument.cancelled
        where = f"seed {seed}, not cancelled"
        if part is not None:
            points[seed] += 1
            where = f"seed {seed}, step {instrument.step} ({instrument.where})"
            longest = max(longest, run.seconds_since(instrument.cancelled_at, part, within))
        problems.extend(f"{where}: {text}" for text in run.problems)

    with only_new_garbage(), _adoption(not mock_clock and grandchildren):
        for seed in seeds:
            points[seed] = 0
            first = _CancelAt(0, blocks_only=False)  # there is no step 0: it gets through
            play(seed, first)
            has_blocks = first.count_in_blocks > 0
            total = first.count_in_blocks if has_blocks else first.count
            for step, is_late in _chosen(seed, total, at_most, both=True):
                instrument = _CancelAt(step, blocks_only=has_blocks, is_late=is_late)
                play(seed, instrument)
                if instrument.cancelled is None:
                    break
    return SweepReport(
        cancel_points=sum(points.values()),
        points_by_seed=points,
        problems=tuple(dict.fromkeys(problems)),  # more than one gets through
        longest=longest,
    )


def fail_everywhere(
    scenario: Scenario,
    *,
    audit: Audit = lambda: None,
    mock_clock: bool = True,
    seeds: Sequence[int] = (0,),
    within: float | None = None,
    at_most: int | None = None,
    threads: int = 0,
    grandchildren: bool = True,
    allowed: tuple[type[Exception], ...] = (SemibotError,),
) -> FaultReport:
    """Break a stream at its first use in *scenario*, at its second, and so on.

    Streams are those of :func:`semibot.testing.faulty_ports` and
    :class:`semibot.testing.FaultyStream`: reading and writing raise
    ``trio.BrokenResourceError``, before or after it was done, connecting, listening, accepting
    and starting a child raise ``OSError``. Afterwards the same must hold as after
    :func:`cancel_everywhere`, but the scenario has to get through or to raise an error that
    is allowed.

    Args:
        scenario: What to run; called afresh each time.
        audit: Looks at what is left, after each run; returns a problem or None.
        mock_clock: Whether time jumps; False for scenarios with real children.
        seeds: As for :func:`cancel_everywhere`. Odd operations fail late with even seeds,
            and the other way round.
        within: Longest that the scenario may go on after the error, in seconds of its clock.
        at_most: As for :func:`cancel_everywhere`.
        threads: How many threads a run may leave: those that it abandons on purpose.
        grandchildren: As for :func:`cancel_everywhere`.
        allowed: Errors that the scenario may end with, also in groups.

    Raises:
        SweepDidNotEnd: If the scenario never gets through.
    """
    problems: list[str] = []
    errors: dict[int, int] = {}
    outcomes: Counter[str] = Counter()
    longest = 0.0

    def play(seed: int, plan: FaultPlan) -> None:
        nonlocal longest
        run = _Run(scenario, audit, seed, mock_clock, threads, allowed)
        run.play(plan=plan)
        where = f"seed {seed}, no error"
        if plan.failed_at is not None:
            errors[seed] += 1
            outcomes[run.outcome] += 1
            late = ", late" if plan.is_late else ""
            where = f"seed {seed}, operation {plan.target} ({plan.where}{late})"
            longest = max(longest, run.seconds_since(plan.failed_at, run.whole, within))
        problems.extend(f"{where}: {text}" for text in run.problems)

    with only_new_garbage(), _adoption(not mock_clock and grandchildren):
        for seed in seeds:
            errors[seed] = 0
            first = FaultPlan(0, is_late=False)  # there is no operation 0
            play(seed, first)
            for target, is_late in _chosen(seed, first.count, at_most, both=False):
                plan = FaultPlan(target, is_late=is_late)
                play(seed, plan)
                if plan.count < target:
                    break
    return FaultReport(
        errors=sum(errors.values()),
        errors_by_seed=errors,
        outcomes=outcomes,
        problems=tuple(dict.fromkeys(problems)),  # more than one gets through
        longest=longest,
    )


def _chosen(
    seed: int, total: int, at_most: int | None, *, both: bool
) -> Iterator[tuple[int, bool]]:
    """Return which steps are tried, and whether late: all, or about *at_most* of *total*.

    How many there are may differ a little from run to run, so that the caller has to stop.

    Args:
        seed: Decides which are tried, and which of them late.
        total: How many there are, about.
        at_most: How many are tried; None means all.
        both: Whether each is tried in both ways, unless that would be too many.

    Raises:
        SweepDidNotEnd: If there are too many.
    """
    stride = 1 if at_most is None else max(1, math.ceil(total / at_most))
    for index in itertools.count():
        step = 1 + seed % stride + index * stride
        if max(step, total) > MAX_STEPS:
            raise SweepDidNotEnd(f"the scenario takes more than {MAX_STEPS} steps")
        # By number and not by step, or an even stride would have none of one kind.
        is_late = (index + seed) % 2 == 0
        yield step, is_late
        if both and at_most is None:
            yield step, not is_late


def _adoption(is_wanted: bool) -> AbstractContextManager[None]:
    return adopted_grandchildren() if is_wanted else nullcontext()
