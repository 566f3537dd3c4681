"""The tool that searches files for a pattern, in a child process.

A pattern can take for ever on an unlucky line, and Python's ``re`` does not let any other
thread run until it is done: in a worker thread it would stop the whole program. A child
process can be killed. The program that it runs is :mod:`semibot.tools.builtin.searcher`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final, cast

from semibot.errors import RemoteProtocolError, ToolError
from semibot.tools.context import ToolContext
from semibot.tools.processes import run_child
from semibot.tools.tool import tool
from semibot.wire.codec import JsonObject, JsonValue, dump_json, load_json

from .files import workspace_of

MAX_PATTERN: Final = 1000
"""Longest pattern, in characters."""

_SEARCHER: Final = Path(__file__).with_name("searcher.py")
_LONGEST_SEARCH: Final = 30.0
_MAX_OUTPUT: Final = 4 * 1024 * 1024


@tool(is_parallel_safe=True, limit=60.0)
async def search_text(context: ToolContext, pattern: str, path: str = ".") -> JsonObject:
    """Search text files in the workspace, line by line, for a regular expression.

    Binary files, files over 1 MiB, symbolic links and .git are left out. At most 200 lines
    are returned.

    Args:
        context: The call.
        pattern: Regular expression in Python's syntax; (?i) at its beginning ignores case.
        path: File or directory to search, relative to the workspace.
    """
    files = workspace_of(context)
    if not 0 < len(pattern) <= MAX_PATTERN:
        raise ToolError(f"a pattern has 1 to {MAX_PATTERN} characters")
    where = await context.run_blocking(files.locate, path)
    order: dict[str, JsonValue] = {
        "pattern": pattern,
        "path": where,
        "reserved": list(files.reserved),
        # It stops by itself a little before it would be stopped, to return what it has.
        "seconds": min(_LONGEST_SEARCH, 0.9 * context.remaining()),
    }
    result = await run_child(
        [sys.executable, "-I", "-S", "-W", "ignore", "-X", "utf8", str(_SEARCHER)],
        ports=context.ports,
        deadlines=context.deadlines,
        environment={},
        cwd=files.root,
        ledger=context.ledger,
        name="search",
        stdin=dump_json(order).encode(),
        max_output_bytes=_MAX_OUTPUT,
    )
    try:
        found = load_json(result.stdout)
    except RemoteProtocolError:
        raise ToolError(f"the search failed: {result.status}") from None
    answer = cast("JsonObject", found)
    if "error" in answer:
        raise ToolError(str(answer["error"]))
    return answer
