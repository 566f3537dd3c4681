"""Host, VMs and readers in one process under seeded faults: nothing promised is broken.

``python -m semibot.testing simulate`` runs many more seeds for longer, and with ``--show SEED``
tells one of them in full.
"""

from __future__ import annotations

from typing import Final

import pytest
import trio

from semibot.session import ActiveRun
from semibot.testing import adapter_from
from semibot.testing.simulation import FAULTS, SimulationReport, simulate

KINDS: Final = tuple(
    fault.kind
    for fault in FAULTS
    if fault.kind not in {"bridge_exit", "bridge_garbage", "token_expiry", "ticket_replay"}
)
"""Those that have no tests of their own."""


def shown(report: SimulationReport) -> str:
    return "\n".join(f"{each.invariant}: {each.text}" for each in report.violations[:5])


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_hits_and_breaks_no_promise(kind: str) -> None:
    report = simulate(1, minutes=MINUTES.get(kind, 0.4), faults=[kind])
    assert not report.violations, shown(report)
    assert report.faults[kind] > 0


MINUTES: Final = {"frozen_vm": 1.0}
"""What does not hit in less than half a minute."""


@pytest.mark.parametrize("seed", range(1, 6))
def test_whatever_breaks_every_promise_is_kept(seed: int) -> None:
    report = simulate(seed, minutes=0.6)
    assert not report.violations, shown(report)
    assert report.sessions >= 3
    assert report.runs >= 5
    assert report.events >= 200
    assert report.readers >= 2


def test_nothing_is_lost_where_nothing_breaks() -> None:
    report = simulate(1, minutes=0.3, faults=[])
    assert report.violations == ()
    assert not report.faults


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="no such faults: meteor"):
        simulate(1, faults=["meteor"])
    with pytest.raises(ValueError, match="no such invariants: luck"):
        simulate(1, without=["luck"])


def test_a_simulation_that_says_too_little_is_no_proof() -> None:
    async def say_nothing(run: ActiveRun) -> None:
        await run.complete()

    report = simulate(1, minutes=0.05, faults=[], adapter=adapter_from(say_nothing))
    assert {each.invariant for each in report.violations} == {"too_small"}


def test_a_simulation_that_never_waits_is_ended() -> None:
    async def spin(run: ActiveRun) -> None:
        while True:
            await trio.lowlevel.checkpoint()

    report = simulate(1, minutes=0.1, faults=[], adapter=adapter_from(spin), busy_limit=1.5)
    assert "within_limits" in {each.invariant for each in report.violations}


def test_an_invariant_can_be_left_out() -> None:
    async def say_nothing(run: ActiveRun) -> None:
        await run.complete()

    report = simulate(
        1, minutes=0.05, faults=[], adapter=adapter_from(say_nothing), without=["too_small"]
    )
    assert report.violations == ()


def test_the_answers_can_be_checked() -> None:
    report = simulate(1, minutes=0.05, faults=[], check=lambda _, answer: f"{len(answer)} letters")
    assert {each.invariant for each in report.violations} == {"own_check"}
    assert report.violations[0].command.startswith("python -m semibot.testing simulate --show 1 ")
