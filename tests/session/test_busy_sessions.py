"""More than one message for one session."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import trio
from session_bench import answer, everything, hang, opened
from trio.testing import MockClock, wait_all_tasks_blocked

from semibot.errors import (
    SessionBusy,
)
from semibot.session import (
    ActiveRun,
    Session,
)
from semibot.wire.events import (
    TextChunk,
)


async def test_interrupt_ends_the_first_run_completely_before_the_second_starts(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def handle(run: ActiveRun) -> None:
        if run.message == "first":
            try:
                await hang(run)
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 9):
                    await trio.sleep(2)
                    await run.emit(TextChunk(content="last words"))
        await answer(run)

    async with opened(tmp_path, handle) as session, session.run("first") as first:
        await trio.sleep(1)
        async with session.run("second") as second:
            await second.wait()
        assert first.outcome == "cancelled"
        runs = [entry.run_id for entry in await everything(session)]
    assert runs == [first.id] * 4 + [second.id] * 3


async def test_enqueued_runs_take_turns_in_order(autojump_clock: MockClock, tmp_path: Path) -> None:
    async def handle(run: ActiveRun) -> None:
        await trio.sleep(1)
        await answer(run)

    seen: list[str] = []

    async def ask(session: Session, message: str) -> None:
        async with session.run(message, on_busy="enqueue") as run:
            assert await run.wait() == "completed"
            seen.append(message)

    async with opened(tmp_path, handle) as session, trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(ask, session, str(number))
            await wait_all_tasks_blocked(0)
    assert seen == ["0", "1", "2", "3"]


async def test_reject_and_a_full_queue_raise_and_change_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path, hang) as session, contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(session.run("x"))
        with pytest.raises(SessionBusy, match="on_busy"):
            await stack.enter_async_context(session.run("y", on_busy="reject"))
        await wait_all_tasks_blocked()
        for number in range(16):
            await stack.enter_async_context(session.run(str(number), on_busy="enqueue"))
        with pytest.raises(SessionBusy) as caught:
            await stack.enter_async_context(session.run("z", on_busy="enqueue"))
        assert caught.value.waiting == 17
        assert session.statistics().waiting == 16


async def test_a_queued_run_that_is_cancelled_is_answered_at_once_and_ends_at_its_turn(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def handle(run: ActiveRun) -> None:
        assert run.message == "first"
        await trio.sleep(10)
        await run.complete("done")

    async with opened(tmp_path, handle) as session, session.run("first") as first:
        async with session.run("second", on_busy="enqueue") as second:
            receipt = await second.cancel("not needed")
            assert receipt is not None
            assert (receipt.started, receipt.reason) == (False, "not needed")
            assert trio.current_time() < 1
        assert not second.has_ended
        assert await first.wait() == "completed"
        assert await second.wait() == "cancelled"
        types = [type(entry.event).__name__ for entry in await everything(session)]
    assert types == ["RunStarted", "ExecutionComplete"] * 2
