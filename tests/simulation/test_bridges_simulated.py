"""Bridges that exit and talk nonsense cost their run, and nothing else."""

from __future__ import annotations

from collections import Counter
from typing import Final

import pytest

from semibot.adapters.bridge import BridgeAdapter
from semibot.adapters.bridge_child import BridgeChild
from semibot.adapters.bridge_turn import Turn
from semibot.testing.simulation import SimulationReport, simulate

KINDS: Final = frozenset({"bridge_exit", "bridge_garbage"})
SEEDS: Final = range(1, 4)


def simulated(seed: int) -> SimulationReport:
    return simulate(seed, minutes=0.4, faults=KINDS)


def test_every_run_on_a_bad_bridge_ends_once_and_its_session_goes_on() -> None:
    hits = Counter[str]()
    for seed in SEEDS:
        report = simulated(seed)
        assert report.violations == ()
        hits.update(report.faults)
    assert min(hits[kind] for kind in KINDS) >= 2


def found_by(names: set[str]) -> bool:
    """Return whether one of these invariants is violated in one of the seeds."""
    return any(
        violation.invariant in names for seed in SEEDS for violation in simulated(seed).violations
    )


def test_a_run_that_waits_for_a_dead_bridge_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Turn, "close", lambda turn: None)
    assert found_by({"settles"})


def test_a_session_that_does_not_start_its_bridge_again_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def same(adapter: BridgeAdapter) -> BridgeChild:
        return adapter._child

    monkeypatch.setattr(BridgeAdapter, "_usable_child", same)
    assert found_by({"settles"})
