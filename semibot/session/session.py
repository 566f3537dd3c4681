"""A session: one conversation, one adapter, one run at a time, one stream of events.

Theory of operation. :func:`~semibot.session.open_session` runs two services around its
body. One is inside the adapter's scope until the session closes (``hosting.py``). The
other takes the runs that were admitted, in order, and conducts each to its terminal event
(``conductor.py``); the adapter's ``handle`` runs beside it, in the run's own cancel scope,
so that a run ends also if its adapter does not. A caller's block owns no task: leaving it
asks the run to stop and waits, for a bounded time, until the run has ended.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import final

import attrs
import trio

from semibot.errors import UsageError
from semibot.lifetimes import grace
from semibot.observe.watchdog import LoopBlock
from semibot.wire.chat import Message
from semibot.wire.codec import JsonObject
from semibot.wire.receipts import Outcome, Receipt

from .conductor import BusyPolicy
from .core import SessionCore
from .journal import Cursor
from .run import Run


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
    """An open session. Made only by :func:`~semibot.session.open_session`."""

    def __init__(self, core: SessionCore) -> None:
        self._core = core

    @property
    def id(self) -> str:
        """Identifier of the session."""
        return self._core.state.session_id

    @property
    def workspace(self) -> Path:
        """The directory that the agent works in."""
        return self._core.workspace

    @property
    def history(self) -> tuple[Message, ...]:
        """The conversation so far, as it is saved."""
        return self._core.conversation.history

    @property
    def last_run(self) -> Run:
        """The run that ended last.

        Raises:
            UsageError: If none has ended yet.
        """
        last = self._core.conductor.last
        if last is None:
            raise UsageError("no run of this session has ended yet")
        return Run(last)

    def statistics(self) -> SessionStatistics:
        """Return a snapshot of what the session is doing."""
        current = self._core.conductor.current
        return SessionStatistics(
            session_id=self.id,
            term=self._core.journal.term,
            next_seq=self._core.journal.next_seq,
            current_run_id=None if current is None else current.id,
            waiting=self._core.conductor.waiting,
            ended=self._core.conductor.outcomes,
            under_way=0 if current is None else len(current.ledger.under_way()),
            journal_bytes=self._core.journal.kept_bytes,
            threads_in_use=self._core.ports.threads.in_use(),
            worst_block=self._core.watchdog.worst_block,
        )

    def cursor(self, *, after: int | None = None) -> Cursor:
        """Return a reader of all events of the session, with their ids.

        Args:
            after: Sequence number that the reader has; None starts with the next event.
        """
        return self._core.journal.cursor(after=after)

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
            history: The conversation so far, possibly ending with *message*; None or
                empty uses what the session remembers.
            budget: What is left of somebody else's deadline, in seconds; the run then
                ends as ``timeout``. Your own deadlines need no argument.

        Yields:
            The run.

        Raises:
            SessionBusy: If the session is busy and *on_busy* says so, or 16 runs wait.
            UsageError: If the message is blank, or what is given is no JSON data, such as
                text that is not Unicode.
            trio.ClosedResourceError: If the session is closing.
        """
        core = self._core
        execution = core.make_run(message, metadata=metadata, history=history, budget=budget)
        core.conductor.admit(execution, on_busy)
        try:
            yield Run(execution)
        except trio.Cancelled:
            execution.request_stop("cancelled", "cancelled from outside")
            raise
        finally:
            execution.request_stop("cancelled", "its block was left")
            if execution.has_turn and not execution.has_ended:
                with grace("leave_bound", self._core.deadlines.leave_bound):
                    await execution.wait_ended()

    async def cancel(
        self, reason: str = "user_cancelled", *, run_id: str | None = None
    ) -> Receipt | None:
        """Cancel a run and return the receipt; see :meth:`Run.cancel`.

        Args:
            reason: Why.
            run_id: Which run; None means the oldest that has not ended. An idle session
                and an unknown run are answered with ``already``.
        """
        run = self._core.conductor.find(run_id)
        if run is None:
            return self._core.conductor.receipt_of(run_id)
        return await Run(run).cancel(reason)

    def update_config(self, patch: JsonObject) -> None:
        """Change the adapter's configuration; it takes effect at the next run.

        Args:
            patch: The fields that change. If the adapter refuses them, the next run
                fails and says why.
        """
        self._core.host.configure(patch)
