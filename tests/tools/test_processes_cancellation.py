from __future__ import annotations

import contextvars
import ctypes
import gc
import signal
import time
import warnings
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from child_harness import (
    ENVIRONMENT,
    IS_LINUX,
    PATIENT,
    QUICK,
    TIERS,
    new_mark,
    nothing_is_left,
    ports_with,
    program,
)
from process_table import alive, seconds_until

from semibot.config import Deadlines
from semibot.lifetimes import open_stop_clock
from semibot.live import live_ports
from semibot.ports import Ports
from semibot.testing import capture_logs, simulated_ports
from semibot.tools.ledger import Ledger
from semibot.tools.processes import ExitStatus, open_child, run_child

linux_only = pytest.mark.skipif(not IS_LINUX, reason="the guard and /proc exist on Linux only")
each_tier = pytest.mark.parametrize("tier", TIERS)


@pytest.fixture(autouse=True)
def audit() -> Iterator[None]:
    with nothing_is_left():
        yield


# --- cancelled at every step -------------------------------------------------------------

_in_scenario = contextvars.ContextVar("in_scenario", default=False)


@attrs.define(eq=False)
class CancelAt(trio.abc.Instrument):
    """Cancel a scope just before the k-th step that a task of the scenario takes."""

    step: int
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    taken: int = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.context.get(_in_scenario, False):
            self.taken += 1
            if self.taken == self.step:
                self.scope.cancel()


@contextmanager
def adopted_orphans(tier: str) -> Iterator[None]:
    """Make orphans of our descendants our children, so that the audit sees them.

    In tier "group" orphans exist by design, and it is for the system to reap them.
    """
    prctl = ctypes.CDLL(None).prctl
    prctl(36, int(tier == "guard"), 0, 0, 0)
    try:
        yield
    finally:
        prctl(36, 0, 0, 0, 0)


def sweep(tier: str, scenario: Callable[[str], Awaitable[object]]) -> int:
    """Run the scenario once for every step that it can be cancelled at; return their number."""
    step = 1
    while cancelled_at(step, tier, scenario):
        step += 1
    gc.collect()  # what was forgotten open would warn now
    return step - 1


def cancelled_at(step: int, tier: str, scenario: Callable[[str], Awaitable[object]]) -> bool:
    """Run and audit the scenario; return whether it was long enough to be cancelled."""
    cancel = CancelAt(step)
    mark = new_mark()

    async def main() -> None:
        with cancel.scope:
            _in_scenario.set(True)
            await scenario(mark)
        assert trio.lowlevel.current_task().child_nurseries == []

    with nothing_is_left(), adopted_orphans(tier), warnings.catch_warnings():
        warnings.simplefilter("error")
        start = time.monotonic()
        trio.run(main, instruments=[cancel])
        assert time.monotonic() - start < 3, f"slow when cancelled at step {step}"
    patience = 0 if tier == "guard" else 1  # there, nobody waits for the last signal to arrive
    left = seconds_until(lambda: not alive(mark), patience) is None
    assert not left, f"alive after being cancelled at step {step}"
    return cancel.taken >= step


# The steps between the escalations have no grace at all, so that no run is slow.
SWIFT = Deadlines(child_eof_grace=0, child_term_grace=0, child_kill_grace=10)


@linux_only
@each_tier
def test_cancelling_a_conversation_anywhere_leaves_nothing(tier) -> None:
    async def scenario(_: str) -> None:
        async with open_child(
            ["cat"], ports=live_ports(), deadlines=PATIENT, environment=ENVIRONMENT, tier=tier
        ) as child:
            await child.send(b"hello\n")
            async for line in child.lines():
                assert line == b"hello"
                break
            await child.close_input()
            await child.wait()

    assert sweep(tier, scenario) > 15


@linux_only
def test_cancelling_the_start_or_stop_of_a_stubborn_tree_anywhere_leaves_nothing() -> None:
    stubborn = "trap : TERM; echo up; while :; do sleep 1000; done"
    script = f"setsid sh -c '{stubborn}' $0 & {stubborn}"

    async def scenario(mark: str) -> None:
        async with open_child(
            ["sh", "-c", script, mark],
            ports=live_ports(),
            deadlines=SWIFT,
            environment=ENVIRONMENT,
        ) as child:
            lines = child.lines()
            assert [await anext(lines), await anext(lines)] == [b"up", b"up"]

    assert sweep("guard", scenario) > 15


