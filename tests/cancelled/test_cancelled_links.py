from __future__ import annotations

import pytest
from scenarios_links import CASES
from sweeping import check
from trials import Case


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nothing_is_left_behind_wherever_it_is_cancelled(case: Case) -> None:
    check(case)
