"""All scenarios that are cancelled at every step, in the order of the documentation.

Each module of a room has its own in ``CASES``.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Final

from trials import Case

HERE: Final = Path(__file__).parent

MODULES: Final = (
    "scenarios_channel",
    "scenarios_session",
    "scenarios_run",
    "scenarios_gate",
    "scenarios_models",
    "scenarios_children",
    "scenarios_readers",
    "scenarios_store",
    "scenarios_host",
    "scenarios_links",
    "scenarios_vm",
)


def all_cases() -> list[Case]:
    """Return every scenario of every room."""
    if str(HERE) not in sys.path:
        sys.path.append(str(HERE))
    present = [name for name in MODULES if (HERE / f"{name}.py").exists()]
    return [case for name in present for case in importlib.import_module(name).CASES]


def cases_of(module: str) -> list[Case]:
    """Return the scenarios of one module."""
    return list(importlib.import_module(module).CASES)
