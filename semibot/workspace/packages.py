"""Packages: the files of a skill as ``get_skill_package`` brings them from a host.

What comes is somebody else's: paths, sizes and encodings are checked here, and nothing is
ever written to disk. :func:`~semibot.workspace.skills.read_package` makes packages.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Final, final

import attrs

from semibot.errors import RemoteProtocolError, ToolError
from semibot.logs import get_logger
from semibot.wire.codec import JsonObject, JsonValue

from .skills import MAX_FILE_BYTES, MAX_FILES, MAX_PACKAGE_BYTES

log: Final = get_logger(__name__)

MAX_PATH: Final = 255
"""Longest path of a file, in characters."""

_PATH: Final = re.compile(r"[^/\\\x00-\x1f\x7f]+(?:/[^/\\\x00-\x1f\x7f]+)*")


@final
@attrs.frozen(kw_only=True)
class SkillPackage:
    """The files of one skill, in memory."""

    skill_id: str
    """The skill."""
    files: Mapping[str, bytes]
    """Their content by path."""

    def read(self, name: str) -> str:
        """Return the text of one file.

        Args:
            name: Its path.

        Raises:
            ToolError: If there is no such file, or it is no text.
        """
        data = self.files.get(name)
        if data is None:
            known = ", ".join(self.files) or "none"
            raise ToolError(f"{self.skill_id} has no file {name!r}; it has: {known}")
        try:
            return data.decode("utf-8")
        except ValueError as exc:
            raise ToolError(f"{name} of {self.skill_id} cannot be read as text") from exc


def unpack(value: JsonValue, skill_id: str) -> SkillPackage | None:
    """Return the package in the result of a ``get_skill_package``.

    Args:
        value: The result as it came.
        skill_id: The skill that was asked for.

    Returns:
        The package, or None if there is none. A file whose path leads elsewhere, that
        cannot be decoded, that is longer than ``MAX_FILE_BYTES``, or that does not fit into
        ``MAX_PACKAGE_BYTES`` or ``MAX_FILES`` is left out with a warning.

    Raises:
        RemoteProtocolError: If it is no such result, or another skill's package.
    """
    package = value.get("package") if isinstance(value, Mapping) else value
    if package is None and isinstance(value, Mapping):
        return None
    if not isinstance(package, Mapping):
        raise RemoteProtocolError("expected a package", "$.package")
    if package.get("skill_id", skill_id) != skill_id:
        raise RemoteProtocolError("the package is another skill's", "$.package.skill_id")
    listed = package.get("files")
    if isinstance(listed, str) or not isinstance(listed, Sequence):
        raise RemoteProtocolError("expected an array", "$.package.files")
    files: dict[str, bytes] = {}
    left = MAX_PACKAGE_BYTES
    for number, item in enumerate(listed):
        try:
            if len(files) == MAX_FILES:
                raise _Unfit(f"a package has at most {MAX_FILES} files")
            path, data = _file(item, min(left, MAX_FILE_BYTES))
            if path in files:
                raise _Unfit("it is there already")
        except _Unfit as exc:
            log.warning("skill file left out", skill=skill_id, number=number, error=str(exc))
            if len(files) == MAX_FILES:
                break
            continue
        left -= len(data)
        files[path] = data
    return SkillPackage(skill_id=skill_id, files=files)


class _Unfit(Exception):
    """A file that is left out."""


def _file(item: JsonValue, most: int) -> tuple[str, bytes]:
    """Return path and content of one file of at most *most* bytes."""
    if not isinstance(item, Mapping):
        raise _Unfit("it is no object")
    path, content = item.get("path"), item.get("content")
    if not isinstance(path, str) or not _is_below(path):
        raise _Unfit("its path is no path below the skill")
    if not isinstance(content, str):
        raise _Unfit("it has no content")
    # Before it is decoded: a byte is at least one character, base64 has four for three.
    if len(content) > 2 * most + 4:
        raise _Unfit("it is too long")
    data = _decode(item, content)
    if len(data) > most:
        raise _Unfit("it is too long")
    return path, data


def _is_below(path: str) -> bool:
    parts = path.split("/")
    return len(path) <= MAX_PATH and bool(_PATH.fullmatch(path)) and not {".", ".."} & {*parts}


def _decode(item: JsonObject, content: str) -> bytes:
    try:
        match item.get("encoding", "utf-8"):
            case "utf-8":
                return content.encode()
            case "base64":
                return base64.b64decode(content, validate=True)
            case _:
                raise _Unfit("its encoding is unknown")
    except ValueError as exc:
        raise _Unfit("its content cannot be decoded") from exc
