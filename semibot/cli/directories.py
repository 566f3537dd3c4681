"""Where semibot keeps things if nobody says."""

from __future__ import annotations

from pathlib import Path

import platformdirs


def default_data_dir() -> Path:
    """Return the data directory of a host."""
    return Path(platformdirs.user_data_dir("semibot", appauthor=False))
