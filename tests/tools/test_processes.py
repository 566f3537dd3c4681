from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from child_harness import (
    ENVIRONMENT,
    IS_LINUX,
    PATIENT,
    PROGRAMS,
    QUICK,
    TIERS,
    new_mark,
    nothing_is_left,
    ports_with,
    program,
    python,
)
from process_table import alive, guards_of, process_table, seconds_until

from semibot.config import Deadlines
from semibot.errors import ChildError, ChildStartFailed, DeadlineExceeded, RemoteProtocolError
from semibot.ports import Ports
from semibot.testing import capture_logs
from semibot.tools import processes
from semibot.tools.ledger import Ledger
from semibot.tools.processes import ExitStatus

linux_only = pytest.mark.skipif(not IS_LINUX, reason="the guard exists on Linux only")
each_tier = pytest.mark.parametrize("tier", TIERS)


@pytest.fixture(autouse=True)
def audit() -> Iterator[None]:
    with nothing_is_left():
        yield


@pytest.fixture
def ports() -> Ports:
    return ports_with()


@pytest.fixture
def open_child(ports: Ports):
    return partial(processes.open_child, ports=ports, deadlines=PATIENT, environment=ENVIRONMENT)


@pytest.fixture
def run_child(ports: Ports):
    return partial(processes.run_child, ports=ports, deadlines=PATIENT, environment=ENVIRONMENT)


async def until(condition) -> None:
    """Look again and again, for what the operating system tells nobody about."""
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110 - see above
            await trio.sleep(0.002)


# --- talking ---------------------------------------------------------------------------


@each_tier
async def test_a_child_reads_and_answers_lines(open_child, tier) -> None:
    async with open_child(["cat"], tier=tier) as child:
        lines = child.lines()
        await child.send(b"one\ntwo\n")
        assert await anext(lines) == b"one"
        assert await anext(lines) == b"two"
        await child.send(b"three")
        await child.close_input()
        assert [line async for line in lines] == [b"three"]
        assert await child.wait() == ExitStatus(code=0)
        assert await child.receive_some() == b""


@each_tier
async def test_a_finished_program_gives_its_status_and_output(run_child, tier) -> None:
    result = await run_child(["sh", "-c", "cat; echo oh >&2; exit 3"], stdin=b"input", tier=tier)
    assert result == processes.ChildResult(
        status=ExitStatus(code=3),
        stdout=b"input",
        stderr=b"oh\n",
        stdout_truncated=False,
        stderr_truncated=False,
    )


@each_tier
async def test_a_program_killed_by_a_signal_says_so(run_child, tier) -> None:
    result = await run_child(["sh", "-c", "kill -9 $$"], tier=tier)
    assert result.status == ExitStatus(signal=9)


def test_an_exit_status_reads_well() -> None:
    assert str(ExitStatus(code=1)) == "exit status 1"
    assert str(ExitStatus(signal=9)) == "killed by SIGKILL"
    assert str(ExitStatus(signal=40)) == "killed by signal 40"
    assert str(ExitStatus()) == "exit status unknown"


@each_tier
async def test_output_beyond_the_bound_is_read_and_dropped(run_child, tier) -> None:
    text = "import os\nfor _ in range(100): os.write(1, b'o' * 50000), os.write(2, b'e' * 50000)"
    result = await run_child(python(text), max_output_bytes=70_000, tier=tier)
    assert result.status == ExitStatus(code=0)
    assert result.stdout == b"o" * 70_000
    assert result.stderr == b"e" * 70_000
    assert result.stdout_truncated
    assert result.stderr_truncated


async def test_output_of_exactly_the_bound_is_whole(run_child) -> None:
    result = await run_child(["printf", "12345"], max_output_bytes=5)
    assert result.stdout == b"12345"
    assert not result.stdout_truncated


async def test_a_program_need_not_read_its_input(run_child) -> None:
    result = await run_child(["true"], stdin=b"x" * 1_000_000)
    assert result.status == ExitStatus(code=0)


