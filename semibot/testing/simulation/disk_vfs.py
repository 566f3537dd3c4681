"""The VFS through which SQLite works on a simulated disk.

It is SQLite's own for this system with an ear at it: reading, locking and shared memory go
straight through, and what changes files is told to the disk.
"""

# pyright: reportUnknownMemberType=false
# The driver's stubs name a type that Python 3.11 does not have.

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

import apsw
from typing_extensions import override

if TYPE_CHECKING:
    from semibot.testing.simulation.disk import SimulatedDisk

_LOGS: Final = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_WAL
_THE_USUAL: Final = ""


def open_vfs(disk: SimulatedDisk) -> DiskVfs:
    """Register a VFS for *disk*, until its ``unregister`` is called."""
    return DiskVfs(disk, f"simulated-disk-{id(disk):x}")


@final
class DiskVfs(apsw.VFS):
    """The VFS of one disk."""

    def __init__(self, disk: SimulatedDisk, name: str) -> None:
        self.name = name
        self._disk = disk
        super().__init__(name, _THE_USUAL)

    @override
    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        if name is None:  # a temporary file, which nobody misses
            return apsw.VFSFile(_THE_USUAL, name, flags)
        return _File(self._disk, name, flags)

    @override
    def xDelete(self, filename: str, syncdir: bool) -> None:
        path = Path(filename)
        self._disk.begin(path.name)
        super().xDelete(filename, syncdir)
        if syncdir:
            self._disk.sync_names(path.parent)


@final
class _File(apsw.VFSFile):
    """An open file; several may be the same one."""

    def __init__(
        self, disk: SimulatedDisk, name: str | apsw.URIFilename, flags: Sequence[int]
    ) -> None:
        super().__init__(_THE_USUAL, name, list(flags))
        text = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._path = Path(text)
        self._disk = disk
        self._file = disk.open_file(self._path)
        # SQLite syncs the directory with the first sync of a log that it may have made.
        self._syncs_names = bool(flags[0] & _LOGS)

    @override
    def xWrite(self, data: bytes, offset: int) -> None:
        self._disk.begin(self._path.name)
        if offset + len(data) > self._file.size() and not self._disk.has_room(self._path.name):
            part = data[: self._disk.draw_part(len(data))]
            if part:
                super().xWrite(part, offset)
                self._file.wrote(offset, len(part))
            raise apsw.FullError("no room")
        super().xWrite(data, offset)
        self._file.wrote(offset, len(data))

    @override
    def xTruncate(self, newsize: int) -> None:
        self._disk.begin(self._path.name)
        self._file.wrote(newsize, max(0, self._file.size() - newsize))
        super().xTruncate(newsize)

    @override
    def xSync(self, flags: int) -> None:
        self._disk.begin(self._path.name)
        if not self._disk.sync_file(self._file, self._path):
            error = apsw.exception_for(apsw.SQLITE_IOERR_FSYNC)
            error.args = ("fsync failed",)
            raise error
        if self._syncs_names:
            self._syncs_names = False
            self._disk.sync_names(self._path.parent)
