"""A store in one SQLite file: its connections, its commits and its failures.

The only module that knows the driver. One connection writes, in groups (see ``_writer``); a
few read (see ``_readers``). Every commit is on the disk before anybody is told
(``synchronous = FULL``). A connection that failed to commit is never used again: what the
operating system did with its pages is not known, so the next group begins on a fresh one.

A commit that could not be synced may still lie in the log as a whole. Nobody sees it, and the
next commit overwrites it, as long as some connection knows where the log really ends; so the
failed connection stays open until a fresh one has taken that over. Only a host that dies
between the two may find it stored when it starts again.
"""

# pyright: reportUnknownMemberType=false
# The driver's stubs name a type that Python 3.11 does not have.

from __future__ import annotations

import os
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar, final

import apsw
import trio

from semibot.config.deadlines import Deadlines
from semibot.errors import ConfigError, StoreError
from semibot.lifetimes import grace, open_services
from semibot.logs import get_logger
from semibot.ports import Disk, Ports
from semibot.store._database import Database, Row, SqlValue
from semibot.store._directory import claim_directory
from semibot.store._migrations import Migration, read_migrations
from semibot.store._readers import Readers
from semibot.store._sqlite_store import SqliteStore as SqliteStore
from semibot.store._writer import Committed, GroupWriter, Job, StoreClock

log: Final = get_logger(__name__)

T = TypeVar("T")

OWN_FAULTS: Final = (
    apsw.BindingsError,
    apsw.ConstraintError,
    apsw.MismatchError,
    apsw.RangeError,
    apsw.SQLError,
    apsw.TooBigError,
)
"""What one statement did wrong; anything else means that the database does not work."""

MAX_WAL_BYTES: Final = 64 * 1024 * 1024
"""What a write-ahead log is cut back to after a checkpoint."""


LOG_PIECE: Final = 64 * 1024
"""How much of a log is read and written at once, in bytes; SQLite writes less than 128 KiB."""


@asynccontextmanager
async def open_sqlite_store(
    path: Path, *, ports: Ports, deadlines: Deadlines, takes_lock: bool = True
) -> AsyncGenerator[SqliteStore]:
    """Open the store in a database file, which is made or brought up to date if need be.

    The file's directory belongs to this store alone until the block is left: a lock in it
    keeps other hosts out. On exit the store takes no more writes, commits those that wait,
    moves the log into the file and closes it, all within ``store.commit``. A disk that hangs
    for longer is left to the thread that waits for it, which closes what is open when it ends.

    Args:
        path: The database file; its directory is made if missing, and private to its owner.
        ports: Threads (limiters ``store``, capacity 1, and ``store.read``), disk and wall clock.
        deadlines: ``store_commit`` bounds opening, every transaction, and closing.
        takes_lock: False opens the database beside the host that has the directory, for a
            change or two: the file must exist and be up to date, and its log stays as it is.

    Yields:
        The store.

    Raises:
        DataDirectoryInUse: If another host has the directory.
        ConfigError: If the directory or the file cannot be written, the file is no database,
            or it was written by a newer semibot; without the lock also by an older one.
        StoreError: If the disk fails.
    """
    seconds = deadlines.store_commit
    clock = StoreClock(ports)
    engine = _Engine(path, ports.disk, seconds, takes_lock=takes_lock)
    writer = GroupWriter(engine.commit, ports=ports, clock=clock, seconds=seconds)
    readers = Readers(engine.connect_reader, ports=ports, clock=clock, seconds=seconds)

    def close() -> None:
        readers.close(seconds / 2)  # the rest is for what was written
        engine.close()

    try:
        # Shielded, so that a cancellation leaves no thread behind that still opens it.
        with grace("store.commit", seconds) as opening:
            await ports.threads.run_sync(engine.open, limiter="store", abandon_on_cancel=True)
        if opening.cancelled_caught:
            await trio.lowlevel.checkpoint_if_cancelled()
            raise StoreError(f"the database takes more than {seconds:g} s to open")
        async with open_services() as services:
            services.start_soon(writer.serve)
            try:
                yield SqliteStore(writer, readers)
            finally:
                with grace("store.commit", seconds):
                    await writer.finish()
                    await ports.threads.run_sync(close, limiter="store", abandon_on_cancel=True)
    finally:
        engine.give_up()


