"""A session cancelled at every step leaves one end per run and nothing else."""

from __future__ import annotations

import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from semibot.config import Deadlines
from semibot.session import ActiveRun, Run, open_session
from semibot.testing import adapter_from, simulated_ports
from semibot.testing.sweep import cancel_everywhere
from semibot.wire.events import TextChunk
from semibot.workspace.state import open_state


async def work(run: ActiveRun) -> None:
    """Two tasks, some time, some clean-up."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 1)
        with run.ledger.open("tool_call", "c", "tool"):
            await run.emit(TextChunk(content="a"))
            await trio.sleep(0.5)
        await run.emit(TextChunk(content="b"))
    await run.complete()


async def stubborn(run: ActiveRun) -> None:
    """Takes its time to stop."""
    try:
        await trio.sleep(2)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
            await trio.sleep(0.5)
    await run.complete("ok")


@pytest.mark.parametrize("handle", [work, stubborn])
@pytest.mark.parametrize("shape", ["one", "two", "queue"])
def test_a_session_cancelled_at_every_step_ends_every_run_once(
    handle: Callable[[ActiveRun], Awaitable[None]], shape: str, tmp_path: Path
) -> None:
    runs: list[Run] = []
    directories: list[Path] = []

    async def ask(session_run: object) -> None:
        async with session_run as run:  # type: ignore[attr-defined]
            runs.append(run)
            await run.wait()

    async def scenario() -> None:
        runs.clear()
        directories.append(Path(tempfile.mkdtemp(dir=tmp_path)))
        async with open_session(
            adapter_from(handle),
            workspace=directories[-1],
            session_id="s",
            ports=simulated_ports(),
            deadlines=Deadlines(run_cancel_grace=3),
        ) as session:
            if shape == "queue":
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ask, session.run("1", on_busy="enqueue"))
                    nursery.start_soon(ask, session.run("2", on_busy="enqueue"))
            else:
                await ask(session.run("1"))
                if shape == "two":
                    await ask(session.run("2"))

    def audit() -> str | None:
        for run in runs:
            if run.terminal is None:
                return f"run {run.message} has no end"
        if directories:
            with open_state(directories[-1], "s") as state:  # the directory was released
                newest = state.newest
            if newest is not None and newest.status == "running":
                return "the newest checkpoint says that a run is going on"
        return None

    report = cancel_everywhere(scenario, audit=audit)
    assert report.problems == ()
    assert report.cancel_points > 20
    assert report.longest <= 3.5
