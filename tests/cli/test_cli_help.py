from __future__ import annotations

import subprocess
import sys
import time

import pytest
from cli_programs import command

from semibot.cli.chat import RUNTIME_NAMES
from semibot.cli.group import run
from semibot.cli.runtimes import RUNTIMES

HEAVY = {"attr", "attrs", "cattrs", "openai", "rich", "structlog", "trio"}


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["chat", "--help"], ["doctor", "--help"], ["version"], ["--version"]),
        *(["serve", "--help"], ["vm", "--help"], ["admin", "--help"]),
        ["admin", "vm-token", "--help"],
    ],
)
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "semibot", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0]
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "click" in imported
    assert not imported & HEAVY


@pytest.mark.parametrize("arguments", [["--help"], ["chat", "--help"]])
def test_help_is_there_within_three_tenths_of_a_second(arguments: list[str]) -> None:
    times: list[float] = []
    for _ in range(5):
        begin = time.perf_counter()
        subprocess.run(command(*arguments), capture_output=True, check=True)
        times.append(time.perf_counter() - begin)
    assert min(times) < 0.3


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("serve", "chat", "vm", "admin", "doctor", "version"))


def test_version_says_what_runs_here_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["version"]) == 0
    line = capsys.readouterr().out
    assert line.startswith("semibot ")
    assert "Python " in line
    assert "trio " in line
    assert line.count("\n") == 1
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == line


def test_the_names_of_runtimes_are_those_of_the_table() -> None:
    assert set(RUNTIME_NAMES) == set(RUNTIMES)


def test_no_command_at_all_is_a_usage_error_that_shows_the_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run([]) == 2
    assert "chat" in capsys.readouterr().err


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["chta"]) == 2
    assert "chta" in capsys.readouterr().err


def test_main_ends_the_process_with_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from semibot.cli import main

    monkeypatch.setattr(sys, "argv", ["semibot", "chta"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