@linux_only
@each_tier
def test_cancelling_a_run_anywhere_leaves_nothing(tier) -> None:
    async def scenario(mark: str) -> None:
        await run_child(
            ["sh", "-c", "sh -c 'sleep 1000; true' $0 & cat", mark],
            ports=live_ports(),
            deadlines=SWIFT,
            environment=ENVIRONMENT,
            stdin=b"x",
            tier=tier,
        )

    assert sweep(tier, scenario) > 15


@linux_only
@each_tier
def test_cancelling_a_failing_start_anywhere_leaves_nothing(tier) -> None:
    async def scenario(_: str) -> None:
        with pytest.raises(Exception, match="No such file"):
            await run_child(
                ["/no/such"], ports=live_ports(), deadlines=SWIFT, environment={}, tier=tier
            )

    sweep(tier, scenario)


# --- cancelled at one step ---------------------------------------------------------------


@linux_only
async def test_the_tree_of_a_cancelled_run_is_dead_before_the_cancellation_goes_on() -> None:
    mark = new_mark()
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            try:
                await run_child(
                    program("forker", mark),
                    ports=ports_with(),
                    deadlines=QUICK,
                    environment=ENVIRONMENT,
                )
            finally:
                assert alive(mark) == []

        nursery.start_soon(run)
        while len(alive(mark)) < 2:  # noqa: ASYNC110 - the operating system tells nobody
            await trio.sleep(0.002)
        nursery.cancel_scope.cancel()


@each_tier
async def test_a_cancelled_run_is_asked_to_end_first(tier, tmp_path: Path) -> None:
    ledger = Ledger()
    script = 'trap "echo > asked; exit" TERM; echo > up; while :; do sleep 0.01; done'
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await run_child(
                ["sh", "-c", script],
                ports=ports_with(),
                deadlines=PATIENT,
                environment=ENVIRONMENT,
                cwd=tmp_path,
                ledger=ledger,
                tier=tier,
            )

        nursery.start_soon(run)
        while not ((tmp_path / "up").exists() and ledger.under_way()):  # noqa: ASYNC110 - as above
            await trio.sleep(0.002)
        nursery.cancel_scope.cancel()
    assert (tmp_path / "asked").exists()


@each_tier
async def test_stop_works_inside_a_cancelled_scope(tier) -> None:
    with trio.CancelScope() as scope:
        async with open_child(
            ["cat"], ports=ports_with(), deadlines=PATIENT, environment=ENVIRONMENT, tier=tier
        ) as child:
            scope.cancel()
            assert await child.stop() == ExitStatus(code=0)


# --- how long it takes -------------------------------------------------------------------


class FakeProcess:
    """A process that ends on one signal, or never, and whose output may stay open for ever."""

    pid = 4242

    def __init__(self, *, fatal: int | None, has_escaped: bool) -> None:
        self.signals: list[int] = []
        self._fatal = fatal
        self._has_ended = trio.Event()
        self.stdin, self._stdin_reader = trio.testing.memory_stream_one_way_pair()
        self._stdout_writer, self.stdout = trio.testing.memory_stream_one_way_pair()
        self._stderr_writer, self.stderr = trio.testing.memory_stream_one_way_pair()
        self._has_escaped = has_escaped
        if fatal == 0:
            self._end()

    def _end(self) -> None:
        self._has_ended.set()
        if not self._has_escaped:
            self._stdout_writer.close()
            self._stderr_writer.close()

    async def wait(self) -> int:
        await self._has_ended.wait()
        return -self._fatal

    def signal_group(self, signum: int) -> None:
        self.signals.append(signum)
        if signum == self._fatal:
            self._end()


def ports_starting(process: FakeProcess) -> Ports:
    async def spawn(*_: object, **__: object) -> FakeProcess:
        await trio.lowlevel.checkpoint()
        return process

    return attrs.evolve(simulated_ports(), spawn=spawn)


