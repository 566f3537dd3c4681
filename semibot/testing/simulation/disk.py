"""A disk that keeps what was synced, and only a part of the rest when the power goes.

Theory of operation. Programs work on real files in a directory of the machine, which plays the
part of the operating system's cache. Beside it the disk knows what is on the *medium*: the
content of each file when it was synced last, and the names in each directory when that was.
:meth:`SimulatedDisk.sync` and SQLite's own syncs, which come through a VFS, bring content to
the medium. :meth:`SimulatedDisk.kill` makes the disk that the next process finds after a
SIGKILL: the cache is still there, and still not synced. :meth:`SimulatedDisk.cut_power` makes
the one that it finds after a loss of power: the medium and, of every unsynced file and name,
whatever chance has brought there, in sectors of 512 bytes.

After a sync that fails Linux takes the pages for clean, though nobody knows whether they are on
the medium: a later sync does not write them again, and what the cache shows of them may go at
any time. So does this disk. A new name lasts when its directory was synced, not before.
SQLite's shared memory is never kept; SQLite makes it anew.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal, TypeAlias, final

from semibot.testing.simulation.disk_files import SECTOR, DiskFile
from semibot.testing.simulation.disk_vfs import open_vfs

DiskFault: TypeAlias = Literal["fsync_error", "disk_full"]
"""What a disk may be told to do wrong."""

_DIRECTORY: Final = 0
_SHARED_MEMORY: Final = "-shm"


@final
class SimulatedDisk:
    """The disk of one process; a :class:`semibot.ports.Disk`.

    What is in *directory* when it is made counts as synced. Only one thread may use it at a
    time, as in a simulation.

    Args:
        directory: Where its files are. It exists, and nobody else writes there.
        draw: Decides what chance decides.
        now: What time it is, for faults that last.
        on_fault: Told of each fault when it has really hit, with the file's name.
    """

    def __init__(
        self,
        directory: Path,
        draw: random.Random,
        *,
        now: Callable[[], float] = lambda: 0.0,
        on_fault: Callable[[DiskFault, str], None] = lambda kind, name: None,
    ) -> None:
        self.directory = directory
        self._draw = draw
        self._now = now
        self._on_fault = on_fault
        self._files: dict[int, DiskFile] = {}
        self._names: dict[Path, dict[str, int]] = {}  # on the medium, with the file's number
        self._failing_syncs = 0
        self._failing_until = self._full_until = 0.0
        self.before_operation: Callable[[str], None] | None = None
        """Called with a file's name before SQLite changes or syncs it, and before any other
        sync. It may :meth:`kill` or :meth:`cut_power`: so a commit is cut in two."""
        self.lost: int = 0
        """Sectors and names that a loss of power took when it made this disk."""
        self._vfs = open_vfs(self)
        for path, _, _ in os.walk(directory):
            self._read(Path(path))

    def _read(self, directory: Path) -> None:
        """Take a directory, and the files in it, for synced."""
        self._names[directory] = names = _listing(directory)
        for name, number in names.items():
            path = directory / name
            if number != _DIRECTORY and stat.S_ISREG(path.lstat().st_mode):
                self._adopt(path).sync()

    def _adopt(self, path: Path) -> DiskFile:
        pin = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        file = self._files[os.fstat(pin).st_ino] = DiskFile(pin)
        return file

    @property
    def sqlite_vfs(self) -> str:
        """Name of the VFS."""
        return self._vfs.name

    def close(self) -> None:
        """Forget everything. No database may be open any more."""
        self._vfs.unregister()
        for file in self._files.values():
            os.close(file.pin)
        self._files.clear()

    # --- faults ---

    def fail_syncs(self, count: int = 0, *, until: float = 0.0) -> None:
        """Let the next *count* syncs fail with EIO, and all before the time *until*."""
        self._failing_syncs, self._failing_until = count, until

    def fill(self, *, until: float) -> None:
        """Have no room for more before the time *until*: what makes a file longer fails."""
        self._full_until = until

    def heal(self) -> None:
        """End every fault."""
        self.fail_syncs()
        self.fill(until=0.0)

    def _fails(self, name: str) -> bool:
        if self._failing_syncs:
            self._failing_syncs -= 1
        elif not (self._failing_until and self._now() < self._failing_until):
            return False
        self._on_fault("fsync_error", name)
        return True

    def has_room(self, name: str) -> bool:
        """Return whether *name* may grow; count it if not."""
        if self._full_until and self._now() < self._full_until:
            self._on_fault("disk_full", name)
            return False
        return True

    def draw_part(self, size: int) -> int:
        """Return how much of a write there is still room for: some sectors of it."""
        return self._draw.randrange(size + 1) // SECTOR * SECTOR

    # --- syncing ---

    def sync(self, descriptor: int) -> None:
        """Bring a file, or the names in a directory, to the medium.

        Raises:
            OSError: If the disk was told to refuse.
        """
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode):
            self._sync_directory(found)
            return
        self.begin("a file")
        file = self._files.get(found.st_ino)
        if file is None:
            file = self._files[found.st_ino] = DiskFile(os.dup(descriptor))
        if found.st_size > len(file.medium) and not self.has_room("a file"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if not self._sync_file(file, "a file"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def _sync_directory(self, found: os.stat_result) -> None:
        self.begin("a directory")
        if self._fails("a directory"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        for path, _, _ in os.walk(self.directory):
            if os.path.samestat(Path(path).stat(), found):
                self.sync_names(Path(path))
                return

    def _sync_file(self, file: DiskFile, name: str) -> bool:
        if self._fails(name):
            file.fail_sync(self._draw)
            return False
        file.sync()
        return True

    # --- for the VFS ---

    def begin(self, name: str) -> None:
        """Note that something is about to change on the disk."""
        if self.before_operation is not None:
            self.before_operation(name)

    def open_file(self, path: Path) -> DiskFile:
        """Return a file that SQLite has opened."""
        file = self._files.get(path.stat().st_ino) or self._adopt(path)
        file.watch()
        return file

    def sync_file(self, file: DiskFile, path: Path) -> bool:
        """Bring a file of SQLite's to the medium; return whether that worked."""
        return self._sync_file(file, path.name)

    def sync_names(self, directory: Path) -> None:
        """Bring the names in a directory to the medium, and forget files that have none."""
        self._names[directory] = _listing(directory)
        named = {number for names in self._names.values() for number in names.values()}
        for number, file in tuple(self._files.items()):
            if number not in named and os.fstat(file.pin).st_nlink == 0:
                os.close(self._files.pop(number).pin)

    # --- what the next process finds ---

    def kill(self, copy: Path) -> SimulatedDisk:
        """Return the disk as a SIGKILL leaves it, in the new directory *copy*."""
        numbers: dict[int, int] = {}
        _make_directory(self.directory, copy)
        for path, directories, _ in os.walk(self.directory):
            there = copy / Path(path).relative_to(self.directory)
            for name in directories:
                _make_directory(Path(path, name), there / name)
            for name, number in _listing(Path(path)).items():
                if number != _DIRECTORY:
                    numbers[number] = _copy(Path(path, name), there / name)
        after = self._next(copy)
        for number, found in numbers.items():
            if number not in self._files and found in after._files:
                after._files[found].medium.clear()  # it was never synced
        for number, file in self._files.items():
            if number not in numbers:  # deleted, but a loss of power might bring it back
                numbers[number] = after._keep_deleted(file.content())
            heir = after._files[numbers[number]]
            heir.medium[:] = file.medium
            heir.forgotten.update(file.forgotten)
        after._names = {
            copy / path.relative_to(self.directory): {
                name: numbers.get(number, number) for name, number in names.items()
            }
            for path, names in self._names.items()
        }
        return after

    def cut_power(self, copy: Path) -> SimulatedDisk:
        """Return the disk as it is when the power is back, in the new directory *copy*."""
        _make_directory(self.directory, copy)
        lost = self._restore(self.directory, copy)
        after = self._next(copy)
        after.lost = lost
        return after

    def _next(self, directory: Path) -> SimulatedDisk:
        draw = random.Random(self._draw.random())  # noqa: S311 - reproducible on purpose
        return SimulatedDisk(directory, draw, now=self._now, on_fault=self._on_fault)

    def _keep_deleted(self, content: bytes) -> int:
        path = self.directory / "deleted"
        path.write_bytes(content)
        self._adopt(path)
        number = path.stat().st_ino
        path.unlink()
        return number

    def _restore(self, source: Path, target: Path) -> int:
        """Write what is left of a directory; return how much is lost."""
        synced = self._names.get(source, {})
        shown = _listing(source) if source.is_dir() else {}
        lost = 0
        for name in sorted(synced.keys() | shown.keys()):
            number = shown.get(name)
            if number != synced.get(name):
                chosen = self._draw.choice([number, synced.get(name)])
                lost += chosen != number
                number = chosen
            if number == _DIRECTORY:
                _make_directory(source / name, target / name)
                lost += self._restore(source / name, target / name)
            elif number is not None:
                lost += self._restore_file(number, source / name, target / name)
        return lost

    def _restore_file(self, number: int, source: Path, target: Path) -> int:
        file = self._files.get(number)
        if file is None and not stat.S_ISREG(source.lstat().st_mode):
            _copy(source, target)
            return 0
        is_new = file is None
        if file is None:  # never synced
            file = DiskFile(os.open(source, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
        image, lost = file.after_power_loss(self._draw)
        target.touch(mode=stat.S_IMODE(os.fstat(file.pin).st_mode))
        target.write_bytes(image)
        if is_new:
            os.close(file.pin)
        return lost


def _listing(directory: Path) -> dict[str, int]:
    with os.scandir(directory) as entries:
        found = {
            each.name: _DIRECTORY if each.is_dir(follow_symlinks=False) else each.inode()
            for each in entries
            if not each.name.endswith(_SHARED_MEMORY)
        }
    return dict(sorted(found.items()))


def _make_directory(source: Path, target: Path) -> None:
    mode = stat.S_IMODE(source.stat().st_mode) if source.exists() else 0o700
    target.mkdir(mode=mode)


def _copy(source: Path, target: Path) -> int:
    """Copy a file or link, and return the number of the copy."""
    shutil.copy2(source, target, follow_symlinks=False)
    return target.lstat().st_ino
