"""The page lists every scenario, with its bound; run as a program, this writes its table."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).parent))

from scenarios import MODULES, all_cases
from trials import Case

PAGE: Final = Path(__file__).parents[2] / "docs" / "topics" / "cancelled-everywhere.rst"
MARK: Final = ".. scenarios\n"


def row(case: Case) -> str:
    notes = [
        word
        for word, is_so in (("real", case.is_real), ("errors", case.errors_within is not None))
        if is_so
    ]
    cells = [case.name, f"{case.within:g} s", case.because, ", ".join(notes)]
    first, *others = (f"- {cell}".rstrip() for cell in cells)
    return "\n".join([f"   * {first}", *(f"     {other}" for other in others)])


def table() -> str:
    """Return the table as it has to be."""
    head = [
        ".. list-table::",
        "   :header-rows: 1",
        "   :widths: 50 10 30 10",
        "",
        "   * - scenario",
        "     - bound",
        "     - because",
        "     -",
    ]
    return "\n".join([*head, *map(row, all_cases())]) + "\n"


def test_the_page_lists_every_scenario() -> None:
    assert PAGE.read_text().partition(MARK)[2].strip() == table().strip()


def test_there_are_enough_and_each_has_a_name_of_its_own() -> None:
    names = [case.name for case in all_cases()]
    assert len(names) == len(set(names)) >= 40


def test_every_module_of_scenarios_is_registered() -> None:
    here = Path(__file__).parent
    assert {path.stem for path in here.glob("scenarios_*.py")} == set(MODULES)


if __name__ == "__main__":
    before, mark, _ = PAGE.read_text().partition(MARK)
    PAGE.write_text(f"{before}{mark}\n{table()}")
