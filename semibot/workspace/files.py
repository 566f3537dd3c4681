"""Durable writes: whole or not at all.

*sync* is always :meth:`semibot.ports.Disk.sync`, by default the operating system's own.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

Sync: TypeAlias = Callable[[int], None]
"""Brings an open file, or the names in an open directory, to the disk."""


def write_atomically(
    path: Path,
    data: bytes,
    *,
    sync: Sync = os.fsync,
    unless: Callable[[], bool] = lambda: False,
) -> bool:
    """Write a file so that readers and crashes see the old content or the new one.

    Args:
        path: The file; its directory exists.
        data: The whole content.
        sync: See the module.
        unless: Asked when the content is on disk, just before it takes its place; if it
            says so, the old content stays.

    Returns:
        Whether the new content is there.

    Raises:
        OSError: If the disk refuses; the old content stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # left by a crash, or put there by somebody else
    descriptor = open_regular(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            sync(file.fileno())
        is_wanted = not unless()
        if is_wanted:
            temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if is_wanted:
        sync_directory(path.parent, sync=sync)
    else:
        temporary.unlink(missing_ok=True)
    return is_wanted


def open_regular(path: Path, flags: int) -> int:
    """Open a regular file and return its descriptor; it is made if *flags* say so.

    A link, a pipe or a device in its place is refused: a command that an agent ran may
    have put it there, to make us write elsewhere or wait for ever.

    Args:
        path: The file.
        flags: As for :func:`os.open`.

    Raises:
        OSError: If it cannot be opened, or is something else.
    """
    safe = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags | safe, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file; see :func:`open_regular`.

    Raises:
        OSError: If it cannot be read, or is something else.
    """
    with os.fdopen(open_regular(path, os.O_RDONLY), "rb") as file:
        return file.read()


def append_text(path: Path, text: str, *, sync: Sync = os.fsync) -> None:
    """Append *text* in one write, durably.

    Raises:
        OSError: If the disk refuses.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    with os.fdopen(open_regular(path, flags), "ab") as file:
        is_new = os.fstat(file.fileno()).st_size == 0
        file.write(text.encode())
        file.flush()
        sync(file.fileno())
    if is_new:
        sync_directory(path.parent, sync=sync)


def make_directory(path: Path, *, mode: int = 0o777, sync: Sync = os.fsync) -> None:
    """Make a directory and those above it that are missing, durably.

    Args:
        path: The directory; nothing is done if it is there.
        mode: Permissions of *path* itself, as for :func:`os.mkdir`.
        sync: See the module.

    Raises:
        OSError: If the disk refuses.
    """
    missing = [path]
    while not missing[-1].parent.exists():
        missing.append(missing[-1].parent)
    if not path.exists():
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        for made in reversed(missing):
            sync_directory(made.parent, sync=sync)


def sync_directory(path: Path, *, sync: Sync = os.fsync) -> None:
    """Make the names in a directory durable.

    Raises:
        OSError: If the disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)