@each_tier
async def test_complaints_never_block_and_the_newest_are_kept(open_child, tier) -> None:
    text = "import os\nfor i in range(400): os.write(2, b'%06d\\n' % i * 1000)\nprint('done')"
    async with open_child(python(text), tier=tier) as child:
        assert await child.receive_some() == b"done\n"
        await child.wait()
        tail = child.stderr_tail
    assert len(tail) == 64 * 1024
    assert tail.endswith(b"000399\n" * 1000)


async def test_a_line_that_is_too_long_ends_the_lines(open_child) -> None:
    async with open_child(python("print('x' * 3_000_000)")) as child:
        lines = child.lines()
        with pytest.raises(RemoteProtocolError, match="longer than"):
            await anext(lines)
        with pytest.raises(StopAsyncIteration):
            await anext(lines)


async def test_sending_to_a_child_that_has_ended_fails(open_child) -> None:
    async with open_child(["true"]) as child:
        await child.wait()
        for _ in range(2):
            with pytest.raises(ChildError, match="true no longer reads its input"):
                await child.send(b"x" * 100_000)


async def test_sending_after_the_input_was_closed_fails(open_child) -> None:
    async with open_child(["cat"]) as child:
        await child.close_input()
        with pytest.raises(ChildError, match="no longer reads"):
            await child.send(b"x")


async def cancel_once_blocked(send, data: bytes) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, data)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_a_message_cut_off_half_way_is_the_last(open_child) -> None:
    async with open_child(program("rude"), deadlines=QUICK) as child:
        await child.receive_some()
        await cancel_once_blocked(child.send, b"x" * 1_000_000)
        with pytest.raises(ChildError, match="cut off half-way"):
            await child.send(b"x")


@each_tier
async def test_what_a_living_child_closes_is_closed(open_child, tier) -> None:
    text = "import os, sys\nos.close(0)\nos.write(1, b'x')\nos.close(1)\n"
    text += "import signal\nsignal.pause()"
    deadlines = attrs.evolve(PATIENT, child_eof_grace=0.05)
    async with open_child(python(text), deadlines=deadlines, tier=tier) as child:
        with trio.fail_after(10):
            assert await child.receive_some() == b"x"
            assert await child.receive_some() == b""
            with pytest.raises(ChildError):
                await child.send(b"x")
        assert child.exit_status is None


@linux_only  # knows how much a pipe holds
async def test_a_short_message_is_cancelled_whole(open_child) -> None:
    async with open_child(python("import sys; print(len(sys.stdin.read()))")) as child:
        os.kill(child.pid, signal.SIGSTOP)
        await child.send(b"x" * 65536)
        await cancel_once_blocked(child.send, b"never arrives")
        os.kill(child.pid, signal.SIGCONT)
        await child.send(b"end")
        await child.close_input()
        assert await child.receive_some() == b"65539\n"


async def test_messages_of_several_tasks_stay_whole(open_child) -> None:
    async with open_child(["cat"]) as child, trio.open_nursery() as nursery:
        for letter in b"abcd":
            nursery.start_soon(child.send, bytes([letter]) * 300_000 + b"\n")
        lines = child.lines()
        received = [await anext(lines) for _ in range(4)]
        assert sorted(received) == [bytes([letter]) * 300_000 for letter in b"abcd"]


