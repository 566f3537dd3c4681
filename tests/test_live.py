"""The real seams: real threads, real processes, so no test here uses a mock clock."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio

from semibot.live import LiveProcess, LiveThreads, live_ports, live_spawn
from semibot.ports import ByteReceiver

ENVIRONMENT = {"GREETING": "héllo"}


async def start(code: str, *, cwd: str | None = None, pass_fds: Sequence[int] = ()) -> LiveProcess:
    """Start a Python program that sees nothing of this one."""
    return await live_spawn(
        [sys.executable, "-I", "-c", code],
        cwd=cwd,
        environment=ENVIRONMENT,
        pass_fds=pass_fds,
    )


async def read_all(stream: ByteReceiver) -> bytes:
    data = bytearray()
    while piece := await stream.receive_some():
        data += piece
    return bytes(data)


async def close(process: LiveProcess) -> None:
    for stream in (process.stdin, process.stdout, process.stderr):
        await stream.aclose()


# --- clocks, ids, environment ---------------------------------------------------------


def test_the_wall_clock_tells_utc() -> None:
    now = live_ports().wall_clock.now()
    assert now.tzinfo is UTC
    assert abs(now - datetime.now(UTC)) < timedelta(seconds=5)


def test_ids_are_32_hexadecimal_digits_and_never_repeat() -> None:
    ids = live_ports().ids
    found = {ids.new_id() for _ in range(1000)}
    assert len(found) == 1000
    assert all(re.fullmatch(r"[0-9a-f]{32}", each) for each in found)


def test_the_environment_is_a_snapshot_that_cannot_be_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SEMIBOT_TEST", "before")
    ports = live_ports()
    monkeypatch.setenv("SEMIBOT_TEST", "after")
    assert ports.environment["SEMIBOT_TEST"] == "before"
    with pytest.raises(TypeError):
        ports.environment["SEMIBOT_TEST"] = "changed"  # type: ignore[index]


def test_ports_do_not_show_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMIBOT_TEST", "do-not-show")
    assert "do-not-show" not in repr(live_ports())


def test_two_sets_of_ports_share_nothing() -> None:
    first, second = live_ports(), live_ports()
    assert first.random is not second.random
    assert first.threads is not second.threads
    assert not first.is_simulated


# --- threads --------------------------------------------------------------------------


async def test_a_thread_returns_its_result() -> None:
    threads = LiveThreads()
    here = threading.get_ident()
    there = await threads.run_sync(threading.get_ident, limiter="files")
    assert there != here
    assert threads.in_use() == {"files": 0}


async def test_an_error_in_a_thread_comes_out() -> None:
    def fail(text: str) -> None:
        raise ValueError(text)

    ended: list[bool] = []
    with pytest.raises(ValueError, match="inside"):
        await LiveThreads().run_sync(
            fail, "inside", limiter="files", on_exit=lambda: ended.append(True)
        )
    assert ended == [True]


async def test_a_limiter_without_a_name_here_is_refused() -> None:
    with pytest.raises(KeyError, match="nonsense"):
        await LiveThreads().run_sync(int, limiter="nonsense")


async def test_a_limiter_bounds_how_many_run_at_once() -> None:
    threads = LiveThreads(limits={"narrow": 1})
    running = 0
    most = 0

    def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        running -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(lambda: threads.run_sync(work, limiter="narrow"))
    assert most == 1


async def test_an_abandoned_thread_is_counted_until_it_ends() -> None:
    threads = LiveThreads()
    began = trio.Event()
    release = threading.Event()
    ended = threading.Event()

    def work() -> None:
        trio.from_thread.run_sync(began.set)
        release.wait(30)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: threads.run_sync(
                work, limiter="tools", abandon_on_cancel=True, on_exit=ended.set
            )
        )
        await began.wait()
        nursery.cancel_scope.cancel()
    assert threads.in_use() == {"tools": 1}
    assert not ended.is_set()
    release.set()
    with trio.fail_after(30):
        assert await trio.to_thread.run_sync(ended.wait, 30)
        # The thread gives its token back a moment after it has ended.
        while threads.in_use()["tools"]:  # noqa: ASYNC110 - nobody sets an event then
            await trio.sleep(0.001)


async def test_a_thread_that_is_not_abandoned_is_waited_for() -> None:
    threads = LiveThreads()
    began = trio.Event()
    release = threading.Event()
    results: list[str] = []

    def work() -> str:
        trio.from_thread.run_sync(began.set)
        release.wait(30)
        return "done"

    async def call() -> None:
        results.append(await threads.run_sync(work, limiter="tools"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await began.wait()
        nursery.cancel_scope.cancel()
        release.set()
    assert results == ["done"]


# --- processes ------------------------------------------------------------------------


async def test_a_child_has_three_pipes_and_a_status() -> None:
    process = await start(
        "import sys; print(sys.stdin.read().upper()); print('oh', file=sys.stderr); sys.exit(3)"
    )
    await process.stdin.send_all(b"hello")
    await process.stdin.aclose()
    assert await read_all(process.stdout) == b"HELLO\n"
    assert await read_all(process.stderr) == b"oh\n"
    assert await process.wait() == 3
    await close(process)


async def test_a_child_gets_the_environment_it_is_given_and_no_more() -> None:
    process = await start("import os; print(sorted(os.environ), ascii(os.environ['GREETING']))")
    out = (await read_all(process.stdout)).decode()
    assert await process.wait() == 0
    await close(process)
    names, _, value = out.strip().rpartition(" ")
    assert value == ascii("héllo")
    # A C locale that is coerced to UTF-8 says so in a variable of its own.
    assert set(re.findall(r"'(\w+)'", names)) <= {"GREETING", "LC_CTYPE", "__CF_USER_TEXT_ENCODING"}


async def test_a_child_starts_in_the_directory_it_is_given(tmp_path: Path) -> None:
    process = await start("import os; print(os.getcwd())", cwd=str(tmp_path))
    out = (await read_all(process.stdout)).decode()
    assert out.strip() == str(tmp_path)  # pytest has resolved its links
    assert await process.wait() == 0
    await close(process)


async def test_a_child_leads_a_session_of_its_own() -> None:
    process = await start("import os; print(os.getpid(), os.getsid(0), os.getpgid(0))")
    ids = (await read_all(process.stdout)).split()
    assert set(ids) == {str(process.pid).encode()}
    assert process.pid != os.getsid(0)
    await process.wait()
    await close(process)


async def test_a_signal_reaches_the_whole_group_and_shows_in_the_status() -> None:
    process = await start(
        "import os, time\nchild = os.fork()\nif child: print(child, flush=True)\ntime.sleep(60)"
    )
    assert await process.stdout.receive_some() != b""
    process.signal_group(signal.SIGTERM)
    assert await process.wait() == -signal.SIGTERM
    # The grandchild holds the pipe open as long as it lives.
    with trio.fail_after(30):
        assert await read_all(process.stdout) == b""
    await close(process)


async def test_a_signal_to_a_group_that_is_gone_does_nothing() -> None:
    process = await start("pass")
    assert await process.wait() == 0
    process.signal_group(signal.SIGTERM)
    await close(process)


async def test_a_descriptor_can_be_handed_to_a_child() -> None:
    reader, writer = os.pipe()
    try:
        process = await start(f"import os; os.write({writer}, b'hi')", pass_fds=[writer])
    finally:
        os.close(writer)
    assert await process.wait() == 0
    assert os.read(reader, 100) == b"hi"
    os.close(reader)
    await close(process)


async def test_a_program_that_does_not_exist_is_an_os_error() -> None:
    with pytest.raises(FileNotFoundError):
        await live_spawn(["/does/not/exist"], cwd=None, environment={})
