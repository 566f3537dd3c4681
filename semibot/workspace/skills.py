"""Skills: directories of instructions that an agent reads when it needs them.

A skill is a directory with a ``SKILL.md``. Front matter says what it is; it is *not*
YAML, only lines ``key: value`` between two lines ``---``, of which ``name`` and
``description`` are used; indented lines continue the value above them::

    ---
    name: PDF kit
    description: Read, split and fill PDF files.
    ---
    Instructions for the model ...

What the skill needs stands in ``manifest.json`` beside it, if it needs anything::

    {"version": "2", "requires": {"binaries": ["pdftotext"], "env_vars": ["PDF_KEY"]}}

A skill whose requirements are not met is dropped before anyone is offered it. Symbolic
links are never followed. Everything here is blocking and runs in worker threads.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

import attrs

from semibot.errors import RemoteProtocolError, ToolError
from semibot.logs import get_logger
from semibot.wire.codec import JsonObject, JsonValue, load_json

log: Final = get_logger(__name__)

MAX_SKILLS: Final = 256
"""Most skills that are read from one directory."""

MAX_FILES: Final = 40
"""Most files of one skill."""

MAX_FILE_BYTES: Final = 256 * 1024
"""Longest file that a package carries, in bytes; longer ones are left out."""

MAX_PACKAGE_BYTES: Final = 512 * 1024
"""Most bytes that the files of a package have together; what is beyond is left out."""

MAX_LINE: Final = 1000
"""Longest name or description in an index, in characters; longer ones are cut."""

CURRENT_VERSION: Final = "current"
"""Version of a skill that does not name one."""

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FIELD: Final = re.compile(r"([A-Za-z][A-Za-z0-9_-]*):(?:\s+(.*))?")
_BLOCK_MARKS: Final = frozenset({">", ">-", ">+", "|", "|-", "|+"})
_NO_FOLLOW: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Which(Protocol):
    """Finds programs, as :func:`shutil.which` does."""

    def __call__(self, cmd: str, *, path: str) -> str | None:
        """Return where *cmd* is on *path*, or None."""
        ...


@attrs.frozen(kw_only=True)
class Skill:
    """One skill on offer."""

    id: str
    """Identifier; the name of its directory."""
    name: str
    """Name for people and models."""
    description: str
    """What it is for and when to use it."""
    directory: Path | None
    """Where it lies, or None if only its index entry is known here."""
    binaries: tuple[str, ...] = ()
    """Programs that it needs on ``PATH``."""
    env_vars: tuple[str, ...] = ()
    """Environment variables that it needs, not empty."""
    version: str = CURRENT_VERSION
    """Which edition it is."""
    files: tuple[str, ...] = ()
    """Its files, relative to the directory, at most :data:`MAX_FILES`."""

    def index_entry(self) -> JsonObject:
        """Return the skill as it stands in a ``skill_index``."""
        return {
            "id": self.id,
            "name": self.name,
            "description": self.description,
            "version": self.version,
            "source": "session" if self.directory is None else "workspace",
            "file_inventory": _inventory(self.files),
            "requires": {"binaries": list(self.binaries), "env_vars": list(self.env_vars)},
        }


def _inventory(files: Sequence[str]) -> JsonObject:
    scripts = [name for name in files if name.startswith("scripts/")]
    references = [name for name in files if name.startswith("references/")]
    return {
        "has_skill_md": "SKILL.md" in files,
        "has_scripts": bool(scripts),
        "has_references": bool(references),
        "script_files": scripts,
        "reference_files": references,
    }


# --- reading --------------------------------------------------------------------------


def read_skills(directory: Path) -> tuple[Skill, ...]:
    """Return the skills in *directory*, sorted by id; blocking.

    Args:
        directory: Holds one directory per skill. If it is missing there are no skills.
            What cannot be read is passed over with a warning.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(directory) if _is_directory(entry))
    except FileNotFoundError:
        return ()
    except OSError as exc:
        log.warning("skills cannot be read", directory=str(directory), error=exc.strerror)
        return ()
    if len(names) > MAX_SKILLS:
        log.warning("too many skills", directory=str(directory), kept=MAX_SKILLS)
    found = (_read_skill(directory / name) for name in names[:MAX_SKILLS])
    return tuple(skill for skill in found if skill is not None)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _read_skill(directory: Path) -> Skill | None:
    try:
        if not _ID.fullmatch(directory.name):
            message = "the name of its directory is no skill id"
            raise ValueError(message)
        text = _read_file(directory / "SKILL.md").decode("utf-8-sig")
        manifest = _read_manifest(directory)
        files = tuple(itertools.islice(_files_below(directory), MAX_FILES))
    except FileNotFoundError:
        return None  # a directory without SKILL.md is no skill
    except (OSError, ValueError, RemoteProtocolError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        log.warning("skill cannot be read", skill=directory.name, error=reason)
        return None
    fields = _front_matter(text)
    version = manifest.get("version")
    binaries, env_vars = _requirements(manifest)
    return Skill(
        id=directory.name,
        name=fields.get("name") or directory.name,
        description=fields.get("description", ""),
        directory=directory,
        binaries=binaries,
        env_vars=env_vars,
        version=version if isinstance(version, str) and version else CURRENT_VERSION,
        files=files,
    )


def _read_manifest(directory: Path) -> JsonObject:
    try:
        value = load_json(_read_file(directory / "manifest.json"))
    except FileNotFoundError:
        return {}
    if not isinstance(value, Mapping):
        message = "manifest.json is no JSON object"
        raise ValueError(message)  # noqa: TRY004 - it is the file's content that is wrong
    return value


def _front_matter(text: str) -> dict[str, str]:
    lines = text.splitlines()
    if not lines or lines[0].rstrip() != "---":
        return {}
    fields: dict[str, list[str]] = {}
    current: list[str] = []
    for line in lines[1:]:
        if line.rstrip() == "---":
            break
        if line[:1].isspace():
            current.append(line.strip())
        elif match := _FIELD.fullmatch(line.rstrip()):
            value = (match[2] or "").strip()
            current = fields[match[1]] = [] if value in _BLOCK_MARKS else [value]
        else:
            current = []
    return {key: _unquote(" ".join(filter(None, parts))) for key, parts in fields.items()}


def _unquote(value: str) -> str:
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return value[1:-1] if quoted else value


def _requirements(entry: JsonObject) -> tuple[tuple[str, ...], tuple[str, ...]]:
    requires = entry.get("requires")
    if not isinstance(requires, Mapping):
        return (), ()
    return _names(requires.get("binaries")), _names(requires.get("env_vars"))


def _names(value: JsonValue) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        return ()
    return tuple(item for item in value if isinstance(item, str) and item)


def _files_below(directory: Path) -> Iterator[str]:
    """Yield the regular files below *directory*, sorted, links and hidden ones left out."""
    waiting = [""]
    while waiting:
        below = waiting.pop(0)
        for entry in sorted(os.scandir(directory / below), key=lambda entry: entry.name):
            if entry.name.startswith(".") or not _is_unicode(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(f"{below}{entry.name}/")
            elif entry.is_file(follow_symlinks=False):
                yield below + entry.name


def _is_unicode(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _read_file(path: Path) -> bytes:
    """Return a regular file's bytes.

    Raises:
        OSError: If it cannot be read, or is a link.
        ValueError: If it is no regular file or longer than :data:`MAX_FILE_BYTES`.
    """
    with os.fdopen(os.open(path, _NO_FOLLOW), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            message = f"{path.name} is no regular file"
            raise ValueError(message)
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        message = f"{path.name} is longer than {MAX_FILE_BYTES} bytes"
        raise ValueError(message)
    return data


# --- requirements ---------------------------------------------------------------------


def usable_skills(
    skills: Iterable[Skill], *, environment: Mapping[str, str], which: Which = shutil.which
) -> tuple[Skill, ...]:
    """Return the skills whose requirements are met; each other one is logged once.

    Args:
        skills: What there is.
        environment: The environment that the skills would run in.
        which: Finds programs on that environment's ``PATH``.
    """
    return tuple(
        skill
        for skill in skills
        if _is_usable(skill.id, skill.binaries, skill.env_vars, environment, which)
    )


def usable_entries(
    index: JsonValue, *, environment: Mapping[str, str], which: Which = shutil.which
) -> tuple[JsonObject, ...]:
    """Return the entries of a ``skill_index`` whose requirements are met, unchanged.

    An entry whose ``requires`` is no object needs nothing; items of it that are no
    strings are ignored; entries that are no objects are dropped.

    Args:
        index: The index as it came; anything but an array has no entries.
        environment: The environment that the skills would run in.
        which: Finds programs on that environment's ``PATH``.
    """
    if isinstance(index, str) or not isinstance(index, Sequence):
        return ()
    usable: list[JsonObject] = []
    for entry in index:
        if isinstance(entry, Mapping):
            binaries, env_vars = _requirements(entry)
            if _is_usable(str(entry.get("id")), binaries, env_vars, environment, which):
                usable.append(entry)
    return tuple(usable)


def read_index(index: JsonValue) -> tuple[Skill, ...]:
    """Return the skills that a ``skill_index`` names, without their files.

    An entry is passed over if its ``id`` is none, or stood there before; of the rest,
    what cannot be read counts as not given.

    Args:
        index: The index as it came; anything but an array has no entries. Of a longer one
            the first :data:`MAX_SKILLS` entries are read.
    """
    if isinstance(index, str) or not isinstance(index, Sequence):
        return ()
    found: dict[str, Skill] = {}
    for entry in index[:MAX_SKILLS]:
        skill_id = entry.get("id") if isinstance(entry, Mapping) else None
        if not isinstance(entry, Mapping) or not isinstance(skill_id, str):
            continue
        if _ID.fullmatch(skill_id) and skill_id not in found:
            binaries, env_vars = _requirements(entry)
            found[skill_id] = Skill(
                id=skill_id,
                name=_line(entry.get("name")) or skill_id,
                description=_line(entry.get("description")),
                directory=None,
                binaries=binaries,
                env_vars=env_vars,
                version=_line(entry.get("version")) or CURRENT_VERSION,
            )
    return tuple(found.values())


def _line(value: JsonValue) -> str:
    """Return a text as one line of a bearable length."""
    return " ".join(value.split())[:MAX_LINE] if isinstance(value, str) else ""


def _is_usable(
    skill_id: str,
    binaries: Sequence[str],
    env_vars: Sequence[str],
    environment: Mapping[str, str],
    which: Which,
) -> bool:
    path = environment.get("PATH", "")
    no_binaries = [name for name in binaries if which(name, path=path) is None]
    no_env_vars = [name for name in env_vars if not environment.get(name)]
    if no_binaries or no_env_vars:
        log.warning(
            "skill dropped",
            skill=skill_id,
            missing_binaries=no_binaries,
            missing_env_vars=no_env_vars,
        )
        return False
    return True


# --- packages -------------------------------------------------------------------------


def read_package(skill: Skill) -> JsonObject | None:
    """Return a skill's files as ``get_skill_package`` hands them out; blocking.

    Args:
        skill: The skill.

    Returns:
        The package, or None if the skill has no directory here. Files that cannot be
        read, are longer than :data:`MAX_FILE_BYTES` or do not fit into
        :data:`MAX_PACKAGE_BYTES` are left out with a warning.
    """
    if skill.directory is None:
        return None
    files: list[JsonObject] = []
    left = MAX_PACKAGE_BYTES
    for name in skill.files:
        try:
            data = _read_below(skill.directory, name)
            if len(data) > left:
                message = f"the package would be longer than {MAX_PACKAGE_BYTES} bytes"
                raise ValueError(message)
        except (OSError, ValueError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else str(exc)
            log.warning("skill file left out", skill=skill.id, file=name, error=reason)
            continue
        left -= len(data)
        files.append({"path": name, **_encoded(data)})
    return {
        "skill_id": skill.id,
        "version": skill.version,
        "files": files,
        "file_inventory": _inventory(skill.files),
    }


def read_skill_file(skill: Skill, name: str) -> str:
    """Return the text of one file of a skill; blocking.

    Args:
        skill: The skill.
        name: Path below its directory, as in :attr:`Skill.files`.

    Raises:
        ToolError: If there is no such file, or it is no text of a bearable length.
    """
    if skill.directory is None or name not in skill.files:
        raise ToolError(f"{skill.id} has no file {name!r}; it has: {', '.join(skill.files)}")
    try:
        return _read_below(skill.directory, name).decode("utf-8")
    except (OSError, ValueError) as exc:
        raise ToolError(f"{name} of {skill.id} cannot be read as text") from exc


def _read_below(directory: Path, name: str) -> bytes:
    # The tree may have changed since it was listed: no part of the path may be a link.
    path = os.path.join(os.path.realpath(directory), name)  # noqa: PTH118 - Path.resolve() raises for loops
    if os.path.realpath(path) != path:
        message = "a symbolic link is in the way"
        raise ValueError(message)
    return _read_file(Path(path))


def _encoded(data: bytes) -> JsonObject:
    try:
        return {"content": data.decode("utf-8"), "encoding": "utf-8"}
    except UnicodeDecodeError:
        return {"content": base64.b64encode(data).decode("ascii"), "encoding": "base64"}
