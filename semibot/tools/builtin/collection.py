"""The built-in tools as a whole."""

from __future__ import annotations

from semibot.tools.tool import Tool

from .commands import run_command
from .files import list_directory, read_file, write_file
from .searching import search_text


def builtin_tools() -> tuple[Tool, ...]:
    """Return every built-in tool; ``write_file`` and ``run_command`` need a grant."""
    return (read_file, list_directory, search_text, write_file, run_command)
