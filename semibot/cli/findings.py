"""What a check of ``semibot doctor`` finds."""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs

Status: TypeAlias = Literal["ok", "warn", "fail"]
"""Whether it works, works with a loss, or does not work."""


@attrs.frozen
class Check:
    """What one check has found."""

    name: str
    """What was looked at."""
    status: Status
    """Whether it will do."""
    found: str
    """What is there."""
    hint: str = ""
    """What to do about it."""
