"""Cancel, stop, fenced and exit: how a VM's runs and sessions end, and what is answered."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from manager_kit import (
    cancel,
    config,
    echo,
    echo_or_hang,
    hang,
    message,
    opened,
    start,
    start_1,
    stop,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from semibot.config import Deadlines
from semibot.errors import LocalProtocolError, NotFound
from semibot.session import ActiveRun, Adapter, AdapterContext
from semibot.testing import LaneEvent, MemoryLane, MemoryPlane, adapter_from, cancel_everywhere
from semibot.wire.events import ExecutionComplete, ExecutionError, RunStarted, TextChunk
from semibot.wire.frames import Cancelled, CommandAck, FireAndForget


def answers_in(lane: MemoryLane) -> list[Cancelled]:
    return [note for note in lane.notes if isinstance(note, Cancelled)]


# --- cancel ---------------------------------------------------------------------------


@pytest.mark.parametrize("run_id", ["r1", None])
async def test_a_cancel_is_answered_behind_the_terminal_event(
    run_id: str | None, autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start(), message("hang", "r1", command_id="c1"))
        lane = vm.plane.lane("s1")
        await trio.sleep(2)
        vm.plane.say(cancel("c2", run_id))
        await lane.wait(Cancelled)
        *_, end, answer = [i for i in lane.items if not isinstance(i, FireAndForget)]
        assert isinstance(end, LaneEvent)
        assert isinstance(end.event, ExecutionComplete)
        assert end.event.cancelled
        assert end.event.partial_response == "working"
        assert isinstance(answer, Cancelled)
        assert (answer.session_id, answer.command_id, answer.run_id) == ("s1", "c2", "r1")
        assert answer.receipt["outcome"] == "cancelled"
        assert answer.receipt["reason"] == "user_cancelled"
        vm.plane.say(message("hi", "r2"))
        await lane.wait(ExecutionComplete, 2)


async def test_every_cancel_of_a_run_is_answered_alike(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start(), message("hang", "r1"))
        lane = vm.plane.lane("s1")
        await wait_all_tasks_blocked()
        vm.plane.say(cancel("c2", "r1"), cancel("c3", "r1"), cancel("c2", "r1"))
        await lane.wait(Cancelled, 2)
        vm.plane.say(cancel("c4", "r1"), cancel("c2", "r1"))
        answers = answers_in(lane)
        assert [each.command_id for each in answers] == ["c2", "c3", "c4", "c2"]
        assert len({str(each.receipt) for each in answers}) == 1


async def test_a_cancel_of_a_run_that_ended_by_itself_changes_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start(), message("hi", "r1"))
        lane = vm.plane.lane("s1")
        await lane.wait(ExecutionComplete)
        vm.plane.say(cancel("c1", "r1"), cancel("c2"), cancel("c3", "never"))
        ended, idle, unknown = answers_in(lane)
        assert (ended.run_id, ended.receipt["outcome"], ended.receipt["already"]) == (
            "r1",
            "completed",
            True,
        )
        assert (idle.run_id, idle.receipt["already"]) == (None, True)
        assert (unknown.run_id, unknown.receipt["already"]) == ("never", True)


async def test_a_cancel_that_comes_before_its_message_cancels_it(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start(), cancel("c1", "r1"), message("hang", "r1"))
        lane = vm.plane.lane("s1")
        await lane.wait(ExecutionComplete)
        assert [type(e) for e in lane.said("r1")] == [RunStarted, ExecutionComplete]


async def test_a_cancel_while_the_session_opens_keeps_the_adapter_out(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    handled: list[str] = []

    async def handle(run: ActiveRun) -> None:
        handled.append(run.message)
        await echo(run)

    @asynccontextmanager
    async def slow(context: AdapterContext) -> AsyncGenerator[Adapter]:
        await trio.sleep(5)
        async with adapter_from(handle)(context) as adapter:
            yield adapter

    async with opened(tmp_path, adapters={"graph": slow}) as vm:
        vm.plane.say(start(), message("no", "r1"), cancel("c1"), message("yes", "r2"))
        lane = vm.plane.lane("s1")
        await lane.wait(ExecutionComplete, 2)
        (answer,) = answers_in(lane)
        assert answer.run_id == "r1"
        assert answer.receipt["started"] is False
    assert handled == ["yes"]


async def test_level_1_cancels_the_current_run_and_gets_no_answer(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start_1(), message("hang"))
        lane = vm.plane.lane("s1")
        await wait_all_tasks_blocked()
        vm.plane.say(cancel(), cancel(run_id="unknown"))
        await lane.wait(ExecutionComplete)
        assert lane.notes == []


async def test_a_message_that_is_cancelled_already_skips_the_adapter(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start(), message("hang", "r1", command_id="c1", cancelled=True))
        lane = vm.plane.lane("s1")
        await lane.wait(ExecutionComplete)
        assert [type(e) for e in lane.events] == [RunStarted, ExecutionComplete]
        assert CommandAck(commands=("c1",)) in lane.notes


async def test_a_reason_that_is_far_too_long_is_cut(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start(), message("hang", "r1"))
        await wait_all_tasks_blocked()
        vm.plane.say(stop("c1", reason="x" * 2_000_000))
        lane = vm.plane.lane("s1")
        await lane.wait(Cancelled)
        assert len(str(lane.items)) < 10_000


# --- stop -----------------------------------------------------------------------------


async def test_a_stop_interrupts_answers_and_closes_the_lane(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start(), message("hang", "r1"))
        lane = vm.plane.lane("s1")
        await wait_all_tasks_blocked()
        vm.plane.say(stop("c1", reason="admin"))
        assert vm.plane.active_sessions() == ()
        await lane.wait(Cancelled)
        end = lane.said("r1")[-1]
        assert isinstance(end, ExecutionError)
        assert (end.code, end.retryable) == ("INTERRUPTED", True)
        assert "admin" in end.error
        *_, snapshot, answer = lane.items
        assert isinstance(snapshot, FireAndForget)
        assert isinstance(answer, Cancelled)
        assert (answer.run_id, answer.receipt["outcome"]) == ("r1", "interrupted")
        assert lane.is_closed
        vm.plane.say(stop("c1"), stop("c2"), cancel("c3", "r1"), config({}, "c4"))
        assert [each.command_id for each in answers_in(lane)] == ["c1", "c1", "c2", "c3"]
        assert answers_in(lane)[-1].receipt["outcome"] == "interrupted"
        vm.plane.say(message("late", "r9", command_id="c5"))
        assert vm.manager.statistics().held == 0


async def test_a_stop_of_an_idle_session_names_no_run(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start(), stop("c1"), stop("c2"))
        lane = vm.plane.lane("s1")
        await lane.wait(Cancelled, 2)
        assert [(each.run_id, each.receipt["already"]) for each in answers_in(lane)] == [
            (None, True),
            (None, True),
        ]


async def test_a_session_that_stops_while_it_opens_does_not_open(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    @asynccontextmanager
    async def slow(context: AdapterContext) -> AsyncGenerator[Adapter]:
        await trio.sleep(25)
        raise AssertionError
        yield  # type: ignore[unreachable]

    async with opened(tmp_path, adapters={"graph": slow}) as vm:
        vm.plane.say(start(), message("hi", "r1"))
        await trio.sleep(1)
        vm.plane.say(stop("c1"))
        await vm.plane.lane("s1").wait(Cancelled)
        assert trio.current_time() < 2
        assert vm.plane.lane("s1").events[-1].code == "INTERRUPTED"  # type: ignore[union-attr]


@pytest.mark.parametrize("term", [None, 1, 2])
async def test_a_session_that_starts_again_waits_for_its_predecessor(
    term: int | None, autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def stubborn(run: ActiveRun) -> None:
        try:
            await echo_or_hang(run)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)

    async with opened(tmp_path, stubborn) as vm:
        first = None if term is None else 1
        vm.plane.say(start(term=first), message("hang", "r1"))
        await wait_all_tasks_blocked()
        old = vm.plane.lane("s1")
        vm.plane.say(
            stop("c1"),
            start(term=term, next_seq=None if term is None else 4, command_id="c2"),
            message("hi", "r2", command_id="c3"),
            stop("c1"),
        )
        assert len(vm.plane.lanes) == 1
        assert vm.manager.statistics().ending == 1
        await old.wait(Cancelled)
        await wait_all_tasks_blocked()
        new = vm.plane.lane("s1")
        await new.wait(ExecutionComplete)
        assert new is not old
        assert new.term == (term or 1)
        assert new.notes[0] == CommandAck(commands=("c2",))
        assert [type(e) for e in new.said("r1")] == []
        assert vm.plane.active_sessions() == ("s1",)


async def test_commands_to_sessions_that_nobody_holds_are_answered(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(cancel("c1", "r1"), stop("c2"), config({}, "c3"))
        with pytest.raises(NotFound, match="start it first"):
            vm.plane.say(message("?", "r2", command_id="c4"))
        notes = [note for lane in vm.plane.lanes for note in lane.notes]
        assert [getattr(n, "command_id", "c3") for n in notes] == ["c1", "c2", "c3"]
        assert all(lane.is_closed for lane in vm.plane.lanes)
        vm.plane.say(cancel(), stop(), config({}), start(command_id="c5"), message("hi", "r1"))
        await vm.plane.lane("s1").wait(ExecutionComplete)


# --- fenced and gone ------------------------------------------------------------------


async def test_a_dropped_session_says_nothing_more(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start(), message("hang", "r1"))
        lane = vm.plane.lane("s1")
        await wait_all_tasks_blocked()
        before = list(lane.items)
        vm.plane.drop("s1")
        vm.plane.drop("never")
        assert vm.plane.active_sessions() == ()
        await trio.sleep(200)
        assert lane.items == before
        assert lane.is_discarded
        assert vm.manager.statistics().ending == 0
        vm.plane.say(cancel("c1", "r1"))  # to nobody, as far as this VM knows
        assert isinstance(vm.plane.lane("s1").notes[0], Cancelled)
        vm.plane.drop("s1")


async def test_a_stop_that_is_repeated_after_its_answer_was_lost_is_answered(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start(term=4, next_seq=7), message("hang", "r1"))
        await wait_all_tasks_blocked()
        vm.plane.say(stop("c1"))
        lane = vm.plane.lane("s1")
        await lane.wait(Cancelled)
        vm.plane.drop("s1")  # deleted meanwhile: the lane went with its answers
        before = list(lane.items)
        vm.plane.say(stop("c1"))
        again = vm.plane.lane("s1")
        assert again is not lane
        assert lane.items == before
        (note,) = again.notes
        assert isinstance(note, Cancelled)
        assert (note.command_id, note.receipt["already"]) == ("c1", True)


async def test_a_higher_term_fences_and_opens_anew(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.say(start(), message("one", "r1"))
        await vm.plane.lane("s1").wait(ExecutionComplete)
        vm.plane.say(message("hang", "r2"))
        old = vm.plane.lane("s1")
        await wait_all_tasks_blocked()
        before = list(old.items)
        vm.plane.say(start(term=2, next_seq=20), message("two", "r3"))
        new = vm.plane.lane("s1")
        assert new is not old
        await new.wait(FireAndForget)
        assert old.items == before
        assert (new.term, new.next_seq) == (2, 23)
        checkpoint = new.snapshots[-1].params["checkpoint"]
        history = [m["content"] for m in checkpoint["history"]]  # type: ignore[index,call-overload]
        assert history == ["two", "re two"]  # no snapshot: nothing from before
        vm.plane.say(start(term=1, command_id="late"))
        assert vm.plane.lane("s1") is new
        assert CommandAck(commands=("late",)) in new.notes


async def test_a_session_that_waits_for_its_predecessor_can_be_fenced_too(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def stubborn(run: ActiveRun) -> None:
        try:
            await hang(run)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(3)

    async with opened(tmp_path, stubborn) as vm:
        vm.plane.say(start(), message("x", "r1"))
        await wait_all_tasks_blocked()
        vm.plane.say(stop("c1"), start(term=2, next_seq=9), message("y", "r2"))
        vm.plane.drop("s1")
        await trio.sleep(10)
        assert len(vm.plane.lanes) == 1
        assert vm.manager.statistics().ending == 0


async def test_a_start_at_a_number_that_was_used_is_refused(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as vm:
        vm.plane.refuses_lanes = True
        with pytest.raises(LocalProtocolError):
            vm.plane.say(start())
        assert vm.plane.active_sessions() == ()
        vm.plane.refuses_lanes = False
        vm.plane.say(start(), message("hi", "r1"), stop("c1"), start(term=2))
        vm.plane.refuses_lanes = True
        await vm.plane.lane("s1").wait(Cancelled)
        await wait_all_tasks_blocked()
        assert len(vm.plane.lanes) == 1
        assert vm.manager.statistics().ending == 0
        vm.plane.refuses_lanes = False
        vm.plane.say(start(term=3), message("hi", "r2"))
        await vm.plane.lane("s1").wait(ExecutionComplete)


async def test_a_lane_that_cannot_be_opened_for_an_answer_is_left(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    plane = MemoryPlane()
    async with opened(tmp_path, plane=plane) as vm:
        plane.refuses_lanes = True
        vm.plane.say(cancel("c1", "r1"))
        assert plane.lanes == []


# --- exit -----------------------------------------------------------------------------


async def test_on_exit_runs_are_interrupted_and_all_of_it_is_in_the_lanes(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    plane = MemoryPlane()
    async with opened(tmp_path, plane=plane):
        plane.say(start("s1"), start("s2"))
        plane.say(message("hang", "r1"), message("hi", "r2", session_id="s2"))
        await plane.lane("s2").wait(ExecutionComplete)
    lane = plane.lane("s1")
    assert lane.said("r1")[-1].code == "INTERRUPTED"  # type: ignore[union-attr]
    assert len(lane.snapshots) == 1
    assert not lane.is_closed
    assert len(plane.lane("s2").snapshots) == 1


async def test_a_manager_that_is_closing_takes_no_commands(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def stubborn(run: ActiveRun) -> None:
        try:
            await hang(run)
        finally:
            plane.say(start("s2"), message("no", "r2", session_id="s2"))

    plane = MemoryPlane()
    async with opened(tmp_path, stubborn, plane=plane):
        plane.say(start(), message("hi", "r1"))
        await wait_all_tasks_blocked()
    assert not plane.has_lane("s2")


async def test_exit_is_bounded_although_an_adapter_does_not_stop(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def stuck(run: ActiveRun) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(100)

    plane = MemoryPlane()
    bounds = Deadlines(run_cancel_grace=1, session_adapter_stop=1, session_save=1)
    with trio.CancelScope() as scope:
        async with opened(tmp_path, stuck, plane=plane, deadlines=bounds):
            plane.say(start(), message("hi", "r1"))
            await wait_all_tasks_blocked()
            scope.cancel()
            begin = trio.current_time()
    # The run ends in its grace; what shields itself holds its own task up, as documented.
    assert plane.lane("s1").said("r1")[-1].code == "INTERRUPTED"  # type: ignore[union-attr]
    assert trio.current_time() - begin <= 101


def test_a_cancellation_anywhere_leaves_nothing_behind(tmp_path: Path) -> None:
    attempts: list[MemoryPlane] = []

    def audit() -> str | None:
        for lane in attempts[-1].lanes if attempts else ():
            started = [e.run_id for e in lane.events if isinstance(e, RunStarted)]
            ended = [
                e.run_id for e in lane.events if isinstance(e, ExecutionComplete | ExecutionError)
            ]
            if started != ended:
                return f"{started} began and {ended} ended"
            if not lane.snapshots and any(isinstance(e, TextChunk) for e in lane.events):
                return "a run that was driven ended without a snapshot"
        return None

    async def scenario() -> None:
        directory = tmp_path / str(len(attempts))
        directory.mkdir()
        attempts.append(MemoryPlane())
        async with opened(directory, plane=attempts[-1]) as vm:
            vm.plane.say(start(), message("hi", "r1"))
            await vm.plane.lane("s1").wait(ExecutionComplete)
            vm.plane.say(message("hang", "r2"), cancel("c1"))
            await vm.plane.lane("s1").wait(Cancelled)

    report = cancel_everywhere(scenario, audit=audit)
    assert report.problems == ()
    assert report.cancel_points > 20
    assert report.longest <= 1
