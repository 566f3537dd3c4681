"""One seed gives one trace: again in the same process, and in any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import trio
import trio.testing

from semibot.testing import seeded_scheduler, simulate

MINUTES = 0.25


def test_the_same_seed_tells_the_same_story() -> None:
    first, again, other = (simulate(seed, minutes=MINUTES) for seed in (7, 7, 8))
    assert (first.trace, first.happenings) == (again.trace, again.happenings)
    assert first.trace != other.trace


def test_processes_with_other_hash_seeds_tell_the_same_story() -> None:
    assert _traces("0") == _traces("12345")


def _traces(hash_seed: str) -> object:
    command = [sys.executable, "-m", "semibot.testing", "simulate", "--json"]
    done = subprocess.run(
        [*command, "--seeds", "2", "--from", "7", "--minutes", str(MINUTES)],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])["traces"]


# --- the scheduler --------------------------------------------------------------------


def _order(seed: int) -> list[int]:
    """Return in which order ten tasks run that all can, three times over."""
    order: list[int] = []

    async def run(number: int) -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            order.append(number)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(run, number)

    with seeded_scheduler(seed):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return order


@pytest.mark.parametrize("seed", range(3))
def test_trio_still_shuffles_as_it_is_told(seed: int) -> None:
    """This fails if Trio renames what the scheduler uses, or does not use it any more."""
    assert len({tuple(_order(seed)) for _ in range(5)}) == 1
    assert _order(seed) != _order(seed + 1)


def test_a_frozen_task_stands_still_and_then_goes_on() -> None:
    frozen: set[trio.lowlevel.Task] = set()
    steps: list[float] = []

    async def walk() -> None:
        frozen.add(trio.lowlevel.current_task())
        while len(steps) < 3:
            await trio.sleep(1.0)
            steps.append(trio.current_time() - start)

    async def main() -> None:
        nonlocal start
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(walk)
            await trio.sleep(10.5)
            frozen.clear()
            for _ in range(2):  # it goes on in Trio's next round
                await trio.lowlevel.checkpoint()

    start = 0.0
    with seeded_scheduler(0, lambda task: task in frozen):
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    assert [round(step, 3) for step in steps] == [10.5, 11.5, 12.5]


def test_the_scheduler_is_given_back() -> None:
    from trio._core import _run

    before = (_run._r, _run._ALLOW_DETERMINISTIC_SCHEDULING)
    with seeded_scheduler(1):
        assert _run._r is not before[0]
    assert (_run._r, _run._ALLOW_DETERMINISTIC_SCHEDULING) == before
