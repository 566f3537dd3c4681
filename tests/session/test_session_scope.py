"""Opening and closing a session, and what its adapter may do to it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from session_bench import answer, hang, opened
from trio.testing import MockClock, wait_all_tasks_blocked

from semibot.config import Deadlines
from semibot.errors import (
    AdapterError,
    DeadlineExceeded,
    UsageError,
)
from semibot.session import (
    ActiveRun,
    Adapter,
    AdapterContext,
    Run,
    Session,
    open_session,
)
from semibot.testing import FunctionAdapter, simulated_ports
from semibot.wire.chat import Message
from semibot.wire.codec import JsonObject
from semibot.wire.events import (
    ExecutionError,
)


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
        assert session.workspace == tmp_path


async def test_even_ctrl_c_inside_an_adapter_leaves_every_run_with_an_end(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def handle(_: ActiveRun) -> None:
        raise KeyboardInterrupt

    runs: list[Run] = []
    with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True):
        async with opened(tmp_path, handle) as session, session.run("x") as run:
            runs.append(run)
            async with session.run("y", on_busy="enqueue") as queued:
                runs.append(queued)
                await queued.wait()
    assert [run.outcome for run in runs] == ["interrupted", "interrupted"]
    assert trio.current_time() < 1


async def test_a_cancel_does_not_wait_for_a_configuration_that_hangs(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    class Slow(Adapter):
        async def handle(self, run: ActiveRun) -> None:
            await run.complete("ok")

        async def update_config(self, patch: JsonObject) -> None:
            await trio.sleep_forever()

    @asynccontextmanager
    async def factory(_: AdapterContext) -> AsyncGenerator[Adapter]:
        yield Slow()

    async with open_session(factory, workspace=tmp_path, ports=simulated_ports()) as session:
        session.update_config({"a": 1})
        async with session.run("x") as run:
            await trio.sleep(1)
            receipt = await run.cancel()
        assert receipt is not None
        assert receipt.seconds < 1
        async with session.run("y") as run:
            assert await run.wait() == "completed"
