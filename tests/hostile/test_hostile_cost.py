"""Inputs that are made to cost much cost what their length says, and no more.

The frames are a tenth of the largest; ``run.py`` has those.
"""

from __future__ import annotations

import pytest
from hostile_costs import OTHERS, READERS, cost, frames
from hostile_targets import MEGABYTES, SECONDS

FRAMES = frames(1024 * 1024)


@pytest.mark.parametrize("name", FRAMES)
@pytest.mark.parametrize("reader", READERS)
def test_a_frame_costs_what_its_length_says(reader: str, name: str) -> None:
    seconds, _ = cost(READERS[reader], FRAMES[name])
    assert seconds < SECONDS / 4


@pytest.mark.parametrize("name", OTHERS)
def test_what_else_is_read_does_so_too(name: str) -> None:
    seconds, megabytes = cost(*OTHERS[name])
    assert seconds < SECONDS
    assert megabytes < MEGABYTES
