"""Group commit: everything that waits to be written becomes one transaction.

Theory of operation. A commit that reaches the disk costs milliseconds, its rows microseconds.
So one service takes *all* jobs that are queued when it wakes, runs them in one thread hop as
one transaction with a savepoint for each, and only then tells their callers. Nothing waits on
a timer for a group to fill: an idle store commits at once, and while it commits, the next
group gathers by itself.

A caller is answered after its group was committed, never before. If it is cancelled while its
job still waits, the job is dropped. If the group has begun, the caller learns how it ended:
it waits, shielded, for at most ``store.commit``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeVar, TypeVarTuple, final

import attrs
import trio

from semibot.errors import DeadlineExceeded, StoreError
from semibot.lifetimes import deadline, grace
from semibot.logs import get_logger
from semibot.ports import Ports
from semibot.store._database import Database

log: Final = get_logger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@final
@attrs.define(eq=False)
class Job:
    """Something to be done in a transaction, and how it failed on its own account."""

    run: Callable[[Database], None]
    """What to do; its result is kept by whoever made the job."""
    error: Exception | None = None
    """Why its savepoint was rolled back."""


@attrs.frozen(kw_only=True)
class Committed:
    """How a group ended."""

    failure: str | None
    """Why nothing of the group was committed, or None."""
    has_written: bool
    """Whether anything reached the disk, which shows that writing works."""


@final
@attrs.define(eq=False)
class _Group:
    jobs: list[Job] = attrs.field(factory=list[Job])
    begun: trio.Event = attrs.field(factory=trio.Event)
    ended: trio.Event = attrs.field(factory=trio.Event)
    result: Committed | None = None
    is_given_up: bool = False
    """Whether somebody was told that it takes too long."""


@final
class StoreClock:
    """The wall clock in milliseconds, which never goes back while the store is open."""

    def __init__(self, ports: Ports) -> None:
        self._wall_clock = ports.wall_clock
        self._newest = 0

    def now(self) -> int:
        """Return milliseconds since 1970; on the loop only."""
        self._newest = max(self._newest, int(self._wall_clock.now().timestamp() * 1000))
        return self._newest


@final
class GroupWriter:
    """Queues jobs and commits them in groups.

    Args:
        commit: Runs a group in the writer's thread, given the time of the transaction. It
            keeps the driver's exceptions to itself.
        ports: Threads.
        clock: Time of the transactions.
        seconds: Bound of a commit, and of the wait for one, in seconds.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Job], int], Committed],
        *,
        ports: Ports,
        clock: StoreClock,
        seconds: float,
    ) -> None:
        self._commit = commit
        self._ports = ports
        self._clock = clock
        self._seconds = seconds
        self._wake = trio.Event()
        self._gathering = _Group()
        self._running: _Group | None = None
        self._is_closed = False
        self._failure: str | None = None
        self._late = 0
        self._was_late = trio.Event()

    @property
    def failure(self) -> str | None:
        """Why writing does not work at the moment, or None."""
        return self._failure

    async def write(self, fn: Callable[[Database, *Ts], T], *args: *Ts) -> T:
        """Run ``fn(db, *args)`` in the next group and return its result once that is committed.

        A cancellation while the job waits drops it. Once its group has begun, the caller is
        shielded until the group has ended, for at most ``store.commit``.

        Raises:
            Exception: What *fn* raised; its own writes are undone, its group goes on.
            StoreError: If the group was not committed, or nobody knows yet whether it will be.
            trio.ClosedResourceError: If the store is closed.
        """
        if self._is_closed:
            raise trio.ClosedResourceError("the store is closed")
        results: list[T] = []
        job = Job(lambda db: results.append(fn(db, *args)))
        group = self._gathering
        group.jobs.append(job)
        self._wake.set()
        await self._wait(group, job)
        if group.result is None:  # the thread did not come back
            raise StoreError("a commit was broken off; what it was to store may be stored")
        if group.result.failure is not None:
            raise StoreError(f"nothing was stored: {group.result.failure}")
        if job.error is not None:
            raise job.error
        return results[0]

    async def _wait(self, group: _Group, job: Job) -> None:
        try:
            with deadline("store.commit", self._seconds):
                await group.begun.wait()
        except DeadlineExceeded as exc:
            raise StoreError(f"an earlier commit has not ended: {exc}") from exc
        finally:
            if group.begun.is_set():
                with grace("store.commit", self._seconds):
                    await group.ended.wait()
            else:
                group.jobs.remove(job)
                if self._is_closed and not group.jobs:
                    group.ended.set()  # finish() may wait for it, and it will never begin
        if not group.ended.is_set():
            group.is_given_up = True
            reason = f"a commit takes more than {self._seconds:g} s"
            self._note(Committed(failure=reason, has_written=False))
            await trio.lowlevel.checkpoint_if_cancelled()
            raise StoreError(f"{reason}; what it was to store may still be stored")

    async def late_commits(self, known: int) -> int:
        """See :meth:`~semibot.store.base.Store.late_commits`."""
        while self._late <= known:
            await self._was_late.wait()
        return self._late

    async def serve(self) -> None:
        """Commit group after group, until cancelled. Call :meth:`finish` first."""
        while True:
            await self._wake.wait()  # until somebody wants to write
            self._wake = trio.Event()
            group = self._gathering
            if group.jobs:
                self._gathering = _Group()
                await self._run(group)

    async def _run(self, group: _Group) -> None:
        self._running = group
        group.begun.set()
        try:
            group.result = await self._ports.threads.run_sync(
                self._commit,
                tuple(group.jobs),
                self._clock.now(),
                limiter="store",
                abandon_on_cancel=True,  # only finish() running out leads to that
            )
            self._note(group.result)
            if group.is_given_up and group.result.failure is None:
                self._late += 1
                self._was_late.set()
                self._was_late = trio.Event()
        finally:
            self._running = None
            group.ended.set()

    def _note(self, result: Committed) -> None:
        if result.failure is not None:
            if self._failure is None:
                log.error("store cannot write", reason=result.failure)
            self._failure = result.failure
        elif result.has_written and self._failure is not None:
            log.info("store writes again")
            self._failure = None

    async def finish(self) -> None:
        """Take no more jobs, and wait until all that were taken are done. The caller bounds it."""
        self._is_closed = True
        while self._running is not None or self._gathering.jobs:
            await (self._running or self._gathering).ended.wait()
