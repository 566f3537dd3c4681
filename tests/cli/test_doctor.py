from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from cli_programs import RunHere

from semibot.cli.checks import check_bridge, check_children, check_model, check_python
from semibot.testing import simulated_ports


def test_a_machine_where_nothing_is_configured_is_fit_for_the_demonstration(
    run_here: RunHere, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_here("doctor") == 0
    lines = capfd.readouterr().out.splitlines()
    statuses = {line.split("  ")[0]: line for line in lines if not line.startswith(" ")}
    assert list(statuses) == [
        "python", "platform", "child processes", "workspace", "model", "bridge",
    ]  # fmt: skip
    assert " warn " in statuses["model"]
    hint = lines[lines.index(statuses["model"]) + 1]
    assert hint.strip().startswith("Set OPENAI_API_KEY")
    assert f"{tmp_path} can be written" in statuses["workspace"]
    if sys.platform == "linux":
        assert " ok " in statuses["child processes"]
    assert any(line.endswith(sys.executable) for line in lines)  # whole, however narrow it is
    assert not list(tmp_path.iterdir())


def test_a_key_is_never_shown(run_here: RunHere, capfd: pytest.CaptureFixture[str]) -> None:
    assert run_here("doctor", OPENAI_API_KEY="sk-secret", SEMIBOT_MODEL="m") == 0
    captured = capfd.readouterr()
    assert "openai:m, OPENAI_API_KEY set (hidden), OPENAI_BASE_URL not set" in captured.out
    assert "sk-" not in captured.out + captured.err


def test_what_must_be_set_up_first_fails_and_exits_78(
    run_here: RunHere, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / ".semibot").write_text("in the way", encoding="utf-8")
    variables = {"OPENCLAW_BRIDGE_CMD": "no-such-bridge --fast", "OPENAI_BASE_URL": "ftp://x"}
    assert run_here("doctor", "--workspace", ".", **variables) == 78
    lines = capfd.readouterr().out.splitlines()
    failed = [line.split("  ")[0] for line in lines if " fail " in line]
    assert failed == ["workspace", "model", "bridge"]


def test_a_workspace_that_is_not_there_fails(
    run_here: RunHere, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_here("doctor", "--workspace", "nowhere") == 78
    assert "nowhere: No such file or directory" in capfd.readouterr().out


async def test_without_a_guard_children_are_a_warning() -> None:
    check = await check_children(simulated_ports())  # which starts no processes
    assert check.status == "warn"
    assert check.hint


async def test_a_compatible_server_needs_no_key() -> None:
    ports = simulated_ports(environment={"OPENAI_BASE_URL": "http://127.0.0.1:1/v1"})
    assert (await check_model(ports)).status == "ok"


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("", "ok"),
        ("sh -c true", "ok"),
        (f"'{sys.executable}' bridge.py", "ok"),
        ("'unfinished", "fail"),
        ("/no/such/bridge", "fail"),
    ],
)
def test_the_command_of_a_bridge_is_looked_up(command: str, status: str) -> None:
    check = check_bridge({"OPENCLAW_BRIDGE_CMD": command, "PATH": os.environ["PATH"]})
    assert check.status == status
    assert bool(check.hint) == (status == "fail")


def test_this_python_is_named() -> None:
    assert sys.executable in check_python().found
