"""Tools that read and write files of the workspace."""

from __future__ import annotations

import codecs
import os
from typing import Final

from semibot.errors import SemibotError, ToolError
from semibot.lifetimes import grace
from semibot.tools.context import ToolContext
from semibot.tools.paths import ConfinedDirectory
from semibot.tools.tool import tool
from semibot.wire.codec import JsonObject, JsonValue

MAX_READ_BYTES: Final = 256 * 1024
"""Most bytes that one call of ``read_file`` returns."""
MAX_READ_CHARACTERS: Final = 95_000
"""Most characters that it returns: a little less than a model may read of one result."""
MAX_ENTRIES: Final = 1000
"""Most names that ``list_directory`` returns."""


def workspace_of(context: ToolContext) -> ConfinedDirectory:
    """Return the workspace of a call.

    Raises:
        ToolError: If it has none.
    """
    if context.files is None:
        raise ToolError("there is no workspace")
    return context.files


@tool(is_parallel_safe=True)
async def read_file(context: ToolContext, path: str, offset: int = 0) -> str:
    """Read a text file in the workspace.

    Long files come in parts; the last line then says with which offset to go on.

    Args:
        context: The call.
        path: The file, relative to the workspace.
        offset: Where to begin, in bytes.
    """
    return await context.run_blocking(_read, workspace_of(context), path, offset)


def _read(files: ConfinedDirectory, path: str, offset: int) -> str:
    with files.open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if not 0 <= offset <= size:
            raise ToolError(f"offset {offset} is not in the file, which has {size} bytes")
        file.seek(offset)
        data = file.read(MAX_READ_BYTES)
    skipped = 0
    while offset and skipped < 3 and data[skipped : skipped + 1] and data[skipped] & 0xC0 == 0x80:
        skipped += 1  # the offset points into the middle of a character
    begin = offset + skipped
    is_rest = offset + len(data) >= size
    try:
        text, used = codecs.utf_8_decode(data[skipped:], "strict", is_rest)
    except UnicodeDecodeError:
        raise ToolError("this is not a text file (it is not UTF-8)") from None
    if "\0" in text:
        raise ToolError("this is not a text file (there are zero bytes in it)")
    if len(text) > MAX_READ_CHARACTERS:
        text = text[:MAX_READ_CHARACTERS]
        used = len(text.encode())
    end = begin + used
    if begin == 0 and end >= size:
        return text
    note = f"bytes {begin} to {end} of {size}"
    return f"{text}\n[{note}; go on with offset={end}]" if end < size else f"{text}\n[{note}]"


@tool(is_parallel_safe=True)
async def list_directory(context: ToolContext, path: str = ".") -> JsonObject:
    """List a directory in the workspace: names, kinds and sizes in bytes, sorted by name.

    Args:
        context: The call.
        path: The directory, relative to the workspace.
    """
    files = workspace_of(context)
    listing = await context.run_blocking(files.list_directory, path, MAX_ENTRIES)
    entries: list[JsonValue] = [
        {"name": entry.name, "kind": entry.kind, "size": entry.size}
        if entry.kind == "file"
        else {"name": entry.name, "kind": entry.kind}
        for entry in listing.entries
    ]
    found: dict[str, JsonValue] = {"entries": entries}
    if listing.total > MAX_ENTRIES:
        found["note"] = f"these are the first {MAX_ENTRIES} of {listing.total} names"
    return found


@tool(is_allowed=False)
async def write_file(context: ToolContext, path: str, content: str) -> JsonObject:
    """Write a text file in the workspace, replacing what it held; makes missing directories.

    Args:
        context: The call.
        path: The file, relative to the workspace.
        content: The whole new content.
    """
    files = workspace_of(context)
    data = content.encode()
    context.activity.effect = f"writing {path[:200]}"
    try:
        # Once begun it is carried through: a cancellation should not leave open whether
        # the file was written. A disk that hangs is left behind when the grace ends.
        with grace("session.save", context.deadlines.session_save) as scope:
            where = await context.run_blocking(files.write_file, path, data)
    except SemibotError:
        context.activity.effect = None
        raise
    if scope.cancelled_caught:
        raise ToolError("the disk did not answer in time; the file may still be written")
    context.activity.effect = f"wrote {where[:200]} ({len(data)} bytes)"
    context.add_file(where)
    return {"path": where, "bytes": len(data)}
