"""One run: what its caller holds, what its adapter holds, and how it ends.

Theory of operation. A run is *admitted*, *begun*, *settled* and *ended*. It settles when
its adapter has returned, or has been told to stop and had its grace; it ends when its
terminal event is in the journal. Between the two the session saves the conversation, so
that whoever sees the terminal event may rely on everything before it. The first of these
decides how a run ends, and nothing later changes it:

* the adapter said so (:meth:`ActiveRun.complete`, :meth:`ActiveRun.fail`);
* someone asked it to stop (a cancel, a deadline, the session closing);
* the adapter raised, or returned without saying anything.
"""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Callable
from typing import Final, final

import attrs
import trio

from semibot.errors import SemibotError, UsageError
from semibot.logs import get_logger
from semibot.tools.ledger import Activity, Ledger
from semibot.wire.chat import Message
from semibot.wire.codec import JsonObject
from semibot.wire.events import (
    PROGRESS_TYPES,
    ProgressEvent,
    RunStarted,
    TerminalEvent,
    TextChunk,
    Usage,
)
from semibot.wire.receipts import Outcome, Receipt

from .ending import Completed, Failed, Stop, StopOutcome, decide_ending
from .journal import Cursor, Journal, RunEvents

log: Final = get_logger(__name__)

MAX_CHUNK: Final = 64 * 1024
"""Most characters of one text chunk; longer ones are cut into several."""


@attrs.frozen
class Emitted:
    """The event is in the journal."""

    seq: int
    """Its number."""


@attrs.frozen
class Closed:
    """The run has ended; the event went nowhere."""

    at: int
    """Number of the run's terminal event."""


_current_run: contextvars.ContextVar[Run] = contextvars.ContextVar("semibot_run")


