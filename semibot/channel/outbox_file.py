"""The file behind an outbox: one line for each report, one for what was acknowledged.

Everything here is blocking and runs in worker threads. A thread that hangs on the disk is
left behind; a lock keeps whatever comes after it in order.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from typing import Final, final

from semibot.errors import RemoteProtocolError, StoreError
from semibot.logs import get_logger
from semibot.wire.codec import dump_json, load_json
from semibot.wire.frames import FireAndForget, decode_from_vm
from semibot.workspace.files import (
    Sync,
    make_directory,
    open_regular,
    read_regular,
    sync_directory,
    write_atomically,
)

log: Final = get_logger(__name__)


@final
class OutboxFile:
    """``outbox.jsonl`` in a state directory, and the lock beside it.

    Args:
        directory: The state directory; made if missing.
        sync: What makes files last; see :class:`semibot.ports.Disk`.
    """

    def __init__(self, directory: Path, sync: Sync) -> None:
        self._directory = directory
        self._sync = sync
        self._path = directory / "outbox.jsonl"
        self._turn = threading.Lock()
        self._lock: FileIO | None = None
        self._file: FileIO | None = None
        self._ends_in_half_a_line = False
        self.size: int = 0
        """Bytes in the file."""

    def open(self) -> tuple[FireAndForget, ...]:
        """Take the directory for this process and return the reports that are left.

        Raises:
            StoreError: If another process has it, or the disk refuses.
        """
        with self._turn:
            try:
                make_directory(self._directory, mode=0o700, sync=self._sync)
                self._lock = _locked(self._directory / "outbox.lock")
                content = read_regular(self._path) if self._path.exists() else b""
                rows = _rows_in(content)
                self._ends_in_half_a_line = not content.endswith(b"\n") and content != b""
                self._open_file()
                sync_directory(self._directory, sync=self._sync)
            except BlockingIOError:
                self._close()
                message = f"{self._directory} is in use by another VM; stop it first"
                raise StoreError(message) from None
            except OSError as exc:
                self._close()
                raise StoreError(f"cannot open the outbox: {exc.strerror}") from exc
            return rows

    def append(self, lines: bytes) -> None:
        """Write whole lines behind the others, durably or not at all.

        Raises:
            StoreError: If the disk refuses.
        """
        with self._turn:
            file = self._opened()
            if self._ends_in_half_a_line:
                lines = b"\n" + lines
            try:
                written = 0
                while written < len(lines):
                    written += file.write(lines[written:])
                self._sync(file.fileno())
            except OSError as exc:
                self._cut(file)
                raise StoreError(f"cannot write the outbox: {exc.strerror}") from exc
            self.size += len(lines)
            self._ends_in_half_a_line = False

    def replace(self, lines: bytes) -> None:
        """Write these lines instead of all others, durably or not at all.

        Raises:
            StoreError: If the disk refuses; the lines before are still there.
        """
        with self._turn:
            self._opened()
            try:
                write_atomically(self._path, lines, sync=self._sync)
                self._open_file()
                self._ends_in_half_a_line = False
            except OSError as exc:
                raise StoreError(f"cannot write the outbox: {exc.strerror}") from exc

    def close(self) -> None:
        """Leave the directory to others."""
        with self._turn:
            self._close()

    def _opened(self) -> FileIO:
        if self._file is None:
            raise StoreError("the outbox is closed")
        return self._file

    def _open_file(self) -> None:
        if self._file is not None:
            self._file.close()
        descriptor = open_regular(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self._file = FileIO(descriptor, "ab")
        self.size = os.fstat(descriptor).st_size

    def _cut(self, file: FileIO) -> None:
        """Take half a line off; one that stays is skipped by the next reading."""
        try:
            os.ftruncate(file.fileno(), self.size)
        except OSError as exc:
            self._ends_in_half_a_line = True
            log.warning("cannot take half a line off the outbox", error=repr(exc))

    def _close(self) -> None:
        for file in (self._file, self._lock):
            if file is not None:
                file.close()
        self._file = self._lock = None


def acked_line(ids: Iterable[str]) -> bytes:
    """Return the line that says which reports the host has."""
    return (dump_json({"acked": list(ids)}) + "\n").encode()


def _locked(path: Path) -> FileIO:
    lock = FileIO(open_regular(path, os.O_RDWR | os.O_CREAT), "r+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise
    return lock


def _rows_in(content: bytes) -> tuple[FireAndForget, ...]:
    """Return the reports that nobody acknowledged, in order.

    A line that makes no sense is skipped: a crash leaves half a line at the end, and the
    next opening writes behind it.
    """
    rows: dict[str, FireAndForget] = {}
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line:
            continue
        try:
            _apply(rows, line)
        except RemoteProtocolError as exc:
            log.warning("a line of the outbox makes no sense", line=number, error=str(exc))
    return tuple(rows.values())


def _apply(rows: dict[str, FireAndForget], line: bytes) -> None:
    value = load_json(line)
    acked = value.get("acked") if isinstance(value, dict) else None
    if isinstance(acked, list):
        for row_id in acked:
            rows.pop(str(row_id), None)
        return
    frame = decode_from_vm(line.decode())
    if not isinstance(frame, FireAndForget) or frame.id is None:
        raise RemoteProtocolError("expected a report with an id")
    rows[frame.id] = frame
