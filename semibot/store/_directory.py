"""The directory that a host's database lies in: made private, and taken by one host at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from pathlib import Path

from semibot.errors import ConfigError, DataDirectoryInUse
from semibot.ports import Disk


def claim_directory(database: Path, disk: Disk) -> int:
    """Make the directory of *database*, take its lock, and make the file if it is missing.

    The files are for their owner only (0600), and so is the directory (0700) if it is new,
    empty, or has a database in it. Any other directory stays as it is, and is refused if
    others may write in it.

    Args:
        database: The database file.
        disk: What makes the directory last.

    Returns:
        The descriptor that holds the lock until it is closed.

    Raises:
        DataDirectoryInUse: If another host holds the lock.
        ConfigError: If the directory cannot be made or written.
    """
    directory = database.parent
    try:
        _make_private(directory, database, disk)
        lock = _open_regular(directory / "lock")
        try:
            _take(lock, directory)
            os.close(_open_regular(database))  # SQLite would make it readable for everybody
        except BaseException:
            os.close(lock)
            raise
    except OSError as exc:
        reason = exc.strerror or type(exc).__name__
        message = f"cannot keep data in {directory}: {reason}; pass another --data-dir"
        raise ConfigError(message) from exc
    return lock


def find_holder(directory: Path) -> DataDirectoryInUse | None:
    """Return who has *directory*, as the error that :func:`claim_directory` would raise.

    Raises:
        OSError: If that cannot be told.
    """
    try:
        lock = os.open(directory / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _in_use(lock, directory)
    finally:
        os.close(lock)
    return None


def _make_private(directory: Path, database: Path, disk: Disk) -> None:
    missing = [each for each in (directory, *directory.parents) if not each.exists()]
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    for made in reversed(missing):  # SQLite syncs only the directory that its files are in
        _sync_names(made.parent, disk)
    if database.exists() or not any(directory.iterdir()):
        directory.chmod(0o700)
    elif directory.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(errno.EPERM, "others may write there")


def _sync_names(directory: Path, disk: Disk) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        disk.sync(descriptor)
    finally:
        os.close(descriptor)


def _take(lock: int, directory: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _in_use(lock, directory) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)


def _in_use(lock: int, directory: Path) -> DataDirectoryInUse:
    holder = os.pread(lock, 32, 0).strip()
    return DataDirectoryInUse(str(directory), int(holder) if holder.isdigit() else None)


def _open_regular(path: Path) -> int:
    """Open or make a file of ours; a link or a pipe in its place is refused."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, f"{path.name} is not a regular file")
        os.fchmod(descriptor, 0o600)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
