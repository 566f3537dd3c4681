"""A few connections that read, each lent to one thread at a time.

A read that nobody waits for any more is interrupted. Its thread may need a moment to notice,
so a connection comes back when its thread has really ended, and then it is closed, because
an interrupt that comes late would hit whoever has it next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol, TypeVar, TypeVarTuple, final

import trio

from semibot.errors import DeadlineExceeded, StoreError
from semibot.lifetimes import deadline
from semibot.ports import Ports
from semibot.store._database import Database
from semibot.store._writer import StoreClock

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class ReadConnection(Protocol):
    """A connection that cannot write."""

    @property
    def is_usable(self) -> bool:
        """Whether it may be lent again: it was not interrupted and did not fail."""
        ...

    def read(self, fn: Callable[[Database], T], now: int) -> T:
        """Run *fn* in one read transaction.

        Raises:
            StoreError: If the database fails, or :meth:`interrupt` was called.
        """
        ...

    def interrupt(self) -> None:
        """Let :meth:`read` fail soon; called from another thread."""
        ...

    def close(self) -> None:
        """Close it; never raises."""
        ...


@final
class _Lease:
    """Which connection a thread has, for whoever wants to interrupt it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connection: ReadConnection | None = None
        self._is_cancelled = False

    def give(self, connection: ReadConnection | None) -> None:
        with self._lock:
            self._connection = connection
            if connection is not None and self._is_cancelled:
                connection.interrupt()

    def cancel(self) -> None:
        with self._lock:
            self._is_cancelled = True
            if self._connection is not None:
                self._connection.interrupt()


@final
class Readers:
    """Lends connections to threads.

    Args:
        connect: Opens a connection, in the thread that needs it.
        ports: Threads; ``store.read`` bounds how many connections there are.
        clock: Time of the transactions.
        seconds: Bound of one read, in seconds.
    """

    def __init__(
        self,
        connect: Callable[[], ReadConnection],
        *,
        ports: Ports,
        clock: StoreClock,
        seconds: float,
    ) -> None:
        self._connect = connect
        self._ports = ports
        self._clock = clock
        self._seconds = seconds
        self._changed = threading.Condition()
        self._idle: list[ReadConnection] = []
        self._lent = 0
        self._is_closed = False

    async def read(self, fn: Callable[[Database, *Ts], T], *args: *Ts) -> T:
        """Run ``fn(db, *args)`` in a read transaction. A cancellation interrupts it at once.

        Raises:
            Exception: What *fn* raised.
            StoreError: If the database fails, or takes longer than ``store.commit``.
            trio.ClosedResourceError: If the store is closed.
        """
        lease = _Lease()

        def work(now: int) -> T:
            with self._lend(lease) as connection:
                return connection.read(lambda db: fn(db, *args), now)

        try:
            with deadline("store.commit", self._seconds):
                return await self._ports.threads.run_sync(
                    work, self._clock.now(), limiter="store.read", abandon_on_cancel=True
                )
        except DeadlineExceeded as exc:
            raise StoreError(f"reading takes too long: {exc}") from exc
        finally:
            lease.cancel()

    @contextmanager
    def _lend(self, lease: _Lease) -> Generator[ReadConnection]:
        with self._changed:
            if self._is_closed:
                raise trio.ClosedResourceError("the store is closed")
            self._lent += 1
            connection = self._idle.pop() if self._idle else None
        try:
            if connection is None:
                connection = self._connect()
            lease.give(connection)
            yield connection
        finally:
            lease.give(None)
            self._take_back(connection)

    def _take_back(self, connection: ReadConnection | None) -> None:
        with self._changed:
            self._lent -= 1
            self._changed.notify_all()
            if connection is not None:
                if connection.is_usable and not self._is_closed:
                    self._idle.append(connection)
                else:
                    connection.close()

    def close(self, seconds: float) -> None:
        """Lend no more, wait for what is lent, and close all; blocks, for a worker thread.

        What has not come back after *seconds* is closed by the thread that has it.
        """
        with self._changed:
            self._is_closed = True
            self._changed.wait_for(lambda: self._lent == 0, seconds)
            while self._idle:
                self._idle.pop().close()
