"""Whatever an adapter or a caller says: typed errors, one end per run, the session lives on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from session_bench import answer, hang, opened
from trio.testing import MockClock, wait_all_tasks_blocked

from semibot.errors import AdapterError, UsageError
from semibot.session import ActiveRun, Adapter, AdapterContext, open_session
from semibot.testing import FunctionAdapter, simulated_ports
from semibot.wire.chat import Message
from semibot.wire.codec import JsonObject
from semibot.wire.events import ExecutionComplete, ExecutionError, TextChunk, Usage

BAD = "bad \ud800"


@pytest.mark.parametrize(
    "given",
    [
        {"message": BAD},
        {"message": "x", "metadata": {"a": object()}},
        {"message": "x", "history": (Message(role="user", content=BAD),)},
        {"message": "x", "budget": float("nan")},
    ],
)
async def test_what_cannot_be_kept_is_refused_at_the_door(
    autojump_clock: MockClock, tmp_path: Path, given: dict[str, object]
) -> None:
    async with opened(tmp_path, answer) as session:
        with pytest.raises(UsageError):
            await session.run(**given).__aenter__()
        async with session.run("good") as run:
            assert await run.wait() == "completed"
    assert trio.current_time() < 1


async def complete_with_bad_text(run: ActiveRun) -> None:
    await run.complete(BAD)


async def complete_with_bad_reason(run: ActiveRun) -> None:
    await run.complete("x", termination_reason=BAD)


async def complete_with_a_number(run: ActiveRun) -> None:
    await run.complete(123)


async def fail_with_bad_text(run: ActiveRun) -> None:
    await run.fail(AdapterError(BAD, code=BAD))


async def raise_bad_text(run: ActiveRun) -> None:
    raise AdapterError(BAD)


async def remember_bad_text(run: ActiveRun) -> None:
    run.remember(Message(role="assistant", content=BAD))


async def spend_without_end(run: ActiveRun) -> None:
    for _ in range(3):
        run.spend(Usage(tokens_in=10**4299, tokens_out=-5))
    await run.complete("x")


async def say_too_much(run: ActiveRun) -> None:
    for _ in range(20):
        await run.emit(TextChunk(content="x" * 1_000_000))


@pytest.mark.parametrize(
    ("handle", "outcome"),
    [
        (complete_with_bad_text, "completed"),
        (complete_with_bad_reason, "completed"),
        (complete_with_a_number, "failed"),
        (fail_with_bad_text, "failed"),
        (raise_bad_text, "failed"),
        (remember_bad_text, "failed"),
        (spend_without_end, "completed"),
        (say_too_much, "failed"),
    ],
)
async def test_what_an_adapter_says_never_breaks_the_session(
    autojump_clock: MockClock,
    tmp_path: Path,
    handle: Callable[[ActiveRun], Awaitable[None]],
    outcome: str,
) -> None:
    async def hostile(run: ActiveRun) -> None:
        await (handle(run) if run.message == "bad" else answer(run))

    async with opened(tmp_path, hostile) as session:
        async with session.run("bad") as run:
            assert await run.wait() == outcome
        assert isinstance(run.terminal, ExecutionComplete | ExecutionError)
        if isinstance(run.terminal, ExecutionComplete) and run.terminal.usage is not None:
            assert run.terminal.usage.tokens_in < 2**55
            assert run.terminal.usage.tokens_out == 0
        async with session.run("good") as run:
            assert await run.wait() == "completed"
    assert trio.current_time() < 1


async def test_a_reason_that_is_no_unicode_is_mended(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path, hang) as session, session.run("x") as run:
        await wait_all_tasks_blocked(0)
        receipt = await run.cancel(BAD)
        assert receipt is not None
        assert receipt.reason == "bad \ufffd"


def deeply(levels: int) -> JsonObject:
    value: JsonObject = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "snapshot",
    [{"a": float("nan")}, {"a": object()}, {"a": BAD}, {1: 2, "1": 3}, deeply(62), deeply(70)],
    ids=["nan", "object", "surrogate", "keys", "deep", "deeper"],
)
async def test_a_snapshot_that_could_not_be_read_again_is_left_out(
    autojump_clock: MockClock, tmp_path: Path, snapshot: JsonObject
) -> None:
    class Hostile(FunctionAdapter):
        async def get_snapshot(self) -> JsonObject | None:
            return snapshot

    @asynccontextmanager
    async def factory(_: AdapterContext) -> AsyncIterator[Adapter]:
        yield Hostile(answer)

    for opening in range(3):
        async with open_session(
            factory, workspace=tmp_path, session_id="s", ports=simulated_ports()
        ) as session:
            assert len(session.history) == 2 * opening
            async with session.run("x") as run:
                assert await run.wait() == "completed"


async def test_after_a_breakdown_nothing_is_admitted_any_more(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def handle(_: ActiveRun) -> None:
        raise KeyboardInterrupt

    with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True):
        async with opened(tmp_path, handle) as session:
            async with session.run("x") as run:
                await run.wait()
            with pytest.raises(trio.ClosedResourceError):
                await session.run("y").__aenter__()
    assert trio.current_time() < 1
