"""The command says what was simulated, and what was wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

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


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--faults", "meteor"], "no such faults: meteor"),
        (["--without", "gapless,luck"], "no such invariants: luck"),
        (["--seeds", "0"], "'0' is not a number from 1 up"),
        (["--seeds", "-3"], "'-3' is not a number from 1 up"),
        (["--jobs", "two"], "'two' is not a number from 1 up"),
        (["--minutes", "-1"], "'-1' is not a number from 0 up"),
        (["--minutes", "nan"], "'nan' is not a number from 0 up"),
        (["--busy-limit", "inf"], "'inf' is not a number from 0 up"),
        (["--from", "first"], "invalid int value: 'first'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: list[str], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["simulate", *arguments])
    assert caught.value.code == 2
    assert f"{arguments[0]}: {what}" in capsys.readouterr().err


# --- as a program ---------------------------------------------------------------------

COMMAND = (sys.executable, "-m", "semibot.testing", "simulate")
ONE_SEED = ("--show", "1", "--minutes", "0.05", "--faults", "")


def _start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_ctrl_c_stops_after_the_seed_that_is_under_way() -> None:
    with _start(*ONE_SEED) as program:
        assert program.stdout is not None
        assert program.stdout.readline().endswith("start host1\n")
        program.send_signal(signal.SIGINT)
        told, said = program.communicate()
    assert program.returncode == 130
    assert told.splitlines()[-1].startswith("SimulationReport(seed=1, violations=()")
    assert said == "stops after the seeds under way; Ctrl-C again stops at once\n"


def test_a_reader_that_has_seen_enough_is_no_fault_of_the_simulation() -> None:
    with _start(*ONE_SEED) as program:
        assert program.stdout is not None
        program.stdout.readline()
        program.stdout.close()
        program.wait()
        assert program.stderr is not None
        assert program.stderr.read() == ""
    assert program.returncode == 0


def test_what_cannot_be_written_is_no_success() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*COMMAND, "--list"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr == "simulate: cannot write: [Errno 28] No space left on device\n"


def _children_of(pid: int) -> set[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return {int(each) for each in children.read_text(encoding="ascii").split()}


def _wait_until(is_true: Callable[[], bool]) -> None:
    """Wait for what nobody reports: the state of other processes."""
    until = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_workers_end_with_a_command_that_is_killed() -> None:
    program = _start("--seeds", "500", "--jobs", "2")
    _wait_until(lambda: len(_children_of(program.pid)) >= 3)  # two, and Python's own helper
    workers = _children_of(program.pid)
    program.kill()
    program.communicate()
    _wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
