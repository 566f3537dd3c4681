from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
import trio
from cli_programs import command, open_program, read_rest, read_until, run_program

from semibot.testing import model_answers as answers
from semibot.testing.model_server import RecordedRequest, call_tools, open_model_server, say
from semibot.wire.events import ExecutionError, decode_event

UNENDING = answers.Answer(steps=(answers.Text("Once upon "), answers.Hang()))


def read_and_tell(request: RecordedRequest) -> answers.Answer:
    """Behave like a model that reads notes.txt and answers from it."""
    result = next((item for item in request.messages if item.role == "tool"), None)
    if result is None:
        return call_tools(("read_file", {"path": "notes.txt"}), text="Let me look.")
    return say("It says: ", result.content, "\x1b]0;owned\x07 bye", reasoning="I see.\nWell.")


async def test_a_question_about_a_real_file_is_answered_from_it(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("the sky is green", encoding="utf-8")
    async with open_model_server(read_and_tell) as server:
        done = await run_program(
            "chat", "--local", "--verbose", "What is in notes.txt?",
            cwd=tmp_path, OPENAI_BASE_URL=server.base_url, SEMIBOT_MODEL="fake",
        )  # fmt: skip
    assert done.code == 0
    assert done.out == "Let me look.\n\nIt says: the sky is green]0;owned bye\n"
    assert server.problems == []
    lines = done.err.splitlines()
    assert lines[0].startswith(f"graph with openai:fake in {tmp_path}, session ")
    assert any(line.startswith("* read_file path=notes.txt  ok ") for line in lines)
    assert "~ I see." in done.err or "  Well." in lines
    assert any(" tokens in, " in line for line in lines)
    assert "\x1b" not in done.out + done.err


async def test_a_refusal_of_the_model_exits_1_with_the_reason(tmp_path: Path) -> None:
    refusal = answers.Refusal(status=401, error={"message": "bad key"})
    async with open_model_server(refusal) as server:
        done = await run_program(
            "chat", "--local", "hello",
            cwd=tmp_path, OPENAI_BASE_URL=server.base_url, OPENAI_API_KEY="sk-wrong",
        )  # fmt: skip
    assert done.code == 1
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("failed: MODEL_REFUSED: ")
    assert "Traceback" not in done.err
    assert "sk-wrong" not in done.err


async def test_ctrl_c_stops_the_one_answer_shows_the_receipt_and_exits_130(tmp_path: Path) -> None:
    async with (
        open_model_server(UNENDING) as server,
        open_program(
            "chat", "--local", "tell", cwd=tmp_path, OPENAI_BASE_URL=server.base_url
        ) as program,
    ):
        assert program.stdout is not None
        assert program.stderr is not None
        await read_until(program.stdout, "Once upon ")
        program.send_signal(signal.SIGINT)
        assert await read_rest(program.stdout) == "\n"
        errors = await read_rest(program.stderr)
        assert await program.wait() == 130
        assert server.connections[0].peer_closed.is_set()
    assert "cancelled by you, in " in errors
    assert "  stopped    model call openai:" in errors


async def test_sigterm_interrupts_the_run_says_so_and_exits_143(tmp_path: Path) -> None:
    async with (
        open_model_server(UNENDING) as server,
        open_program(
            "chat", "--local", "--json", "tell", cwd=tmp_path, OPENAI_BASE_URL=server.base_url
        ) as program,
    ):
        assert program.stdout is not None
        assert program.stderr is not None
        seen = await read_until(program.stdout, "Once upon ")
        program.terminate()
        seen += await read_rest(program.stdout)
        errors = await read_rest(program.stderr)
        assert errors.startswith("interrupted: the program was told to end, in ")
        assert errors.count("interrupted") == 1
        assert "INTERRUPTED" not in errors
        assert await program.wait() == 143
    events = [decode_event(line) for line in seen.splitlines()]
    last = events[-1]
    assert isinstance(last, ExecutionError)
    assert last.code == "INTERRUPTED"
    assert not any(isinstance(event, ExecutionError) for event in events[:-1])


async def test_the_end_of_a_bridge_is_said_once(tmp_path: Path) -> None:
    bridge = "sh -c 'echo broken >&2; exit 3'"
    arguments = ("chat", "--local", "--runtime", "openclaw", "hello")
    done = await run_program(*arguments, cwd=tmp_path, OPENCLAW_BRIDGE_CMD=bridge)
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert line.startswith(("failed: ", "semibot: "))
    verbose = await run_program(*arguments, "--verbose", cwd=tmp_path, OPENCLAW_BRIDGE_CMD=bridge)
    assert "warning: bridge " in verbose.err


async def test_a_reader_that_goes_away_ends_the_program_without_a_word(tmp_path: Path) -> None:
    async with (
        open_model_server(say(*["word "] * 200, delay=0.02)) as server,
        open_program(
            "chat", "--local", "tell", cwd=tmp_path, OPENAI_BASE_URL=server.base_url
        ) as program,
    ):
        assert program.stdout is not None
        assert program.stderr is not None
        await read_until(program.stdout, "word ")
        await program.stdout.aclose()
        errors = await read_rest(program.stderr)
        assert await program.wait() == 1
    assert "Traceback" not in errors
    assert "Broken" not in errors


async def test_a_second_program_on_a_session_exits_78_and_names_the_first(tmp_path: Path) -> None:
    async with (
        open_model_server(UNENDING) as server,
        open_program(
            "chat", "--local", "--session", "s", "tell",
            cwd=tmp_path, OPENAI_BASE_URL=server.base_url,
        ) as first,
    ):  # fmt: skip
        assert first.stdout is not None
        await read_until(first.stdout, "Once upon ")
        second = await run_program("chat", "--local", "--session", "s", "me too", cwd=tmp_path)
    assert second.code == 78
    (line,) = second.err.splitlines()
    assert line.startswith("semibot: ")
    assert f"process {first.pid}" in line


async def test_a_reader_that_does_not_read_does_not_keep_ctrl_c_from_working(
    tmp_path: Path,
) -> None:
    # More than a pipe takes, so that the program waits for its reader.
    long = answers.Answer(steps=(answers.Text("x" * 300_000), answers.Hang()))
    async with (
        open_model_server(long) as server,
        open_program(
            "chat", "--local", "tell", cwd=tmp_path, OPENAI_BASE_URL=server.base_url
        ) as program,
    ):
        assert program.stdout is not None
        await trio.lowlevel.wait_readable(program.stdout.fileno())  # type: ignore[attr-defined]
        program.send_signal(signal.SIGINT)
        await server.connections[0].peer_closed.wait()
        assert await program.wait() == 130


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
async def test_a_stream_that_is_closed_from_the_start_is_done_without(
    tmp_path: Path, stream: str
) -> None:
    number = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-"}[stream]
    with trio.fail_after(20):
        done = await trio.run_process(
            ["sh", "-c", f'exec "$@" {number}', "sh", *command("chat", "--local", "hello")],
            cwd=tmp_path,
            capture_stdout=stream != "stdout",
            capture_stderr=stream != "stderr",
            stdin=subprocess.DEVNULL,
            check=False,
            env={},
        )
    assert done.returncode == 0
    if stream == "stderr":
        assert b"~" not in (done.stdout or b"")
