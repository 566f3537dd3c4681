"""Sessions with bridges made of scripts, and what the operating system says afterwards."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import attrs
import trio

from semibot.adapters import BridgeAgent
from semibot.adapters.bridge import BridgeAdapter
from semibot.config import Deadlines
from semibot.ports import Ports
from semibot.session import Adapter, AdapterContext, ControlPlane, Session, open_session
from semibot.wire.codec import JsonObject, JsonValue
from semibot.wire.events import ExecutionComplete, ExecutionError, SessionEvent

PROGRAMS: Final = Path(__file__).with_name("programs")
PYTHON: Final = (sys.executable, "-I", "-S")

START: Final = [["wait", "start"], ["say", {"type": "ready"}]]
START_WITH_RUNS: Final = [["wait", "start"], ["say", {"type": "ready", "features": ["run_id"]}]]
GOOD: Final = [*START, ["serve", None]]
COMPLETE: Final = {"type": "execution_complete", "final_response": "done"}

QUICK: Final = Deadlines(
    child_eof_grace=0.15, child_term_grace=0.15, bridge_snapshot=0.3, bridge_request=5.0
)
"""Short where a test waits for the whole of it, long elsewhere."""


def scripted(*scripts: list[list[object]]) -> BridgeAgent:
    """Return an agent whose n-th child follows the n-th script, the last for all that follow."""
    program = str(PROGRAMS / "scripted_bridge.py")
    return BridgeAgent([*PYTHON, program, json.dumps(scripts)])


def one_run(*sayings: JsonObject) -> list[list[object]]:
    """Return a script that answers the first message with *sayings*, and then serves."""
    said = [["say", saying] for saying in sayings]
    return [*START, ["wait", "user_message"], *said, ["serve", None]]


class Plane:
    """A control plane that records what it is asked and answers as it is told."""

    def __init__(self, answer: JsonValue | Exception = None) -> None:
        self.answer = answer
        self.asked: list[tuple[str, str, JsonObject]] = []
        self.reported: list[tuple[str, str, JsonObject]] = []

    async def request(self, session_id: str, method: str, params: JsonObject) -> JsonValue:
        await trio.lowlevel.checkpoint()
        self.asked.append((session_id, method, params))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def fire_and_forget(self, session_id: str, method: str, params: JsonObject) -> None:
        await trio.lowlevel.checkpoint()
        self.reported.append((session_id, method, params))
        if isinstance(self.answer, Exception):
            raise self.answer


@attrs.define
class Seen:
    """What a test knows of a session that is open."""

    session: Session
    adapter: BridgeAdapter
    workspace: Path

    async def ask(self, message: str, *, limit: float = 8.0) -> list[SessionEvent]:
        """Return a run's events; it has exactly one terminal event, its last."""
        with trio.fail_after(limit):
            async with self.session.run(message) as run:
                events = [event async for event in run.events]
        assert len(terminals(events)) == 1
        assert events[-1:] == terminals(events)
        return events

    def heard(self, kind: str) -> list[JsonObject]:
        """Return the lines of one type that scripted bridges have read here."""
        path = self.workspace / "heard.jsonl"
        text = path.read_text("utf-8") if path.exists() else ""
        frames = [json.loads(line) for line in text.splitlines()]
        return [frame for frame in frames if frame["type"] == kind]


def terminals(events: list[SessionEvent]) -> list[SessionEvent]:
    return [event for event in events if isinstance(event, ExecutionComplete | ExecutionError)]


@asynccontextmanager
async def opened(
    workspace: Path,
    agent: BridgeAgent,
    *,
    deadlines: Deadlines = QUICK,
    payload: JsonObject | None = None,
    control_plane: ControlPlane | None = None,
    ports: Ports | None = None,
) -> AsyncGenerator[Seen]:
    """Open a session, and find no process of it afterwards."""
    adapters: list[Adapter] = []

    @asynccontextmanager
    async def factory(context: AdapterContext) -> AsyncGenerator[Adapter]:
        async with agent(context) as adapter:
            adapters.append(adapter)
            yield adapter

    with no_process_is_left():
        async with open_session(
            factory,
            workspace=workspace,
            session_id="s",
            deadlines=deadlines,
            payload=payload,
            control_plane=control_plane,
            ports=ports,
        ) as session:
            adapter = adapters[0]
            assert isinstance(adapter, BridgeAdapter)
            yield Seen(session, adapter, workspace)


@contextmanager
def no_process_is_left() -> Iterator[None]:
    before = children()
    yield
    assert children() <= before


def children() -> set[int]:
    """Return our child processes, zombies too; every guard of a bridge is one."""
    if not Path("/proc/self").exists():
        return set()
    found = set()
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                parent = (directory / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:  # it has ended since the listing
                continue
            if int(parent) == os.getpid():
                found.add(int(directory.name))
    return found


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def newest_checkpoint(workspace: Path) -> JsonObject:
    files = (workspace / ".semibot" / "sessions" / "s" / "checkpoints").glob("*.json")
    checkpoint: JsonObject = json.loads(max(files).read_text())
    return checkpoint


def number_in(path: Path) -> int:
    return int(path.read_text())


async def until(condition: Callable[[], bool]) -> None:
    """Look again and again, for what nobody here is told about, for at most 5 seconds."""
    with trio.fail_after(5):
        while not condition():  # noqa: ASYNC110 - a child makes it true, which sets no event
            await trio.sleep(0.002)
