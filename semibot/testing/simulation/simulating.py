"""Run one simulation from its seed."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import shutil
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Final, final

import attrs
import trio
import trio.testing

from semibot.session import AdapterFactory
from semibot.testing.scheduling import seeded_scheduler

from .invariants import check_names
from .lives import Life, life_of_task
from .report import SimulationReport, Violation
from .schedule import LONGEST_PAUSE, Schedule
from .world import Plan, World

BUSY: Final = 20.0
"""How long a simulation may keep a processor busy, in seconds, and 2 more for a faulty minute."""

RINGS_EVERY: Final = 5.0
"""After how long the alarm is raised again, in seconds."""

OTHERS: Final = 10.0
"""How many times that it may take in all, as there may be others on the machine."""

LATE: Final = "adapter did not stop"
"""Event of the log that says that an adapter did not use the time that it had."""

STOPS_WITHIN: Final = 15.0
"""How much time an adapter has, and a bit, in seconds: ``run.cancel_grace`` is 10."""

MEMORY_DISK: Final = Path("/dev/shm")  # noqa: S108 - a new directory is made there
"""Where disks are simulated, if there is such a thing."""


def simulate(
    seed: int,
    *,
    minutes: float = 2.5,
    faults: Iterable[str] | None = None,
    without: Iterable[str] = (),
    adapter: AdapterFactory | None = None,
    message: Callable[[random.Random], str] | None = None,
    check: Callable[[str, str], str | None] | None = None,
    busy_limit: float | None = None,
    show: Callable[[str], None] | None = None,
) -> SimulationReport:
    """Run host, VMs and users in one process under faults, all of it decided by *seed*.

    Everything but the ports is semibot as it is in production. People talk to the host in at
    least three conversations, readers come and go, and *faults* happen for *minutes*. Then
    they stop, and everything has to come right.

    Args:
        seed: Decides everything; the same seed gives the same report, except for ``seconds``.
        minutes: How long things go wrong, in simulated minutes.
        faults: Kinds of faults that may happen; all by default.
        without: Names of invariants that are not looked at.
        adapter: What drives the sessions; by default one that does what the messages say.
            It gets only simulated ports, and must not use the outside by other ways.
        message: Draws what people say from the generator it is given.
        check: Is called with the question and the answer of every run that was completed, when
            all is over; what it returns is a violation of ``own_check``.
        busy_limit: How long it may keep a processor busy, in seconds; by default 20, and 2 more
            for every minute. It may take ten times as long where others are busy, too.
        show: Gets what happened and what was logged, line by line.

    Returns:
        How it went.

    Raises:
        ValueError: If there is no such fault or invariant, or an amount makes no sense.
    """
    for name, amount in (("minutes", minutes), ("busy_limit", busy_limit or 0.0)):
        if not 0 <= amount < math.inf:
            raise ValueError(f"{name} is a number from 0 up, and not {amount}")
    plan = Plan(
        seed=seed,
        faulty=60.0 * minutes,
        faults=None if faults is None else frozenset(faults),
        without=check_names(without),
        check=check,
    )
    if adapter is not None:
        plan = attrs.evolve(plan, adapter=_same_for_all(adapter))
    if message is not None:
        plan = attrs.evolve(plan, draw_message=message, last_message=None)
    began = time.perf_counter()
    parent = MEMORY_DISK if MEMORY_DISK.is_dir() else None
    directory = Path(tempfile.mkdtemp(prefix="semibot-simulation-", dir=parent))
    try:
        world = World(plan, directory, _command(plan))
        schedule = Schedule(world)
        if show is not None:
            world.trace.listener = lambda now, event: _show_happening(show, now, event)
        with _logs_of(world, show):
            ended_at = _run(world, schedule, busy_limit or BUSY + plan.faulty / 30)
        world.close()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return _report(world, ended_at, time.perf_counter() - began)


def _same_for_all(adapter: AdapterFactory) -> Callable[[Life], AdapterFactory]:
    def adapter_of(_: Life) -> AdapterFactory:
        return adapter

    return adapter_of


def _command(plan: Plan) -> str:
    words = ["python -m semibot.testing simulate --show", str(plan.seed)]
    words += ["--minutes", f"{plan.faulty / 60:g}"]
    if plan.faults is not None:
        words += ["--faults", ",".join(sorted(plan.faults))]
    return " ".join(words)


def _run(world: World, schedule: Schedule, limit: float) -> float:
    """Run all of it, and return when it ended."""
    ended_at = 0.0

    async def main() -> None:
        nonlocal ended_at
        with world.scope:
            with trio.move_on_after(world.plan.faulty + LONGEST_PAUSE) as scope:
                await schedule.run()
            if scope.cancelled_caught:
                world.violate("comes_to_an_end", "the simulation does not end")
        ended_at = trio.current_time()

    with seeded_scheduler(world.seed, _is_frozen), _alarm(limit * OTHERS) as rings:
        try:
            trio.run(
                main,
                clock=trio.testing.MockClock(autojump_threshold=0),
                instruments=[_Stopwatch(world, time.process_time() + limit)],
                # Anywhere else it could be taken for a fault of what it meets there.
                restrict_keyboard_interrupt_to_checkpoints=True,
            )
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as exc:  # noqa: ASYNC103 - see above
            group = BaseExceptionGroup("", [exc])
            if group.split(KeyboardInterrupt)[0] is not None:
                raise
            name = "no_failure" if group.split(_TookTooLong)[0] is None else "within_limits"
            text = "the simulation failed: " + "".join(traceback.format_exception(exc))
            world.found.append((name, ended_at, text))
            rings.clear()
    if rings:  # and somebody has kept it to himself
        world.found.append(("within_limits", ended_at, "something did not let go for long"))
    return ended_at


class _TookTooLong(BaseException):
    """Raised out of a simulation that passes its cap on real time and does not care."""


@final
class _Stopwatch(trio.abc.Instrument):
    """Ends a simulation that takes too long, such as one that never waits."""

    def __init__(self, world: World, until: float) -> None:
        self._world = world
        self._until = until
        self._steps = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self._steps += 1
        if self._steps % 1000 == 0 and time.process_time() > self._until:
            self._world.give_up("it takes too long", "within_limits")


@contextlib.contextmanager
def _alarm(seconds: float) -> Generator[list[float]]:
    """Break off what does not even let Trio run; only the main thread can.

    Whatever it meets may keep it to itself: it is raised again and again. Yields when it was.
    """
    rings: list[float] = []
    if threading.current_thread() is not threading.main_thread():
        yield rings
        return

    def ring(*_: object) -> None:
        rings.append(time.monotonic())
        raise _TookTooLong("something does not let go")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, RINGS_EVERY)
    try:
        yield rings
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def _is_frozen(task: trio.lowlevel.Task) -> bool:
    life = task.context.get(life_of_task)
    return life is not None and life.is_frozen


def _report(world: World, ended_at: float, seconds: float) -> SimulationReport:
    sessions, runs, events, readers = world.sizes()
    return SimulationReport(
        seed=world.seed,
        violations=tuple(
            Violation(
                seed=world.seed, invariant=name, at=round(at, 3), text=text, command=world.command
            )
            for name, at, text in world.found
            if name not in world.plan.without
        ),
        trace=world.trace.digest(),
        happenings=world.trace.count,
        faults=dict(world.hits),
        sessions=sessions,
        runs=runs,
        events=events,
        readers=readers,
        simulated_seconds=ended_at,
        seconds=seconds,
    )


# --- what is shown --------------------------------------------------------------------


def _show_happening(show: Callable[[str], None], now: float, event: tuple[object, ...]) -> None:
    if event[0] not in {"send", "receive"}:
        show(f"{now:.3f} - " + " ".join(map(str, event)))


class _Logs(logging.Handler):
    """Finds out about errors that living processes log."""

    def __init__(self, world: World, show: Callable[[str], None] | None) -> None:
        super().__init__(logging.DEBUG if show is not None else logging.ERROR)
        self._world = world
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        fields = record.__dict__.get("semibot", {})
        name = str(fields.get("process", "?"))
        living = self._world.processes.everyone
        is_alive = any(each.name == name for each in living)
        if self._show is not None:
            sign = "" if is_alive else " (dead)"
            now = trio.current_time() if trio.lowlevel.in_trio_run() else -1.0
            self._show(f"{now:.3f} {record.levelname} {name}{sign} {record.getMessage()}")
        event = fields.get("event")
        is_expected = event in self._world.expected_errors
        if event == LATE:
            is_expected |= any(each.name == name and _has_stood_still(each) for each in living)
        if record.levelno >= logging.ERROR and (is_alive or name == "?") and not is_expected:
            exc = record.exc_info[1] if record.exc_info else None
            self._world.violate("no_failure", f"ERROR {name}: {record.getMessage()}", exc)


def _has_stood_still(life: Life) -> bool:
    """Return whether a process stood still lately: then its adapters had no time to stop."""
    return life.frozen_until > 0.0 and trio.current_time() - life.frozen_until < STOPS_WITHIN


@contextlib.contextmanager
def _logs_of(world: World, show: Callable[[str], None] | None) -> Generator[None]:
    logger = logging.getLogger("semibot")
    handler = _Logs(world, show)
    level, propagates = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(handler.level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagates
