"""What the tests of sessions share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from semibot.config import Deadlines
from semibot.session import (
    ActiveRun,
    JournalEntry,
    Run,
    Session,
    open_session,
)
from semibot.testing import adapter_from, simulated_ports
from semibot.wire.events import (
    TextChunk,
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
    cursor = session.cursor(after=0)
    while cursor.after < session.statistics().next_seq - 1:
        found.append(await cursor.__anext__())
    return found
