from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from scenarios_models import CASES, ask, read_to_the_end
from sweeping import check
from trials import Case, Trial
from trio.testing import MockClock

from semibot.errors import ModelError
from semibot.models import ModelRequest, ModelStream


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_is_left_behind_wherever_it_is_cancelled(case: Case) -> None:
    check(case)


async def test_a_cancel_during_a_failing_attempt_is_not_hidden_by_its_error() -> None:
    scope = trio.CancelScope()

    class Failing:
        name = "failing"

        @asynccontextmanager
        async def stream(self, _: ModelRequest) -> AsyncGenerator[ModelStream]:
            scope.cancel("while the model fails")
            raise ModelError("busy", is_retryable=True)
            yield

    with scope:
        await ask(Failing())
    assert scope.cancelled_caught


def test_the_sdk_starts_no_thread_to_find_out_where_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time would jump past a thread, and no limiter would know of it."""
    asked: list[str] = []
    monkeypatch.setattr("openai._base_client.get_platform", lambda: asked.append("x") or "Linux")
    trio.run(read_to_the_end, Trial(tmp_path), clock=MockClock(autojump_threshold=0))
    assert asked == []
