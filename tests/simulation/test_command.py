"""The command says what was simulated, and what was wrong."""

from __future__ import annotations

import json

import pytest

from semibot.testing.simulation import FAULTS, PROMISES
from semibot.testing.simulation.command import main


def test_json_ends_with_one_line_that_says_all(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["simulate", "--seeds", "2", "--from", "3", "--minutes", "0.1", "--json"])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(summary) == [
        "seeds", "faults", "violations", "traces", "simulated_hours", "seconds", "events", "runs",
    ]  # fmt: skip
    assert status == 0
    assert summary["seeds"] == 2
    assert summary["violations"] == []
    assert set(summary["traces"]) == {"3", "4"}
    assert set(summary["faults"]) == {fault.kind for fault in FAULTS}
    assert summary["events"] >= 400
    assert summary["runs"] >= 10


def test_a_violation_is_told_with_the_command_that_shows_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["simulate", "--seeds", "3", "--minutes", "0.1", "--stop-at-first", "--json"]
    status = main([*arguments, "--faults", "clock_jump", "--busy-limit", "0.001"])
    lines = capsys.readouterr().out.splitlines()
    summary = json.loads(lines[-1])
    assert status == 1
    assert summary["seeds"] == 1
    violation = next(each for each in summary["violations"] if each["invariant"] == "within_limits")
    assert violation["seed"] == 1
    command = "python -m semibot.testing simulate --show 1 --minutes 0.1 --faults clock_jump"
    assert violation["command"] == command
    assert f"  {command}" in lines


def test_one_seed_is_shown_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--show", "1", "--minutes", "0.05", "--faults", ""]) == 0
    told = capsys.readouterr().out
    assert " INFO vm-ann1 run ended " in told
    assert " - healed" in told


def test_faults_and_invariants_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "--list"]) == 0
    words = capsys.readouterr().out.split()
    assert {fault.kind for fault in FAULTS} | set(PROMISES) <= set(words)


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(SystemExit, match="no such faults: meteor"):
        main(["simulate", "--faults", "meteor"])
