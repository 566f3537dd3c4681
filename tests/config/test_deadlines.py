from __future__ import annotations

import math

import attrs
import pytest

from semibot.config import Deadlines

NAMES = [field.name for field in attrs.fields(Deadlines)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seconds", [-1.0, -0.001, math.nan, -math.inf])
def test_a_deadline_that_is_no_length_of_time_is_refused(name: str, seconds: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a number of seconds"):
        Deadlines(**{name: seconds})


@pytest.mark.parametrize("name", NAMES)
def test_every_deadline_can_be_set(name: str) -> None:
    assert getattr(Deadlines(**{name: 0.25}), name) == 0.25


@pytest.mark.parametrize("name", NAMES)
def test_every_deadline_is_bounded_unless_someone_says_otherwise(name: str) -> None:
    assert 0 < getattr(Deadlines(), name) < math.inf


def test_a_deadline_is_named_for_the_part_that_it_bounds() -> None:
    parts = {name.partition("_")[0] for name in NAMES}
    parts -= {"bridge", "child", "model", "run", "session", "tool"}
    assert parts == {"channel", "host", "http", "link", "request", "store", "vm"}


def test_shorter_graces_make_a_stop_shorter() -> None:
    usual = Deadlines().stop_bound
    shorter = attrs.evolve(
        Deadlines(), run_cancel_grace=1, session_adapter_stop=1, session_save=1, child_kill_grace=1
    )
    assert 0 < shorter.stop_bound < usual < math.inf


def test_deadlines_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Deadlines().run_limit = 1.0  # type: ignore[misc]
