"""``semibot vm`` says what it needs, and looks for it where the help says."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_programs import RunHere

VARIABLES = (
    *("CONTROL_PLANE_WS", "VM_USER_ID", "VM_TOKEN", "VM_TICKET", "VM_INSTANCE_ID"),
    *("SEMIBOT_WORKSPACE", "SEMIBOT_STATE_DIR", "SEMIBOT_ALLOW"),
)


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "CONTROL_PLANE_WS"),
        (["--url", "http://127.0.0.1:1"], "VM_TOKEN"),
        (["--url", "http://127.0.0.1:1", "--token", "t"], "VM_USER_ID"),
        (["--url", "127.0.0.1:1", "--token", "t", "--user", "u"], "https://host.example"),
        (["--url", "ws://h", "--token", "t", "--user", "u", "--allow", "rum"], "rum"),
        (["--nonsense"], "nonsense"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(
    arguments: list[str], word: str, run_here: RunHere, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here("vm", *arguments) == 2
    assert word in capsys.readouterr().err


def test_a_workspace_that_is_not_there_is_for_the_operator_to_mend(
    run_here: RunHere, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code = run_here(
        *("vm", "--url", "ws://127.0.0.1:1", "--user", "u", "--workspace", str(tmp_path / "none")),
        VM_TOKEN="t",
        SEMIBOT_STATE_DIR=str(tmp_path / "state"),
    )
    assert code == 78
    assert "none" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


def test_help_names_options_and_variables(
    run_here: RunHere, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_here("vm", "--help") == 0
    out = capsys.readouterr().out
    options = ("--url", "--token", "--user", "--workspace", "--state-dir", "--allow", "--model")
    variables = ("CONTROL_PLANE_WS", "VM_TOKEN", "VM_USER_ID", "SEMIBOT_WORKSPACE")
    assert [name for name in (*options, *variables) if name not in out] == []
