"""Durable writes: whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path


def write_atomically(
    path: Path, data: bytes, *, unless: Callable[[], bool] = lambda: False
) -> bool:
    """Write a file so that readers and crashes see the old content or the new one.

    Args:
        path: The file; its directory exists.
        data: The whole content.
        unless: Asked when the content is on disk, just before it takes its place; if it
            says so, the old content stays.

    Returns:
        Whether the new content is there.

    Raises:
        OSError: If the disk refuses; the old content stays.
    """
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # left by a crash, or put there by somebody else
    descriptor = open_regular(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        is_wanted = not unless()
        if is_wanted:
            temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if is_wanted:
        sync_directory(path.parent)
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


def append_text(path: Path, text: str) -> None:
    """Append *text* in one write, durably.

    Raises:
        OSError: If the disk refuses.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    with os.fdopen(open_regular(path, flags), "ab") as file:
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable.

    Raises:
        OSError: If the disk refuses.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
