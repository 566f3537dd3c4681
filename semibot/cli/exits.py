"""What the exit codes of the command line mean."""

from __future__ import annotations

from typing import Final

COMPLETED: Final = 0
"""Everything went well."""

FAILED: Final = 1
"""The run failed, ran out of time or was interrupted."""

USAGE: Final = 2
"""The command line makes no sense."""

CONFIGURATION: Final = 78
"""Something must be set up first; ``EX_CONFIG`` of ``sysexits.h``."""

INTERRUPTED: Final = 130
"""Ctrl-C: 128 and the number of SIGINT."""

TERMINATED: Final = 143
"""SIGTERM: 128 and its number."""
