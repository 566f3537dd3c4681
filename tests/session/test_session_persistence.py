"""A session that is opened again goes on where it was: nothing lost, nothing doubled."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from semibot.config import Deadlines
from semibot.errors import SessionInUse, StoreError, UsageError, WorkspaceUnusable
from semibot.session import ActiveRun, Adapter, AdapterContext, Session, open_session
from semibot.testing import FunctionAdapter, adapter_from, simulated_ports
from semibot.wire.chat import Message
from semibot.wire.codec import JsonObject
from semibot.wire.events import ExecutionError, TextChunk
from semibot.workspace.checkpoints import KEPT, CheckpointDirectory
from semibot.workspace.memory import ShortTermMemory
from semibot.workspace.state import open_state, session_directory


async def echo(run: ActiveRun) -> None:
    await run.emit(TextChunk(content=f"re {run.message}"))
    await run.complete()


async def ask(session: Session, message: str) -> str:
    async with session.run(message) as run:
        await run.wait()
    return run.text


def opened(workspace: Path, handle: object = echo, **more: object) -> object:
    return open_session(
        adapter_from(handle),  # type: ignore[arg-type]
        workspace=workspace,
        session_id="s1",
        ports=simulated_ports(),
        **more,  # type: ignore[arg-type]
    )


def texts(messages: tuple[Message, ...]) -> list[str]:
    return [message.content for message in messages]


async def test_history_term_and_numbers_continue(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with opened(tmp_path) as session:  # type: ignore[attr-defined]
        await ask(session, "one")
        first = session.statistics()
    seen: list[list[str]] = []

    async def handle(run: ActiveRun) -> None:
        seen.append(texts(run.history))
        await echo(run)

    async with opened(tmp_path, handle) as session:  # type: ignore[attr-defined]
        assert session.statistics().term == first.term + 1
        assert session.statistics().next_seq == first.next_seq
        await ask(session, "two")
        assert texts(session.history) == ["one", "re one", "two", "re two"]
    assert seen == [["one", "re one"]]
    memory = ShortTermMemory(session_directory(tmp_path, "s1") / "memory.md")
    assert [(e.role, e.text) for e in memory.entries()] == [
        ("user", "one"),
        ("assistant", "re one"),
        ("user", "two"),
        ("assistant", "re two"),
    ]


async def test_a_crash_in_a_run_keeps_its_question_and_doubles_nothing(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    before.mkdir()

    async def handle(run: ActiveRun) -> None:
        if run.message == "two":  # what a crash would leave on disk
            shutil.copytree(before, after)
        await echo(run)

    async with opened(before, handle) as session:  # type: ignore[attr-defined]
        await ask(session, "one")
        crashed_term = session.statistics().term
        await ask(session, "two")
    async with opened(after) as session:  # type: ignore[attr-defined]
        assert texts(session.history) == ["one", "re one", "two"]
        assert session.statistics().term == crashed_term + 1
        await ask(session, "three")
        assert texts(session.history) == ["one", "re one", "two", "three", "re three"]
    memory = ShortTermMemory(session_directory(after, "s1") / "memory.md")
    assert [e.text for e in memory.entries()] == ["one", "re one", "two", "three", "re three"]


async def test_memory_written_after_the_newest_checkpoint_is_cut_off(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as session:  # type: ignore[attr-defined]
        await ask(session, "one")
    path = session_directory(tmp_path, "s1") / "memory.md"
    whole = path.read_bytes()
    path.write_bytes(whole + b"## [user] never\n\nhalf a sen")
    async with opened(tmp_path) as session:  # type: ignore[attr-defined]
        assert path.read_bytes() == whole


async def test_a_torn_checkpoint_is_passed_over(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with opened(tmp_path) as session:  # type: ignore[attr-defined]
        await ask(session, "one")
        await ask(session, "two")
    directory = session_directory(tmp_path, "s1") / "checkpoints"
    newest = max(directory.iterdir())
    newest.write_bytes(newest.read_bytes()[:100])
    async with opened(tmp_path) as session:  # type: ignore[attr-defined]
        assert texts(session.history) == ["one", "re one"]


async def test_the_newest_ten_checkpoints_are_kept(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path) as session:  # type: ignore[attr-defined]
        for number in range(KEPT + 3):
            await ask(session, str(number))
    directory = CheckpointDirectory(session_directory(tmp_path, "s1") / "checkpoints")
    assert len(list(directory.path.iterdir())) == KEPT
    newest = directory.newest()
    assert newest is not None
    assert newest.status == "completed"
    assert newest.last_user_message == str(KEPT + 2)


async def test_a_second_opening_is_refused_with_the_pid_of_the_first(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path):  # type: ignore[attr-defined]
        with pytest.raises(SessionInUse) as caught:
            async with opened(tmp_path):  # type: ignore[attr-defined]
                raise AssertionError("not reached")
        assert caught.value.pid == os.getpid()
        assert str(os.getpid()) in str(caught.value)
    async with opened(tmp_path):  # type: ignore[attr-defined]
        pass


def test_a_second_process_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from semibot.workspace.state import open_state\n"
        "with open_state(pathlib.Path(sys.argv[1]), 's1'): pass\n"
    )
    with open_state(tmp_path, "s1"):
        done = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert f"in use by process {os.getpid()}" in done.stderr


@pytest.mark.parametrize("bad", ["", "../x", "a/b", ".hidden", "a" * 129, "a\0b", "ü"])
async def test_a_malformed_session_id_is_refused(bad: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="session id"):
        session_directory(tmp_path, bad)


async def test_a_workspace_that_cannot_be_used_says_why(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("x")
    for workspace in (tmp_path / "missing", file):
        with pytest.raises(WorkspaceUnusable, match=workspace.name):
            async with opened(workspace):  # type: ignore[attr-defined]
                raise AssertionError("not reached")
    (tmp_path / ".semibot").write_text("in the way")
    with pytest.raises(WorkspaceUnusable, match=r"\.semibot"):
        async with opened(tmp_path):  # type: ignore[attr-defined]
            raise AssertionError("not reached")


async def test_an_answer_that_cannot_be_kept_fails_its_run_and_the_earlier_state_stays(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    checkpoints = session_directory(tmp_path, "s1") / "checkpoints"
    aside = tmp_path / "aside"

    async def handle(run: ActiveRun) -> None:
        if run.message == "two":
            checkpoints.rename(aside)
            checkpoints.write_text("in the way")
        await echo(run)

    async with opened(tmp_path, handle) as session:  # type: ignore[attr-defined]
        await ask(session, "one")
        async with session.run("two") as run:
            assert await run.wait() == "failed"
        assert isinstance(run.terminal, ExecutionError)
        assert run.terminal.code == StoreError.code
        async with session.run("three") as run:  # refused before it starts
            assert await run.wait() == "failed"
        assert run.text == ""
        checkpoints.unlink()
        aside.rename(checkpoints)
        assert await ask(session, "four") == "re four"
        assert texts(session.history) == ["one", "re one", "two", "four", "re four"]


async def test_a_disk_that_does_not_answer_is_a_store_error(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    class SlowThreads:
        inner = simulated_ports().threads
        is_slow = False

        async def run_sync(self, fn: object, *args: object, **more: object) -> object:
            if self.is_slow:
                await trio.sleep_forever()
            return await self.inner.run_sync(fn, *args, **more)  # type: ignore[arg-type]

        def in_use(self) -> dict[str, int]:
            return {}

    import attrs

    threads = SlowThreads()
    ports = attrs.evolve(simulated_ports(), threads=threads)  # type: ignore[arg-type]
    async with open_session(
        adapter_from(echo), workspace=tmp_path, ports=ports, deadlines=Deadlines(session_save=2)
    ) as session:
        threads.is_slow = True
        async with session.run("x") as run:
            assert await run.wait() == "failed"
        assert isinstance(run.terminal, ExecutionError)
        assert run.terminal.code == "STORE_FAILED"
        assert "session.save" in run.terminal.error
        threads.is_slow = False


async def test_a_session_without_a_workspace_leaves_nothing_behind(
    autojump_clock: MockClock,
) -> None:
    async with open_session(adapter_from(echo), ports=simulated_ports()) as session:
        assert await ask(session, "x") == "re x"
        workspace = session.workspace
        assert workspace.is_dir()
    assert not workspace.exists()


async def test_an_adapters_state_comes_back_to_its_own_kind_only(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    seen: list[object] = []

    class Keeper(Adapter):
        async def handle(self, run: ActiveRun) -> None:
            await run.complete("kept")

        async def get_snapshot(self) -> JsonObject:
            return {"number": 7}

    @asynccontextmanager
    async def keeper(context: AdapterContext) -> AsyncGenerator[Adapter]:
        seen.append(context.snapshot)
        yield Keeper()

    @asynccontextmanager
    async def stranger(context: AdapterContext) -> AsyncGenerator[Adapter]:
        seen.append(context.snapshot)
        yield FunctionAdapter(echo)

    for factory in (keeper, keeper, stranger):
        async with open_session(
            factory, workspace=tmp_path, session_id="s", ports=simulated_ports()
        ) as session:
            await ask(session, "x")
    assert seen == [None, {"number": 7}, None]
