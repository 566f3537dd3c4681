"""Host, VMs and readers in one process under seeded faults: nothing promised is broken.

Each seed is another story; ``run.py`` in this directory runs many more of them, and
``run.py --show SEED`` tells one of them in full.
"""

from __future__ import annotations

import pytest
from sim_world import simulate

SEEDS = range(1, 17)


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_breaks_every_promise_is_kept(seed: int) -> None:
    report = simulate(seed, faulty=45.0)
    assert not report.violations, "\n".join(report.violations[:5])
    assert report.events > 100


def test_nothing_is_lost_where_nothing_breaks() -> None:
    report = simulate(1, faults=frozenset(), faulty=45.0)
    assert report.violations == ()
    assert not report.counts


def test_the_same_seed_tells_the_same_story() -> None:
    first, again, other = (simulate(seed, faulty=30.0) for seed in (7, 7, 8))
    assert (first.digest, first.events) == (again.digest, again.events)
    assert first.digest != other.digest
