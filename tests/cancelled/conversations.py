"""What scenarios of sessions share: small agents, and a look at how their runs ended."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import trio
from trials import Trial

from semibot.adapters import GraphAgent
from semibot.config import Deadlines
from semibot.errors import CursorExpired
from semibot.session import ActiveRun, Session, open_session
from semibot.testing import adapter_from, simulated_ports
from semibot.wire.events import ExecutionComplete, ExecutionError, RunStarted, TextChunk
from semibot.workspace.state import open_state

TERMINAL = (ExecutionComplete, ExecutionError)


async def answer(run: ActiveRun) -> None:
    """Say a word, take a moment, and complete."""
    await run.emit(TextChunk(content=f"re {run.message}"))
    await trio.sleep(0.5)
    await run.complete()


async def hang(run: ActiveRun) -> None:
    """Say a word and never end."""
    await run.emit(TextChunk(content="working"))
    await trio.sleep_forever()


async def dawdle(run: ActiveRun) -> None:
    """Never end, and take a second to stop."""
    await run.emit(TextChunk(content="working"))
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 2):
            await trio.sleep(1)


@asynccontextmanager
async def opened(
    trial: Trial, handle: Any, *, deadlines: Deadlines | None = None, **options: Any
) -> AsyncGenerator[Session]:
    """Open the trial's session, of an adapter or a function that is one."""
    workspace = trial.directory / "workspace"
    workspace.mkdir(exist_ok=True)
    options.setdefault("ports", simulated_ports())
    async with open_session(
        handle if isinstance(handle, GraphAgent) else adapter_from(handle),
        workspace=workspace,
        session_id="s",
        deadlines=deadlines,
        **options,
    ) as session:
        trial.parts["session"] = session
        yield session


async def read_back(trial: Trial) -> None:
    """Read all that the session said, once it is closed, and judge it."""
    session: Any = trial.parts.get("session")
    if session is None:
        return
    events: list[tuple[str, object]] = []
    cursor = session.cursor(after=0)
    while cursor.after < session.statistics().next_seq - 1:
        try:
            entry = await anext(cursor)
        except CursorExpired as exc:  # earlier runs are not kept
            cursor = session.cursor(after=exc.oldest - 1)
            continue
        events.append((entry.run_id, entry.event))
    trial.problems += run_problems(events)


def run_problems(events: Iterable[tuple[str, object]]) -> list[str]:
    """Return what is wrong with runs: each begins once, and ends once, at its very end."""
    said: dict[str, list[object]] = defaultdict(list)
    for run_id, event in events:
        said[run_id].append(event)
    problems = []
    for run_id, story in said.items():
        ends = [event for event in story if isinstance(event, TERMINAL)]
        begins = [event for event in story if isinstance(event, RunStarted)]
        if len(ends) != 1 or ends[0] is not story[-1]:
            problems.append(f"run {run_id[:6]} has {len(ends)} ends in {len(story)} events")
        if len(begins) > 1 or (begins and begins[0] is not story[0]):
            problems.append(f"run {run_id[:6]} has {len(begins)} beginnings")
    return problems


def look_at_state(trial: Trial) -> str | None:
    """Find a directory that is still locked, or a checkpoint that says a run goes on."""
    workspace = trial.directory / "workspace"
    if not workspace.is_dir():
        return None
    with open_state(workspace, "s") as state:
        newest = state.newest
    if newest is not None and newest.status == "running":
        return "the newest checkpoint says that a run is going on"
    return None
