from __future__ import annotations

import signal
import threading
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from semibot.cli.interrupts import CLEANUP_BOUND, Interrupts, open_interrupts
from semibot.lifetimes import grace
from semibot.session import ActiveRun, Session, open_session
from semibot.testing import adapter_from
from semibot.wire.events import TextChunk

CTRL_C = signal.SIGINT


@asynccontextmanager
async def open_endless() -> AsyncGenerator[Session]:
    async def handle(run: ActiveRun) -> None:
        await run.emit(TextChunk(content="on and on"))
        await trio.sleep_forever()

    async with open_session(adapter_from(handle)) as session:
        yield session


def ignore() -> None:
    pass


async def test_ctrl_c_cancels_the_run_and_the_conversation_goes_on() -> None:
    keys: list[str] = []
    async with open_interrupts() as interrupts, open_endless() as session:
        async with session.run("hello") as run:
            with interrupts.during(run, is_interactive=True, on_key=lambda: keys.append("^C")):
                signal.raise_signal(CTRL_C)
                assert await run.wait() == "cancelled"
        assert keys == ["^C"]
        assert run.receipt is not None
        assert run.receipt.reason == "user_cancelled"
        assert interrupts.exit_code is None
        async with session.run("again") as run:  # and this time is a first time again
            with interrupts.during(run, is_interactive=True, on_key=ignore):
                signal.raise_signal(CTRL_C)
                assert await run.wait() == "cancelled"
        assert interrupts.exit_code is None


async def test_ctrl_c_during_the_only_answer_cancels_it_and_leaves_when_its_end_was_shown() -> None:
    async with open_interrupts() as interrupts, open_endless() as session:
        async with session.run("hello") as run:
            with interrupts.during(run, is_interactive=False, on_key=ignore):
                signal.raise_signal(CTRL_C)
                assert await run.wait() == "cancelled"
                with trio.fail_after(5):
                    await trio.sleep_forever()  # nobody reads: showing the end is bounded
    assert interrupts.exit_code == 130


async def test_sigterm_interrupts_the_run_and_leaves() -> None:
    async with open_interrupts() as interrupts, open_endless() as session:
        async with session.run("hello") as run:
            with interrupts.during(run, is_interactive=True, on_key=ignore):
                signal.raise_signal(signal.SIGTERM)
                assert await run.wait() == "interrupted"
    assert interrupts.exit_code == 143


@pytest.mark.parametrize(("number", "code"), [(CTRL_C, 130), (signal.SIGTERM, 143)])
async def test_without_a_run_or_a_prompt_a_signal_leaves(number: int, code: int) -> None:
    async with open_interrupts() as interrupts:
        signal.raise_signal(number)
        with trio.fail_after(5):
            await trio.sleep_forever()
    assert interrupts.exit_code == code


async def test_ctrl_c_at_the_prompt_counts_until_something_is_typed() -> None:
    async def press(interrupts: Interrupts) -> bool:
        with interrupts.at_prompt() as scope:
            signal.raise_signal(CTRL_C)
            await trio.sleep_forever()
        return scope.cancelled_caught

    with trio.fail_after(5):
        async with open_interrupts() as interrupts:
            assert await press(interrupts)
            assert interrupts.exit_code is None
            with interrupts.at_prompt():
                await trio.lowlevel.checkpoint()  # a line was typed
            assert await press(interrupts)
            assert interrupts.exit_code is None
            assert await press(interrupts)
            assert interrupts.exit_code == 130


async def test_a_second_signal_bounds_all_clean_up_together() -> None:
    with trio.fail_after(5):
        async with open_interrupts() as interrupts:
            try:
                signal.raise_signal(signal.SIGTERM)
                await trio.sleep_forever()
            finally:
                signal.raise_signal(CTRL_C)
                began = trio.current_time()
                with grace("a", 60), grace("b", 60):
                    await trio.sleep_forever()
    assert trio.current_time() - began == pytest.approx(CLEANUP_BOUND, abs=0.5)
    assert interrupts.exit_code == 143


async def test_what_cannot_be_cancelled_is_ended_hard() -> None:
    ended = threading.Event()
    codes: list[int] = []

    def end_process(code: int) -> None:
        codes.append(code)
        ended.set()

    async with open_interrupts(end_process):
        with trio.CancelScope(shield=True):
            for _ in range(2):
                signal.raise_signal(CTRL_C)
                await trio.testing.wait_all_tasks_blocked()
            await trio.to_thread.run_sync(ended.wait)
    assert codes == [130]
