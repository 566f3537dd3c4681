from __future__ import annotations

import sys
from types import MappingProxyType

import attrs
import pytest
import trio
from gate_kit import make_kit

from semibot.live import live_ports
from semibot.tools.builtin import run_command
from semibot.tools.builtin.commands import command_environment


def python(code):
    return [sys.executable, "-I", "-c", code]


@pytest.fixture
def kit(tmp_path):
    return make_kit(run_command, workspace=tmp_path, grants=["run"])


async def test_a_command_returns_its_output_and_exit_code(kit, tmp_path):
    (tmp_path / "a.txt").touch()
    result = await kit.call("run_command", argv=["ls", "-1"])
    assert result.result == {"exit_code": 0, "stdout": "a.txt\n", "stderr": "", "truncated": False}
    assert kit.ends[0].effect == "ran: ls -1 (exit status 0)"
    assert kit.ledger.under_way() == ()


async def test_a_command_that_fails_has_worked_as_a_call(kit):
    code = "import sys; sys.stderr.write('bad'); sys.exit(3)"
    result = await kit.call("run_command", argv=python(code))
    assert result.outcome == "ok"
    assert result.result["exit_code"] == 3
    assert result.result["stderr"] == "bad"


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (40, "40")])
async def test_a_command_that_a_signal_ends_says_which(kit, number, name):
    code = f"import os; os.kill(os.getpid(), {number})"
    result = await kit.call("run_command", argv=python(code))
    assert result.result["signal"] == name
    assert "exit_code" not in result.result


async def test_words_are_arguments_and_never_code_for_a_shell(kit, tmp_path):
    words = ["; touch hacked", "$(touch hacked)", "`touch hacked`", "*", "a\nb", "", "ü"]
    code = "import sys; print(ascii(sys.argv[1:]))"
    result = await kit.call("run_command", argv=[*python(code), *words])
    assert result.result["stdout"] == ascii(words) + "\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "argv is empty; its first word is the program"),
        ([""], "argv is empty; its first word is the program"),
        (["ls", "a\0b"], "argv contains a NUL character"),
    ],
)
async def test_commands_that_are_none_are_an_error(kit, argv, message):
    result = await kit.call("run_command", argv=argv)
    assert (result.outcome, result.error) == ("error", message)


async def test_a_program_that_is_missing_is_an_error_that_names_it(kit):
    result = await kit.call("run_command", argv=["no-such-program", "x"])
    assert result.outcome == "error"
    assert "no-such-program" in result.error
    assert kit.ledger.under_way() == ()


async def test_a_command_is_denied_without_a_grant(tmp_path):
    kit = make_kit(run_command, workspace=tmp_path, grants=["run:git status"])
    result = await kit.call("run_command", argv=["touch", "a"])
    assert result.outcome == "denied"
    assert "--allow run" in result.error
    assert list(tmp_path.iterdir()) == []


async def test_a_command_gets_no_keys_and_an_empty_input(tmp_path):
    ports = live_ports()
    environment = {**ports.environment, "OPENAI_API_KEY": "sk-canary", "MY_TOKEN": "canary"}
    ports = attrs.evolve(ports, environment=MappingProxyType(environment))
    kit = make_kit(run_command, workspace=tmp_path, grants=["run"], ports=ports)
    code = "import os, sys; print(sorted(os.environ), os.getcwd(), repr(sys.stdin.read()))"
    result = await kit.call("run_command", argv=python(code))
    stdout = result.result["stdout"]
    assert "canary" not in stdout
    assert "KEY" not in stdout
    assert "TOKEN" not in stdout
    assert "'TERM'" in stdout
    assert str(tmp_path) in stdout
    assert stdout.endswith("''\n")


def test_the_environment_is_an_allow_list_without_relative_programs():
    environment = command_environment(
        {"PATH": "/usr/bin:.::bin:/bin", "HOME": "/home/a", "TERM": "xterm", "LD_PRELOAD": "x"}
    )
    assert environment == {"PATH": "/usr/bin:/bin", "HOME": "/home/a", "TERM": "dumb"}
    assert command_environment({})["PATH"].startswith("/")


@pytest.mark.parametrize("path", ["", "bin:.", ":", "../bin"])
async def test_without_an_absolute_directory_no_program_of_the_workspace_runs(tmp_path, path):
    program = tmp_path / "planted"
    program.write_text("#!/bin/sh\necho planted\n")
    program.chmod(0o755)
    ports = attrs.evolve(live_ports(), environment=MappingProxyType({"PATH": path}))
    kit = make_kit(run_command, workspace=tmp_path, grants=["run"], ports=ports)
    result = await kit.call("run_command", argv=["planted"])
    assert result.outcome == "error"
    result = await kit.call("run_command", argv=["echo", "found"])
    assert result.result["stdout"] == "found\n"
    assert command_environment({"PATH": path})["PATH"] == "/bin:/usr/bin"


async def test_long_output_keeps_its_beginning_and_end(kit):
    code = "import sys; print('begin' + 'x' * 100_000 + 'end'); sys.stderr.write('short')"
    result = await kit.call("run_command", argv=python(code))
    assert "cut here" not in result.content
    stdout = result.result["stdout"]
    assert result.result["truncated"] is True
    assert stdout.startswith("beginx")
    assert stdout.endswith("xend\n")
    assert "characters left out" in stdout
    assert result.result["stderr"] == "short"


async def test_output_that_is_no_text_is_shown_as_far_as_possible(kit):
    code = "import sys; sys.stdout.buffer.write(b'a\\xff\\x00b')"
    result = await kit.call("run_command", argv=python(code))
    assert result.result["stdout"] == "a\ufffd\0b"


async def test_a_command_that_takes_too_long_is_gone_afterwards(kit, tmp_path):
    code = "import time; open('begun', 'w').close(); time.sleep(60)"
    with trio.fail_after(10):
        result = await kit.call("run_command", argv=python(code), limit=0.5)
    assert result.outcome == "timeout"
    assert kit.ends[0].effect.startswith("started: ")
    assert kit.ledger.under_way() == ()