@final
class _Engine:
    """What is open for one database. Its methods block, so they run in worker threads.

    ``open``, ``commit`` and ``close`` hold ``_in_use``, one at a time. :meth:`give_up` never
    blocks: it closes everything at once, or leaves that to the thread that has it in use.
    """

    def __init__(self, path: Path, disk: Disk, seconds: float, *, takes_lock: bool) -> None:
        self._path = path
        self._disk = disk
        self._takes_lock = takes_lock
        self._busy_ms = int(seconds * 500)
        self._in_use = threading.Lock()
        self._is_given_up = False
        self._lock: int | None = None
        self._writer: apsw.Connection | None = None
        self._failed: apsw.Connection | None = None

    @contextmanager
    def _using(self) -> Generator[None]:
        try:
            with self._in_use:
                yield
        finally:
            # Looked at when the lock is free again: either we see that it was given up, or
            # give_up() gets the lock. Both is harmless.
            if self._is_given_up:
                self._release_if_free()

    def give_up(self) -> None:
        """Make sure that everything is closed, now or when a hanging thread ends."""
        self._is_given_up = True
        self._release_if_free()

    def _release_if_free(self) -> None:
        if self._in_use.acquire(blocking=False):
            try:
                self._release()
            finally:
                self._in_use.release()

    def _release(self) -> None:
        _close(self._failed)
        _close(self._writer)
        self._failed = self._writer = None
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def open(self) -> None:
        """Take the directory, and open and migrate the database; or open it as a guest."""
        with self._using():
            self._path = self._path.absolute()  # whatever the program's directory is later
            if self._takes_lock:
                self._lock = claim_directory(self._path, self._disk)
            try:
                self._writer = self._connect()
                if self._takes_lock:
                    self._renew_log(self._writer)
                    _migrate(self._writer, read_migrations(), self._path)
                else:
                    _check_version(self._writer, read_migrations()[-1].version, self._path)
            except apsw.Error as exc:
                self._release()
                raise _opening_failed(self._path, exc) from exc
            except BaseException:
                self._release()
                raise

    def close(self) -> None:
        """Move the log into the database, and close."""
        with self._using():
            if self._writer is not None and self._takes_lock:
                try:
                    self._writer.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
                except apsw.Error as exc:  # the log is read when the database is opened next
                    log.warning("the log stays beside the database", reason=_reason(exc))
            self._release()

    def _connect(self) -> apsw.Connection:
        connection = apsw.Connection(
            str(self._path), flags=apsw.SQLITE_OPEN_READWRITE, vfs=self._disk.sqlite_vfs
        )
        try:
            connection.set_busy_timeout(self._busy_ms)
            if not self._takes_lock:  # the log is for its host to move
                connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
            connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
            connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
            connection.config(apsw.SQLITE_DBCONFIG_DQS_DML, 0)
            connection.config(apsw.SQLITE_DBCONFIG_DQS_DDL, 0)
            connection.execute("PRAGMA journal_mode = wal")
            connection.execute("PRAGMA synchronous = full")
            connection.execute("PRAGMA foreign_keys = on")
            connection.execute(f"PRAGMA journal_size_limit = {MAX_WAL_BYTES}")
        except BaseException:
            _close(connection)
            raise
        return connection

    def _renew_log(self, connection: apsw.Connection) -> None:
        """Bring the commits to the disk that an earlier host has left in the log.

        A host that was killed while it committed may have left a commit in the operating
        system's memory only. We see it, so it has to outlive a loss of power from now on. It is
        written again, because a system that has failed to write a page takes it for written.

        If that fails, some of it may be gone that SQLite has just seen: it must not be moved into
        the database as the connection is closed. The log is then read anew at the next opening.
        """
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        connection.execute("BEGIN IMMEDIATE")  # so that nobody else writes to the log
        flags = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_READWRITE
        log_file = apsw.VFSFile(self._disk.sqlite_vfs or "", f"{self._path}-wal", [flags, 0])
        try:
            for offset in range(0, log_file.xFileSize(), LOG_PIECE):
                size = min(LOG_PIECE, log_file.xFileSize() - offset)
                log_file.xWrite(log_file.xRead(size, offset), offset)
            log_file.xSync(apsw.SQLITE_SYNC_NORMAL)
        finally:
            log_file.xClose()
            connection.execute("ROLLBACK")
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)

    def connect_reader(self) -> _Reader:
        """Open a connection that cannot write."""
        try:
            connection = self._connect()
            connection.execute("PRAGMA query_only = on")
        except apsw.Error as exc:
            raise StoreError(f"cannot read: {_reason(exc)}") from exc
        return _Reader(connection)

    def commit(self, jobs: Sequence[Job], now: int) -> Committed:
        """Run *jobs* as one transaction, each in a savepoint of its own."""
        with self._using():
            try:
                return _commit(self._fresh_writer(), jobs, now)
            except apsw.Error as exc:
                self._set_aside()
                return Committed(failure=_reason(exc), has_written=False)
            except BaseException:
                self._set_aside()
                raise

    def _fresh_writer(self) -> apsw.Connection:
        if self._writer is None:
            self._writer = self._connect()
            _close(self._failed)
            self._failed = None
        return self._writer

    def _set_aside(self) -> None:
        """Use the writer no more, but keep it open until there is another; see the module."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(apsw.Error):
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
            self._failed = writer


def _close(connection: apsw.Connection | None) -> None:
    if connection is not None:
        with suppress(apsw.Error):  # a failed checkpoint is made up for at the next opening
            connection.close(force=True)


# --- transactions ---------------------------------------------------------------------


@final
class _Transaction:
    """What the SQL modules see of a connection; see :class:`Database`."""

    __slots__ = ("_connection", "_is_stopped", "_now")

    def __init__(
        self, connection: apsw.Connection, now: int, is_stopped: Callable[[], bool] | None = None
    ) -> None:
        self._connection = connection
        self._now = now
        self._is_stopped = is_stopped

    def _start(self, sql: str, params: Sequence[SqlValue]) -> tuple[apsw.Cursor, dict[str, int]]:
        if self._is_stopped is not None and self._is_stopped():
            raise apsw.InterruptError("nobody waits for this")
        cursor = self._connection.execute(sql, params)
        try:
            names = cursor.get_description()
        except apsw.ExecutionCompleteError:  # it has no rows
            names = ()
        return cursor, {column[0]: position for position, column in enumerate(names)}

    def execute(self, sql: str, params: Sequence[SqlValue] = ()) -> list[Row]:
        cursor, positions = self._start(sql, params)
        return [Row(positions, values) for values in cursor]

    def one(self, sql: str, params: Sequence[SqlValue] = ()) -> Row | None:
        cursor, positions = self._start(sql, params)
        found = [Row(positions, values) for values in cursor]
        return found[0] if found else None

    def change(self, sql: str, params: Sequence[SqlValue] = ()) -> int:
        self._start(sql, params)
        return self._connection.changes()

    def change_many(self, sql: str, rows: Sequence[Sequence[SqlValue]]) -> None:
        self._connection.executemany(sql, rows)

    def now(self) -> int:
        return self._now


def _commit(connection: apsw.Connection, jobs: Sequence[Job], now: int) -> Committed:
    before = connection.total_changes()
    connection.execute("BEGIN IMMEDIATE")
    database = _Transaction(connection, now)
    for job in jobs:
        _run(connection, database, job)
    connection.execute("COMMIT")
    return Committed(failure=None, has_written=connection.total_changes() != before)


def _run(connection: apsw.Connection, database: Database, job: Job) -> None:
    connection.execute("SAVEPOINT job")
    try:
        job.run(database)
    except apsw.Error as exc:
        if not isinstance(exc, OWN_FAULTS) or not connection.in_transaction:
            raise
        connection.execute("ROLLBACK TO job")
        job.error = _statement_failed(exc)
    except Exception as exc:  # noqa: BLE001 - the job's caller gets it
        connection.execute("ROLLBACK TO job")
        job.error = exc
    connection.execute("RELEASE job")


def _statement_failed(exc: apsw.Error) -> StoreError:
    error = StoreError(f"a statement was refused: {_reason(exc)}")
    error.__cause__ = exc
    return error


@final
class _Reader:
    """A connection that reads; see :class:`~semibot.store._readers.ReadConnection`."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._is_usable = True

    @property
    def is_usable(self) -> bool:
        return self._is_usable

    def read(self, fn: Callable[[Database], T], now: int) -> T:
        database = _Transaction(self._connection, now, lambda: not self._is_usable)
        try:
            self._connection.execute("BEGIN")
            try:
                return fn(database)
            finally:
                if self._connection.in_transaction:  # some errors end it
                    self._connection.execute("ROLLBACK")
        except apsw.Error as exc:
            self._is_usable = False
            raise StoreError(f"cannot read: {_reason(exc)}") from exc

    def interrupt(self) -> None:
        self._is_usable = False
        self._connection.interrupt()

    def close(self) -> None:
        _close(self._connection)


