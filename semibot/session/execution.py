"""The life of one run: admitted, begun, settled, ended.

Theory of operation. A run *has its turn* when every earlier one has ended; it is *begun*
when ``run_started`` is in the journal. It *settles* when its adapter has returned, or has
been told to stop and had its grace; it *ends* when its terminal event is in the journal.
Between the two the session saves the conversation, so that whoever sees the terminal event
may rely on everything before it. The first of these decides how a run ends, and nothing
later changes it:

* the adapter said so;
* someone asked it to stop (a cancel, a deadline, the session closing);
* the adapter raised, or returned without saying anything.

Callers and adapters do not see this object but its two faces in ``run.py``.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Awaitable, Callable
from typing import Final, Protocol, final

import attrs
import trio

from semibot.errors import AdapterError, SemibotError
from semibot.logs import get_logger
from semibot.tools.ledger import Activity, Ledger
from semibot.wire.chat import Message
from semibot.wire.codec import JsonObject, dump_json, scrub
from semibot.wire.events import ProgressEvent, RunStarted, TerminalEvent, TextChunk, Usage
from semibot.wire.receipts import Outcome, Receipt

from .ending import Completed, Failed, Stop, StopOutcome, decide_ending
from .journal import Cursor, Journal

log: Final = get_logger(__name__)

MAX_TEXT: Final = 8 * 1024 * 1024
"""Most characters that one run may say; all of them are kept, for the conversation."""


class RunObserver(Protocol):
    """Who is told, without delay, what becomes of a run; never waits and never raises."""

    def run_begun(self, run: Execution) -> None:
        """``run_started`` is in the journal, and nothing behind it."""
        ...

    def run_ended(self, run: Execution) -> None:
        """The terminal event is in the journal, and nothing behind it."""
        ...


_LONGEST_ESCAPE: Final = 6
"""Most bytes that JSON makes of one character of text."""

_current: contextvars.ContextVar[Execution] = contextvars.ContextVar("semibot_run")


@final
@attrs.define(eq=False)
class Execution:
    """One run, as the session drives it."""

    id: str
    """Identifier of the run."""
    message: str
    """What was asked."""
    message_id: str
    """Identifier of the message."""
    metadata: JsonObject = attrs.field(repr=False)
    """What came with the message."""
    given_history: tuple[Message, ...] | None = attrs.field(repr=False)
    """The conversation so far as the caller knows it; None or empty: the session's own."""
    expires_at: float = attrs.field(repr=False)
    """Trio's clock when the caller's budget is spent."""
    journal: Journal = attrs.field(repr=False)
    """Where its events go."""
    observer: RunObserver | None = attrs.field(default=None, repr=False)
    """Who is told what becomes of it."""
    ledger: Ledger = attrs.field(factory=Ledger, init=False, repr=False)
    """What it has under way."""
    usage: Usage = attrs.field(factory=Usage, init=False, repr=False)
    """Tokens spent."""
    model: str | None = attrs.field(default=None, init=False)
    """What they were spent on, if the adapter has said so."""
    has_turn: bool = attrs.field(default=False, init=False)
    """Whether no earlier run stands before it."""
    first_seq: int = attrs.field(default=0, init=False)
    """Number of ``run_started``; 0 before that."""
    terminal_seq: int | None = attrs.field(default=None, init=False)
    """Number that the terminal event has or will have, once nothing can come before it."""
    outcome: Outcome | None = attrs.field(default=None, init=False)
    """How it ended."""
    terminal: TerminalEvent | None = attrs.field(default=None, init=False, repr=False)
    """The terminal event."""
    receipt: Receipt | None = attrs.field(default=None, init=False, repr=False)
    """The receipt, if it was asked to stop and has ended."""
    _scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False, repr=False)
    _begun: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _settling: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _handled: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _ended: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    _started_at: float | None = attrs.field(default=None, init=False, repr=False)
    _bound: str = attrs.field(default="run.limit", init=False, repr=False)
    _stop: Stop | None = attrs.field(default=None, init=False, repr=False)
    _stopped: tuple[Activity, ...] = attrs.field(default=(), init=False, repr=False)
    _said: Completed | Failed | None = attrs.field(default=None, init=False, repr=False)
    _raised: Exception | None = attrs.field(default=None, init=False, repr=False)
    _text_length: int = attrs.field(default=0, init=False, repr=False)
    _text: list[str] = attrs.field(factory=list[str], init=False, repr=False)

    # --- where it stands --------------------------------------------------------------

    @property
    def has_begun(self) -> bool:
        """Whether ``run_started`` is in the journal."""
        return self._begun.is_set()

    @property
    def has_ended(self) -> bool:
        """Whether the terminal event is in the journal."""
        return self._ended.is_set()

    @property
    def is_decided(self) -> bool:
        """Whether nothing can change any more how the run will have ended."""
        return self._stop is not None or self._said is not None or self.terminal_seq is not None

    @property
    def is_current_task(self) -> bool:
        """Whether the calling task belongs to the run."""
        return _current.get(None) is self

    @property
    def deadline(self) -> float:
        """Trio's clock when the run must have stopped."""
        return self._scope.deadline

    @property
    def text(self) -> str:
        """All text that was said so far."""
        return "".join(self._text)

    @property
    def has_text(self) -> bool:
        """Whether any text was said."""
        return bool(self._text)

    @property
    def expected_outcome(self) -> Outcome:
        """How the run will have ended, if the conversation can be saved."""
        return self._decide(None)[0]

    async def wait_ended(self) -> Outcome:
        """Wait until the run has ended."""
        await self._ended.wait()
        if self.outcome is None:
            raise AssertionError("a run ended without an outcome")
        return self.outcome

    async def open_cursor(self) -> Cursor:
        """Wait until the run has begun and return a reader of its events."""
        # Unbounded on purpose: the run's turn comes when the earlier ones have ended.
        await self._begun.wait()
        return self.journal.cursor(after=self.first_seq - 1)

    # --- asking it to stop ------------------------------------------------------------

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
            when = trio.current_time() if at is None else at
            self._stop = Stop(outcome, scrub(reason), when)
            self._stopped = self.ledger.under_way(at)
        self._scope.cancel(reason)
        self._settling.set()

    def fail_from_outside(self, error: SemibotError) -> None:
        """End the run as failed, because what drives it is gone."""
        if not self.is_decided:
            self._said = Failed(error.code, str(error), error.is_retryable)
        self._scope.cancel("the adapter failed")
        self._settling.set()

    # --- conducting it ----------------------------------------------------------------

    def begin(self) -> None:
        """Append ``run_started``; from here on the run has events."""
        entry = self.journal.append(
            self.id,
            RunStarted(
                run_id=self.id,
                message_id=self.message_id,
                message=_as_much_as_fits(self.message, self.journal.event_limit),
            ),
        )
        self.first_seq = entry.seq
        self._begun.set()
        if self.observer is not None:
            self.observer.run_begun(self)

    def start(self, run_limit: float) -> None:
        """Let the run's time begin, just before :meth:`drive`.

        Args:
            run_limit: Longest the run may take, in seconds.
        """
        self._started_at = trio.current_time()
        self._scope.deadline = min(self._started_at + run_limit, self.expires_at)
        self._bound = "budget" if self._scope.deadline == self.expires_at else "run.limit"

    async def drive(self, handle: Callable[[], Awaitable[None]]) -> None:
        """Run the adapter inside the run's scope; return when it has returned.

        Args:
            handle: Calls the adapter.
        """
        _current.set(self)
        try:
            with self._scope:
                await handle()
            if self._scope.cancelled_caught:  # unless asked to, it was the deadline
                self.request_stop("timeout", self._bound, at=self._scope.deadline)
        except Exception as exc:
            if self.is_decided:
                log.warning("adapter failed after the run's end was decided", error=repr(exc))
            else:
                log.exception("adapter failed")
            self._raised = exc
        except BaseException:  # Ctrl-C in the adapter, or the session is breaking down
            self.request_stop("interrupted", "the program was interrupted")
            raise
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
            self.ledger.begin("adapter", self.id, adapter_name, started_at=self._started_at)
            log.error("adapter did not stop", adapter=adapter_name)
        self._seal()

    def emit(self, event: ProgressEvent) -> int:
        """Append *event* and return its number; the run must not be sealed.

        Raises:
            AdapterError: ``ANSWER_TOO_LONG`` beyond :data:`MAX_TEXT` characters.
            LocalProtocolError: If JSON cannot say it.
        """
        if not isinstance(event, TextChunk):
            return self.journal.append(self.id, event, limit=self.journal.event_limit).seq
        if self._text_length + len(event.content) > MAX_TEXT:
            raise AdapterError(
                f"the answer is longer than {MAX_TEXT} characters", code="ANSWER_TOO_LONG"
            )
        seq = self.journal.append(self.id, event).seq
        self._text.append(event.content)
        self._text_length += len(event.content)
        return seq

    def say(self, said: Completed | Failed) -> None:
        """Take the adapter's word for how the run ends, if it is the first word."""
        if not self.is_decided:
            self._said = said
            self._seal()

    def _seal(self) -> None:
        """Say where the terminal event will stand; nothing is accepted any more."""
        if self.terminal_seq is None:
            self.terminal_seq = self.journal.next_seq

    def end(self, save_error: SemibotError | None = None) -> Outcome:
        """Append the terminal event, release the waiters, and return the outcome.

        Args:
            save_error: Why the conversation could not be saved; a run that would have
                completed then fails, because its answer would be lost.
        """
        self._seal()
        outcome, event = self._decide(save_error)
        self.journal.append(self.id, event)
        self.terminal = event
        self.outcome = outcome
        if self._stop is not None:
            self.receipt = self._make_receipt(self._stop, outcome)
        self._ended.set()
        if self.observer is not None:
            self.observer.run_ended(self)
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
            usage=self.usage,
        )

    def _make_receipt(self, stop: Stop, outcome: Outcome) -> Receipt:
        abandoned = self.ledger.under_way()
        return Receipt(
            run_id=self.id,
            outcome=outcome,
            reason=stop.reason,
            started=None if self._started_at is not None else False,
            # A tool that was cut off, but whose thread goes on, is not stopped.
            stopped=tuple(
                item.record()
                for item in self._stopped
                if not (item.is_open or item.ended_by_itself)
                and item.id not in {left.id for left in abandoned}
            ),
            abandoned=tuple(item.record() for item in abandoned),
            usage=self.usage,
            seconds=round(trio.current_time() - stop.at, 3),
        )


def _as_much_as_fits(message: str, limit: float) -> str:
    """Cut a question that is too long for an event; whoever asked knows all of it."""
    room = limit - 1024  # for the other fields
    if math.isinf(limit) or len(dump_json(message).encode()) < room:
        return message
    return message[: int(room) // _LONGEST_ESCAPE]
