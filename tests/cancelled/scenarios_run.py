"""Single runs, to be cancelled at every step."""

from __future__ import annotations

from typing import Final

import trio
from conversations import dawdle, hang, look_at_state, opened, read_back
from trials import Case, Trial

from semibot.adapters import GraphAgent
from semibot.config import Deadlines
from semibot.errors import ModelError
from semibot.models import Call, Say, scripted_model, tool_request
from semibot.session import ActiveRun
from semibot.testing import cut_here
from semibot.tools import tool
from semibot.wire.events import TextChunk

BOUNDS: Final = Deadlines(run_cancel_grace=3)


async def two_tasks(trial: Trial) -> None:
    async def handle(run: ActiveRun) -> None:
        async def speak(word: str) -> None:
            with run.ledger.open("tool_call", word, "tool"):
                await trio.sleep(0.5)
                await run.emit(TextChunk(content=word))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(speak, "a")
            nursery.start_soon(speak, "b")
        await run.complete()

    with cut_here():
        async with opened(trial, handle) as session, session.run("x") as run:
            await run.wait()
    await read_back(trial)


async def deadline_passes(trial: Trial) -> None:
    with cut_here():
        async with opened(trial, dawdle, deadlines=BOUNDS) as session:
            async with session.run("x", budget=5) as run:
                await run.wait()
    await read_back(trial)


async def cancel_in_a_cancel(trial: Trial) -> None:
    async def cancel(run: object) -> None:
        await run.cancel("enough")  # type: ignore[attr-defined]

    with cut_here():
        async with opened(trial, dawdle, deadlines=BOUNDS) as session:
            async with session.run("x") as run, trio.open_nursery() as nursery:
                await trio.sleep(0.1)
                for _ in range(2):
                    nursery.start_soon(cancel, run)
                await trio.sleep(0.1)
                nursery.cancel_scope.cancel("in the middle of both")
    await read_back(trial)


async def block_is_left(trial: Trial) -> None:
    with cut_here():
        async with opened(trial, hang) as session:
            async with session.run("x") as run:
                async for event in run.events:
                    if isinstance(event, TextChunk):
                        break
    await read_back(trial)


async def it_does_not_stop(trial: Trial) -> None:
    async def stubborn(run: ActiveRun) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 60):
                await trio.sleep(2)
            await run.emit(TextChunk(content="too late"))

    bounds = Deadlines(run_cancel_grace=1)
    with cut_here():
        async with opened(trial, stubborn, deadlines=bounds) as session:
            async with session.run("x") as run:
                await trio.sleep(1)
                await run.cancel("now")
    await read_back(trial)


async def it_raises(trial: Trial) -> None:
    async def handle(run: ActiveRun) -> None:
        await run.emit(TextChunk(content="so far"))
        await trio.sleep(0.1)
        raise ModelError("it refuses", code="MODEL_REFUSED")

    with cut_here():
        async with opened(trial, handle) as session, session.run("x") as run:
            await run.wait()
    await read_back(trial)


async def a_tool_works(trial: Trial) -> None:
    @tool(is_parallel_safe=True)
    async def look_up(word: str) -> str:
        """Look a word up."""
        await trio.sleep(3)
        return word

    calls = [tool_request(word, "look_up", {"word": word}) for word in ("a", "b")]
    agent = GraphAgent(scripted_model([Call(calls), Say("done")]), tools=[look_up])
    with cut_here():
        async with opened(trial, agent) as session, session.run("x") as run:
            await run.wait()
    await read_back(trial)


STOPPING: Final = 1.0

CASES: Final = tuple(
    Case(name=f"run: {name}", act=act, look=look_at_state, within=within, because=because)
    for name, act, within, because in (
        ("two tasks say something, and it completes", two_tasks, 0.0, "nothing to wait for"),
        ("its deadline passes", deadline_passes, STOPPING, "what its agent takes to stop"),
        (
            "a cancel in the middle of a cancel",
            cancel_in_a_cancel,
            STOPPING,
            "what its agent takes to stop",
        ),
        ("its block is left early", block_is_left, 0.0, "nothing to wait for"),
        ("it does not stop in its grace", it_does_not_stop, 2.0, "what its agent shields"),
        ("it fails half-way", it_raises, 0.0, "nothing to wait for"),
        ("tools work when it is cancelled", a_tool_works, 0.0, "nothing to wait for"),
    )
)
