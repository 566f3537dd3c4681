from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from cli_programs import RunHere

from semibot.cli.checks import check_bridge, check_children, check_model, check_python
from semibot.cli.host_checks import check_access, check_address, check_bootstrap, check_data_dir
from semibot.config import Deadlines
from semibot.config.settings import HostSettings
from semibot.host.server import open_server
from semibot.live import live_ports
from semibot.secret import Secret
from semibot.store.sqlite import open_sqlite_store
from semibot.testing import simulated_ports


def test_a_machine_where_nothing_is_configured_is_fit_for_the_demonstration(
    run_here: RunHere, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_here("doctor") == 0
    lines = capfd.readouterr().out.splitlines()
    statuses = {line.split("  ")[0]: line for line in lines if not line.startswith(" ")}
    assert list(statuses) == [
        "python", "platform", "child processes", "workspace", "model", "bridge",
        "data directory", "access", "vm", "host",
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
    variables = {
        "OPENCLAW_BRIDGE_CMD": "no-such-bridge --fast",
        "OPENAI_BASE_URL": "ftp://x",
        "SEMIBOT_DATA_DIR": str(tmp_path / ".semibot"),
        "JWT_SECRET": "short",
        "VM_BOOTSTRAP_CMD": "no-such-vm",
        "SEMIBOT_URL": "http://127.0.0.1:2",
    }
    assert run_here("doctor", "--workspace", ".", **variables) == 78
    lines = capfd.readouterr().out.splitlines()
    failed = [line.split("  ")[0] for line in lines if " fail " in line]
    assert failed == [
        "workspace", "model", "bridge", "data directory", "access", "vm", "host",
    ]  # fmt: skip


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


# --- hosts ----------------------------------------------------------------------------


def test_settings_that_make_no_sense_fail(
    run_here: RunHere, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run_here("doctor", SEMIBOT_PORT="many") == 78
    assert "SEMIBOT_PORT: expected a whole number" in capfd.readouterr().out


async def test_a_data_directory_is_used_or_usable_or_not(tmp_path: Path) -> None:
    data = tmp_path / "deep" / "data"
    assert check_data_dir(data).found == f"{data}, made by the first host"
    ports = simulated_ports()
    async with open_sqlite_store(data / "semibot.db", ports=ports, deadlines=Deadlines()):
        assert check_data_dir(data).found.endswith(
            f"in use by the host that runs, process {os.getpid()}"
        )
        (data / "lock").write_text("", encoding="ascii")
        assert check_data_dir(data).found.endswith("in use by the host that runs")
    assert check_data_dir(data).found == str(data)
    (data / "lock").unlink()
    (data / "lock").symlink_to("elsewhere")
    assert check_data_dir(data).status == "fail"
    (tmp_path / "file").write_text("", encoding="ascii")
    assert check_data_dir(tmp_path / "file").status == "fail"


def test_a_data_directory_that_may_not_be_written_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert check_data_dir(tmp_path / "data").status == "fail"


def test_who_may_use_a_host_is_said(tmp_path: Path) -> None:
    good = Secret("f1c9b2e07d5a4683a0be17c26d9453ef")
    assert "one local user" in check_access(HostSettings(data_dir=tmp_path)).found
    public = HostSettings(data_dir=tmp_path, host="0.0.0.0", jwt_secret=good)
    assert "users with tokens" in check_access(public).found


def test_the_command_that_starts_vms_is_looked_up(tmp_path: Path) -> None:
    settings = HostSettings(data_dir=tmp_path, vm_bootstrap_cmd=(sys.executable, "vm.py"))
    assert check_bootstrap(settings).found == f"VM_BOOTSTRAP_CMD starts {sys.executable}"


@pytest.mark.parametrize(
    ("status", "body", "expected", "words"),
    [
        (200, b'{"success":true,"data":{}}', "ok", "is ready"),
        (503, b'{"success":false,"error":{"message":"draining"}}', "warn", ": draining"),
        (503, b'{"success":false}', "warn", "one runs at"),
        (200, b"<html>", "fail", "is no host"),
        (200, b"[]", "fail", "is no host"),
    ],
)
async def test_the_host_is_asked(status: int, body: bytes, expected: str, words: str) -> None:
    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": body, "more_body": False})

    deadlines, ports = Deadlines(), live_ports()
    async with open_server(app, "127.0.0.1", 0, deadlines=deadlines, ports=ports) as server:
        settings = HostSettings(data_dir=Path(), port=server.port)
        check = await check_address(settings, {})
    assert (check.status, bool(check.hint)) == (expected, expected != "ok")
    assert words in check.found
    free = await check_address(settings, {})
    assert (free.status, "the port is free" in free.found) == ("ok", True)


async def test_a_host_elsewhere_that_is_away_fails() -> None:
    for url in ("http://127.0.0.1:1", "http://[", "ftp://h"):
        settings = HostSettings(data_dir=Path(), host="::1")
        check = await check_address(settings, {"SEMIBOT_URL": url})
        assert check.status == "fail"
        assert url in check.found
