from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_programs import RunHere

from semibot.cli.group import run

UNSET = (
    *("OPENAI_API_KEY", "OPENAI_BASE_URL", "SEMIBOT_MODEL", "OPENCLAW_BRIDGE_CMD"),
    *("FORCE_COLOR", "NO_COLOR", "JWT_SECRET", "VM_BOOTSTRAP_CMD", "SEMIBOT_ENV"),
    *("SEMIBOT_URL", "SEMIBOT_TOKEN", "SEMIBOT_HOST", "SEMIBOT_PORT", "SEMIBOT_DATA_DIR"),
    *("SEMIBOT_CONFIG", "SEMIBOT_WORKSPACE", "SEMIBOT_ALLOW"),
)


@pytest.fixture(autouse=True)
def semibot_logger() -> Iterator[logging.Logger]:
    """Put the logger back as it was: the command line sets it up for a whole process."""
    logger = logging.getLogger("semibot")
    before = (logger.level, logger.propagate, logger.handlers)
    yield logger
    logger.setLevel(before[0])
    logger.propagate, logger.handlers = before[1:]


@pytest.fixture
def run_here(
    semibot_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> RunHere:
    """Run the command line in this process, in an empty directory, with nothing configured."""
    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SEMIBOT_PORT", "1")  # where nobody listens

    def run_command(*arguments: str, stdin: str = os.devnull, **variables: str) -> int:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with Path(stdin).open(encoding="utf-8") as file:
            monkeypatch.setattr(sys, "stdin", file)
            return run(list(arguments))

    return run_command
