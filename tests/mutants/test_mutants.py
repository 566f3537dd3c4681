"""The checker has teeth: bugs planted in the product are found, each by its own invariant.

This is a small size of it, a few seeds a bug; ``run.py`` in this directory tries them all,
with as many seeds as it takes.
"""

from __future__ import annotations

import pytest
from planting import (
    PRODUCT,
    Edit,
    Mutant,
    ablate,
    count_places,
    hunt,
    listed,
    planted,
    run_simulation,
)
from table import MUTANTS

from semibot.testing.simulation.invariants import PROMISES

LEAST = 20
TRIED = 2
QUICK = (
    "ack_before_commit",
    "epoch_not_raised",
    "no_pause",
    "service_returns_unnoticed",
    "duplicate_on_resume",
    "cursor_off_by_one",
    "second_terminal",
)
"""Mutants that one short seed finds."""

BY_NAME = {mutant.name: mutant for mutant in MUTANTS}
EDITS = [(mutant.name, edit) for mutant in MUTANTS for edit in mutant.edits]


@pytest.mark.parametrize(("name", "edit"), EDITS, ids=[f"{n}-{e.file}" for n, e in EDITS])
def test_what_a_mutant_replaces_is_there_once(name: str, edit: Edit) -> None:
    assert count_places(edit) == 1, f"{name} has to be planted somewhere else"


def test_the_table_is_whole() -> None:
    assert len(MUTANTS) == len(BY_NAME) >= LEAST
    places = [mutant.place for mutant in MUTANTS]
    assert sum(place in {"resume", "terms", "relay", "outbox"} for place in places) >= 5
    for mutant in MUTANTS:
        assert mutant.invariants, mutant.name
        assert set(mutant.invariants) <= set(PROMISES), mutant.name


def test_the_documentation_lists_them() -> None:
    page = PRODUCT.parent / "docs" / "topics" / "planted-bugs.rst"
    assert listed(MUTANTS) in page.read_text(encoding="utf-8")


def test_a_mutant_that_cannot_be_planted_is_noticed() -> None:
    edit = Edit("lifetimes.py", "there is no such text in the product", "")
    with pytest.raises(ValueError, match="occurs 0 times"), planted([edit]):
        pass


def test_the_product_itself_passes_what_finds_the_mutants() -> None:
    outcome = run_simulation((), seeds=TRIED, first=1, minutes=0.3)
    assert outcome.failure is None
    assert outcome.violations == ()


@pytest.mark.parametrize("mutant", [BY_NAME[name] for name in QUICK], ids=QUICK)
def test_a_planted_bug_is_found_and_survives_without_its_invariants(mutant: Mutant) -> None:
    found = hunt(mutant, seeds=TRIED)
    assert found.failure is None
    assert found.seed is not None, "nothing finds it"
    assert set(found.invariants) <= set(mutant.invariants)
    left = ablate(mutant, seeds=1 + found.seed - mutant.seed)
    assert left.failure is None
    assert left.violations == ()
