"""Lets the tests here use the kits of the tests of both ends."""

from __future__ import annotations

import sys
from pathlib import Path

KITS = [str(Path(__file__).parent.parent / name) for name in ("host", "channel", "planes")]

sys.path.extend(path for path in KITS if path not in sys.path)
