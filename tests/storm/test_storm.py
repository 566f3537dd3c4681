"""Many VMs that lose their host at once neither run it over nor stay away.

``run.py`` in this directory does the same with more of them.
"""

from __future__ import annotations

import random

import pytest
import trio
from real_storm import REAL_BOUND, measure
from storm import BACK_BOUND, MOST_SHARE, MOST_STRANGERS, SPREAD_AFTER, Plan, simulate

from semibot.channel import Backoff


@pytest.mark.parametrize("how", ["refused", "unanswered"])
def test_a_thousand_vms_spread_while_nobody_answers(tmp_path, how):
    plan = Plan(outage=60.0, how=how, has_host=False)
    outcome = simulate(plan, tmp_path)
    assert len(outcome.per_second) == plan.outage
    assert all(outcome.per_second[int(SPREAD_AFTER) :]), "somebody always tries"
    assert outcome.busiest_share <= MOST_SHARE
    assert sum(outcome.per_second[int(SPREAD_AFTER) :]) > plan.vms, "nobody gives up"


def test_vms_that_were_dropped_are_all_back_soon_after_the_outage(tmp_path):
    plan = Plan(vms=100, outage=45.0)
    outcome = simulate(plan, tmp_path)
    assert len(outcome.back) == plan.vms
    assert outcome.all_back_after <= BACK_BOUND
    assert not outcome.closes


def test_a_host_that_is_back_at_once_is_not_run_over(tmp_path):
    # A slow disk: letting a VM in takes longer than the time between two who come.
    plan = Plan(vms=150, outage=0.0, disk_delay=0.01)
    outcome = simulate(plan, tmp_path)
    assert len(outcome.back) == plan.vms
    assert outcome.all_back_after <= BACK_BOUND
    assert outcome.most_strangers <= MOST_STRANGERS


def test_an_attempt_that_took_long_counts_as_several():
    backoff = Backoff(random.Random(1))
    assert backoff.next_delay(10.0) <= 16.0
    assert backoff.failures == 5  # 1, 2, 4 and 8 s were too short
    backoff.next_delay(10.0)
    assert backoff.failures == 6
    backoff.next_delay(1e9)
    assert backoff.failures == 7
    backoff.reset()
    assert backoff.next_delay(0.5) <= 1.0


def test_real_vms_find_a_host_that_was_killed_and_started_again(tmp_path):
    outcome = trio.run(measure, 40, tmp_path)
    assert len(outcome.back) == 40
    assert outcome.back[-1] <= outcome.listens_after + REAL_BOUND
    assert outcome.back[0] >= outcome.listens_after - 1.0
