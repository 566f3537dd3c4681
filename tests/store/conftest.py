"""A store in a file, on simulated time and without threads."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from semibot.config import Deadlines
from semibot.store.base import Store
from semibot.store.sqlite import open_sqlite_store
from semibot.testing import simulated_ports


@pytest.fixture
async def store(tmp_path: Path, mock_clock: object) -> AsyncGenerator[Store]:
    path = tmp_path / "data" / "semibot.db"
    async with open_sqlite_store(path, ports=simulated_ports(), deadlines=Deadlines()) as opened:
        yield opened