async def test_only_one_task_may_receive(open_child) -> None:
    async with open_child(["cat"]) as child, trio.open_nursery() as nursery:
        nursery.start_soon(child.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await child.receive_some()
        nursery.cancel_scope.cancel()


# --- what a child is given -------------------------------------------------------------


@each_tier
async def test_a_child_gets_what_it_is_given_and_nothing_else(
    run_child, tier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "of the host")
    words = ["", "a b", "$(id)", "`id`", "-o", "--", "new\nline", "quo'te\"", "ünï", "*", "\udcff"]
    leaky, other = os.pipe()
    os.set_inheritable(leaky, True)
    try:
        result = await run_child(
            program("inspect_itself", *words),
            cwd=tmp_path,
            environment={"LC_ALL": "C.UTF-8", "EMPTY": "", "ODD": "a=b\nc"},
            tier=tier,
        )
    finally:
        os.close(leaky)
        os.close(other)
    report = json.loads(result.stdout)
    assert report["argv"] == words
    assert report["environment"] == {"LC_ALL": "C.UTF-8", "EMPTY": "", "ODD": "a=b\nc"}
    assert report["cwd"] == str(tmp_path)
    assert report["leads_session"]
    if IS_LINUX:
        assert report["descriptors"] == [0, 1, 2]
        assert report["blocked"] == 0


@linux_only
async def test_signals_that_we_block_reach_the_child_and_its_guard(run_child) -> None:
    # Threads inherit the mask, and a guard that never hears of a death would wait for ever.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    try:
        result = await run_child(program("inspect_itself"))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    assert json.loads(result.stdout)["blocked"] == 0


@each_tier
async def test_a_program_is_looked_up_in_the_path_it_is_given(
    run_child, tier, tmp_path: Path
) -> None:
    script = tmp_path / "greet"
    script.write_text("#!/bin/sh\necho hello\n")
    script.chmod(0o755)
    result = await run_child(["greet"], environment={"PATH": str(tmp_path)}, tier=tier)
    assert result.stdout == b"hello\n"


@each_tier
@pytest.mark.parametrize(
    ("argv", "changes", "message"),
    [
        ([], {}, r"\(nothing\): the command is empty"),
        ([""], {}, r"\(nothing\): the command is empty"),
        (["no-such-program"], {}, "cannot start no-such-program: No such file"),
        (["/etc/passwd"], {}, "cannot start /etc/passwd: Permission denied"),
        (["cat", "a\0b"], {}, "cannot start cat: a NUL character"),
        (["cat\0"], {}, r"cannot start cat\?: a NUL character"),
        (["cat\ud800"], {}, "cannot be encoded"),
        (["cat"], {"environment": {"A": "\0"}}, "a NUL character"),
        (["cat"], {"environment": {"A=B": ""}}, "impossible name"),
        (["cat"], {"environment": {"": "x"}}, "impossible name"),
        (["cat"], {"cwd": Path("/no/such")}, "cat: working directory /no/such: No such file"),
        (["cat", "x" * 3_000_000], {}, "Argument list too long"),
    ],
)
async def test_what_cannot_start_is_refused(open_child, tier, argv, changes, message) -> None:
    with pytest.raises(ChildStartFailed, match=message):
        async with open_child(argv, tier=tier, **changes):
            pytest.fail("the body of a child that did not start")


async def test_a_string_is_not_a_command(open_child) -> None:
    with pytest.raises(TypeError, match="sequence of words"):
        async with open_child("cat /etc/passwd"):
            pytest.fail("the body of a child that did not start")


async def test_a_child_is_in_the_ledger_until_it_is_reaped(open_child) -> None:
    ledger = Ledger()
    async with open_child(["cat"], ledger=ledger, name="echo") as child:
        (activity,) = ledger.under_way()
        assert (activity.kind, activity.name, activity.pid) == ("child", "echo", child.pid)
        assert child.exit_status is None
        await child.close_input()
        assert await child.wait() == child.exit_status
        assert ledger.under_way() == ()


async def test_a_child_is_named_after_its_program(open_child) -> None:
    async with open_child(["/bin/cat"]) as child:
        assert child.name == "cat"


@each_tier
async def test_the_tier_is_logged(open_child, tier) -> None:
    with capture_logs() as logs:
        async with open_child(["cat"], tier=tier) as child:
            pass
    assert logs == [
        {
            "event": "child started",
            "log_level": "info",
            "child": "cat",
            "pid": child.pid,
            "tier": tier,
        }
    ]


# --- stopping --------------------------------------------------------------------------


@each_tier
async def test_the_end_of_its_input_ends_a_polite_child(open_child, tier) -> None:
    async with open_child(["cat"], tier=tier) as child:
        pass
    assert child.exit_status == ExitStatus(code=0)


@each_tier
async def test_a_child_that_ignores_the_end_of_its_input_is_terminated(open_child, tier) -> None:
    deadlines = attrs.evolve(PATIENT, child_eof_grace=0.05)
    async with open_child(["sleep", "1000"], deadlines=deadlines, tier=tier) as child:
        pass
    assert child.exit_status == ExitStatus(signal=signal.SIGTERM)


@each_tier
async def test_a_child_that_ignores_everything_is_killed(open_child, tier) -> None:
    async with open_child(program("rude"), deadlines=QUICK, tier=tier) as child:
        await child.receive_some()
    assert child.exit_status == ExitStatus(signal=signal.SIGKILL)


@each_tier
async def test_a_stopped_child_is_ended(open_child, tier) -> None:
    deadlines = attrs.evolve(PATIENT, child_eof_grace=0.05)
    async with open_child(["cat"], deadlines=deadlines, tier=tier) as child:
        os.kill(child.pid, signal.SIGSTOP)
    assert child.exit_status == ExitStatus(signal=signal.SIGTERM)


@each_tier
async def test_kill_does_not_wait_and_needs_no_grace(open_child, tier) -> None:
    async with open_child(program("rude"), tier=tier) as child:
        await child.receive_some()
        child.kill()
        assert await child.wait() == ExitStatus(signal=signal.SIGKILL)
        child.kill()


@each_tier
async def test_stopping_twice_or_together_is_stopping_once(open_child, tier) -> None:
    async with open_child(["cat"], tier=tier) as child:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.stop)
            nursery.start_soon(child.stop, b"bye\n")
        assert await child.stop() == ExitStatus(code=0)
        assert await child.receive_some() == b""
        with pytest.raises(ChildError):
            await child.send(b"x")


