"""What tests of the session manager say as the host, and the agents that they say it to."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from semibot.config import Deadlines
from semibot.ports import Ports
from semibot.session import (
    ActiveRun,
    AdapterFactory,
    SessionManager,
    open_session_manager,
)
from semibot.testing import MemoryPlane, adapter_from, simulated_ports
from semibot.wire.codec import JsonObject
from semibot.wire.events import TextChunk
from semibot.wire.frames import (
    Cancel,
    ConfigUpdate,
    SessionSnapshot,
    StartSession,
    StartSessionData,
    StopSession,
    StopSessionData,
    UserMessage,
    UserMessageData,
)


def start(
    session_id: str = "s1",
    *,
    command_id: str | None = None,
    term: int | None = 1,
    next_seq: int | None = 1,
    snapshot: SessionSnapshot | None = None,
    **data: object,
) -> StartSession:
    return StartSession(
        data=StartSessionData(session_id=session_id, **data),  # type: ignore[arg-type]
        command_id=command_id,
        term=term,
        next_seq=next_seq,
        snapshot=snapshot,
    )


def start_1(session_id: str = "s1", **data: object) -> StartSession:
    """Start a session as a host of level 1 does."""
    return start(session_id, term=None, next_seq=None, **data)


def message(
    text: str,
    run_id: str | None = None,
    *,
    session_id: str = "s1",
    command_id: str | None = None,
    **data: object,
) -> UserMessage:
    return UserMessage(
        session_id=session_id,
        data=UserMessageData(message=text, **data),  # type: ignore[arg-type]
        command_id=command_id,
        run_id=run_id,
    )


def cancel(
    command_id: str | None = None, run_id: str | None = None, *, session_id: str = "s1"
) -> Cancel:
    return Cancel(
        session_id=session_id, reason="user_cancelled", command_id=command_id, run_id=run_id
    )


def stop(
    command_id: str | None = None, *, session_id: str = "s1", reason: str | None = None
) -> StopSession:
    return StopSession(
        data=StopSessionData(session_id=session_id, reason=reason), command_id=command_id
    )


def config(patch: JsonObject, command_id: str | None = None) -> ConfigUpdate:
    return ConfigUpdate(data=patch, session_id="s1", command_id=command_id)


async def echo(run: ActiveRun) -> None:
    await run.emit(TextChunk(content=f"re {run.message}"))
    await run.complete()


async def hang(run: ActiveRun) -> None:
    await run.emit(TextChunk(content="working"))
    await trio.sleep_forever()


async def echo_or_hang(run: ActiveRun) -> None:
    await (hang if run.message.startswith("hang") else echo)(run)


@attrs.frozen
class Vm:
    """A VM whose host is the test."""

    plane: MemoryPlane
    manager: SessionManager


@asynccontextmanager
async def opened(
    directory: Path,
    handle: Callable[[ActiveRun], Awaitable[None]] = echo_or_hang,
    *,
    plane: MemoryPlane | None = None,
    adapters: Mapping[str, AdapterFactory] | None = None,
    deadlines: Deadlines | None = None,
    ports: Ports | None = None,
    max_open: int = 64,
) -> AsyncGenerator[Vm]:
    """Open a VM whose workspace and state lie in *directory*."""
    workspace = directory / "workspace"
    workspace.mkdir(exist_ok=True)
    link = plane or MemoryPlane()
    async with open_session_manager(
        link,
        adapters=adapters or {"graph": adapter_from(handle)},
        workspace=workspace,
        state_dir=directory / "state",
        max_open=max_open,
        deadlines=deadlines,
        ports=ports or simulated_ports(),
    ) as manager:
        with trio.fail_after(10_000):  # of the mock clock: what hangs fails
            yield Vm(link, manager)
