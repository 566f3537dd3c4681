"""Bridges that misbehave: one terminal event, no process left, and the next message works."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from bridge_sessions import (
    COMPLETE,
    GOOD,
    QUICK,
    START,
    START_WITH_RUNS,
    Seen,
    is_alive,
    number_in,
    opened,
    scripted,
    until,
)

from semibot.adapters import BridgeAgent
from semibot.live import live_ports
from semibot.testing import capture_logs
from semibot.wire.events import ExecutionComplete, ExecutionError, SessionEvent, TextChunk

ASKED = [*START, ["wait", "user_message"]]
PARTIAL = ["say", {"type": "text", "content": "partial"}]


def error_of(events: list[SessionEvent]) -> ExecutionError:
    error = events[-1]
    assert isinstance(error, ExecutionError)
    return error


async def next_message_works(seen: Seen, *, starts: int) -> None:
    events = await seen.ask("again")
    assert isinstance(events[-1], ExecutionComplete)
    assert events[-1].final_response == "echo: again"
    assert seen.adapter.statistics().starts == starts


async def test_a_missing_program_fails_the_message_and_not_the_session(tmp_path: Path) -> None:
    async with opened(tmp_path, BridgeAgent(["no-such-bridge-xyz"])) as seen:
        for _ in range(2):
            error = error_of(await seen.ask("hello"))
            assert error.code == "OPENCLAW_BRIDGE_START_FAILED"
            assert "no-such-bridge-xyz" in error.error
            assert "check the command of BridgeAgent" in error.error
            assert not error.retryable
        assert seen.adapter.statistics().starts >= 2  # each message tries again
        assert await seen.adapter.get_snapshot() is None


async def test_a_program_that_appears_later_is_started_by_the_next_message(
    tmp_path: Path,
) -> None:
    words = scripted(GOOD).command
    program = tmp_path / "bridge"
    async with opened(tmp_path, BridgeAgent([str(program), *words[1:]])) as seen:
        assert error_of(await seen.ask("hello")).code == "OPENCLAW_BRIDGE_START_FAILED"
        program.symlink_to(sys.executable)
        assert isinstance((await seen.ask("again"))[-1], ExecutionComplete)


async def test_a_start_line_that_is_too_long_fails_the_message(tmp_path: Path) -> None:
    payload = {"agent_config": {"system_prompt": "x" * 1024 * 1024}}
    async with opened(tmp_path, scripted(GOOD), payload=payload) as seen:
        error = error_of(await seen.ask("hello"))
        assert error.code == "OPENCLAW_BRIDGE_START_FAILED"
        assert "a start line would be longer than 1 MiB" in error.error
        assert not error.retryable


async def test_a_start_that_takes_too_long_may_be_tried_again(tmp_path: Path) -> None:
    deadlines = attrs.evolve(QUICK, child_start=1e-6)
    async with opened(tmp_path, scripted(GOOD), deadlines=deadlines) as seen:
        error = error_of(await seen.ask("hello"))
        assert error.code == "OPENCLAW_BRIDGE_START_FAILED"
        assert "child.start" in error.error
        assert error.retryable is True


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (["exit", 0], "exit status 0"),
        (["exit", 1], "exit status 1"),
        (["signal", signal.SIGSEGV], "killed by SIGSEGV"),
        (["signal", signal.SIGKILL], "killed by SIGKILL"),
    ],
    ids=["exit 0", "exit 1", "SIGSEGV", "SIGKILL"],
)
async def test_a_child_that_ends_during_a_run_fails_it_with_its_status(
    tmp_path: Path, step: list[object], words: str
) -> None:
    complaint = ["complain", 5000]
    with capture_logs() as logs:
        async with opened(tmp_path, scripted([*ASKED, PARTIAL, complaint, step], GOOD)) as seen:
            events = await seen.ask("hello")
            assert TextChunk(content="partial") in events
            error = error_of(events)
            assert error.code == "OPENCLAW_BRIDGE_EXITED"
            assert words in error.error
            assert error.retryable is True
            await next_message_works(seen, starts=2)
    (ended,) = [entry for entry in logs if entry["event"] == "bridge ended"]
    assert "eeee" in ended["stderr"]
    assert "eeee" not in error.error


async def test_a_child_that_ends_between_runs_is_replaced_by_the_next_message(
    tmp_path: Path,
) -> None:
    script = [*ASKED, ["say", COMPLETE], ["wait", "snapshot"], ["exit", 1]]
    async with opened(tmp_path, scripted(script, GOOD)) as seen:
        assert isinstance((await seen.ask("hello"))[-1], ExecutionComplete)
        await until(lambda: seen.adapter.statistics().pid is None)
        await next_message_works(seen, starts=2)


async def test_a_child_that_dies_before_it_is_ready_fails_the_message(tmp_path: Path) -> None:
    async with opened(tmp_path, scripted([["exit", 7]], [["exit", 7]], GOOD)) as seen:
        error = error_of(await seen.ask("hello"))
        assert error.code == "OPENCLAW_BRIDGE_EXITED"
        assert "exit status 7" in error.error
        await seen.ask("hello")  # the first message may have met the first child or the second
        assert isinstance((await seen.ask("again"))[-1], ExecutionComplete)


async def test_a_child_that_never_reads_is_not_ready(tmp_path: Path) -> None:
    payload = {"agent_config": {"system_prompt": "x" * 200_000}}  # more than a pipe holds
    deadlines = attrs.evolve(QUICK, bridge_ready=0.4)
    script = scripted([["hang", None]], [["hang", None]], GOOD)
    async with opened(tmp_path, script, payload=payload, deadlines=deadlines) as seen:
        error = error_of(await seen.ask("hello"))
        assert error.code == "SESSION_START_TIMEOUT"
        assert "bridge.ready (0.4 s) exceeded" in error.error
        assert error.retryable is True


async def test_a_line_of_20_mb_ends_the_child_and_not_the_session(tmp_path: Path) -> None:
    script = [*ASKED, PARTIAL, ["long_line", 20_000_000], ["say", COMPLETE], ["hang", None]]
    deadlines = attrs.evolve(QUICK, child_eof_grace=60.0)  # it is killed, not asked
    async with opened(tmp_path, scripted(script, GOOD), deadlines=deadlines) as seen:
        error = error_of(await seen.ask("hello"))
        assert error.code == "OPENCLAW_BRIDGE_PROTOCOL"
        assert "a line is longer than 1048576 bytes" in error.error
        await next_message_works(seen, starts=2)


async def test_garbage_is_skipped_counted_and_logged_once(tmp_path: Path) -> None:
    garbage = ["not JSON", "", "[1]", '"text"', '{"type": "weird"}', '{"type": ["a"]}', "{}"]
    garbage += ['{"type": "text_chunk"}', '{"type": "run_started", "run_id": "r"}', "\x00\x1b[1m"]
    said = [["put", line] for line in garbage]
    script = [*ASKED, *said, ["say", COMPLETE], ["serve", None]]
    with capture_logs() as logs:
        async with opened(tmp_path, scripted(script)) as seen:
            events = await seen.ask("hello")
            assert isinstance(events[-1], ExecutionComplete)
            assert seen.adapter.statistics().skipped_lines == len(garbage)
            await next_message_works(seen, starts=1)
    skipped = [entry for entry in logs if entry["event"] == "line of a bridge skipped"]
    assert [entry["log_level"] for entry in skipped] == ["warning"]


async def test_a_malformed_end_is_an_end(tmp_path: Path) -> None:
    malformed = {"type": "execution_complete", "final_response": {"text": "done"}}
    async with opened(tmp_path, scripted([*ASKED, ["say", malformed], ["serve", None]])) as seen:
        assert error_of(await seen.ask("hello")).code == "OPENCLAW_BRIDGE_PROTOCOL"
        await next_message_works(seen, starts=1)


async def test_a_flood_on_stderr_holds_nothing_up(tmp_path: Path) -> None:
    script = [*ASKED, ["complain", 10_000_000], ["say", COMPLETE], ["serve", None]]
    async with opened(tmp_path, scripted(script)) as seen:
        assert isinstance((await seen.ask("hello"))[-1], ExecutionComplete)
        await next_message_works(seen, starts=1)


async def test_a_flood_of_events_is_passed_on_in_order(tmp_path: Path) -> None:
    script = [*ASKED, ["count", 5000], ["say", {"type": "execution_complete"}], ["serve", None]]
    async with opened(tmp_path, scripted(script)) as seen:
        events = await seen.ask("hello")
        text = "".join(event.content for event in events if isinstance(event, TextChunk))
        assert text == "".join(f"{n}," for n in range(5000))


@pytest.mark.parametrize("start", [START, START_WITH_RUNS], ids=["level 1", "knows runs"])
async def test_an_answer_without_an_end_ends_the_run_and_the_child(
    tmp_path: Path, start: list[list[object]]
) -> None:
    script = [*start, ["wait", "user_message"], ["flood", 10**9]]
    async with opened(tmp_path, scripted(script, GOOD)) as seen:
        events = await seen.ask("hello")
        assert error_of(events).code == "ANSWER_TOO_LONG"
        text = sum(len(event.content) for event in events if isinstance(event, TextChunk))
        assert 7 * 1024 * 1024 < text <= 8 * 1024 * 1024
        assert seen.adapter.statistics().pid is None
        await next_message_works(seen, starts=2)


async def test_a_child_that_said_too_much_is_not_kept_although_it_would_obey(
    tmp_path: Path,
) -> None:
    obeys = [["wait", "cancel"], ["say", {**COMPLETE, "run_id": "$run_id", "cancelled": True}]]
    script = [*START_WITH_RUNS, ["wait", "user_message"], ["flood", 10], *obeys, ["serve", None]]
    async with opened(tmp_path, scripted(script, GOOD)) as seen:
        assert error_of(await seen.ask("hello")).code == "ANSWER_TOO_LONG"
        await next_message_works(seen, starts=2)


async def test_only_the_first_of_two_ends_counts(tmp_path: Path) -> None:
    error = {"type": "execution_error", "error": "second"}
    late = {"type": "text", "content": "late"}
    said = [["say", COMPLETE], ["say", error], ["say", late], ["say", COMPLETE]]
    async with opened(tmp_path, scripted([*ASKED, *said, ["serve", None]])) as seen:
        events = await seen.ask("hello")
        assert isinstance(events[-1], ExecutionComplete)
        assert events[-1].final_response == "done"
        assert TextChunk(content="late") not in events
        assert seen.adapter.statistics().dropped_events == 3  # the snapshot came after them
        await next_message_works(seen, starts=1)


async def test_a_child_that_ignores_the_end_of_its_input_and_sigterm_is_killed(
    tmp_path: Path,
) -> None:
    script = [["ignore", signal.SIGTERM], *ASKED, ["say", COMPLETE], ["hang", None]]
    deadlines = attrs.evolve(QUICK, bridge_snapshot=0.1)
    async with opened(tmp_path, scripted(script), deadlines=deadlines) as seen:
        await seen.ask("hello")
        pid = seen.adapter.statistics().pid
        start = trio.current_time()
    assert pid is not None
    assert not is_alive(pid)
    assert trio.current_time() - start < 3


@pytest.mark.skipif(sys.platform != "linux", reason="only the guard reaches what left its group")
@pytest.mark.parametrize("last", [["serve", None], ["exit", 3]], ids=["lives on", "exits"])
async def test_what_a_child_left_behind_goes_with_it(tmp_path: Path, last: list[object]) -> None:
    path = str(tmp_path / "grandchild")
    script = [["fork_twice", path], *ASKED, ["say", COMPLETE], last]
    async with opened(tmp_path, scripted(script, GOOD)) as seen:
        assert isinstance((await seen.ask("hello"))[-1], ExecutionComplete)
        grandchild = number_in(Path(path))
        if last[0] == "serve":
            assert is_alive(grandchild)
        else:
            await next_message_works(seen, starts=2)
            assert not is_alive(grandchild)
    assert not is_alive(grandchild)


async def test_the_end_of_a_child_is_noticed_although_a_stranger_holds_its_pipes(
    tmp_path: Path,
) -> None:
    path = tmp_path / "grandchild"
    script = [["fork_twice", str(path)], *ASKED, PARTIAL, ["exit", 3]]
    ports = attrs.evolve(live_ports(), is_simulated=True)  # without a guard
    try:
        async with opened(tmp_path, scripted(script, GOOD), ports=ports) as seen:
            events = await seen.ask("hello")
            assert TextChunk(content="partial") in events
            assert "exit status 3" in error_of(events).error
            await next_message_works(seen, starts=2)
    finally:
        os.kill(number_in(path), signal.SIGKILL)


@pytest.mark.parametrize("descriptor", [0, 1], ids=["stdin", "stdout"])
async def test_a_child_that_closes_a_pipe_is_replaced(tmp_path: Path, descriptor: int) -> None:
    script = [*ASKED, ["close", descriptor], ["hang", None]]
    async with opened(tmp_path, scripted(script, GOOD)) as seen:
        async with seen.session.run("hello") as run:
            if descriptor == 0:  # noticed only when there is something to say
                await until(lambda: seen.heard("user_message") != [])
                await run.cancel()
                assert run.outcome == "cancelled"
            else:
                assert await run.wait() == "failed"
                assert isinstance(run.terminal, ExecutionError)
                assert "closed its output" in run.terminal.error
        await next_message_works(seen, starts=2)


async def test_a_child_that_closes_its_input_cannot_be_told_of_the_next_run(
    tmp_path: Path,
) -> None:
    script = [*ASKED, ["say", COMPLETE], ["wait", "snapshot"], ["close", 0], ["hang", None]]
    async with opened(tmp_path, scripted(script, GOOD)) as seen:
        await seen.ask("hello")
        error = error_of(await seen.ask("again"))
        assert error.code == "OPENCLAW_BRIDGE_PROTOCOL"
        assert "closed its input" in error.error
        await next_message_works(seen, starts=2)


async def test_how_a_child_ended_says_more_than_that_it_no_longer_reads(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    script = [*ASKED, ["say", COMPLETE], ["wait", "snapshot"], ["close", 0]]
    script += [["wait_file", str(gate)], ["exit", 5]]
    deadlines = attrs.evolve(QUICK, child_eof_grace=5.0)
    async with opened(tmp_path, scripted(script), deadlines=deadlines) as seen:
        await seen.ask("hello")
        async with seen.session.run("again") as run:
            await until(lambda: run.under_way() != ())
            await trio.testing.wait_all_tasks_blocked(0.05)
            gate.touch()
            assert await run.wait() == "failed"
        assert isinstance(run.terminal, ExecutionError)
        assert run.terminal.code == "OPENCLAW_BRIDGE_EXITED"
        assert "exit status 5" in run.terminal.error


async def test_a_child_that_stops_reading_fails_the_run_after_a_while(tmp_path: Path) -> None:
    deadlines = attrs.evolve(QUICK, bridge_request=0.3)
    async with opened(
        tmp_path, scripted([*START, ["hang", None]], GOOD), deadlines=deadlines
    ) as seen:
        error = error_of(await seen.ask("x" * 200_000))
        assert error.code == "OPENCLAW_BRIDGE_PROTOCOL"
        assert "bridge.request (0.3 s) exceeded" in error.error
        await next_message_works(seen, starts=2)


@pytest.mark.parametrize("start", [START, START_WITH_RUNS], ids=["level 1", "knows runs"])
async def test_a_child_that_stops_reading_does_not_hold_up_a_cancel(
    tmp_path: Path, start: list[list[object]]
) -> None:
    async with opened(tmp_path, scripted([*start, ["hang", None]], GOOD)) as seen:
        async with seen.session.run("x" * 200_000) as run:
            await until(lambda: run.under_way() != ())
            with trio.fail_after(5):
                receipt = await run.cancel()
        assert receipt is not None
        assert [item.kind for item in receipt.stopped] == ["child"]
        assert receipt.abandoned == ()
        assert run.outcome == "cancelled"
        await next_message_works(seen, starts=2)
