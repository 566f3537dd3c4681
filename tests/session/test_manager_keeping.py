"""Snapshots, reports and seats: what a VM keeps for its host, and how much at once."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import attrs
import pytest
import trio
from manager_kit import (
    cancel,
    config,
    echo,
    echo_or_hang,
    message,
    opened,
    start,
    start_1,
    stop,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from semibot import GraphAgent, scripted_model, tool
from semibot.models import Call, Say, tool_request
from semibot.session import ActiveRun, Adapter, AdapterContext
from semibot.session.execution import Execution
from semibot.session.journal import Journal
from semibot.session.reports import MAX_WAITING_REPORTS, Reporter
from semibot.session.snapshots import MAX_SNAPSHOT_BYTES, make_snapshot, read_snapshot
from semibot.testing import FunctionAdapter, MemoryPlane, adapter_from, simulated_ports
from semibot.wire.chat import Message
from semibot.wire.codec import JsonObject, dump_json, structure
from semibot.wire.events import ExecutionComplete, ExecutionError, TextChunk, Usage
from semibot.wire.frames import Cancelled, FireAndForget, SessionSnapshot
from semibot.workspace.checkpoints import Checkpoint
from semibot.workspace.memory import ShortTermMemory


class Remembering(Adapter):
    """Counts its runs, over reopenings too."""

    def __init__(self, context: AdapterContext) -> None:
        self._count = cast("int", (context.snapshot or {}).get("count", 0))

    async def handle(self, run: ActiveRun) -> None:
        self._count += 1
        history = [each.content for each in run.history]
        await run.complete(f"{self._count} {history}")
        run.remember(Message(role="assistant", content=str(self._count)))

    async def get_snapshot(self) -> JsonObject:
        return {"count": self._count}


@asynccontextmanager
async def remembering(context: AdapterContext) -> AsyncGenerator[Adapter]:
    yield Remembering(context)


def snapshot_of(frame: FireAndForget) -> SessionSnapshot:
    """What a host would send of a snapshot that it got."""
    params = {key: value for key, value in frame.params.items() if key != "term"}
    return structure(params, SessionSnapshot)


def last_response(plane: MemoryPlane) -> str | None:
    return plane.lane("s1").events[-1].final_response  # type: ignore[union-attr]


# --- snapshots ------------------------------------------------------------------------


async def test_another_vm_continues_from_a_snapshot(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    adapters = {"graph": remembering}
    async with opened(here, adapters=adapters) as vm:
        vm.plane.say(start(), message("one", "r1"))
        await vm.plane.lane("s1").wait(FireAndForget)
        frame = vm.plane.lane("s1").snapshots[0]
    assert (frame.method, frame.params["term"], frame.params["covers_seq"]) == (
        "snapshot_sync",
        1,
        2,
    )
    assert frame.id
    async with opened(there, adapters=adapters) as vm:
        vm.plane.say(start(term=2, next_seq=3, snapshot=snapshot_of(frame)), message("two", "r2"))
        await vm.plane.lane("s1").wait(ExecutionComplete)
        assert last_response(vm.plane) == "2 ['one', '1']"
        await vm.plane.lane("s1").wait(FireAndForget)
        second = vm.plane.lane("s1").snapshots[-1].params
        assert (second["term"], second["covers_seq"]) == (2, 4)
        content = cast("JsonObject", second["short_term_memory"])["content"]
        assert "one" in cast("str", content)
        assert "two" in cast("str", content)


async def test_the_hosts_snapshot_replaces_what_is_on_disk(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    adapters = {"graph": remembering}
    async with opened(tmp_path, adapters=adapters) as vm:
        vm.plane.say(start(), message("one", "r1"))
        await vm.plane.lane("s1").wait(FireAndForget)
        frame = vm.plane.lane("s1").snapshots[0]
        vm.plane.say(message("two", "r2"))
        await vm.plane.lane("s1").wait(ExecutionComplete, 2)
    async with opened(tmp_path, adapters=adapters) as vm:
        vm.plane.say(start(term=2, next_seq=9, snapshot=snapshot_of(frame)), message("x", "r3"))
        await vm.plane.lane("s1").wait(ExecutionComplete)
        assert last_response(vm.plane) == "2 ['one', '1']"
    async with opened(tmp_path, adapters=adapters) as vm:
        vm.plane.say(start(term=3, next_seq=20), message("x", "r4"))
        await vm.plane.lane("s1").wait(ExecutionComplete)
        assert last_response(vm.plane) == "1 []"


async def test_a_snapshot_is_sent_every_minute_of_a_run_and_holds_what_was_said(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def talk(run: ActiveRun) -> None:
        await run.emit(TextChunk(content="so far "))
        await trio.sleep(200)
        await run.emit(TextChunk(content="and on"))
        await trio.sleep(50)
        await run.complete()

    async with opened(tmp_path, talk) as vm:
        vm.plane.say(start(), message("hi", "r1"))
        lane = vm.plane.lane("s1")
        await lane.wait(ExecutionComplete)
        await wait_all_tasks_blocked()
        covers = [each.params["covers_seq"] for each in lane.snapshots]
        assert covers == [2, 3, 4]  # nothing new is not said again
        checkpoint = structure(lane.snapshots[1].params["checkpoint"], Checkpoint)
        assert checkpoint.status == "running"
        assert [m.content for m in checkpoint.history] == ["hi", "so far and on"]
        await trio.sleep(600)
        assert len(lane.snapshots) == 3


async def test_a_disk_that_fails_costs_the_snapshot_only(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def handle(run: ActiveRun) -> None:
        memory = tmp_path / "state" / "sessions" / "s1" / "memory.md"
        memory.unlink()
        memory.mkdir()
        await trio.sleep(100)
        memory.rmdir()
        await run.complete("x")

    async with opened(tmp_path, handle) as vm:
        vm.plane.say(start(), message("hi", "r1"))
        lane = vm.plane.lane("s1")
        await lane.wait(ExecutionComplete)
        await wait_all_tasks_blocked()
        assert [each.params["covers_seq"] for each in lane.snapshots] == [2]


def checkpoint_with(history: tuple[Message, ...], memory_bytes: int = 0) -> Checkpoint:
    return Checkpoint(
        id="1",
        session_id="s1",
        term=1,
        covers_seq=1,
        run_id="r",
        status="completed",
        history=history,
        last_user_message="q" * 100,
        memory_bytes=memory_bytes,
        updated_at="now",
        adapter={"state": "s"},
    )


@pytest.mark.parametrize(
    ("messages", "memory", "adapter", "is_kept"),
    [(3, 1, 0, (3, True)), (12, 1, 0, (3, True)), (3, 0, 11, (3, False)), (1, 11, 0, (1, True))],
)
def test_a_snapshot_that_is_too_large_loses_the_oldest_first(
    messages: int, memory: int, adapter: int, is_kept: tuple[int, bool], tmp_path: Path
) -> None:
    mega = 1024 * 1024
    history = tuple(Message(role="user", content=chr(97 + n) * mega) for n in range(messages))
    file = ShortTermMemory(tmp_path / "memory.md")
    length = file.append((Message(role="user", content="m" * memory * mega),), "t1", 0)
    length = file.append((Message(role="user", content="newest"),), "t2", length)
    checkpoint = attrs.evolve(
        checkpoint_with(history, length), adapter={"state": "s" * adapter * mega}
    )
    params = make_snapshot(checkpoint, file, covers_seq=7, term=2)
    assert params is not None
    assert len(dump_json(params)) <= MAX_SNAPSHOT_BYTES
    read, content = read_snapshot(structure(params, SessionSnapshot), "s1")
    assert read is not None
    assert len(read.history) == is_kept[0]
    assert read.history[-1] == history[-1]
    assert (read.adapter is not None) == is_kept[1]
    assert read.covers_seq == 7
    assert "newest" in content
    assert ("m" * 100 in content) == (messages + memory <= 9 and adapter == 0)


def test_a_snapshot_that_cannot_be_made_small_is_left_out(tmp_path: Path) -> None:
    checkpoint = attrs.evolve(checkpoint_with(()), updated_at="x" * MAX_SNAPSHOT_BYTES)
    file = ShortTermMemory(tmp_path / "memory.md")
    file.append((Message(role="user", content="## no heading"),), "t", 0)
    assert make_snapshot(checkpoint, file, covers_seq=1, term=None) is None


@pytest.mark.parametrize(
    "checkpoint",
    [{}, {"history": "no"}, {**cast("JsonObject", {"id": 1})}],
)
def test_what_another_kind_of_vm_has_written_is_left_out(checkpoint: JsonObject) -> None:
    assert read_snapshot(SessionSnapshot(covers_seq=1, checkpoint=checkpoint), "s1") == (None, "")


def test_a_snapshot_of_another_session_is_left_out(tmp_path: Path) -> None:
    file = ShortTermMemory(tmp_path / "memory.md")
    params = make_snapshot(checkpoint_with(()), file, covers_seq=1, term=1)
    snapshot = structure(params, SessionSnapshot)
    assert read_snapshot(snapshot, "s2") == (None, "")
    assert read_snapshot(attrs.evolve(snapshot, short_term_memory={}), "s1")[1] == ""


# --- reports --------------------------------------------------------------------------


async def test_tokens_and_decisions_are_reported(autojump_clock: MockClock, tmp_path: Path) -> None:
    @tool
    def look(where: str) -> str:
        """Look somewhere.

        Args:
            where: Where.
        """
        return f"nothing in {where}"

    model = scripted_model(
        [Call(tool_request("c1", "look", {"where": "secret place"})), Say("done")]
    )
    agent = GraphAgent(model, tools=[look])
    async with opened(tmp_path, adapters={"graph": agent}) as vm:
        vm.plane.say(start(), message("hi", "r1"))
        await vm.plane.lane("s1").wait(ExecutionComplete)
    reports = [(session, method) for session, method, _ in vm.plane.reports]
    assert reports == [("s1", "audit_log"), ("s1", "audit_log"), ("s1", "usage_report")]
    decision, ended, usage = (params for _, _, params in vm.plane.reports)
    assert (decision["event"], ended["event"]) == ("tool_decision", "tool_call_ended")
    details = cast("JsonObject", decision["details"])
    assert (details["tool_name"], details["action"], details["run_id"]) == ("look", "allow", "r1")
    assert "secret place" not in str(vm.plane.reports)
    assert usage["model"]
    assert cast("int", usage["tokens_out"]) > 0
    audit = tmp_path / "state" / "sessions" / "s1" / "audit.jsonl"
    assert "secret place" in audit.read_text()


async def test_tokens_of_an_unknown_model_are_not_reported(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def handle(run: ActiveRun) -> None:
        run.spend(Usage(tokens_in=1, tokens_out=2))
        await run.complete("x")

    async with opened(tmp_path, handle) as vm:
        vm.plane.say(start(), message("hi", "r1"))
        await vm.plane.lane("s1").wait(ExecutionComplete)
    assert vm.plane.reports == []


async def test_a_report_that_fails_holds_nothing_up(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async def handle(run: ActiveRun) -> None:
        for _ in range(2000 if run.message == "many" else 1):
            run.spend(Usage(tokens_in=1), model="m")
        await run.complete("x")

    plane = MemoryPlane()
    plane.fails_reports = True
    async with opened(tmp_path, handle, plane=plane) as vm:
        vm.plane.say(start(), message("hi", "r1"))
        await vm.plane.lane("s1").wait(ExecutionComplete)
        await wait_all_tasks_blocked()
        plane.fails_reports = False
        vm.plane.say(message("hi", "r2"))
        await vm.plane.lane("s1").wait(ExecutionComplete, 2)
    assert [method for _, method, _ in plane.reports] == ["usage_report"]


async def test_only_so_many_reports_wait(tmp_path: Path) -> None:
    plane = MemoryPlane()
    reporter = Reporter(plane)
    journal = Journal(term=1, next_seq=1)
    run = Execution(
        id="r",
        message="q",
        message_id="m",
        metadata={},
        given_history=None,
        expires_at=0,
        journal=journal,
    )
    reporter.report_usage("s1", run)
    run.model = "m"
    reporter.report_usage("s1", run)
    run.usage = Usage(tokens_in=1)
    for _ in range(MAX_WAITING_REPORTS + 5):
        reporter.report_usage("s1", run)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reporter.serve)
        await reporter.wait_idle()
        nursery.cancel_scope.cancel()
    assert len(plane.reports) == MAX_WAITING_REPORTS


# --- seats ----------------------------------------------------------------------------


async def test_an_idle_session_makes_room_and_goes_on_later(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    adapters = {"graph": remembering}
    async with opened(tmp_path, adapters=adapters, max_open=1) as vm:
        vm.plane.say(start("s1"), message("one", "r1"))
        lane = vm.plane.lane("s1")
        await lane.wait(ExecutionComplete)
        vm.plane.say(config({"x": 1}), start("s2"), message("hi", "r2", session_id="s2"))
        await vm.plane.lane("s2").wait(ExecutionComplete)
        assert vm.manager.statistics().open == 1
        assert vm.plane.active_sessions() == ("s1", "s2")
        vm.plane.say(message("two", "r3"))
        await lane.wait(ExecutionError)
        assert lane.next_seq == 5  # the numbers go on, and so does the change it refuses
        vm.plane.say(stop("c1", session_id="s2"), message("three", "r4"))
        await vm.plane.lane("s2").wait(Cancelled)
        assert vm.manager.statistics().held == 1


async def test_a_session_that_was_put_aside_remembers(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    adapters = {"graph": remembering}
    async with opened(tmp_path, adapters=adapters, max_open=1) as vm:
        for number in range(3):
            for session_id in ("s1", "s2"):
                vm.plane.say(start(session_id), start_1(session_id))
                run_id = f"{session_id}-{number}"
                vm.plane.say(message(f"q{number}", run_id, session_id=session_id))
                await vm.plane.lane(session_id).wait(ExecutionComplete, number + 1)
        assert last_response(vm.plane) == "3 ['q0', '1', 'q1', '2']"
        assert len(vm.plane.lanes) == 2


async def test_a_session_without_a_seat_fails_its_run(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path, max_open=1) as vm:
        vm.plane.say(start("s1"), message("hang", "r1"))
        await wait_all_tasks_blocked()
        vm.plane.say(start("s2"), message("hi", "r2", session_id="s2"))
        lane = vm.plane.lane("s2")
        await lane.wait(ExecutionError)
        error = lane.events[-1]
        assert isinstance(error, ExecutionError)
        assert (error.code, error.retryable) == ("TOO_MANY_SESSIONS", True)
        vm.plane.say(cancel(run_id="r1"))
        await vm.plane.lane("s1").wait(ExecutionComplete)
        vm.plane.say(message("hi", "r3", session_id="s2"))
        await lane.wait(ExecutionComplete)


async def test_a_message_to_a_session_that_is_put_aside_is_not_lost(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    @asynccontextmanager
    async def slow_to_leave(_: AdapterContext) -> AsyncGenerator[Adapter]:
        yield FunctionAdapter(echo_or_hang)
        await trio.sleep(1)

    async with opened(tmp_path, adapters={"graph": slow_to_leave}, max_open=1) as vm:
        vm.plane.say(start("s1"))
        await wait_all_tasks_blocked()
        vm.plane.say(start("s2"), start("s3"))
        await trio.sleep(0.5)
        vm.plane.say(message("hi", "r1"))
        await vm.plane.lane("s1").wait(ExecutionComplete)
        vm.plane.say(message("hi", "r2", session_id="s2"))
        await vm.plane.lane("s2").wait(ExecutionComplete)


# --- directories ----------------------------------------------------------------------


async def test_tools_cannot_reach_a_state_directory_inside_the_workspace(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    contexts: list[AdapterContext] = []

    @asynccontextmanager
    async def watching(context: AdapterContext) -> AsyncGenerator[Adapter]:
        contexts.append(context)
        path = await context.keep_result("call-1", "a large result")
        with context.files.open_file(path) as file:
            assert file.read() == b"a large result"
        async with adapter_from(echo)(context) as adapter:
            yield adapter

    from semibot.session import open_session_manager

    plane = MemoryPlane()
    async with open_session_manager(
        plane,
        adapters={"graph": watching},
        workspace=tmp_path,
        state_dir=tmp_path / "data" / "state",
        ports=simulated_ports(),
    ):
        plane.say(start(), message("hi", "r1"))
        await plane.lane("s1").wait(ExecutionComplete)
    assert contexts[0].files.reserved == (".semibot", "data")
    assert (tmp_path / "data" / "state" / "sessions" / "s1" / "checkpoints").is_dir()
    assert (tmp_path / ".semibot" / ".gitignore").is_file()
