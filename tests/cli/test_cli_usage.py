from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from cli_programs import RunHere

from semibot.cli.group import run
from semibot.wire.events import ExecutionComplete, decode_event


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chat", "--local", "--url", "http://h", "hello"], "which?"),
        (["chat", "--model", "m", "hello"], "need --local"),
        (["chat", "--url", "ftp://h", "hello"], "no address of a host"),
        (["chat", "--url", "http://", "hello"], "no address of a host"),
        (["chat", "--local", "--runtime", "magic", "hello"], "'semigraph', 'openclaw'"),
        (["chat", "--local", "--colour", "hello"], "--colour"),
        (["chat", "--local", "two", "messages"], "messages"),
        (["chat", "--local", "  "], "blank"),
        (["chat", "--local"], "blank"),
        (["chat", "--local", "--allow", "write,fly", "hello"], "'fly'"),
        (["chat", "--local", "--allow", "fly", "hello"], "write_file"),
        (["chat", "--local", "--allow", "fly:away", "hello"], "fly:away"),
        (["chat", "--local", "--model", "nobody:gpt", "hello"], "openai"),
        (["chat", "--local", "--model", " ", "hello"], "--model needs a name"),
        (["chat", "--local", "--session", "../x", "hello"], "session id"),
        (["chat", "--local", "--runtime", "openclaw", "--allow", "run", "hello"], "bridge"),
    ],
)
def test_a_mistake_on_the_command_line_exits_2_and_says_what_is_known(
    run_here: RunHere, capfd: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run_here(*arguments) == 2
    captured = capfd.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "openai:gpt-5"], "OPENAI_API_KEY"),
        (["--runtime", "openclaw"], "OPENCLAW_BRIDGE_CMD"),
        (["--runtime", "openclaw", "--model", "m"], "OPENCLAW_BRIDGE_CMD"),
        (["--workspace", "nowhere"], "nowhere"),
    ],
)
def test_what_must_be_set_up_first_exits_78_and_says_what_to_set(
    run_here: RunHere, capfd: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert run_here("chat", "--local", *arguments, "hello") == 78
    captured = capfd.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_a_workspace_that_cannot_keep_a_session_exits_78(
    run_here: RunHere, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / ".semibot").write_text("in the way", encoding="utf-8")
    assert run_here("chat", "--local", "hello") == 78
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("semibot: cannot keep session state in ")


def test_without_a_key_the_demonstration_reads_a_real_file(
    run_here: RunHere, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("the number is 4711\n", encoding="utf-8")
    assert run_here("chat", "--local", "What is in notes.txt?") == 0
    captured = capfd.readouterr()
    assert "demonstration" in captured.out
    assert "4711" in captured.out
    assert captured.out.endswith("\n")
    assert captured.err.startswith("* read_file path=notes.txt  ok ")
    assert captured.err.count("\n") == 1
    assert "4711" not in captured.err


def test_what_is_piped_in_is_one_message(
    run_here: RunHere, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("the number is 4711\n", encoding="utf-8")
    (tmp_path / "question").write_text("Please read\nnotes.txt\n", encoding="utf-8")
    code = run_here("chat", "--local", "--json", stdin=str(tmp_path / "question"))
    assert code == 0
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert events[0]["message"] == "Please read\nnotes.txt\n"
    assert sum(event["type"] == "run_started" for event in events) == 1


def test_json_writes_every_event_as_it_was_encoded_and_nothing_else(
    run_here: RunHere, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("Grüße \x1b[31m\n", encoding="utf-8")
    assert run_here("chat", "--local", "--json", "What is in notes.txt?") == 0
    captured = capfd.readouterr()
    events = [decode_event(line) for line in captured.out.splitlines()]
    kinds = [event.type for event in events]
    assert kinds[0] == "run_started"
    assert kinds[-1] == "execution_complete"
    assert kinds.count("tool_call_complete") == 1
    text = "".join(event.content for event in events if event.type == "text_chunk")
    last = events[-1]
    assert isinstance(last, ExecutionComplete)
    assert last.final_response == text
    assert captured.err == ""


def test_verbose_says_who_talks_and_what_is_merely_of_interest(
    run_here: RunHere, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_here("chat", "--local", "--verbose", "--allow", "write, run", "hello") == 0
    captured = capfd.readouterr()
    first = captured.err.splitlines()[0]
    assert first.startswith("graph with demonstration in ")
    assert first.endswith("grants: write, run")
    assert "~ Reading the request." in captured.err
    assert "\ninfo: run ended" in captured.err
    assert " tokens in, " in captured.err


def test_without_verbose_only_what_the_user_asked_about_is_shown(
    run_here: RunHere, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_here("chat", "--local", "hello") == 0
    assert "info:" not in capfd.readouterr().err


class BrokenInput:
    """Standard input that raises when it is looked at."""

    encoding = "utf-8"

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def fileno(self) -> int:
        raise self.error


def test_ctrl_c_before_anything_has_begun_exits_130(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", BrokenInput(KeyboardInterrupt()))
    assert run(["chat", "--local"]) == 130
    assert capfd.readouterr().err.strip() == ""


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", BrokenInput(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        run(["chat", "--local"])