async def test_the_farewell_comes_before_the_end_of_the_input(open_child) -> None:
    async with open_child(["sh", "-c", "cat >&2"]) as child:
        await child.send(b"hello ")
        await child.stop(b"and goodbye\n")
        assert child.stderr_tail == b"hello and goodbye\n"


async def test_a_farewell_to_a_child_that_has_left_is_no_error(open_child) -> None:
    async with open_child(["true"]) as child:
        await child._tree.stdin.aclose()
        assert await child.stop(b"goodbye\n") == ExitStatus(code=0)


@each_tier
async def test_a_child_that_has_much_to_say_at_its_end_is_heard_out(open_child, tier) -> None:
    text = "import sys\nsys.stdin.read()\nsys.stdout.write('x' * 5_000_000)"
    async with open_child(python(text), tier=tier) as child:
        pass
    assert child.exit_status == ExitStatus(code=0)


async def test_output_ends_for_a_reader_when_the_child_is_stopped(open_child) -> None:
    seen: list[bytes] = []

    async def read_lines() -> None:
        async for line in child.lines():
            seen.append(line)  # noqa: PERF401 - looked at while it grows
        assert await child.receive_some() == b""

    text = "import sys, os\nos.write(1, b'whole\\ntorn')\nsys.stdin.read()\nos.write(1, b'late')"
    async with open_child(python(text)) as child, trio.open_nursery() as nursery:
        nursery.start_soon(read_lines)
        await until(lambda: seen)
        await child.stop()
    assert seen == [b"whole"]


async def test_nobody_receives_while_a_stopping_child_is_heard_out(open_child) -> None:
    async with open_child(program("rude"), deadlines=QUICK) as child:
        await child.receive_some()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child.stop)
            await trio.testing.wait_all_tasks_blocked()
            assert await child.receive_some() == b""
            child.kill()


@each_tier
async def test_an_exception_in_the_body_comes_out_bare(open_child, tier) -> None:
    with pytest.raises(KeyError):
        async with open_child(["cat"], tier=tier) as child:
            raise KeyError("body")
    assert child.exit_status == ExitStatus(code=0)


# --- trees -----------------------------------------------------------------------------


@each_tier
async def test_what_a_program_leaves_in_its_group_ends_with_it(run_child, tier) -> None:
    mark = new_mark()
    result = await run_child(program("background", mark), tier=tier)
    assert result.status == ExitStatus(code=0)
    await until(lambda: not IS_LINUX or not alive(mark))


