"""What all tests of the page share."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from page_kit import Programs, running_programs


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Generator[Programs]:
    """Run one Chromium and one host for the tests of a file; other rooms count processes."""
    with running_programs(tmp_path_factory.mktemp("programs")) as programs:
        yield programs
