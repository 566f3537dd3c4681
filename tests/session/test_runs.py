"""What a run promises its caller: one order, one end, nothing after it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from session_bench import answer, events_of, everything, hang, opened
from trio.testing import MockClock, wait_all_tasks_blocked

from semibot.config import Deadlines
from semibot.errors import (
    AdapterError,
    ModelError,
)
from semibot.session import (
    ActiveRun,
    Adapter,
    AdapterContext,
    Closed,
    Emitted,
    open_session,
)
from semibot.testing import FunctionAdapter, simulated_ports
from semibot.wire.codec import JsonObject
from semibot.wire.events import (
    ExecutionComplete,
    ExecutionError,
    RunStarted,
    TextChunk,
    Thinking,
    Usage,
)


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
        assert session.last_run == run
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
        assert session.statistics().ended == {"cancelled": 1}
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
        answers.extend([await run.emit(TextChunk(content="late")) for _ in range(1000)])
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


async def test_a_block_that_is_left_at_once_waits_for_the_end_too(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path, hang) as session:
        async with session.run("x") as run:
            pass
        assert session.last_run == run
        assert run.outcome == "cancelled"
        for seconds in range(20):
            with trio.move_on_after(seconds / 1000):
                async with session.run("y") as run:
                    await run.wait()
            assert run.has_ended
            assert session.last_run == run


async def test_a_deadline_ends_also_a_run_whose_adapter_shields_itself(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def handle(_: ActiveRun) -> None:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 50):
            await trio.sleep(40)

    deadlines = Deadlines(run_limit=3, run_cancel_grace=2)
    async with opened(tmp_path, handle, deadlines) as session:
        async with session.run("x") as run:
            assert await run.wait() == "timeout"
        assert trio.current_time() == pytest.approx(5, abs=0.1)


async def test_a_cancel_after_the_adapter_failed_does_not_hide_the_failure(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    class Failing(FunctionAdapter):
        async def get_snapshot(self) -> JsonObject | None:
            await trio.sleep(1)
            return None

    async def handle(_: ActiveRun) -> None:
        raise ValueError

    @asynccontextmanager
    async def factory(_: AdapterContext) -> AsyncIterator[Adapter]:
        yield Failing(handle)

    async with open_session(factory, workspace=tmp_path, ports=simulated_ports()) as session:
        async with session.run("x") as run:
            await trio.sleep(0.5)
            await run.cancel()
        assert run.outcome == "failed"
