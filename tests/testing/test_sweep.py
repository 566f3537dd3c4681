"""The sweeps see what is planted for them, and nothing where there is nothing."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import threading
import warnings

import attrs
import pytest
import trio
import trio.testing

from semibot.errors import ToolError
from semibot.lifetimes import grace, open_services
from semibot.testing import (
    FaultyStream,
    SweepDidNotEnd,
    cancel_everywhere,
    cut_here,
    fail_everywhere,
    faulty_ports,
    simulated_ports,
)
from semibot.testing import sweep as sweep_module
from semibot.testing.faulty import FaultPlan, follow

IS_LINUX = sys.platform == "linux"
linux_only = pytest.mark.skipif(not IS_LINUX, reason="only Linux tells what a process has")


async def two_tasks() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 1)
        await trio.sleep(2)


# --- nothing to find ------------------------------------------------------------------


def test_a_scenario_that_cleans_up_has_no_problems() -> None:
    report = cancel_everywhere(two_tasks, seeds=(0, 1, 2), within=0)
    assert report.problems == ()
    assert set(report.points_by_seed) == {0, 1, 2}
    assert sum(report.points_by_seed.values()) == report.cancel_points > 9
    assert report.longest == 0


def test_seeds_change_the_order_of_tasks_and_the_same_seed_gives_the_same() -> None:
    orders: list[tuple[int, ...]] = []

    async def scenario() -> None:
        order: list[int] = []

        async def note(number: int) -> None:
            order.append(number)
            await trio.lowlevel.checkpoint()
            order.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(note, number)
        orders.append(tuple(order))

    cancel_everywhere(scenario, seeds=(0, 1, 2, 0))
    got_through = [order for order in orders if len(order) == 10]
    assert len(set(got_through)) == 3


def test_a_wait_is_cancelled_while_it_lasts_and_when_it_is_over() -> None:
    ends: list[str] = []

    async def wait(event: trio.Event) -> None:
        end = "it waited"
        with cut_here():
            try:
                await event.wait()
                end = "it was over"
                await trio.lowlevel.checkpoint()
                end = "not at all"
            finally:
                ends.append(end)

    async def scenario() -> None:
        event = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, event)
            await trio.sleep(1)
            event.set()

    assert cancel_everywhere(scenario).problems == ()
    assert set(ends) == {"it waited", "it was over", "not at all"}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_short_sweep_tries_steps_all_over_the_scenario(seed: int) -> None:
    at: list[float] = []

    async def scenario() -> None:
        try:
            for _ in range(30):
                await trio.sleep(1)
        finally:
            at.append(trio.current_time())

    report = cancel_everywhere(scenario, seeds=[seed], at_most=10)
    assert 7 <= report.cancel_points <= 10
    assert at[0] == at[-1] == 30  # these were not cancelled
    assert min(at) <= 4
    assert max(at[1:-1]) >= 26


# --- planted leaks --------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_task_that_is_left_is_seen(seed: int) -> None:
    async def scenario() -> None:
        trio.lowlevel.spawn_system_task(trio.sleep_forever)
        await trio.lowlevel.checkpoint()

    report = cancel_everywhere(scenario, seeds=[seed])
    assert any("tasks are left: trio.sleep_forever" in problem for problem in report.problems)


@linux_only
def test_a_descriptor_that_is_left_is_seen() -> None:
    opened: list[int] = []

    async def scenario() -> None:
        opened.append(os.open("/dev/null", os.O_RDONLY))
        await trio.lowlevel.checkpoint()
        os.close(opened.pop())

    report = cancel_everywhere(scenario)
    for number in opened:
        os.close(number)
    assert any("is left: /dev/null" in problem for problem in report.problems)


@linux_only
@pytest.mark.filterwarnings("ignore:subprocess:ResourceWarning")
@pytest.mark.parametrize("lives", ["alive", "zombie"])
def test_a_child_that_is_left_is_seen_and_killed(lives: str) -> None:
    children: list[subprocess.Popen[bytes]] = []
    program = "sleep 60" if lives == "alive" else "exit"

    async def scenario() -> None:
        child = subprocess.Popen(["/bin/sh", "-c", program])  # noqa: ASYNC220 - planted
        children.append(child)
        if lives == "zombie":
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # noqa: ASYNC222 - planted
        await trio.lowlevel.checkpoint()
        child.kill()
        child.wait()

    report = cancel_everywhere(scenario, mock_clock=False)
    assert any(f"({lives})" in problem for problem in report.problems)
    for child in children:
        child.returncode = 0  # whoever looked at it has reaped it


@linux_only
def test_a_grandchild_that_is_left_is_seen_and_killed() -> None:
    async def scenario() -> None:
        with subprocess.Popen(["/bin/sh", "-c", "sleep 60 & exit"]):  # noqa: ASYNC220 - planted
            pass

    report = cancel_everywhere(scenario, mock_clock=False)
    assert any("(alive)" in problem for problem in report.problems)


@pytest.mark.parametrize(("threads", "is_seen"), [(0, True), (1, False)])
def test_a_thread_that_is_left_is_seen_unless_it_may_be(threads: int, is_seen: bool) -> None:
    releases: list[threading.Event] = []

    async def scenario() -> None:
        releases.append(threading.Event())
        with trio.move_on_after(0.01):
            await trio.to_thread.run_sync(releases[-1].wait, abandon_on_cancel=True)

    def audit() -> None:
        for release in releases:
            release.set()
        releases.clear()

    report = cancel_everywhere(scenario, audit=audit, mock_clock=False, threads=threads)
    assert any("threads are left" in problem for problem in report.problems) is is_seen


@pytest.mark.parametrize("kind", ["resource", "runtime", "unraisable", "generator"])
def test_what_python_complains_about_is_seen(kind: str) -> None:
    class Sloppy:
        def __del__(self) -> None:
            if kind == "unraisable":
                raise ValueError("too late")

    async def generate():
        try:
            yield 1
        finally:
            await trio.sleep(1)

    async def scenario() -> None:
        if kind == "resource":
            warnings.warn("not closed", ResourceWarning, stacklevel=1)
        elif kind == "runtime":
            trio.sleep(1)  # type: ignore[unused-coroutine]  # noqa: ASYNC105 - planted
        elif kind == "unraisable":
            Sloppy()
        else:
            async for _ in generate():
                break
        await trio.lowlevel.checkpoint()

    problems = cancel_everywhere(scenario).problems
    expected = {
        "resource": "warned not closed",
        "runtime": "was never awaited",
        "unraisable": "unraisable ValueError('too late')",
        "generator": "before it had been exhausted",
    }
    assert any(expected[kind] in problem for problem in problems)


def test_an_error_in_clean_up_is_seen_with_its_place() -> None:
    async def scenario() -> None:
        try:
            await trio.sleep(1)
        finally:
            raise ValueError("in clean-up")

    [*_, problem] = cancel_everywhere(scenario).problems
    assert "ValueError('in clean-up')" in problem
    assert "test_sweep.py" in problem


def test_what_the_audit_finds_is_reported_with_seed_and_step() -> None:
    ends: list[str] = []

    async def scenario() -> None:
        ends.clear()
        try:
            await trio.sleep(1)
            ends.append("complete")
            await trio.sleep(1)
        except trio.Cancelled:
            ends.append("cancelled")
            raise

    def audit() -> str | None:
        return f"{len(ends)} terminal events" if len(ends) > 1 else None

    report = cancel_everywhere(scenario, audit=audit, seeds=[2])
    assert report.problems
    assert report.problems[0].startswith("seed 2, step ")
    assert report.problems[0].endswith("2 terminal events")


def test_an_ending_that_takes_too_long_is_seen() -> None:
    async def scenario() -> None:
        try:
            await trio.sleep(1)
        finally:
            with grace("test.clean", 3):
                await trio.sleep(2)

    assert cancel_everywhere(scenario, within=2).problems == ()
    report = cancel_everywhere(scenario, within=1.5)
    assert report.longest == 2
    assert any("took 2.000 s to end, 1.500 s is the bound" in text for text in report.problems)


def test_one_that_hangs_behind_a_shield_is_seen_and_ended() -> None:
    async def scenario() -> None:
        try:
            await trio.sleep(1)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep_forever()

    report = cancel_everywhere(scenario)
    assert any("tasks hang" in problem for problem in report.problems)


def test_a_scenario_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep_module, "MAX_STEPS", 10)

    async def scenario() -> None:
        while True:
            await trio.sleep(1)
            await trio.lowlevel.checkpoint()

    with pytest.raises(SweepDidNotEnd):
        cancel_everywhere(scenario)


@pytest.mark.parametrize("shield", [False, True])
def test_one_that_never_waits_is_seen_and_ended(
    shield: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_module, "MOST_STEPS_IN_ALL", 500)

    async def scenario() -> None:
        with trio.CancelScope(shield=shield):
            while True:
                await trio.lowlevel.checkpoint()

    report = cancel_everywhere(scenario, at_most=2)
    assert "seed 0, not cancelled: does not wait: takes more than 500 steps" in report.problems


def test_old_garbage_is_not_blamed_on_the_scenario() -> None:
    frozen = gc.get_freeze_count()
    assert cancel_everywhere(two_tasks).problems == ()
    assert gc.get_freeze_count() == frozen


# --- a part of a scenario -------------------------------------------------------------


def test_only_the_block_is_cancelled_and_what_is_around_it_sees_the_end() -> None:
    ends: list[str] = []

    async def scenario() -> None:
        ours, theirs = trio.testing.memory_stream_pair()

        async def peer() -> None:
            while data := await theirs.receive_some():
                await theirs.send_all(data)
            ends.append("peer saw the end")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer)
            with cut_here():
                async with ours:
                    await ours.send_all(b"x")
                    await ours.receive_some()
        ends.append("went on")

    report = cancel_everywhere(scenario, within=0)
    assert report.problems == ()
    runs = report.cancel_points + 2  # the first and the last are not cancelled
    assert ends.count("went on") == runs
    # Cancelled before it has the stream, it cannot close it.
    assert ends.count("peer saw the end") >= runs - 1


def test_a_block_outside_of_a_sweep_is_a_plain_scope() -> None:
    async def main() -> bool:
        with cut_here() as scope:
            scope.cancel()
            await trio.sleep(1)
        return scope.cancelled_caught

    assert trio.run(main)


# --- broken streams -------------------------------------------------------------------


@attrs.define
class Conversation:
    """Two words over a stream that may break, with a peer that echoes them."""

    error: type[Exception] | None = ToolError
    waits: float = 0

    async def __call__(self) -> None:
        ours, theirs = trio.testing.memory_stream_pair()
        async with open_services() as services:
            services.start_soon(self.echo, theirs)
            await self.talk(FaultyStream(ours))

    async def echo(self, stream: trio.StapledStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async with stream:
                while data := await stream.receive_some():
                    await stream.send_all(data)
        await trio.sleep_forever()

    async def talk(self, stream: FaultyStream) -> None:
        try:
            for word in (b"a", b"b"):
                await stream.send_all(word)
                assert await stream.receive_some(10) == word
        except trio.BrokenResourceError:
            await trio.sleep(self.waits)
            if self.error is ToolError:
                raise ToolError("the stream broke") from None
            if self.error is not None:
                raise self.error from None
        finally:
            await stream.aclose()


def test_every_use_of_a_stream_is_broken_once() -> None:
    report = fail_everywhere(Conversation(), seeds=(0, 1))
    assert report.problems == ()
    assert report.errors_by_seed == {0: 4, 1: 4}
    assert report.outcomes == {"ToolError": 8}


def test_a_short_sweep_breaks_only_some() -> None:
    assert fail_everywhere(Conversation(), at_most=2).errors == 2


@pytest.mark.parametrize("seed", [0, 1])
def test_a_short_sweep_breaks_some_before_and_some_after(seed: int) -> None:
    report = fail_everywhere(Conversation(error=KeyError), seeds=[seed], at_most=2)
    assert [", late)" in problem for problem in report.problems] == [seed == 0, seed == 1]


def test_a_scenario_may_get_over_an_error() -> None:
    assert fail_everywhere(Conversation(error=None)).outcomes == {"done": 4}


@pytest.mark.parametrize("error", [trio.BrokenResourceError, KeyError])
def test_an_error_that_is_no_outcome_is_seen(error: type[Exception]) -> None:
    report = fail_everywhere(Conversation(error=error))
    assert len(report.problems) == 4
    assert "seed 0, operation 1 (stream.send_all, late): raised" in report.problems[0]
    assert fail_everywhere(Conversation(error=error), allowed=(error,)).problems == ()


def test_going_on_for_too_long_after_an_error_is_seen() -> None:
    assert fail_everywhere(Conversation(waits=3), within=3).problems == ()
    report = fail_everywhere(Conversation(waits=3), within=2)
    assert report.longest == 3
    assert len(report.problems) == 4


def test_what_an_error_leaves_behind_is_seen() -> None:
    async def scenario() -> None:
        try:
            await Conversation()()
        except ToolError:
            trio.lowlevel.spawn_system_task(trio.sleep_forever)

    report = fail_everywhere(scenario)
    assert len([text for text in report.problems if "tasks are left" in text]) == 4


async def test_a_broken_stream_stays_broken_for_both_sides() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    stream = FaultyStream(ours)
    follow(FaultPlan(2, is_late=True))
    await stream.send_all(b"1")
    with pytest.raises(trio.BrokenResourceError):
        await stream.send_all(b"2")
    with pytest.raises(trio.BrokenResourceError):
        await stream.receive_some()
    assert await theirs.receive_some() == b"12"  # it was late
    assert await theirs.receive_some() == b""


async def test_a_task_that_waits_in_a_stream_sees_it_break() -> None:
    ours, _theirs = trio.testing.memory_stream_pair()
    stream = FaultyStream(ours)
    follow(FaultPlan(2, is_late=False))

    async def read() -> None:
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BrokenResourceError):
            await stream.send_all(b"x")


async def test_what_makes_something_fails_before_it_is_made() -> None:
    made: list[str] = []

    async def make(*_: object, **__: object) -> object:
        made.append("something")
        return None

    real = attrs.evolve(simulated_ports(), dial=make, listen=make, spawn=make)
    for makes in (
        lambda ports: ports.dial("h", 1, use_tls=False),
        lambda ports: ports.listen("h", 1),
        lambda ports: ports.spawn(["x"], cwd=None, environment={}),
    ):
        follow(FaultPlan(1, is_late=True))
        with pytest.raises(OSError, match="refused by a sweep"):
            await makes(faulty_ports(real))
    assert made == []


async def test_a_childs_pipes_and_a_listeners_connections_may_break() -> None:
    ours, _theirs = trio.testing.memory_stream_pair()
    closed: list[str] = []

    @attrs.frozen
    class Fake:
        pid = 7
        port = 80
        stdin = stdout = stderr = ours

        async def accept(self) -> object:
            return ours

        async def wait(self) -> int:
            return 3

        def signal_group(self, signum: int) -> None:
            closed.append(f"signal {signum}")

        async def aclose(self) -> None:
            closed.append("closed")

    async def make(*_: object, **__: object) -> Fake:
        return Fake()

    ports = faulty_ports(attrs.evolve(simulated_ports(), listen=make, spawn=make))
    process = await ports.spawn(["x"], cwd=None, environment={})
    process.signal_group(9)
    assert (process.pid, await process.wait()) == (7, 3)
    listener = await ports.listen("h", 80)
    assert listener.port == 80
    stream = await listener.accept()
    await stream.wait_send_all_might_not_block()
    for operation in (
        lambda: process.stdin.send_all(b"x"),
        process.stdout.receive_some,
        process.stderr.receive_some,
        lambda: stream.send_all(b"x"),
        listener.accept,
    ):
        follow(FaultPlan(1, is_late=False))
        with pytest.raises((trio.BrokenResourceError, OSError)):
            await operation()
    await process.stdin.aclose()
    await process.stdout.aclose()
    await listener.aclose()
    assert closed == ["signal 9", "closed"]