# --- opening --------------------------------------------------------------------------


def _migrate(connection: apsw.Connection, steps: Sequence[Migration], path: Path) -> None:
    version = int(connection.pragma("user_version"))
    newest = steps[-1].version
    if version > newest:
        message = (
            f"{path} was written by a newer semibot (schema {version}, this one knows {newest}); "
            "upgrade semibot, or pass another --data-dir"
        )
        raise ConfigError(message)
    for step in steps:
        if step.version > version:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(step.sql)
            connection.execute(f"PRAGMA user_version = {step.version}")
            connection.execute("COMMIT")


def _check_version(connection: apsw.Connection, newest: int, path: Path) -> None:
    version = int(connection.pragma("user_version"))
    if version != newest:
        message = (
            f"the host that has {path} open is another version of semibot (schema {version}, "
            f"this one knows {newest}); use the same one, or stop the host"
        )
        raise ConfigError(message)


def _opening_failed(path: Path, exc: apsw.Error) -> ConfigError | StoreError:
    match exc:
        case apsw.CantOpenError() | apsw.PermissionsError() | apsw.ReadOnlyError():
            return ConfigError(f"cannot write {path}: {exc}; pass another --data-dir")
        case apsw.NotADBError():
            return ConfigError(f"{path} is not a database of semibot; move it away")
        case apsw.BusyError() | apsw.LockedError():
            return ConfigError(f"another program has {path} locked; stop it")
        case _:
            return StoreError(f"cannot open {path}: {_reason(exc)}")


def _reason(exc: apsw.Error) -> str:
    match exc:
        case apsw.FullError():
            return "the disk is full"
        case apsw.IOError():
            return f"the disk failed: {exc}"
        case apsw.CorruptError() | apsw.NotADBError():
            return f"the database is damaged: {exc}"
        case apsw.BusyError() | apsw.LockedError():
            return "another program has the database locked"
        case _:
            return str(exc) or type(exc).__name__