@final
@attrs.define(eq=False)
class Run:
    """One execution of one message, as its caller sees it. Made by ``session.run``."""

    id: str
    """Identifier of the run."""
    message: str
    """What was asked."""
    message_id: str
    """Identifier of the message."""
    metadata: JsonObject = attrs.field(repr=False)
    """What came with the message."""
    given_history: tuple[Message, ...] | None = attrs.field(repr=False)
    """The conversation so far as the caller knows it; None uses the session's own."""
    expires_at: float = attrs.field(repr=False)
    """Trio's clock when the caller's budget is spent."""
    _journal: Journal = attrs.field(alias="journal", repr=False)
    _ledger: Ledger = attrs.field(factory=Ledger, init=False, repr=False)
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    _begun: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _settling: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _handled: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _ended: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _first_seq: int = attrs.field(default=0, init=False, repr=False)
    _terminal_seq: int | None = attrs.field(default=None, init=False, repr=False)
    _started_at: float | None = attrs.field(default=None, init=False, repr=False)
    _bound: str = attrs.field(default="run.limit", init=False, repr=False)
    _stop: Stop | None = attrs.field(default=None, init=False, repr=False)
    _under_way: tuple[Activity, ...] = attrs.field(default=(), init=False, repr=False)
    _said: Completed | Failed | None = attrs.field(default=None, init=False, repr=False)
    _raised: Exception | None = attrs.field(default=None, init=False, repr=False)
    _text: list[str] = attrs.field(factory=list[str], init=False, repr=False)
    _usage: Usage = attrs.field(factory=Usage, init=False, repr=False)
    _outcome: Outcome | None = attrs.field(default=None, init=False)
    _receipt: Receipt | None = attrs.field(default=None, init=False, repr=False)
    _terminal: TerminalEvent | None = attrs.field(default=None, init=False, repr=False)

    # --- for the caller ---------------------------------------------------------------

    @property
    def outcome(self) -> Outcome | None:
        """How the run ended, or None while it has not."""
        return self._outcome

    @property
    def has_ended(self) -> bool:
        """Whether the terminal event is in the journal."""
        return self._ended.is_set()

    @property
    def terminal(self) -> TerminalEvent | None:
        """The terminal event, or None while there is none."""
        return self._terminal

    @property
    def text(self) -> str:
        """All text that was said so far."""
        return "".join(self._text)

    @property
    def usage(self) -> Usage:
        """Tokens spent so far."""
        return self._usage

    @property
    def receipt(self) -> Receipt | None:
        """The receipt, if the run was asked to stop and has ended."""
        return self._receipt

    @property
    def events(self) -> RunEvents:
        """A new cursor over this run's events, from ``run_started`` to the terminal one."""
        return RunEvents(self._open_cursor)

    async def _open_cursor(self) -> Cursor:
        # Unbounded on purpose: the run's turn comes when the earlier ones have ended.
        await self._begun.wait()
        return self._journal.cursor(after=self._first_seq - 1)

    async def wait(self) -> Outcome:
        """Wait until the run has ended; cancelling the wait does not cancel the run."""
        await self._ended.wait()
        if self._outcome is None:
            raise AssertionError("a run ended without an outcome")
        return self._outcome

    async def cancel(self, reason: str = "user_cancelled") -> Receipt | None:
        """Stop the run and return what was stopped (protocol section 6).

        Waits until everything that the run started is gone and the conversation is
        saved, at most :attr:`Deadlines.leave_bound <semibot.Deadlines.leave_bound>`; what
        did not stop in its grace is ``abandoned``. A second cancel joins the first.
        Called from inside the run itself it requests the cancel and returns None at once.

        Args:
            reason: Why, in a word or two; it is part of the receipt.
        """
        if self.has_ended:
            return self._receipt or Receipt(run_id=self.id, outcome=self._outcome, already=True)
        self.request_stop("cancelled", reason)
        if _current_run.get(None) is self:
            return None
        if not self._begun.is_set():
            return Receipt(run_id=self.id, outcome="cancelled", reason=reason, started=False)
        await self._ended.wait()
        return self._receipt or Receipt(run_id=self.id, outcome=self._outcome, already=True)

    # --- for the session --------------------------------------------------------------

    def request_stop(self, outcome: StopOutcome, reason: str, at: float | None = None) -> None:
        """Ask the run to stop; never waits. Only the first request decides the outcome.

        Args:
            outcome: How the run will have ended.
            reason: Why.
            at: Trio's clock when it was to stop; None means now.
        """
        if self.has_ended:
            return
        if not self.is_decided:
            self._stop = Stop(outcome, reason, trio.current_time() if at is None else at)
            self._under_way = self._ledger.under_way(at)
        self._scope.cancel(reason)
        self._settling.set()

    @property
    def has_begun(self) -> bool:
        """Whether ``run_started`` is in the journal."""
        return self._begun.is_set()

    @property
    def is_decided(self) -> bool:
        """Whether it is settled how the run will have ended."""
        return self._stop is not None or self._said is not None

    @property
    def first_seq(self) -> int:
        """Number of ``run_started``, or 0 before the run has begun."""
        return self._first_seq

    @property
    def expected_outcome(self) -> Outcome:
        """How the run will have ended, if the conversation can be saved."""
        return self._decide(None)[0]

    def under_way(self) -> tuple[Activity, ...]:
        """Return what the run has under way now."""
        return self._ledger.under_way()

    def begin(self) -> None:
        """Append ``run_started``; from here on the run has events."""
        entry = self._journal.append(
            self.id,
            RunStarted(run_id=self.id, message_id=self.message_id, message=self.message),
        )
        self._first_seq = entry.seq
        self._begun.set()

    async def drive(
        self, handle: Callable[[ActiveRun], Awaitable[None]], active: ActiveRun, run_limit: float
    ) -> None:
        """Run the adapter inside the run's scope; return when it has returned.

        Args:
            handle: The adapter's method.
            active: What it gets.
            run_limit: Longest the run may take, in seconds.
        """
        _current_run.set(self)
        self._started_at = trio.current_time()
        self._scope.deadline = min(self._started_at + run_limit, self.expires_at)
        self._bound = "budget" if self._scope.deadline == self.expires_at else "run.limit"
        try:
            with self._scope:
                await handle(active)
            if self._scope.cancelled_caught:  # unless asked to, it was the deadline
                self.request_stop("timeout", self._bound, at=self._scope.deadline)
        except Exception as exc:
            self._raised = exc
            if self._stop is not None or self._said is not None:
                log.warning("adapter failed after the run's end was decided", error=repr(exc))
            else:
                log.exception("adapter failed")
        finally:
            self._handled.set()
            self._settling.set()

    async def settle(self, cancel_grace: float, adapter_name: str) -> None:
        """Wait until the adapter has returned, or was told to stop and had its grace.

        Args:
            cancel_grace: The grace, in seconds.
            adapter_name: What to call the adapter if it has to be abandoned.
        """
        # Unbounded but for the run's own deadline, which infinite settings allow.
        with trio.move_on_at(self._scope.deadline):
            await self._settling.wait()
        if not self._handled.is_set():
            self.request_stop("timeout", self._bound, at=self._scope.deadline)
            with trio.move_on_after(cancel_grace):
                await self._handled.wait()
        if not self._handled.is_set():
            self._ledger.begin("adapter", self.id, adapter_name, started_at=self._started_at)
            log.error("adapter did not stop", run_id=self.id, adapter=adapter_name)
        self._seal()

    def fail_from_outside(self, error: SemibotError) -> None:
        """End the run as failed, because what drives it is gone."""
        if not self.is_decided:
            self._said = Failed(error.code, str(error), error.is_retryable)
        self._scope.cancel("the adapter failed")
        self._settling.set()

    def _seal(self) -> None:
        """Say where the terminal event will stand; nothing is accepted any more."""
        if self._terminal_seq is None:
            self._terminal_seq = self._journal.next_seq

    def end(self, save_error: SemibotError | None = None) -> Outcome:
        """Append the terminal event, release the waiters, and return the outcome.

        Args:
            save_error: Why the conversation could not be saved; a run that would have
                completed then fails, because its answer would be lost.
        """
        self._seal()
        outcome, event = self._decide(save_error)
        self._journal.append(self.id, event)
        self._terminal = event
        self._outcome = outcome
        if self._stop is not None:
            self._receipt = self._make_receipt(self._stop, outcome)
        self._ended.set()
        return outcome

    def end_abruptly(self, reason: str) -> None:
        """End the run where it stands, without waiting for anything.

        Args:
            reason: Why.
        """
        self.request_stop("interrupted", reason)
        if not self.has_begun:
            self.begin()
        self.end()

    def _decide(self, save_error: SemibotError | None) -> tuple[Outcome, TerminalEvent]:
        return decide_ending(
            run_id=self.id,
            said=self._said,
            stop=self._stop,
            raised=self._raised,
            save_error=save_error,
            text=self.text,
            usage=self._usage,
        )

    def _make_receipt(self, stop: Stop, outcome: Outcome) -> Receipt:
        abandoned = self._ledger.under_way()
        return Receipt(
            run_id=self.id,
            outcome=outcome,
            reason=stop.reason,
            started=None if self._started_at is not None else False,
            # A tool that was cut off, but whose thread goes on, is not stopped.
            stopped=tuple(
                item.record()
                for item in self._under_way
                if not item.is_open and item.id not in {left.id for left in abandoned}
            ),
            abandoned=tuple(item.record() for item in abandoned),
            usage=self._usage,
            seconds=round(trio.current_time() - stop.at, 3),
        )