@linux_only
async def test_what_escapes_from_its_group_ends_with_the_program(run_child) -> None:
    mark = new_mark()
    result = await run_child(program("forker", "leave", mark))
    assert result.stdout == b"up\n"
    assert alive(mark) == []


@linux_only
async def test_what_escapes_from_its_group_ends_with_the_block(open_child) -> None:
    mark = new_mark()
    async with open_child(program("forker", mark), deadlines=QUICK) as child:
        await child.receive_some()
        assert len(alive(mark)) == 2
    assert alive(mark) == []


@linux_only
async def test_the_whole_tree_gets_time_to_tidy_up(open_child, tmp_path: Path) -> None:
    deadlines = attrs.evolve(PATIENT, child_eof_grace=0.05)
    file = tmp_path / "tidy"
    async with open_child(program("tidy", str(file)), deadlines=deadlines) as child:
        await child.receive_some()
    assert child.exit_status == ExitStatus(signal=signal.SIGTERM)
    assert file.read_text() == "tidy"


@linux_only
@pytest.mark.parametrize("how", ["plain", "setsid"])
async def test_what_runs_away_by_forking_is_caught(run_child, how) -> None:
    mark = new_mark()
    result = await run_child(program("runaway", how, mark))
    assert result.status == ExitStatus(code=0)
    assert alive(mark) == []


@linux_only
async def test_orphans_are_reaped_while_the_child_lives(open_child) -> None:
    async with open_child(program("orphan")) as child:
        orphan = int(await child.receive_some())
        await until(lambda: orphan not in {entry.pid for entry in process_table()})
        assert child.exit_status is None


@linux_only
async def test_a_killed_guard_takes_the_child_along_and_is_noticed(open_child) -> None:
    mark = new_mark()
    with capture_logs() as logs:
        async with open_child(program("rude", mark)) as child:
            await child.receive_some()
            (guard,) = guards_of(os.getpid())
            os.kill(guard.pid, signal.SIGKILL)
            assert await child.wait() == ExitStatus()
            await until(lambda: not alive(mark))
    assert logs[-1]["event"] == "guard process died; descendants may be left"


@linux_only
async def test_a_killed_guard_takes_the_child_along_even_if_nobody_notices(open_child) -> None:
    mark = new_mark()
    async with open_child(program("rude", mark)) as child:
        await child.receive_some()
        (guard,) = guards_of(os.getpid())
        os.kill(guard.pid, signal.SIGKILL)
        assert seconds_until(lambda: not alive(mark), 10) is not None  # blocks our loop


@linux_only
async def test_the_end_of_the_control_pipe_is_enough_to_end_the_tree(open_child) -> None:
    async with open_child(program("rude"), ports=ports_with("no-pidfd")) as child:
        await child.receive_some()
        await child._tree._control.aclose()
        with trio.fail_after(10):
            assert await child.wait() == ExitStatus(signal=signal.SIGKILL)


@linux_only
async def test_a_guard_cannot_be_asked_to_end_and_a_stopped_one_wakes_up(open_child) -> None:
    async with open_child(program("rude"), deadlines=QUICK) as child:
        await child.receive_some()
        (guard,) = guards_of(os.getpid())
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGSTOP):
            os.kill(guard.pid, number)
        assert await child.stop() == ExitStatus(signal=signal.SIGKILL)


@linux_only
def test_a_child_survives_the_retirement_of_its_owners_threads() -> None:
    # Trio starts processes in worker threads, which retire after some idle seconds. A
    # parent-death signal armed on what such a thread forked kills it then. Only the guard
    # arms one, in its main and only thread; the guard itself has none.
    run = subprocess.run(
        [sys.executable, str(PROGRAMS / "idle_host.py")], capture_output=True, check=True
    )
    assert run.stdout.splitlines()[-1] == b"b'still here\\n'"


# --- guards that do not work -------------------------------------------------------------


