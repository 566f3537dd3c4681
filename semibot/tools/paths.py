"""File access that cannot leave a directory.

Theory of operation. Looking at a path first and opening it later is a race: whoever can
write into the directory can put a symbolic link there in between. So nothing here opens a
path. It is walked name by name, each opened below the descriptor of the one before it and
never through a symbolic link; a link is read, and what it says is walked in the same way.
The kernel therefore never follows a link or a ``..`` for us, and there is nothing to race
with. What this cannot see are hard links and mounts that somebody made inside.

Everything here blocks: call it from a worker thread.
"""

from __future__ import annotations

import errno
import mimetypes
import os
import stat
import threading
import unicodedata
from collections import deque
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final, Literal, TypeAlias, final

import attrs

from semibot.errors import PathRefused, SemibotError, ToolError

MAX_PATH: Final = 4096
"""Longest path, in characters."""
MAX_LINKS: Final = 40
"""Most symbolic links on the way to a file."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A FIFO would block without O_NONBLOCK, a terminal could become ours without O_NOCTTY.
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

EntryKind: TypeAlias = Literal["file", "directory", "link", "other"]
"""What a directory holds under a name."""


@attrs.frozen(kw_only=True)
class Entry:
    """One name in a directory."""

    name: str
    """The name."""
    kind: EntryKind
    """What it is; links are not followed."""
    size: int
    """Size in bytes."""


@attrs.frozen(kw_only=True)
class Listing:
    """What a directory holds."""

    entries: tuple[Entry, ...]
    """The first names in order."""
    total: int
    """How many names there are."""


@attrs.frozen(kw_only=True)
class FileFacts:
    """A regular file."""

    path: str
    """Where it is, relative to the root, with ``/`` and without links."""
    size: int
    """Size in bytes."""
    mime_type: str
    """Media type, guessed from the name."""


def _absolute(root: Path) -> Path:
    return Path(os.path.abspath(root))  # noqa: PTH100 - Path.absolute() keeps "..", and resolve() does I/O


@final
@attrs.frozen
class ConfinedDirectory:
    """A directory whose files can be used by name, and nothing outside of it.

    Args:
        root: The directory.
        reserved: Names at its top that are refused.
        readable: Paths below reserved names that may be read all the same.
    """

    root: Path = attrs.field(converter=_absolute)
    """The directory, absolute."""
    reserved: tuple[str, ...] = (".semibot",)
    """Names at its top that are refused."""
    readable: tuple[str, ...] = ()
    """Paths below reserved names that may be read all the same."""

    def open_file(self, path: str) -> BinaryIO:
        """Open a regular file for reading.

        Args:
            path: Relative to the root, or absolute and inside it.

        Returns:
            The open file; the caller closes it.

        Raises:
            PathRefused: If it leads out, is reserved, or is no regular file.
            ToolError: If it cannot be opened; says why.
        """
        with _in_words(path), self._walk(path) as place:
            if place.name is None:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            _require_regular(path, os.stat(place.name, dir_fd=place.fd, follow_symlinks=False))
            descriptor = os.open(place.name, _READ, dir_fd=place.fd)
            try:
                _require_regular(path, os.fstat(descriptor))
                return os.fdopen(descriptor, "rb")
            except BaseException:
                os.close(descriptor)
                raise

    def list_directory(self, path: str, limit: int) -> Listing:
        """Return what a directory holds, in order of the names.

        Args:
            path: Relative to the root, or absolute and inside it.
            limit: Most entries to look at.

        Raises:
            PathRefused: If it leads out or is reserved.
            ToolError: If it cannot be read; says why.
        """
        with _in_words(path), self._walk(path, as_directory=True) as place:
            found = os.listdir(place.fd)  # noqa: PTH208 - a descriptor has no iterdir()
            names = sorted(name for name in found if not self._is_reserved((*place.parts, name)))
            entries = [_entry(name, place.fd) for name in names[:limit]]
        return Listing(entries=tuple(each for each in entries if each), total=len(names))

    def locate(self, path: str) -> str:
        """Return where a file or directory really is: relative, without links.

        Args:
            path: Relative to the root, or absolute and inside it.

        Raises:
            PathRefused: If it leads out or is reserved.
            ToolError: If there is nothing.
        """
        with _in_words(path), self._walk(path) as place:
            if place.name is not None:
                os.stat(place.name, dir_fd=place.fd, follow_symlinks=False)
            return "/".join(place.parts) or "."

    def describe(self, path: str) -> FileFacts:
        """Return the facts about a regular file.

        Args:
            path: Relative to the root, or absolute and inside it.

        Raises:
            PathRefused: If it leads out, is reserved, or is no regular file.
            ToolError: If it cannot be looked at; says why.
        """
        where = self.locate(path)
        with self.open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
        kind, _ = mimetypes.guess_type(where)
        return FileFacts(path=where, size=size, mime_type=kind or "application/octet-stream")

    def write_file(self, path: str, data: bytes) -> str:
        """Write a file as a whole: afterwards it is the old one or the new one, never half.

        Missing directories are made. Symbolic links are not followed, so that what was
        decided about the path is true of the file.

        Args:
            path: Relative to the root, or absolute and inside it.
            data: The new content.

        Returns:
            Where it is, relative to the root.

        Raises:
            PathRefused: If it leads out, is reserved, goes through a symbolic link, or
                would replace something that is no regular file.
            ToolError: If it cannot be written; says why.
        """
        with _in_words(path), self._walk(path, is_writing=True) as place:
            if place.name is None:
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            _replace(path, place.fd, place.name, data)
            return "/".join(place.parts)

    # --- walking ----------------------------------------------------------------------

    @contextmanager
    def _walk(
        self, path: str, *, as_directory: bool = False, is_writing: bool = False
    ) -> Generator[_Place]:
        """Open the directory that holds *path*, or *path* itself if it is to be one."""
        walk = _Walk(self, path, is_writing=is_writing)
        try:
            yield walk.run(as_directory=as_directory)
        finally:
            walk.close()

    def _leads_nowhere(self, parts: tuple[str, ...]) -> bool:
        """Return whether *parts* are reserved, and nothing below them is readable either."""
        return self._is_reserved(parts) and not any(
            PurePosixPath(each).parts[: len(parts)] == parts for each in self.readable
        )

    def _is_reserved(self, parts: tuple[str, ...], *, is_writing: bool = False) -> bool:
        """Return whether *parts* may not be used."""
        if not parts or _fold(parts[0]) not in {_fold(name) for name in self.reserved}:
            return False
        allowed = [] if is_writing else [PurePosixPath(each).parts for each in self.readable]
        return not any(parts[: len(prefix)] == prefix for prefix in allowed)


@attrs.frozen
class _Place:
    fd: int
    """Open directory."""
    name: str | None
    """Name in it; None for the directory itself."""
    parts: tuple[str, ...]
    """Where that is, from the root."""


@final
class _Walk:
    """One walk; holds at most two descriptors however deep the path is."""

    def __init__(self, directory: ConfinedDirectory, path: str, *, is_writing: bool) -> None:
        self._directory = directory
        self._path = path
        self._is_writing = is_writing
        self._todo = deque(self._names_in(path))
        self._parts: list[str] = []
        self._links = 0
        self._fd = os.open(directory.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._fd)

    def run(self, *, as_directory: bool) -> _Place:
        while self._todo:
            name = self._todo.popleft()
            if name == "..":
                self._go_up()
            elif not self._follow(name):
                if not self._todo and not as_directory:
                    parts = (*self._parts, name)
                    self._refuse_reserved(parts)
                    return _Place(self._fd, name, parts)
                self._enter(name)
        self._refuse_reserved(tuple(self._parts))
        return _Place(self._fd, None, tuple(self._parts))

    def _refuse(self, reason: str) -> PathRefused:
        return PathRefused(_shorten(self._path), reason)

    def _names_in(self, path: str) -> list[str]:
        if "\0" in path:
            raise self._refuse("it contains a NUL character")
        if not path or len(path) > MAX_PATH:
            raise self._refuse(f"a path has 1 to {MAX_PATH} characters")
        parts = PurePosixPath(path).parts
        if path.startswith("/"):
            # Text only: a ".." after the root is refused by the walk like any other.
            root = self._directory.root
            for known in (root.parts, Path(os.path.realpath(root)).parts):
                if parts[: len(known)] == known:
                    return list(parts[len(known) :])
            raise self._refuse("it lies outside the workspace")
        return list(parts)

    def _refuse_reserved(self, parts: tuple[str, ...]) -> None:
        if self._directory._is_reserved(parts, is_writing=self._is_writing):
            raise self._refuse(f"{parts[0]!r} is reserved")

    def _follow(self, name: str) -> bool:
        """Put what a symbolic link says in its place; return whether there was one."""
        try:
            mode = os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mode
        except FileNotFoundError:
            return False
        if not stat.S_ISLNK(mode):
            return False
        if self._is_writing:
            raise self._refuse("it goes through a symbolic link; use the real path")
        self._links += 1
        if self._links > MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        target = os.readlink(name, dir_fd=self._fd)
        names = self._names_in(target)
        if target.startswith("/"):
            self._parts.clear()
            self._reopen()
        self._todo.extendleft(reversed(names))
        return True

    def _go_up(self) -> None:
        if self._is_writing:
            raise self._refuse("it contains '..'; use the real path")
        if not self._parts:
            raise self._refuse("it leads out of the workspace")
        self._parts.pop()
        self._reopen()

    def _reopen(self) -> None:
        """Walk again from the root to where we are: the kernel's ``..`` is never used."""
        parts, self._parts = self._parts, []
        root = self._directory.root
        self._replace_fd(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        for name in parts:
            self._enter(name)

    def _enter(self, name: str) -> None:
        if self._directory._leads_nowhere((*self._parts, name)):
            raise self._refuse(f"{name!r} is reserved")
        try:
            fd = os.open(name, _DIRECTORY, dir_fd=self._fd)
        except FileNotFoundError:
            if not self._is_writing:
                raise
            self._refuse_reserved((*self._parts, name))
            with suppress(FileExistsError):  # somebody else was faster
                os.mkdir(name, dir_fd=self._fd)
            fd = os.open(name, _DIRECTORY, dir_fd=self._fd)
        self._replace_fd(fd)
        self._parts.append(name)

    def _replace_fd(self, fd: int) -> None:
        os.close(self._fd)
        self._fd = fd


def _fold(name: str) -> str:
    """Return what a file system that ignores case and Unicode's forms takes a name for."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return "".join(each for each in folded if unicodedata.category(each) != "Cf")


def _entry(name: str, fd: int) -> Entry | None:
    try:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:  # it went away meanwhile
        return None
    readable = os.fsencode(name).decode("utf-8", "replace")
    return Entry(name=readable, kind=_kind(found.st_mode), size=found.st_size)


def _kind(mode: int) -> EntryKind:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "link" if stat.S_ISLNK(mode) else "other"


def _require_regular(path: str, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise PathRefused(_shorten(path), "it is not a regular file")


# --- writing --------------------------------------------------------------------------


def _replace(path: str, fd: int, name: str, data: bytes) -> None:
    mode: int | None = None
    try:
        found = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        pass
    else:
        _require_regular(path, found)
        mode = stat.S_IMODE(found.st_mode)
        if not mode & 0o222:  # a rename would not care
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    temporary, descriptor = _create_temporary(fd)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, name, src_dir_fd=fd, dst_dir_fd=fd)
    except BaseException:
        os.unlink(temporary, dir_fd=fd)
        raise
    os.fsync(fd)


def _create_temporary(fd: int) -> tuple[str, int]:
    number = 0
    while True:
        name = f".semibot-{os.getpid()}-{threading.get_ident()}-{number}.tmp"
        try:
            return name, os.open(name, _CREATE, 0o666, dir_fd=fd)
        except FileExistsError:  # left over from a crash
            number += 1


# --- errors ---------------------------------------------------------------------------


@contextmanager
def _in_words(path: str) -> Generator[None]:
    """Turn what the operating system says into words for a model."""
    shown = _shorten(path)
    try:
        yield
    except SemibotError:
        raise
    except FileNotFoundError:
        raise ToolError(f"{shown} does not exist") from None
    except IsADirectoryError:
        raise ToolError(f"{shown} is a directory") from None
    except NotADirectoryError:
        raise ToolError(f"{shown} is not a directory, or a part of it is not") from None
    except PermissionError:
        raise ToolError(f"{shown}: permission denied") from None
    except UnicodeError:
        raise PathRefused(shown, "it is not valid text") from None
    except OSError as exc:
        raise ToolError(f"{shown}: {exc.strerror or type(exc).__name__}") from exc


def _shorten(path: str) -> str:
    shown = path if len(path) <= 200 else path[:200] + "..."
    return shown.encode("utf-8", "replace").decode()
