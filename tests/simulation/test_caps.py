"""A simulation that does not come to its end is a violation, and not the machine's."""

from __future__ import annotations

import pytest

from semibot.testing.simulation import simulate, simulating, world


def test_a_simulation_that_never_ends_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulating, "LONGEST_PAUSE", -1.0)
    report = simulate(1, minutes=0.1, faults=[])
    assert {each.invariant for each in report.violations} == {"comes_to_an_end"}
    assert report.simulated_seconds < 60.0


def test_a_simulation_in_which_too_much_happens_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "MOST_HAPPENINGS", -500)
    report = simulate(1, minutes=0.1, faults=[])
    assert {each.invariant for each in report.violations} == {"comes_to_an_end"}
    assert "things happened" in report.violations[0].text