@linux_only
@pytest.mark.parametrize(
    ("alteration", "reason"),
    [("no-ctypes", "no prctl: "), ("no-prctl", "prctl is refused")],
)
async def test_where_no_guard_works_the_group_is_used(run_child, alteration, reason) -> None:
    with capture_logs() as logs:
        result = await run_child(["echo", "hello"], ports=ports_with(alteration))
    assert result.stdout == b"hello\n"
    assert logs[0]["event"] == "no guard works here"
    assert logs[0]["reason"].startswith(reason)
    assert logs[1]["tier"] == "group"


@linux_only
async def test_a_guard_that_was_asked_for_is_not_replaced(open_child) -> None:
    with pytest.raises(ChildStartFailed, match="no guard works here: prctl is refused"):
        async with open_child(["cat"], ports=ports_with("no-prctl"), tier="guard"):
            pytest.fail("the body of a child that did not start")


@linux_only
async def test_a_kernel_without_pidfd_will_do(run_child) -> None:
    result = await run_child(["echo", "hello"], ports=ports_with("no-pidfd"))
    assert result.stdout == b"hello\n"


@linux_only
async def test_a_guard_that_ends_early_is_quoted(open_child) -> None:
    with pytest.raises(ChildStartFailed, match="cat: its guard process ended: out of luck"):
        async with open_child(["cat"], ports=ports_with("crashing")):
            pytest.fail("the body of a child that did not start")


@linux_only
async def test_a_guard_that_says_nothing_is_given_up(open_child) -> None:
    deadlines = Deadlines(child_start=0.3, child_kill_grace=0.2)
    with pytest.raises(DeadlineExceeded, match=r"child.start \(0.3 s\) exceeded"):
        async with open_child(["cat"], ports=ports_with("silent"), deadlines=deadlines):
            pytest.fail("the body of a child that did not start")


@linux_only
async def test_a_guard_that_cannot_start_is_a_child_that_cannot_start(open_child, ports) -> None:
    async def spawn(*_: object, **__: object):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    with pytest.raises(ChildStartFailed, match="cat: its guard process: Resource temporarily"):
        async with open_child(["cat"], ports=attrs.evolve(ports, spawn=spawn)):
            pytest.fail("the body of a child that did not start")


@linux_only
async def test_a_start_that_is_cancelled_before_the_order_starts_nothing(open_child) -> None:
    with trio.CancelScope() as scope:

        async def spawn(*words, **options):
            process = await ports_with().spawn(*words, **options)
            scope.cancel()
            return process

        async with open_child(["cat"], ports=attrs.evolve(ports_with(), spawn=spawn)):
            pytest.fail("the body of a child that did not start")
    assert scope.cancelled_caught


@linux_only
async def test_a_guard_whose_owner_died_before_it_ran_starts_nothing(open_child) -> None:
    with pytest.raises(ChildStartFailed, match="cat: its guard process ended"):
        async with open_child(["cat"], ports=ports_with("late")):
            pytest.fail("the body of a child that did not start")


@linux_only
async def test_a_program_whose_guard_died_before_it_was_armed_does_not_start(run_child) -> None:
    result = await run_child(["echo", "hello"], ports=ports_with("dying"))
    assert result.status == ExitStatus(code=127)
    assert result.stdout == b""


@linux_only
async def test_a_guard_watches_its_owner_besides_the_pipe(open_child) -> None:
    async with open_child(["cat"]) as owner:
        async with open_child(["cat"], ports=ports_with(f"owner {owner.pid}")) as child:
            owner.kill()
            with trio.fail_after(10):
                assert await child.wait() == ExitStatus(signal=signal.SIGKILL)


@linux_only
async def test_what_cannot_be_signalled_does_not_stop_the_guard(open_child) -> None:
    ports = ports_with("powerless")
    async with open_child(program("rude"), ports=ports, deadlines=QUICK) as child:
        await child.receive_some()
    assert child.exit_status == ExitStatus(signal=signal.SIGKILL)


@linux_only
async def test_what_ends_during_a_look_at_the_tree_is_no_error(open_child) -> None:
    async with open_child(program("rude"), ports=ports_with("hasty"), deadlines=QUICK) as child:
        await child.receive_some()
    assert child.exit_status == ExitStatus(signal=signal.SIGKILL)
