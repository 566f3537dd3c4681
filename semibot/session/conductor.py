"""Take the runs of a session in order, each from ``run_started`` to its terminal event."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from functools import partial
from typing import Final, Literal, TypeAlias, final

import structlog
import trio

from semibot.config import Deadlines
from semibot.errors import SemibotError, SessionBusy, StoreError
from semibot.logs import get_logger
from semibot.wire.receipts import Outcome, Receipt

from .conversation import Conversation
from .execution import Execution
from .hosting import AdapterHost
from .journal import Journal
from .run import ActiveRun

log: Final = get_logger(__name__)

BusyPolicy: TypeAlias = Literal["interrupt", "enqueue", "reject"]
"""What a new message does to runs that have not ended (protocol section 6)."""

MAX_WAITING: Final = 16
"""Most runs that may wait for their turn."""

MAX_REMEMBERED: Final = 32
"""Of how many ended runs the receipts are kept."""


@final
class Conductor:
    """The queue of one session's runs, and the task that works it off.

    Args:
        session_id: The session.
        journal: Where the runs' events go.
        conversation: What is saved around each run.
        host: Who drives the runs.
        deadlines: The bounds.
    """

    def __init__(
        self,
        *,
        session_id: str,
        journal: Journal,
        conversation: Conversation,
        host: AdapterHost,
        deadlines: Deadlines,
    ) -> None:
        self._session_id = session_id
        self._journal = journal
        self._conversation = conversation
        self._host = host
        self._deadlines = deadlines
        self._waiting: deque[Execution] = deque()
        self._current: Execution | None = None
        self._last: Execution | None = None
        self._receipts: dict[str, Receipt] = {}
        self._outcomes: Counter[Outcome] = Counter()
        self._work = trio.lowlevel.ParkingLot()
        self._idle = trio.lowlevel.ParkingLot()
        self._is_closing = False

    @property
    def current(self) -> Execution | None:
        """The run under way."""
        return self._current

    @property
    def is_closing(self) -> bool:
        """Whether nothing is admitted any more."""
        return self._is_closing

    @property
    def waiting(self) -> int:
        """How many runs wait for their turn."""
        return len(self._waiting)

    @property
    def last(self) -> Execution | None:
        """The run that ended last."""
        return self._last

    @property
    def outcomes(self) -> Mapping[Outcome, int]:
        """How many runs have ended, by outcome."""
        return dict(self._outcomes)

    def unfinished(self) -> list[Execution]:
        """Return the runs without a terminal event, in the order of their turns."""
        current = [] if self._current is None else [self._current]
        return [*current, *self._waiting]

    def find(self, run_id: str | None) -> Execution | None:
        """Return a run that has not ended: the oldest, or the one of an id."""
        unfinished = self.unfinished()
        return next((run for run in unfinished if run_id is None or run.id == run_id), None)

    def receipt_of(self, run_id: str | None) -> Receipt:
        """Return what a cancel is answered with when there is nothing to cancel.

        Args:
            run_id: The run, as the asker knows it.
        """
        known = None if run_id is None else self._receipts.get(run_id)
        return known or Receipt(run_id=run_id, already=True)

    def admit(self, run: Execution, on_busy: BusyPolicy) -> None:
        """Put *run* into the queue, or refuse it; never waits.

        Args:
            run: A new run.
            on_busy: What to do about the runs before it.

        Raises:
            SessionBusy: If the policy says so, or too many wait.
            trio.ClosedResourceError: If the session is closing.
        """
        if self._is_closing:
            raise trio.ClosedResourceError("the session is closing")
        unfinished = self.unfinished()
        waits = sum(not earlier.is_decided for earlier in self._waiting)
        if unfinished and (on_busy == "reject" or (on_busy == "enqueue" and waits >= MAX_WAITING)):
            raise SessionBusy(self._session_id, len(unfinished))
        if on_busy == "interrupt":
            for earlier in unfinished:
                earlier.request_stop("cancelled", "interrupted by a new message")
        run.has_turn = not unfinished
        self._waiting.append(run)
        self._work.unpark_all()

    def fail_all(self, error: SemibotError) -> None:
        """Let every run that has not ended fail, because what drives them is gone."""
        for run in self.unfinished():
            run.fail_from_outside(error)

    async def drain(self, reason: str) -> None:
        """Admit nothing more, interrupt what is there, and wait until all have ended.

        Args:
            reason: Why.
        """
        self._is_closing = True
        for run in self.unfinished():
            run.request_stop("interrupted", reason)
        while self._current is not None or self._waiting:
            await self._idle.park()

    async def serve(self) -> None:
        """Work the queue off until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    while not self._waiting:
                        self._idle.unpark_all()
                        # Unbounded on purpose: the user's next message.
                        await self._work.park()
                    self._current = run = self._waiting.popleft()
                    run.has_turn = True
                    self._outcomes[await self._conduct(run, nursery)] += 1
                    self._current, self._last = None, run
                    self._keep_receipt(run)
        finally:
            # Only if something went through that nobody may catch, such as Ctrl-C in a
            # program without our command line: even then every run has its end.
            self._is_closing = True
            for run in self.unfinished():
                run.end_abruptly("the session broke down")
            self._waiting.clear()
            self._current = None
            self._idle.unpark_all()

    def _keep_receipt(self, run: Execution) -> None:
        self._receipts[run.id] = run.receipt or Receipt(
            run_id=run.id, outcome=run.outcome, already=True
        )
        while len(self._receipts) > MAX_REMEMBERED:
            del self._receipts[next(iter(self._receipts))]

    async def _conduct(self, run: Execution, nursery: trio.Nursery) -> Outcome:
        """Take *run* from ``run_started`` to its terminal event; never raises for it."""
        if self.last is not None:
            self._journal.forget_before(self.last.first_seq)
        with structlog.contextvars.bound_contextvars(session_id=self._session_id, run_id=run.id):
            try:
                before = await self._conversation.begin(run, self._journal.next_seq)
            except StoreError as exc:
                run.begin()
                run.fail_from_outside(exc)
                return run.end()
            run.begin()
            active = ActiveRun(run, before)
            if not run.is_decided:
                run.start(self._deadlines.run_limit)
                nursery.start_soon(run.drive, partial(self._host.handle, active))
                await run.settle(self._deadlines.run_cancel_grace, self._host.name)
            save_error: SemibotError | None = None
            try:
                snapshot = await self._host.take_snapshot()
                await self._conversation.finish(run, active, snapshot, self._journal.next_seq)
            except StoreError as exc:
                log.warning("conversation could not be saved", error=str(exc))
                save_error = exc
            outcome = run.end(save_error)
            log.info("run ended", outcome=outcome)
            return outcome
