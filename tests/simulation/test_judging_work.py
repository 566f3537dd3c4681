"""Invariants about runs and event ids see what they are for, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from semibot.testing.simulation.happenings import (
    CancelAnswered,
    Happening,
    RunBegins,
    RunRests,
    RunWorks,
    Said,
)
from semibot.testing.simulation.judging_readers import OneMeaning
from semibot.testing.simulation.judging_work import SilentAfterReceipt
from semibot.testing.simulation.links import Link
from semibot.testing.simulation.lives import Life
from semibot.testing.simulation.world import World
from semibot.wire.frames import Cancelled, SseEvent

VM = cast("Life", SimpleNamespace(name="vm1", is_alive=True))
DEAD = cast("Life", SimpleNamespace(name="vm0", is_alive=False))
BEGINS = RunBegins(run_id="r1", life=VM)
RESTS = RunRests(run_id="r1", life=VM)
WORKS = RunWorks(run_id="r1", life=VM)


def said(*frames: Cancelled | SseEvent) -> Said:
    return Said(link=cast("Link", SimpleNamespace(vm="vm1")), is_from_host=False, frames=frames)


def receipt(**fields: Any) -> Said:
    fields = {"run_id": "r1", "outcome": "cancelled", **fields}
    return said(Cancelled(session_id="s1", command_id="c1", run_id="r1", receipt=fields))


def found_by(invariant: type[SilentAfterReceipt | OneMeaning], *what: Happening) -> list[str]:
    found: list[str] = []
    world = SimpleNamespace(violate=lambda name, text: found.append(f"{name}: {text}"))
    judge = invariant(cast("World", world))
    for each in what:
        judge.take(each)
    return found


def test_a_run_may_clean_up_before_its_receipt() -> None:
    assert found_by(SilentAfterReceipt, BEGINS, WORKS, RESTS, receipt()) == []


@pytest.mark.parametrize(
    "what",
    [
        (BEGINS, receipt()),
        (BEGINS, RESTS, receipt(), WORKS),
        (BEGINS, receipt(outcome="interrupted"), RESTS),
        (receipt(), BEGINS),
        (
            BEGINS,
            CancelAnswered(
                session_id="s1", asked=None, receipt={"run_id": "r1", "outcome": "cancelled"}
            ),
        ),
    ],
)
def test_what_a_run_does_after_its_receipt_is_found_once(what: tuple[Happening, ...]) -> None:
    (violation,) = found_by(SilentAfterReceipt, *what, WORKS)
    assert violation.startswith("silent_after_receipt: run r1 ")


@pytest.mark.parametrize(
    "fields",
    [
        {"abandoned": [{"kind": "adapter"}]},
        {"vm_lost": True},
        {"outcome": None, "already": True},
        {"outcome": "interrupted", "already": True},
    ],
)
def test_a_receipt_that_lists_what_goes_on_promises_nothing(fields: dict[str, object]) -> None:
    assert found_by(SilentAfterReceipt, BEGINS, receipt(**fields), WORKS) == []


def test_what_is_left_of_a_dead_process_is_not_judged() -> None:
    late = RunWorks(run_id="r1", life=DEAD)
    assert found_by(SilentAfterReceipt, BEGINS, RESTS, receipt(), late) == []


def event(text: str, *, seq: int = 3, term: int = 1) -> Said:
    data = f'{{"type":"text_chunk","content":"{text}"}}'
    return said(SseEvent(session_id="s1", data=data, term=term, seq=seq, run_id="r1"))


def test_an_event_that_is_said_again_means_the_same() -> None:
    assert found_by(OneMeaning, event("a"), event("a"), event("b", seq=4), event("b", term=2)) == []


def test_one_number_for_two_events_is_found_on_the_link_already() -> None:
    (violation,) = found_by(OneMeaning, event("a"), event("b"))
    assert violation.startswith("one_meaning: 1-3 of s1 is two events")
