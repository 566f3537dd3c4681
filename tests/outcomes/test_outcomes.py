"""However a run is caused to end: one terminal event, the right one, and nothing left."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from causes import CAUSES, Cause, Stage, run_cause
from sigkill import kill_once


@pytest.mark.parametrize("cause", CAUSES, ids=[cause.name for cause in CAUSES])
def test_every_cause_ends_its_run_once_and_leaves_nothing(cause: Cause, tmp_path: Path) -> None:
    row = run_cause(cause, tmp_path)
    assert (row.outcome, row.code) == (cause.outcome, cause.code)
    assert row.terminals == 1
    assert row.left == ""
    assert row.is_as_expected


def test_the_table_has_at_least_25_rows_and_every_outcome() -> None:
    assert len(CAUSES) >= 25
    assert {cause.outcome for cause in CAUSES} == {
        "completed",
        "cancelled",
        "timeout",
        "failed",
        "interrupted",
    }


def _leak_descriptor(_: Stage) -> Callable[[], object]:
    descriptor = os.open("/dev/null", os.O_RDONLY)
    return lambda: os.close(descriptor)


def _leak_child(_: Stage) -> Callable[[], object]:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    return lambda: child.communicate(b"\n")


def _leak_grandchild(stage: Stage) -> Callable[[], object]:
    read_end, write_end = os.pipe()
    subprocess.run(
        [sys.executable, "-c", "import os\nif os.fork() == 0:\n os.setsid(); os.read(0, 1)"],
        stdin=read_end,
        cwd=stage.workspace,
        check=True,
    )
    os.close(read_end)
    return lambda: os.close(write_end)


@pytest.mark.parametrize("leak", [_leak_descriptor, _leak_child, _leak_grandchild])
def test_the_measurement_sees_what_is_left(
    leak: Callable[[Stage], Callable[[], object]], tmp_path: Path
) -> None:
    (answers,) = [cause for cause in CAUSES if cause.name == "the model answers"]
    mend: list[Callable[[], object]] = []

    async def drive(stage: Stage) -> None:
        await answers.drive(stage)
        mend.append(leak(stage))

    row = run_cause(Cause("leak", "completed", "", drive), tmp_path)
    mend[0]()
    assert row.left != ""
    assert not row.is_as_expected


@pytest.mark.skipif(sys.platform != "linux", reason="the guard is for Linux")
@pytest.mark.parametrize("number", range(3))
def test_nothing_is_alive_a_second_after_the_program_was_killed(
    number: int, tmp_path: Path
) -> None:
    killing = kill_once(tmp_path)
    assert killing.before >= 4, f"run {number}: the agents were not at work"
    assert killing.left == 0
