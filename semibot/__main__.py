"""``python -m semibot`` is the command line."""

from __future__ import annotations

from semibot.cli import main

main()
