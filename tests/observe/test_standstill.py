"""A process that did not run has heard nobody, and knows it."""

from __future__ import annotations

import pytest

from semibot.observe.standstill import FROZEN_AFTER, TICK, WAKE_GRACE, Standstill


def running(until: float) -> Standstill:
    standstill = Standstill()
    for now in range(int(until) + 1):
        assert standstill.look(float(now)) == 0
    return standstill


def test_silence_is_counted_from_what_was_heard_last():
    standstill = running(40)
    assert not standstill.is_silent(10.5, 30, 40)
    assert standstill.is_silent(10, 30, 40)
    assert standstill.silent_at(10, 30) == 40


@pytest.mark.parametrize("late", [0, 0.5, FROZEN_AFTER])
def test_a_look_that_is_a_little_late_is_no_standstill(late):
    standstill = running(10)
    assert standstill.look(10 + TICK + late) == 0
    assert standstill.missed(0) == 0


def test_after_a_standstill_nobody_is_silent_for_a_while():
    standstill = running(10)
    assert standstill.look(100) == 100 - 10 - TICK
    assert not standstill.is_silent(0, 30, 100)
    assert standstill.silent_at(0, 30) == 100 + WAKE_GRACE
    assert standstill.is_silent(0, 30, 100 + WAKE_GRACE)
    assert standstill.silent_at(101, 30) == 131


def test_only_what_was_missed_since_then_counts():
    standstill = running(10)
    standstill.look(100)  # from 11 on
    assert standstill.missed(0) == 89
    assert standstill.missed(50) == 50
    assert standstill.missed(100) == 0
    for now in range(101, 111):
        standstill.look(now)
    standstill.look(200)  # from 111 on
    assert standstill.missed(0) == 89 + 89
    assert standstill.missed(150) == 50


def test_whoever_looks_more_often_changes_nothing():
    standstill = running(10)
    for step in range(20):
        standstill.look(10 + step / 10)
    assert standstill.look(50) == 50 - 11.9 - TICK
