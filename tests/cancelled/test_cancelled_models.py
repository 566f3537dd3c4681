from __future__ import annotations

import threading
from pathlib import Path

import pytest
import trio
from scenarios_models import CASES, ask, read_to_the_end
from sweeping import check
from trials import Case, Trial
from trio.testing import MockClock

from semibot.config import Deadlines
from semibot.errors import ModelError
from semibot.models import Fail, ModelRequest, scripted_model
from semibot.testing import simulated_ports


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_is_left_behind_wherever_it_is_cancelled(case: Case) -> None:
    check(case)


async def test_a_cancel_during_a_failing_attempt_is_not_hidden_by_its_error(
    autojump_clock: MockClock,
) -> None:
    scope = trio.CancelScope()

    def fail(request: ModelRequest) -> Fail:
        scope.cancel("while the model fails")
        return Fail(ModelError("busy", code="MODEL_BUSY", is_retryable=True))

    async with scripted_model([fail])(simulated_ports(), Deadlines()) as model:
        with scope:
            await ask(model)
    assert scope.cancelled_caught


def test_the_sdk_starts_no_thread(tmp_path: Path) -> None:
    """Time jumps past a thread, and no limiter would know of it."""
    trial = Trial(tmp_path)
    before = set(threading.enumerate())
    trio.run(read_to_the_end, trial, clock=MockClock(autojump_threshold=0))
    assert set(threading.enumerate()) <= before
