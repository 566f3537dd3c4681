"""Built-in tools: files, search and commands, confined to the workspace as far as that goes."""

from .collection import builtin_tools as builtin_tools
from .commands import run_command as run_command
from .files import list_directory as list_directory
from .files import read_file as read_file
from .files import write_file as write_file
from .searching import search_text as search_text

__all__ = [
    "builtin_tools",
    "list_directory",
    "read_file",
    "run_command",
    "search_text",
    "write_file",
]
