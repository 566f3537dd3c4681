"""Cancelling a run that a bridge drives, at every moment and in every way."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import ClassVar

import attrs
import pytest
import trio
from bridge_sessions import (
    GOOD,
    QUICK,
    START,
    START_WITH_RUNS,
    Seen,
    is_alive,
    opened,
    scripted,
    terminals,
    until,
)

from semibot.session import ActiveRun, Run
from semibot.tools.ledger import Ledger
from semibot.wire.events import ExecutionComplete, ExecutionError, SessionEvent, TextChunk
from semibot.wire.receipts import Outcome

CHUNK = {"type": "text", "content": "one"}
COMPLETE = {"type": "execution_complete", "final_response": "late"}
WORKING = [["wait", "user_message"], ["say", CHUNK]]
LATE = [["say", {"type": "text", "content": "late"}], ["say", COMPLETE]]


async def wait_text(run: Run) -> list[SessionEvent]:
    """Return the events up to the first piece of text."""
    events = []
    with trio.fail_after(5):
        async for event in run.events:
            events.append(event)
            if isinstance(event, TextChunk):
                break
    return events


async def next_message_works(seen: Seen, *, starts: int) -> None:
    events = await seen.ask("again")
    assert isinstance(events[-1], ExecutionComplete)
    assert events[-1].final_response == "echo: again"
    assert seen.adapter.statistics().starts == starts


# --- bridges of level 1 ---------------------------------------------------------------


async def test_a_cancel_asks_for_the_snapshot_and_stops_the_child(tmp_path: Path) -> None:
    script = [*START, *WORKING, ["wait", "cancel"], *LATE, ["wait", "snapshot"]]
    script += [["snapshot", {"half": "done"}], ["serve", None]]
    async with opened(tmp_path, scripted(script, GOOD)) as seen:
        async with seen.session.run("hello") as run:
            await wait_text(run)
            pid = seen.adapter.statistics().pid
            receipt = await run.cancel("user_cancelled")
            events = [event async for event in run.events]
        assert run.outcome == "cancelled"
        (terminal,) = terminals(events)
        assert isinstance(terminal, ExecutionComplete)
        assert (terminal.cancelled, terminal.partial_response) == (True, "one")
        assert [event for event in events if isinstance(event, TextChunk)] == [
            TextChunk(content="one")
        ]
        assert receipt is not None
        assert pid is not None
        assert [(item.kind, item.pid) for item in receipt.stopped] == [("child", pid)]
        assert receipt.abandoned == ()
        assert not is_alive(pid)
        assert seen.adapter.statistics().dropped_events == 2
        assert await seen.adapter.get_snapshot() == {"checkpoint": {"half": "done"}}
        assert [frame["session_id"] for frame in seen.heard("cancel")] == ["s"]
        assert "run_id" not in seen.heard("cancel")[0]
        await next_message_works(seen, starts=2)
        history = seen.heard("user_message")[-1]["payload"]["history"]
        assert [entry["content"] for entry in history] == ["hello", "one", "again"]


async def test_a_cancel_ends_in_time_whatever_the_child_does(tmp_path: Path) -> None:
    script = [["ignore", signal.SIGTERM], *START, *WORKING, ["hang", None]]
    async with opened(tmp_path, scripted(script, GOOD)) as seen:
        async with seen.session.run("hello") as run:
            await wait_text(run)
            pid = seen.adapter.statistics().pid
            receipt = await run.cancel()
        assert receipt is not None
        # bridge.snapshot + child.eof_grace + child.term_grace, and what the machine takes
        assert 0.6 <= receipt.seconds < 3.0
        assert [item.pid for item in receipt.stopped] == [pid]
        await next_message_works(seen, starts=2)


async def test_a_child_that_outlives_the_grace_is_abandoned_and_goes_later(
    tmp_path: Path,
) -> None:
    script = [["ignore", signal.SIGTERM], *START, *WORKING, ["hang", None]]
    deadlines = attrs.evolve(QUICK, run_cancel_grace=0.1)
    async with opened(tmp_path, scripted(script, GOOD), deadlines=deadlines) as seen:
        async with seen.session.run("hello") as run:
            await wait_text(run)
            pid = seen.adapter.statistics().pid
            receipt = await run.cancel()
        assert receipt is not None
        assert receipt.stopped == ()
        assert ("child", pid) in [(item.kind, item.pid) for item in receipt.abandoned]
        await next_message_works(seen, starts=2)
        assert pid is not None
        assert not is_alive(pid)


async def test_a_child_that_has_said_its_last_word_is_left_alone_by_a_cancel(
    tmp_path: Path,
) -> None:
    class SlowRun:
        """A run whose events are taken by nobody."""

        id = "r"
        message = "hello"
        metadata: ClassVar = {}
        history = ()
        ledger = Ledger()

        async def emit(self, event: object) -> None:
            await trio.sleep_forever()

    last = {"type": "thinking", "content": "said after the end"}
    async with opened(
        tmp_path, scripted([*START, *WORKING, *LATE[1:], ["say", last], *GOOD[2:]])
    ) as seen:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(seen.adapter.handle, SlowRun())
                await until(lambda: seen.adapter.statistics().dropped_events == 1)
                scope.cancel()
        assert SlowRun.ledger.under_way() == ()
        assert seen.heard("cancel") == []
        await next_message_works(seen, starts=1)


async def test_a_receipt_lists_no_child_that_had_said_its_last_word_and_lives_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def stuck(run: ActiveRun, event: object) -> None:
        await trio.sleep_forever()

    last = {"type": "thinking", "content": "said after the end"}
    script = [*START, *WORKING, *LATE[1:], ["say", last], *GOOD[2:]]
    async with opened(tmp_path, scripted(script)) as seen:
        monkeypatch.setattr(ActiveRun, "emit", stuck)
        async with seen.session.run("hello") as run:
            await until(lambda: seen.adapter.statistics().dropped_events == 1)
            assert [item.kind for item in run.under_way()] == ["child"]
            receipt = await run.cancel()
        monkeypatch.undo()
        assert receipt is not None
        assert receipt.outcome == "cancelled"
        assert receipt.stopped == receipt.abandoned == ()
        await next_message_works(seen, starts=1)


async def test_a_cancel_before_the_child_is_ready_says_nothing_to_it(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = [["wait_file", str(gate)], *GOOD]
    async with opened(tmp_path, scripted(script)) as seen:
        async with seen.session.run("hello") as run:
            async for _ in run.events:
                break  # run_started
            receipt = await run.cancel()
        assert run.outcome == "cancelled"
        assert receipt is not None
        assert receipt.stopped == receipt.abandoned == ()
        gate.touch()
        await next_message_works(seen, starts=1)
        assert [frame["payload"]["message"] for frame in seen.heard("user_message")] == ["again"]
        assert seen.heard("cancel") == []


async def test_a_cancel_of_a_run_that_waits_for_a_missing_program_is_a_cancel(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, scripted(GOOD)) as seen, seen.session.run("hello") as run:
        receipt = await run.cancel()
        assert receipt is not None
        assert run.outcome == "cancelled" or receipt.started is False


async def test_a_child_that_dies_of_a_cancel_is_a_cancelled_run(tmp_path: Path) -> None:
    script = [*START, *WORKING, ["wait", "cancel"], ["exit", 1]]
    async with opened(tmp_path, scripted(script, GOOD)) as seen:
        async with seen.session.run("hello") as run:
            await wait_text(run)
            receipt = await run.cancel()
            events = [event async for event in run.events]
        assert receipt is not None
        assert receipt.outcome == "cancelled"
        assert len(terminals(events)) == 1
        await next_message_works(seen, starts=2)


async def test_a_cancel_after_the_last_word_changes_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path, scripted(GOOD)) as seen:
        async with seen.session.run("hello") as run:
            assert await run.wait() == "completed"
            receipt = await run.cancel()
        assert receipt is not None
        assert receipt.already is True
        await next_message_works(seen, starts=1)


# --- bridges that know runs -----------------------------------------------------------


@pytest.mark.parametrize(
    "confirmation",
    [
        {"type": "execution_complete", "cancelled": True},
        {"type": "execution_error", "error": "Execution cancelled"},
    ],
    ids=["complete", "error"],
)
async def test_a_cancel_that_is_confirmed_leaves_the_child_alone(
    tmp_path: Path, confirmation: dict[str, object]
) -> None:
    late = {"type": "text", "content": "late", "run_id": "$run_id"}
    script = [
        *START_WITH_RUNS,
        ["wait", "user_message"],
        ["say", {**CHUNK, "run_id": "$run_id"}],
        ["wait", "cancel"],
        ["say", late],
        ["say", {**confirmation, "run_id": "$run_id"}],
        ["say", late],
        ["say", {**COMPLETE, "run_id": "$run_id"}],
        ["wait", "user_message"],
        ["say", {**COMPLETE, "run_id": "$run_id"}],
        ["serve", None],
    ]
    async with opened(tmp_path, scripted(script)) as seen:
        async with seen.session.run("hello") as run:
            await wait_text(run)
            receipt = await run.cancel()
            events = [event async for event in run.events]
        assert [e.content for e in events if isinstance(e, TextChunk)] == ["one"]
        assert seen.heard("cancel") == [{"type": "cancel", "session_id": "s", "run_id": run.id}]
        assert receipt is not None
        assert [(item.kind, item.pid) for item in receipt.stopped] == [("sub_run", None)]
        assert receipt.abandoned == ()
        events = await seen.ask("again")
        assert isinstance(events[-1], ExecutionComplete)
        assert events[-1].final_response == "late"
        assert seen.adapter.statistics().starts == 1
        assert seen.adapter.statistics().dropped_events == 4


async def test_a_cancel_that_is_not_confirmed_stops_the_child(tmp_path: Path) -> None:
    chunk = {**CHUNK, "run_id": "$run_id"}
    script = [*START_WITH_RUNS, ["wait", "user_message"], ["say", chunk], ["serve", None]]
    async with opened(tmp_path, scripted(script, GOOD)) as seen:
        async with seen.session.run("hello") as run:
            await wait_text(run)
            pid = seen.adapter.statistics().pid
            receipt = await run.cancel()
        assert receipt is not None
        assert [(item.kind, item.pid) for item in receipt.stopped] == [("child", pid)]
        assert pid is not None
        assert not is_alive(pid)
        await next_message_works(seen, starts=2)


# --- other ways to end ----------------------------------------------------------------

HANGING = [*START, *WORKING, ["serve", None]]


async def test_a_deadline_around_the_block_cancels_the_run_and_its_end_is_recorded(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, scripted(HANGING, GOOD)) as seen:
        with trio.move_on_after(0.5) as scope:
            async with seen.session.run("hello") as run:
                await wait_text(run)
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert run.outcome == "cancelled"
        assert isinstance(run.terminal, ExecutionComplete)
        assert run.terminal.cancelled is True
        await next_message_works(seen, starts=2)


async def test_a_run_that_takes_too_long_ends_as_timeout(tmp_path: Path) -> None:
    deadlines = attrs.evolve(QUICK, run_limit=0.4)
    async with opened(tmp_path, scripted(HANGING, GOOD), deadlines=deadlines) as seen:
        events = await seen.ask("hello")
        assert isinstance(events[-1], ExecutionError)
        assert events[-1].code == "DEADLINE_EXCEEDED"
        await next_message_works(seen, starts=2)


async def test_a_new_message_interrupts_the_run_and_waits_for_its_end(tmp_path: Path) -> None:
    async with opened(tmp_path, scripted(HANGING, GOOD)) as seen:
        async with seen.session.run("hello") as first:
            await wait_text(first)
            await next_message_works(seen, starts=2)
            assert first.outcome == "cancelled"


async def test_closing_the_session_interrupts_the_run_and_stops_the_child(
    tmp_path: Path,
) -> None:
    started = trio.Event()
    outcomes: list[Outcome] = []

    async def hold(seen: Seen) -> None:
        async with seen.session.run("hello") as run:
            await wait_text(run)
            started.set()
            outcomes.append(await run.wait())

    async with trio.open_nursery() as nursery:
        async with opened(tmp_path, scripted(HANGING)) as seen:
            nursery.start_soon(hold, seen)
            await started.wait()
            pid = seen.adapter.statistics().pid
    assert outcomes == ["interrupted"]
    assert pid is not None
    assert not is_alive(pid)


@pytest.mark.parametrize("seconds", [0.0, 0.01, 0.02, 0.03, 0.05, 0.08])
@pytest.mark.parametrize("start", [START, START_WITH_RUNS], ids=["level 1", "knows runs"])
async def test_a_session_cancelled_at_any_moment_leaves_nothing(
    tmp_path: Path, seconds: float, start: list[list[object]]
) -> None:
    asked = [["wait", "user_message"], ["say", {**CHUNK, "run_id": "$run_id"}]]
    deadlines = attrs.evolve(QUICK, bridge_snapshot=0.1)
    with trio.fail_after(5), trio.move_on_after(seconds):
        async with opened(
            tmp_path, scripted([*start, *asked, ["serve", None]]), deadlines=deadlines
        ) as seen:
            async with seen.session.run("hello") as run:
                await run.wait()
