"""What is left of children when their owner is killed with SIGKILL; Linux only."""

from __future__ import annotations

import sys

import pytest
from sigkill_many import has_settled, is_starting, kill_host

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs the guard and /proc")


@pytest.mark.parametrize("_", range(6))
def test_nothing_outlives_a_killed_owner_by_a_second(_: int) -> None:
    aftermath = kill_host("settled", has_settled)
    assert aftermath.left == []
    assert aftermath.seconds is not None


@pytest.mark.parametrize("_", range(3))
def test_nothing_outlives_an_owner_that_is_killed_while_it_starts_children(_: int) -> None:
    aftermath = kill_host("starting", is_starting)
    assert aftermath.left == []
    assert aftermath.seconds is not None


def test_a_leaked_copy_of_the_pipes_does_not_keep_children_alive() -> None:
    # A fork of the owner holds the writing end of the control pipes, which therefore do not
    # end; the guards watch the owner itself as well.
    aftermath = kill_host("forked", has_settled)
    assert aftermath.left == []
    assert aftermath.seconds is not None
