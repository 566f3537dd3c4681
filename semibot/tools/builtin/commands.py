"""The tool that runs programs."""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Mapping
from typing import Final

from semibot.errors import ToolError
from semibot.tools.context import ToolContext
from semibot.tools.processes import ChildResult, run_child
from semibot.tools.tool import tool
from semibot.wire.codec import JsonObject, JsonValue

from .files import workspace_of

ALLOWED_VARIABLES: Final = frozenset(
    {
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "LANGUAGE",
        "LC_ALL",
        "LC_CTYPE",
        "TMPDIR",
        "TZ",
    }
)
"""Variables that a command inherits. Keys and tokens are not among them, by any name."""

_HEAD: Final = 8_000
_TAIL: Final = 22_000


@tool(is_allowed=False)
async def run_command(context: ToolContext, argv: list[str]) -> JsonObject:
    """Run a program in the workspace directory and return its exit code and output.

    There is no shell: no pipes, globs or variables; each word is one argument. Standard input
    is empty. The program is not confined: it starts in the workspace and gets only a few
    harmless environment variables, but it can read, write and reach whatever the user can.

    Args:
        context: The call.
        argv: The program and its arguments, such as ["git", "status"].
    """
    files = workspace_of(context)
    if not argv or not argv[0]:
        raise ToolError("argv is empty; its first word is the program")
    if any("\0" in word for word in argv):
        raise ToolError("argv contains a NUL character")
    words = shlex.join(argv)[:200]
    context.activity.effect = f"started: {words}"
    result = await run_child(
        argv,
        ports=context.ports,
        deadlines=context.deadlines,
        environment=command_environment(context.ports.environment),
        cwd=files.root,
        ledger=context.ledger,
    )
    context.activity.effect = f"ran: {words} ({result.status})"
    return _describe(result)


def command_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command.

    Args:
        inherited: Our own. A relative directory in its ``PATH`` is left out: in the
            workspace it would find programs that the model has written. An empty ``PATH``
            is such a directory, so the system's default stands for one without any other.
    """
    environment = {name: inherited[name] for name in ALLOWED_VARIABLES & inherited.keys()}
    directories = environment.get("PATH", os.defpath).split(os.pathsep)
    absolute = [each for each in directories if each.startswith("/")]
    return {**environment, "PATH": os.pathsep.join(absolute) or os.defpath, "TERM": "dumb"}


def _describe(result: ChildResult) -> JsonObject:
    stdout, stdout_cut = _middle_out(result.stdout.decode("utf-8", "replace"))
    stderr, stderr_cut = _middle_out(result.stderr.decode("utf-8", "replace"))
    is_cut = stdout_cut or stderr_cut or result.stdout_truncated or result.stderr_truncated
    how: dict[str, JsonValue] = {"exit_code": result.status.code}
    if result.status.signal is not None:
        how = {"signal": _name_of(result.status.signal)}
    return {**how, "stdout": stdout, "stderr": stderr, "truncated": is_cut}


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name
        return str(number)


def _middle_out(text: str) -> tuple[str, bool]:
    """Leave out the middle of a long text: errors stand at its end, causes at its beginning."""
    left_out = len(text) - _HEAD - _TAIL
    if left_out <= 0:
        return text, False
    return f"{text[:_HEAD]}\n[{left_out} characters left out]\n{text[-_TAIL:]}", True
