"""The kits of both ends of a link, which have tests of their own."""

from __future__ import annotations

import hostile_paths

__all__ = ["hostile_paths"]