def fake(fatal: int | None, *, has_escaped: bool = False) -> FakeProcess:
    """Make a process; *fatal* is the signal that ends it, 0 if it has ended, or None."""
    return FakeProcess(fatal=fatal, has_escaped=has_escaped)


GRACES = Deadlines(child_eof_grace=2, child_term_grace=3, child_kill_grace=4)
TERM = [signal.SIGTERM, signal.SIGCONT]
KILL = [signal.SIGKILL]


@pytest.mark.parametrize("is_cancelled", [False, True])
@pytest.mark.parametrize(
    ("fatal", "seconds", "signals"),
    [
        (0, 0, KILL),
        (signal.SIGTERM, 2, TERM + KILL),
        (signal.SIGKILL, 5, TERM + KILL + KILL),
        (None, 9, TERM + KILL),
    ],
)
async def test_the_exit_of_the_block_takes_no_longer_than_it_says(
    autojump_clock, fatal, seconds, signals, is_cancelled
) -> None:
    process = fake(fatal)
    with trio.CancelScope() as scope:
        async with open_child(
            ["x"], ports=ports_starting(process), deadlines=GRACES, environment={}
        ):
            start = trio.current_time()
            if is_cancelled:
                scope.cancel()
                await trio.lowlevel.checkpoint()
    assert trio.current_time() - start == pytest.approx(seconds)
    assert process.signals == signals


@pytest.mark.parametrize(
    ("fatal", "seconds"), [(signal.SIGTERM, 0), (signal.SIGKILL, 3), (None, 7)]
)
async def test_a_cancelled_run_takes_no_longer_than_it_says(autojump_clock, fatal, seconds) -> None:
    with trio.move_on_after(1) as scope:
        await run_child(["x"], ports=ports_starting(fake(fatal)), deadlines=GRACES, environment={})
    assert scope.cancelled_caught
    assert trio.current_time() == pytest.approx(1 + seconds)


async def test_what_cannot_be_killed_is_reported_and_stays_in_the_ledger(autojump_clock) -> None:
    ledger = Ledger()
    with capture_logs() as logs:
        async with open_child(
            ["x"],
            ports=ports_starting(fake(None)),
            deadlines=GRACES,
            environment={},
            ledger=ledger,
        ) as child:
            assert await child.stop() == ExitStatus()
            assert await child.wait() == ExitStatus()
    assert [activity.pid for activity in ledger.under_way()] == [4242]
    assert [entry for entry in logs if entry["log_level"] == "error"] == [
        {
            "event": "child did not end in time after SIGKILL",
            "log_level": "error",
            "child": "x",
            "pid": 4242,
        }
    ]


async def test_a_stop_clock_shortens_everything_but_still_kills(autojump_clock) -> None:
    process = fake(None)
    with open_stop_clock() as clock:
        async with open_child(
            ["x"], ports=ports_starting(process), deadlines=GRACES, environment={}
        ):
            clock.stop(0.5)
    assert trio.current_time() == pytest.approx(0.5)
    assert process.signals == TERM + KILL


async def test_output_held_open_by_an_escaped_process_is_not_waited_for_long(
    autojump_clock,
) -> None:
    ports = ports_starting(fake(0, has_escaped=True))
    async with open_child(["x"], ports=ports, deadlines=GRACES, environment={}) as child:
        assert await child.wait() == ExitStatus(code=0)
        assert trio.current_time() == pytest.approx(2)
    assert trio.current_time() == pytest.approx(2)


async def test_a_run_does_not_wait_long_for_output_held_open(autojump_clock) -> None:
    ports = ports_starting(fake(0, has_escaped=True))
    result = await run_child(["x"], ports=ports, deadlines=GRACES, environment={})
    assert result.status == ExitStatus(code=0)
    assert trio.current_time() == pytest.approx(4)


async def test_a_stop_does_not_wait_long_for_output_held_open(autojump_clock) -> None:
    process = fake(0, has_escaped=True)
    ports = ports_starting(process)
    async with open_child(["x"], ports=ports, deadlines=GRACES, environment={}):
        pass
    assert trio.current_time() == pytest.approx(2)
    assert process.signals == KILL
