"""A session: one conversation, one adapter, one run at a time, one stream of events.

Theory of operation. :func:`open_session` runs two services around its body. One enters
the adapter's scope and stays in it until the session closes. The other takes the runs
that were admitted, in order, and conducts each from ``run_started`` to its terminal
event; the adapter's ``handle`` runs beside it, in the run's own cancel scope, so that
the conductor can end a run whose adapter does not. A caller's block owns no task: leaving
it asks the run to stop and waits, for a bounded time, until the run has ended.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal, TypeAlias, final

import attrs
import structlog
import trio

from semibot.config import Deadlines
from semibot.errors import (
    AdapterError,
    DeadlineExceeded,
    SemibotError,
    SessionBusy,
    StoreError,
    UsageError,
)
from semibot.lifetimes import deadline, grace
from semibot.logs import get_logger
from semibot.observe.watchdog import LoopBlock, Watchdog
from semibot.ports import Ports
from semibot.wire.chat import Message
from semibot.wire.codec import JsonObject
from semibot.wire.receipts import Outcome, Receipt
from semibot.workspace.state import SessionState

from .adapter import Adapter, AdapterContext, AdapterFactory
from .conversation import Conversation
from .ending import type_names
from .journal import Cursor, Journal
from .run import ActiveRun, Run

log = get_logger(__name__)

BusyPolicy: TypeAlias = Literal["interrupt", "enqueue", "reject"]
"""What a new message does to runs that have not ended (protocol section 6)."""

MAX_WAITING: Final = 16
"""Most runs that may wait for their turn."""


@attrs.frozen(kw_only=True)
class SessionStatistics:
    """What a session is doing, at one moment."""

    session_id: str
    """The session."""
    term: int
    """Fencing counter of this opening."""
    next_seq: int
    """Number that the next event will get."""
    current_run_id: str | None
    """The run under way."""
    waiting: int
    """Runs that wait for their turn."""
    ended: Mapping[Outcome, int]
    """Runs that have ended, by outcome."""
    under_way: int
    """Tool calls, model calls, children and threads of the current run."""
    journal_bytes: int
    """Bytes of events that are kept for readers."""
    threads_in_use: Mapping[str, int]
    """Worker threads out, by the name of their limiter; abandoned ones included."""
    worst_block: LoopBlock | None
    """The longest time that the event loop stood still, and where; None if it never did."""


@final
class Session:
    """An open session. Made only by :func:`open_session`."""

    def __init__(
        self,
        *,
        state: SessionState,
        workspace: Path,
        ports: Ports,
        deadlines: Deadlines,
        watchdog: Watchdog,
    ) -> None:
        newest = state.newest
        self._id = state.session_id
        self._workspace = workspace
        self._ports = ports
        self._deadlines = deadlines
        self._watchdog = watchdog
        self._journal = Journal(
            term=state.term, next_seq=1 if newest is None else newest.covers_seq + 1
        )
        self._conversation = Conversation(state, ports, deadlines)
        self._adapter: Adapter | None = None
        self._adapter_entered = trio.Event()
        self._adapter_leaves = trio.Event()
        self._adapter_left = trio.Event()
        self._waiting: deque[Run] = deque()
        self._current: Run | None = None
        self._last: Run | None = None
        self._ended: Counter[Outcome] = Counter()
        self._patches: list[JsonObject] = []
        self._work = trio.lowlevel.ParkingLot()
        self._idle = trio.lowlevel.ParkingLot()
        self._is_closing = False

    # --- for callers ------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Identifier of the session."""
        return self._id

    @property
    def workspace(self) -> Path:
        """The directory that the agent works in."""
        return self._workspace

    @property
    def history(self) -> tuple[Message, ...]:
        """The conversation so far, as it is saved."""
        return self._conversation.history

    @property
    def last_run(self) -> Run:
        """The run that ended last.

        Raises:
            UsageError: If none has ended yet.
        """
        if self._last is None:
            raise UsageError("no run of this session has ended yet")
        return self._last

    def statistics(self) -> SessionStatistics:
        """Return a snapshot of what the session is doing."""
        current = self._current
        return SessionStatistics(
            session_id=self._id,
            term=self._journal.term,
            next_seq=self._journal.next_seq,
            current_run_id=None if current is None else current.id,
            waiting=len(self._waiting),
            ended=dict(self._ended),
            under_way=0 if current is None else len(current.under_way()),
            journal_bytes=self._journal.kept_bytes,
            threads_in_use=self._ports.threads.in_use(),
            worst_block=self._watchdog.worst_block,
        )

    def cursor(self, *, after: int | None = None) -> Cursor:
        """Return a reader of all events of the session, with their ids.

        Args:
            after: Sequence number that the reader has; None starts with the next event.
        """
        return self._journal.cursor(after=after)

    @asynccontextmanager
    async def run(
        self,
        message: str,
        *,
        on_busy: BusyPolicy = "interrupt",
        metadata: JsonObject | None = None,
        history: tuple[Message, ...] | None = None,
        budget: float = math.inf,
    ) -> AsyncGenerator[Run]:
        """Send *message* and hold the run that answers it.

        Entering does not wait. Leaving waits until the run has ended: at once if it
        has, else the run is cancelled, and exit waits at most
        :attr:`Deadlines.leave_bound <semibot.Deadlines.leave_bound>`; a run that waits for
        its turn is left to end by itself. Bound a run with Trio's own scopes around the
        block.

        Args:
            message: What to ask; not blank.
            on_busy: ``interrupt`` cancels the runs that have not ended and starts when
                they have; ``enqueue`` waits for its turn; ``reject`` raises.
            metadata: Goes to the adapter as it is.
            history: The conversation so far, possibly ending with *message*; None uses
                what the session remembers.
            budget: What is left of somebody else's deadline, in seconds; the run then
                ends as ``timeout``. Your own deadlines need no argument.

        Yields:
            The run.

        Raises:
            SessionBusy: If the session is busy and *on_busy* says so, or 16 runs wait.
            UsageError: If the message is blank.
            trio.ClosedResourceError: If the session is closing.
        """
        run = self._admit(message, on_busy, metadata or {}, history, budget)
        try:
            yield run
        except trio.Cancelled:
            run.request_stop("cancelled", "cancelled from outside")
            raise
        finally:
            run.request_stop("cancelled", "its block was left")
            if run.has_begun and not run.has_ended:
                with grace("run.cancel_grace", self._deadlines.leave_bound):
                    await run.wait()

    async def cancel(
        self, reason: str = "user_cancelled", *, run_id: str | None = None
    ) -> Receipt | None:
        """Cancel a run and return the receipt; see :meth:`Run.cancel`.

        Args:
            reason: Why.
            run_id: Which run; None means the oldest that has not ended. An idle session
                answers ``already``.
        """
        runs = self._unfinished()
        if self._last is not None:
            runs.append(self._last)
        for run in runs:
            if (run_id is None and not run.has_ended) or run.id == run_id:
                return await run.cancel(reason)
        return Receipt(run_id=run_id, already=True)

    def update_config(self, patch: JsonObject) -> None:
        """Change the adapter's configuration; it takes effect at the next run.

        Args:
            patch: The fields that change. If the adapter refuses them, the next run
                fails and says why.
        """
        self._patches.append(patch)

    def _unfinished(self) -> list[Run]:
        """Return the runs without a terminal event, in the order of their turns."""
        current = [] if self._current is None else [self._current]
        return [*current, *self._waiting]

    def _admit(
        self,
        message: str,
        on_busy: BusyPolicy,
        metadata: JsonObject,
        history: tuple[Message, ...] | None,
        budget: float,
    ) -> Run:
        if self._is_closing:
            raise trio.ClosedResourceError("the session is closing")
        if not message.strip():
            raise UsageError("the message is blank")
        unfinished = self._unfinished()
        waits = sum(not run.is_decided for run in self._waiting)
        if unfinished and (on_busy == "reject" or (on_busy == "enqueue" and waits >= MAX_WAITING)):
            raise SessionBusy(self._id, len(unfinished))
        if on_busy == "interrupt":
            for earlier in unfinished:
                earlier.request_stop("cancelled", "interrupted by a new message")
        run = Run(
            id=self._ports.ids.new_id(),
            message=message,
            message_id=self._ports.ids.new_id(),
            metadata=metadata,
            given_history=history,
            expires_at=trio.current_time() + budget,
            journal=self._journal,
        )
        self._waiting.append(run)
        self._work.unpark_all()
        return run

    # --- for open_session -------------------------------------------------------------

    @property
    def snapshot(self) -> JsonObject | None:
        """What the adapter wanted back from the last opening."""
        return self._conversation.snapshot

    async def wait_open(self) -> None:
        """Wait until the adapter's scope is entered."""
        await self._adapter_entered.wait()

    async def serve_runs(self) -> None:
        """Conduct the admitted runs, one after the other, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    while not self._waiting:
                        self._idle.unpark_all()
                        # Unbounded on purpose: the user's next message.
                        await self._work.park()
                    self._current = run = self._waiting.popleft()
                    outcome = await self._conduct(run, nursery)
                    self._ended[outcome] += 1
                    self._current, self._last = None, run
        finally:
            # Only if something went through that nobody may catch, such as Ctrl-C in a
            # program without our command line: even then every run has its end.
            for run in self._unfinished():
                run.end_abruptly("the session broke down")
            self._waiting.clear()
            self._current = None
            self._idle.unpark_all()

    async def _conduct(self, run: Run, nursery: trio.Nursery) -> Outcome:
        """Take *run* from ``run_started`` to its terminal event; never raises for it."""
        if self._last is not None:
            self._journal.forget_before(self._last.first_seq)
        with structlog.contextvars.bound_contextvars(session_id=self._id, run_id=run.id):
            try:
                before = await self._conversation.begin(run, self._journal.next_seq)
            except StoreError as exc:
                run.begin()
                run.fail_from_outside(exc)
                return run.end()
            run.begin()
            active = ActiveRun(run, before)
            if not run.is_decided:
                await self._drive(run, active, nursery)
            save_error: SemibotError | None = None
            try:
                snapshot = await self._take_snapshot()
                await self._conversation.finish(run, active, snapshot, self._journal.next_seq)
            except StoreError as exc:
                log.warning("conversation could not be saved", error=str(exc))
                save_error = exc
            outcome = run.end(save_error)
            log.info("run ended", outcome=outcome)
            return outcome

    async def _drive(self, run: Run, active: ActiveRun, nursery: trio.Nursery) -> None:
        adapter = self._adapter
        if adapter is None:
            raise AssertionError("a run was admitted before the adapter was entered")
        try:
            while self._patches:
                with deadline("session.adapter_start", self._deadlines.session_adapter_start):
                    await adapter.update_config(self._patches.pop(0))
        except Exception as exc:  # noqa: BLE001 - somebody else's code; the run says so
            log.warning("adapter refused a configuration", error=repr(exc))
            run.fail_from_outside(_as_semibot_error(exc))
            return
        nursery.start_soon(run.drive, adapter.handle, active, self._deadlines.run_limit)
        await run.settle(self._deadlines.run_cancel_grace, type(adapter).__name__)

    async def _take_snapshot(self) -> JsonObject | None:
        if self._adapter is None:
            return None
        try:
            with deadline("session.save", self._deadlines.session_save):
                return await self._adapter.get_snapshot()
        except Exception as exc:  # noqa: BLE001 - its fault must not lose the conversation
            log.warning("adapter gave no snapshot", error=repr(exc))
            return None

    async def serve_adapter(
        self, factory: AdapterFactory, make_context: Callable[[trio.Nursery], AdapterContext]
    ) -> None:
        """Enter the adapter's scope, stay in it until the session closes, and leave it."""
        failure: Exception | None = None
        stays = trio.CancelScope(
            deadline=trio.current_time() + self._deadlines.session_adapter_start
        )
        try:
            async with trio.open_nursery() as nursery:
                try:
                    with stays:
                        async with factory(make_context(nursery)) as adapter:
                            stays.deadline = math.inf
                            self._adapter = adapter
                            self._adapter_entered.set()
                            # Unbounded on purpose: the session lives as long as its block.
                            await self._adapter_leaves.wait()
                            stays.deadline = (
                                trio.current_time() + self._deadlines.session_adapter_stop
                            )
                except Exception as exc:  # noqa: BLE001 - raised below, outside the nursery
                    failure = exc
                nursery.cancel_scope.cancel("the adapter was left")
        except ExceptionGroup as group:
            failure = AdapterError("a background task of the adapter failed", code="ADAPTER_FAILED")
            failure.__cause__ = group
        finally:
            self._adapter_left.set()
        if failure is None and stays.cancelled_caught:
            failure = self._overdue()
        if failure is not None and not self._adapter_leaves.is_set():
            known = _as_semibot_error(failure)
            for run in self._unfinished():
                run.fail_from_outside(known)
            raise known
        if failure is not None:
            log.warning("adapter failed while it was left", error=repr(failure))
        # Told to leave by the session, which cancels its services right afterwards.
        await trio.sleep_forever()

    def _overdue(self) -> DeadlineExceeded:
        if self._adapter_entered.is_set():
            return DeadlineExceeded("session.adapter_stop", self._deadlines.session_adapter_stop)
        return DeadlineExceeded("session.adapter_start", self._deadlines.session_adapter_start)

    async def stop(self) -> None:
        """Interrupt what runs, leave the adapter, end the stream."""
        self._is_closing = True
        for run in self._unfinished():
            run.request_stop("interrupted", "the session was closed")
        while self._current is not None or self._waiting:
            await self._idle.park()
        self._adapter_leaves.set()
        await self._adapter_left.wait()
        self._journal.close()


def _as_semibot_error(error: Exception) -> SemibotError:
    if isinstance(error, SemibotError):
        return error
    wrapped = AdapterError(f"the adapter raised {type_names(error)}; the cause has the traceback")
    wrapped.__cause__ = error
    return wrapped