@final
class ActiveRun:
    """A run as its adapter sees it."""

    def __init__(self, run: Run, history: tuple[Message, ...]) -> None:
        self._run = run
        self._history = history
        self._remembered: list[Message] = []

    @property
    def id(self) -> str:
        """Identifier of the run."""
        return self._run.id

    @property
    def message(self) -> str:
        """What is asked."""
        return self._run.message

    @property
    def metadata(self) -> JsonObject:
        """What came with the message."""
        return self._run.metadata

    @property
    def history(self) -> tuple[Message, ...]:
        """The conversation before this message."""
        return self._history

    @property
    def ledger(self) -> Ledger:
        """Where the adapter enters what it has under way, for the receipt."""
        return self._run._ledger

    @property
    def deadline(self) -> float:
        """Trio's clock when the run must have ended."""
        return self._run._scope.deadline

    @property
    def has_text(self) -> bool:
        """Whether any text was said yet."""
        return bool(self._run._text)

    @property
    def usage(self) -> Usage:
        """Tokens spent so far."""
        return self._run._usage

    @property
    def remembered(self) -> tuple[Message, ...]:
        """What :meth:`remember` was given, oldest first."""
        return tuple(self._remembered)

    async def emit(self, event: ProgressEvent) -> Emitted | Closed:
        """Say *event*. Does not wait in process; it is no checkpoint there.

        Args:
            event: Anything but ``run_started`` and the terminal events. A long text
                chunk is cut into several of at most :data:`MAX_CHUNK` characters.

        Returns:
            ``Emitted(seq)``, or ``Closed(at)`` if the run has ended; ending never raises.

        Raises:
            UsageError: For an event that only the session may say.
            LocalProtocolError: If it holds something that JSON cannot say.
        """
        run = self._run
        if not isinstance(event, PROGRESS_TYPES):
            raise UsageError(
                f"an adapter does not emit {type(event).__name__}; "
                "end the run with run.complete() or run.fail()"
            )
        if run._terminal_seq is not None:
            return Closed(run._terminal_seq)
        if not isinstance(event, TextChunk):
            return Emitted(run._journal.append(run.id, event).seq)
        seq = run._journal.next_seq
        for start in range(0, max(len(event.content), 1), MAX_CHUNK):
            piece = event.content[start : start + MAX_CHUNK]
            seq = run._journal.append(run.id, TextChunk(content=piece)).seq
            run._text.append(piece)
        return Emitted(seq)

    async def complete(
        self, final_response: str | None = None, *, termination_reason: str | None = None
    ) -> None:
        """Say that the run was answered. Nothing that follows is accepted.

        Has no effect once the run was asked to stop: a cancelled run ends cancelled.

        Args:
            final_response: The whole answer; None takes the text that was emitted.
            termination_reason: Why the agent stopped where it could have gone on.
        """
        self._say(Completed(final_response, termination_reason))

    async def fail(self, error: SemibotError) -> None:
        """Say that the run failed. Nothing that follows is accepted.

        Args:
            error: Why; its ``code``, text and ``is_retryable`` become the event.
        """
        self._say(Failed(error.code, str(error), error.is_retryable))

    def _say(self, said: Completed | Failed) -> None:
        run = self._run
        if not run.is_decided and run._terminal_seq is None:
            run._said = said
            run._seal()

    def remember(self, *messages: Message) -> None:
        """Add to the conversation what later runs need; the user's message is there already.

        An adapter that remembers nothing gets the text that it emitted remembered as
        the assistant's message.

        Args:
            *messages: In the order of the conversation.
        """
        self._remembered.extend(messages)

    def spend(self, usage: Usage) -> None:
        """Add tokens to what the run has spent."""
        self._run._usage += usage
