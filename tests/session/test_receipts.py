"""A cancel: what it stops, what it says, and that it always ends."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import trio
from session_bench import answer, events_of, everything, hang, opened
from trio.testing import MockClock, wait_all_tasks_blocked

from semibot.config import Deadlines
from semibot.session import (
    ActiveRun,
    Closed,
    Run,
)
from semibot.wire.events import (
    ExecutionComplete,
    RunStarted,
    TextChunk,
    Usage,
)


async def test_a_cancel_returns_a_receipt_of_what_was_stopped(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def handle(run: ActiveRun) -> None:
        run.spend(Usage(tokens_in=7, tokens_out=2))
        with run.ledger.open("tool_call", "c1", "sleep") as activity:
            activity.effect = "half done"
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
                    await trio.sleep(1)

    async with opened(tmp_path, handle) as session, session.run("x") as run:
        await trio.sleep(3)
        receipt = await run.cancel("enough")
        assert receipt is not None
        assert receipt == run.receipt
        assert (receipt.run_id, receipt.outcome, receipt.reason) == (run.id, "cancelled", "enough")
        assert receipt.usage == Usage(tokens_in=7, tokens_out=2)
        assert receipt.abandoned == ()
        assert [(a.kind, a.id, a.name, a.effect) for a in receipt.stopped] == [
            ("tool_call", "c1", "sleep", "half done")
        ]
        assert receipt.seconds == pytest.approx(1, abs=0.01)
        assert await run.cancel() == receipt
        assert await session.cancel(run_id=run.id) == receipt


async def test_a_second_cancel_joins_the_first(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with opened(tmp_path, hang) as session, session.run("x") as run:
        await wait_all_tasks_blocked()
        receipts: list[object] = []

        async def cancel(reason: str) -> None:
            receipts.append(await run.cancel(reason))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel, "first")
            await wait_all_tasks_blocked(0)
            nursery.start_soon(cancel, "second")
        assert receipts[0] == receipts[1]
        assert run.receipt is not None
        assert run.receipt.reason == "first"


async def test_cancelling_an_idle_session_or_an_ended_run_changes_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path, answer) as session:
        receipt = await session.cancel()
        assert receipt is not None
        assert (receipt.run_id, receipt.already) == (None, True)
        async with session.run("x") as run:
            await run.wait()
        receipt = await run.cancel()
        assert receipt is not None
        assert (receipt.run_id, receipt.outcome, receipt.already) == (run.id, "completed", True)
        assert await session.cancel(run_id=run.id) == receipt
        receipt = await session.cancel(run_id="unknown")
        assert receipt is not None
        assert (receipt.run_id, receipt.already) == ("unknown", True)


async def test_a_cancel_from_inside_the_run_requests_and_returns_at_once(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    answers: list[object] = []

    async with contextlib.AsyncExitStack() as stack:
        holder: list[Run] = []

        async def handle(run: ActiveRun) -> None:
            answers.append(await holder[0].cancel("from inside"))
            await trio.sleep_forever()

        session = await stack.enter_async_context(opened(tmp_path, handle))
        async with session.run("x") as run:
            holder.append(run)
            assert await run.wait() == "cancelled"
    assert answers == [None]


async def test_a_cancel_before_the_start_still_cancels(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    handled: list[str] = []

    async def handle(run: ActiveRun) -> None:
        handled.append(run.message)
        await answer(run)

    async with opened(tmp_path, handle) as session, session.run("x") as run:
        receipt = await run.cancel("early")
        assert receipt is not None
        assert (receipt.started, receipt.outcome) == (False, "cancelled")
        await run.wait()
        assert run.receipt is not None
        assert run.receipt.started is False
        events = await events_of(run)
    assert handled == []
    assert [type(event) for event in events] == [RunStarted, ExecutionComplete]


async def test_an_adapter_that_turns_a_cancel_into_an_answer_is_not_believed(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def handle(run: ActiveRun) -> None:
        with contextlib.suppress(trio.Cancelled):
            await trio.sleep_forever()
        await run.complete("I was done anyway")

    async with opened(tmp_path, handle) as session, session.run("x") as run:
        await wait_all_tasks_blocked()
        await run.cancel()
        assert run.outcome == "cancelled"


async def test_an_adapter_that_fails_while_it_is_cancelled_is_still_cancelled(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def handle(run: ActiveRun) -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise OSError("while cleaning up")

    async with opened(tmp_path, handle) as session, session.run("x") as run:
        await wait_all_tasks_blocked()
        await run.cancel()
        assert run.outcome == "cancelled"


async def test_what_does_not_stop_within_the_grace_is_listed_as_abandoned(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    late: list[object] = []

    async def handle(run: ActiveRun) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 60):
            await trio.sleep(30)
            late.append(await run.emit(TextChunk(content="late")))

    deadlines = Deadlines(run_cancel_grace=4)
    async with opened(tmp_path, handle, deadlines) as session:
        async with session.run("x") as run:
            await trio.sleep(1)
            receipt = await run.cancel()
            assert receipt is not None
            assert receipt.seconds == pytest.approx(4, abs=0.01)
            assert [(a.kind, a.name) for a in receipt.abandoned] == [("adapter", "FunctionAdapter")]
            assert receipt.abandoned[0].seconds == pytest.approx(5, abs=0.01)
        assert trio.current_time() == pytest.approx(5, abs=0.1)
        await trio.sleep(40)
        assert late == [Closed(2)]
        assert [entry.seq for entry in await everything(session)] == [1, 2]


async def test_a_run_that_has_said_its_end_stays_completed_when_it_is_cancelled_later(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def handle(run: ActiveRun) -> None:
        await run.complete("done")
        await trio.sleep_forever()

    async with opened(tmp_path, handle) as session, session.run("x") as run:
        await wait_all_tasks_blocked()
        receipt = await run.cancel()
        assert run.outcome == "completed"
        assert receipt is not None
        assert receipt.already is True


async def test_a_run_that_ended_a_while_ago_still_has_its_receipt(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path, hang) as session:
        async with session.run("x") as first:
            await wait_all_tasks_blocked()
        for _ in range(3):
            async with session.run("y") as run:
                await wait_all_tasks_blocked()
        assert await session.cancel(run_id=first.id) == first.receipt
        assert run.receipt is not None
