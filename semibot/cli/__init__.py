"""The command line: the only room that talks to a terminal, and the only one that runs Trio."""

from __future__ import annotations

from .group import main as main

__all__ = ["main"]
