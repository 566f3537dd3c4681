"""What a session promises about runs: one order, one end, nothing after it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from semibot.config import Deadlines
from semibot.errors import (
    AdapterError,
    DeadlineExceeded,
    ModelError,
    SessionBusy,
    UsageError,
)
from semibot.session import (
    ActiveRun,
    Adapter,
    AdapterContext,
    Closed,
    Emitted,
    JournalEntry,
    Run,
    Session,
    open_session,
)
from semibot.testing import FunctionAdapter, adapter_from, simulated_ports
from semibot.wire.chat import Message
from semibot.wire.codec import JsonObject
from semibot.wire.events import (
    ExecutionComplete,
    ExecutionError,
    RunStarted,
    TextChunk,
    Thinking,
    Usage,
)


@asynccontextmanager
async def opened(
    tmp_path: Path, handle: object, deadlines: Deadlines | None = None
) -> AsyncIterator[Session]:
    async with open_session(
        adapter_from(handle),  # type: ignore[arg-type]
        workspace=tmp_path,
        session_id="s1",
        ports=simulated_ports(),
        deadlines=deadlines,
    ) as session:
        yield session


async def answer(run: ActiveRun) -> None:
    for word in run.message.split():
        await run.emit(TextChunk(content=word))
    await run.complete()


async def hang(run: ActiveRun) -> None:
    await run.emit(TextChunk(content="partial"))
    await trio.sleep_forever()


async def events_of(run: Run) -> list[object]:
    return [event async for event in run.events]


async def everything(session: Session) -> list[JournalEntry]:
    """Read what the journal keeps; call it when nothing more will be said."""
    found: list[JournalEntry] = []
    with trio.move_on_after(0.001):
        async for entry in session.cursor(after=0):
            found.append(entry)
    return found


async def test_a_run_says_the_question_then_the_answer_then_its_end(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path, answer) as session:
        async with session.run("a b") as run:
            events = await events_of(run)
        assert events == [
            RunStarted(run_id=run.id, message_id=run.message_id, message="a b"),
            TextChunk(content="a"),
            TextChunk(content="b"),
            ExecutionComplete(run_id=run.id, final_response="ab", usage=Usage()),
        ]
        assert session.last_run is run
        assert run.outcome == "completed"
        assert [entry.seq for entry in await everything(session)] == [1, 2, 3, 4]


async def test_leaving_the_block_early_cancels_the_run(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path, hang) as session:
        async with session.run("x") as run:
            async for event in run.events:
                if isinstance(event, TextChunk):
                    break
        assert run.outcome == "cancelled"
        assert run.terminal == ExecutionComplete(
            run_id=run.id,
            cancelled=True,
            partial_response="partial",
            usage=Usage(),
            termination_reason="its block was left",
        )


async def test_an_outer_deadline_cancels_the_run_and_its_end_is_recorded(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path, hang) as session:
        with trio.move_on_after(5) as scope:
            async with session.run("x") as run:
                await run.wait()
        assert scope.cancelled_caught
        assert session.last_run.outcome == "cancelled"
        terminals = [e for e in await everything(session) if e.event == run.terminal]
        assert len(terminals) == 1
        assert trio.current_time() == pytest.approx(5, abs=0.1)


async def test_an_error_in_the_block_comes_out_bare_and_cancels_the_run(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path, hang) as session:
        with pytest.raises(KeyError):
            async with session.run("x"):
                raise KeyError("mine")
        assert session.statistics().ended == {}
        async with session.run("y") as run:
            await wait_all_tasks_blocked()
        assert run.outcome == "cancelled"


@pytest.mark.parametrize(
    ("deadlines", "budget", "seconds"),
    [(Deadlines(run_limit=3), float("inf"), 3), (Deadlines(), 2.0, 2)],
    ids=["limit", "budget"],
)
async def test_a_deadline_of_the_run_itself_ends_it_as_timeout(
    autojump_clock: MockClock, tmp_path: Path, deadlines: Deadlines, budget: float, seconds: float
) -> None:
    async with opened(tmp_path, hang, deadlines) as session:
        async with session.run("x", budget=budget) as run:
            assert await run.wait() == "timeout"
        assert isinstance(run.terminal, ExecutionError)
        assert run.terminal.code == "DEADLINE_EXCEEDED"
        assert trio.current_time() == pytest.approx(seconds, abs=0.1)
        assert run.receipt is not None


async def test_an_adapter_that_raises_fails_its_run_and_the_session_lives_on(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def handle(run: ActiveRun) -> None:
        if run.message == "bad":
            raise ValueError("a secret in the text")
        await answer(run)

    async with opened(tmp_path, handle) as session:
        async with session.run("bad") as run:
            assert await run.wait() == "failed"
        assert isinstance(run.terminal, ExecutionError)
        assert run.terminal.code == "ADAPTER_ERROR"
        assert "ValueError" in run.terminal.error
        assert "secret" not in run.terminal.error
        async with session.run("good") as run:
            assert await run.wait() == "completed"


async def test_an_error_of_ours_keeps_its_code_and_groups_name_their_leaves(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def handle(run: ActiveRun) -> None:
        if run.message == "model":
            raise ModelError("try later", code="MODEL_RATE_LIMITED", is_retryable=True)
        async with trio.open_nursery():
            raise OSError("inside")

    async with opened(tmp_path, handle) as session:
        async with session.run("model") as run:
            await run.wait()
        assert run.terminal == ExecutionError(
            run_id=run.id, code="MODEL_RATE_LIMITED", error="try later", retryable=True
        )
        async with session.run("group") as run:
            await run.wait()
        assert isinstance(run.terminal, ExecutionError)
        assert "OSError" in run.terminal.error


async def test_an_adapter_that_says_no_end_fails_its_run(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def handle(run: ActiveRun) -> None:
        await run.emit(TextChunk(content="and then"))

    async with opened(tmp_path, handle) as session, session.run("x") as run:
        assert await run.wait() == "failed"
        assert isinstance(run.terminal, ExecutionError)
        assert run.terminal.code == "ADAPTER_NO_OUTCOME"


async def test_what_is_emitted_after_the_end_goes_nowhere_and_says_where_the_end_is(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    answers: list[object] = []

    async def handle(run: ActiveRun) -> None:
        answers.append(await run.emit(TextChunk(content="a")))
        await run.complete("a")
        for _ in range(1000):
            answers.append(await run.emit(TextChunk(content="late")))
        await run.fail(AdapterError("too late"))
        await run.complete("too late")

    async with opened(tmp_path, handle) as session:
        async with session.run("x") as run:
            await run.wait()
        entries = await everything(session)
    assert answers[0] == Emitted(2)
    assert answers[1:] == [Closed(3)] * 1000
    assert [entry.seq for entry in entries] == [1, 2, 3]
    assert isinstance(entries[-1].event, ExecutionComplete)
    assert entries[-1].event.final_response == "a"


async def test_an_adapter_may_not_say_what_only_the_session_says(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def handle(run: ActiveRun) -> None:
        await run.emit(ExecutionComplete(run_id=run.id, final_response="mine"))  # type: ignore[arg-type]

    async with opened(tmp_path, handle) as session, session.run("x") as run:
        await run.wait()
        assert isinstance(run.terminal, ExecutionError)
        assert run.terminal.code == "USAGE"


async def test_an_event_that_json_cannot_say_fails_the_run_of_its_adapter(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def handle(run: ActiveRun) -> None:
        await run.emit(Thinking(content="\ud800", stage="planning"))

    async with opened(tmp_path, handle) as session, session.run("x") as run:
        assert await run.wait() == "failed"
        assert len(await events_of(run)) == 2


async def test_a_long_text_is_cut_into_chunks_and_a_long_answer_is_truncated(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    text = "ü" * 100_000

    async def handle(run: ActiveRun) -> None:
        await run.emit(TextChunk(content=text))
        await run.complete()

    async with opened(tmp_path, handle) as session, session.run("x") as run:
        chunks = [e.content async for e in run.events if isinstance(e, TextChunk)]
        assert "".join(chunks) == text
        assert max(map(len, chunks)) <= 64 * 1024
        assert isinstance(run.terminal, ExecutionComplete)
        assert run.terminal.truncated is True
        assert run.terminal.final_response is not None
        assert len(run.terminal.final_response.encode()) <= 32 * 1024
        assert text.startswith(run.terminal.final_response)


# --- cancel ---------------------------------------------------------------------------


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


# --- busy sessions --------------------------------------------------------------------


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


# --- opening and closing --------------------------------------------------------------


async def test_closing_a_session_interrupts_what_runs_and_what_waits(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    runs: list[Run] = []

    async def ask(session: Session, message: str) -> None:
        async with session.run(message, on_busy="enqueue") as run:
            runs.append(run)
            await run.wait()

    async with trio.open_nursery() as nursery:
        async with opened(tmp_path, hang) as session:
            nursery.start_soon(ask, session, "one")
            await wait_all_tasks_blocked()
            nursery.start_soon(ask, session, "two")
            await wait_all_tasks_blocked()
            cursor = session.cursor(after=0)
    assert [run.outcome for run in runs] == ["interrupted", "interrupted"]
    for run in runs:
        assert isinstance(run.terminal, ExecutionError)
        assert (run.terminal.code, run.terminal.retryable) == ("INTERRUPTED", True)
    assert session.statistics().ended == {"interrupted": 2}
    assert [entry.seq async for entry in cursor] == [1, 2, 3, 4, 5]
    with pytest.raises(trio.ClosedResourceError):
        await session.run("late").__aenter__()


async def test_a_blank_message_is_refused(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with opened(tmp_path, answer) as session:
        with pytest.raises(UsageError, match="blank"):
            await session.run("  \n").__aenter__()
        with pytest.raises(UsageError, match="no run"):
            _ = session.last_run


async def test_an_adapter_that_cannot_be_entered_raises_from_open_session(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    @asynccontextmanager
    async def broken(_: AdapterContext) -> AsyncIterator[Adapter]:
        raise OSError("no such thing")
        yield  # type: ignore[unreachable]  # makes it a generator

    with pytest.raises(AdapterError, match="OSError"):
        async with open_session(broken, workspace=tmp_path, ports=simulated_ports()):
            raise AssertionError("not reached")

    @asynccontextmanager
    async def slow(_: AdapterContext) -> AsyncIterator[Adapter]:
        await trio.sleep_forever()
        yield  # type: ignore[unreachable]  # makes it a generator

    with pytest.raises(DeadlineExceeded, match=r"session\.adapter_start"):
        async with open_session(slow, workspace=tmp_path, ports=simulated_ports()):
            raise AssertionError("not reached")


async def test_a_failing_background_task_of_the_adapter_fails_run_and_session(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def background() -> None:
        await trio.sleep(1)
        raise OSError("background")

    @asynccontextmanager
    async def factory(context: AdapterContext) -> AsyncIterator[Adapter]:
        context.nursery.start_soon(background)
        yield FunctionAdapter(hang)

    with pytest.raises(AdapterError, match="background task") as caught:
        async with open_session(factory, workspace=tmp_path, ports=simulated_ports()) as session:
            async with session.run("x") as run:
                await run.wait()
    assert caught.value.code == "ADAPTER_FAILED"
    assert run.outcome == "failed"
    assert isinstance(run.terminal, ExecutionError)
    assert run.terminal.code == "ADAPTER_FAILED"


async def test_background_tasks_end_before_the_session_does(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    order: list[str] = []

    async def background() -> None:
        try:
            await trio.sleep_forever()
        finally:
            order.append("background ended")

    @asynccontextmanager
    async def factory(context: AdapterContext) -> AsyncIterator[Adapter]:
        context.nursery.start_soon(background)
        yield FunctionAdapter(answer)
        order.append("adapter left")

    async with open_session(factory, workspace=tmp_path, ports=simulated_ports()) as session:
        async with session.run("x") as run:
            await run.wait()
    assert order == ["adapter left", "background ended"]


async def test_leaving_an_adapter_that_hangs_is_bounded(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    @asynccontextmanager
    async def factory(_: AdapterContext) -> AsyncIterator[Adapter]:
        yield FunctionAdapter(answer)
        await trio.sleep_forever()

    async with open_session(
        factory,
        workspace=tmp_path,
        ports=simulated_ports(),
        deadlines=Deadlines(session_adapter_stop=3),
    ):
        pass
    assert trio.current_time() == pytest.approx(3, abs=0.1)


async def test_a_configuration_change_takes_effect_at_the_next_run(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    class Configurable(Adapter):
        tone = "plain"

        async def handle(self, run: ActiveRun) -> None:
            await trio.sleep(1)
            await run.complete(self.tone)

        async def update_config(self, patch: JsonObject) -> None:
            self.tone = str(patch["tone"])

    @asynccontextmanager
    async def factory(_: AdapterContext) -> AsyncIterator[Adapter]:
        yield Configurable()

    async with open_session(factory, workspace=tmp_path, ports=simulated_ports()) as session:
        async with session.run("x") as first:
            await wait_all_tasks_blocked(0)
            session.update_config({"tone": "loud"})
            await first.wait()
        async with session.run("y") as second:
            await second.wait()
        session.update_config({"wrong": 1})
        async with session.run("z") as third:
            await third.wait()
        async with session.run("z") as fourth:
            await fourth.wait()
    answers = [getattr(run.terminal, "final_response", None) for run in (first, second, fourth)]
    assert answers == ["plain", "loud", "loud"]
    assert third.outcome == "failed"


async def test_an_adapter_without_configuration_refuses_a_change(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path, answer) as session:
        session.update_config({"model": "x"})
        async with session.run("x") as run:
            assert await run.wait() == "failed"
        assert isinstance(run.terminal, ExecutionError)
        assert "no configuration" in run.terminal.error


async def test_the_history_that_is_given_is_the_truth(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    seen: list[tuple[Message, ...]] = []

    async def handle(run: ActiveRun) -> None:
        seen.append(run.history)
        await answer(run)

    given = (
        Message(role="user", content="earlier"),
        Message(role="assistant", content="indeed"),
        Message(role="user", content="now"),
    )
    async with opened(tmp_path, handle) as session:
        async with session.run("now", history=given) as run:
            await run.wait()
        assert seen == [given[:2]]
        assert session.history == (*given, Message(role="assistant", content="now"))


async def test_statistics_say_what_is_going_on(autojump_clock: MockClock, tmp_path: Path) -> None:
    async def handle(run: ActiveRun) -> None:
        with run.ledger.open("model_call", "m", "scripted"):
            await trio.sleep(1)
        await run.complete("ok")

    async with opened(tmp_path, handle) as session:
        assert session.statistics().current_run_id is None
        async with session.run("x") as run:
            await wait_all_tasks_blocked(0)
            busy = session.statistics()
            assert (busy.current_run_id, busy.under_way, busy.waiting) == (run.id, 1, 0)
            await run.wait()
        assert session.statistics().ended == {"completed": 1}
        assert session.statistics().worst_block is None
        assert session.id == "s1"
        assert session.workspace == tmp_path.resolve()
