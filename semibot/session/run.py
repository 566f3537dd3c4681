"""The two faces of a run: what its caller holds, and what its adapter holds."""

from __future__ import annotations

from typing import Final, final

import attrs

from semibot.errors import SemibotError, UsageError
from semibot.tools.ledger import Ledger
from semibot.wire.chat import Message
from semibot.wire.codec import MAX_DEPTH, JsonObject, check_json, unstructure
from semibot.wire.events import PROGRESS_TYPES, ProgressEvent, TerminalEvent, TextChunk, Usage
from semibot.wire.receipts import ActivityRecord, Outcome, Receipt

from .ending import Completed, Failed
from .execution import Execution
from .journal import RunEvents

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


@final
@attrs.frozen(repr=False)
class Run:
    """One execution of one message, as its caller sees it. Made by ``session.run``."""

    _execution: Execution = attrs.field(alias="execution")

    @property
    def id(self) -> str:
        """Identifier of the run."""
        return self._execution.id

    @property
    def message(self) -> str:
        """What was asked."""
        return self._execution.message

    @property
    def message_id(self) -> str:
        """Identifier of the message."""
        return self._execution.message_id

    @property
    def outcome(self) -> Outcome | None:
        """How the run ended, or None while it has not."""
        return self._execution.outcome

    @property
    def has_ended(self) -> bool:
        """Whether the terminal event is in the journal."""
        return self._execution.has_ended

    @property
    def terminal(self) -> TerminalEvent | None:
        """The terminal event, or None while there is none."""
        return self._execution.terminal

    @property
    def text(self) -> str:
        """All text that was said so far."""
        return self._execution.text

    @property
    def usage(self) -> Usage:
        """Tokens spent so far."""
        return self._execution.usage

    @property
    def receipt(self) -> Receipt | None:
        """The receipt, if the run was asked to stop and has ended."""
        return self._execution.receipt

    @property
    def events(self) -> RunEvents:
        """A new cursor over this run's events, from ``run_started`` to the terminal one."""
        return RunEvents(self._execution.open_cursor)

    def under_way(self) -> tuple[ActivityRecord, ...]:
        """Return what the run has under way now, oldest first."""
        return tuple(activity.record() for activity in self._execution.ledger.under_way())

    async def wait(self) -> Outcome:
        """Wait until the run has ended; cancelling the wait does not cancel the run."""
        return await self._execution.wait_ended()

    async def cancel(self, reason: str = "user_cancelled") -> Receipt | None:
        """Stop the run and return what was stopped (protocol section 6).

        Waits until everything that the run started is gone and the conversation is
        saved, at most :attr:`Deadlines.leave_bound <semibot.Deadlines.leave_bound>`; what
        did not stop in its grace is ``abandoned``. A second cancel joins the first. A run
        that waits for its turn is answered at once. Called from inside the run itself it
        requests the cancel and returns None at once.

        Args:
            reason: Why, in a word or two; it is part of the receipt.
        """
        execution = self._execution
        execution.request_stop("cancelled", reason)
        if not execution.has_ended:
            if execution.is_current_task:
                return None
            if not execution.has_turn:
                return Receipt(run_id=self.id, outcome="cancelled", reason=reason, started=False)
        outcome = await execution.wait_ended()
        return execution.receipt or Receipt(run_id=self.id, outcome=outcome, already=True)

    def interrupt(self, reason: str) -> None:
        """Ask the run to stop as ``interrupted``, retryable; never waits.

        For a program that is told to end. The first request to stop decides the outcome.

        Args:
            reason: Why, for the user.
        """
        self._execution.request_stop("interrupted", reason)

    def __repr__(self) -> str:
        return f"Run(id={self.id!r}, outcome={self.outcome!r})"


@final
class ActiveRun:
    """A run as its adapter sees it."""

    def __init__(self, execution: Execution, history: tuple[Message, ...]) -> None:
        self._execution = execution
        self._history = history
        self._remembered: list[Message] = []

    @property
    def id(self) -> str:
        """Identifier of the run."""
        return self._execution.id

    @property
    def message(self) -> str:
        """What is asked."""
        return self._execution.message

    @property
    def metadata(self) -> JsonObject:
        """What came with the message."""
        return self._execution.metadata

    @property
    def history(self) -> tuple[Message, ...]:
        """The conversation before this message."""
        return self._history

    @property
    def ledger(self) -> Ledger:
        """Where the adapter enters what it has under way, for the receipt."""
        return self._execution.ledger

    @property
    def deadline(self) -> float:
        """Trio's clock when the run must have stopped."""
        return self._execution.deadline

    @property
    def has_text(self) -> bool:
        """Whether any text was said yet."""
        return self._execution.has_text

    @property
    def usage(self) -> Usage:
        """Tokens spent so far."""
        return self._execution.usage

    @property
    def remembered(self) -> tuple[Message, ...]:
        """What :meth:`remember` was given, oldest first."""
        return tuple(self._remembered)

    async def emit(self, event: ProgressEvent) -> Emitted | Closed:
        """Say *event*. Does not wait in process; it is no checkpoint there.

        On a VM it waits while the host has too much to catch up with (protocol section 5).

        Args:
            event: Anything but ``run_started`` and the terminal events. A long text
                chunk is cut into several of at most :data:`MAX_CHUNK` characters.

        Returns:
            ``Emitted(seq)``, or ``Closed(at)`` if the run has ended; ending never raises.

        Raises:
            UsageError: For an event that only the session may say.
            LocalProtocolError: If it holds something that JSON cannot say, or more than
                a host takes.
        """
        execution = self._execution
        if not isinstance(event, PROGRESS_TYPES):
            raise UsageError(
                f"an adapter does not emit {type(event).__name__}; "
                "end the run with run.complete() or run.fail()"
            )
        pieces: tuple[ProgressEvent, ...] = (event,)
        if isinstance(event, TextChunk) and len(event.content) > MAX_CHUNK:
            text = event.content
            pieces = tuple(
                TextChunk(content=text[start : start + MAX_CHUNK])
                for start in range(0, len(text), MAX_CHUNK)
            )
        seq = 0
        for piece in pieces:
            if execution.terminal_seq is None:
                await execution.journal.wait_room()
            if execution.terminal_seq is not None:  # before the wait, or during it
                return Closed(execution.terminal_seq)
            seq = execution.emit(piece)
        return Emitted(seq)

    async def complete(
        self, final_response: str | None = None, *, termination_reason: str | None = None
    ) -> None:
        """Say that the run was answered. Nothing that follows is accepted.

        Has no effect once the run was asked to stop: a cancelled run ends cancelled.

        Args:
            final_response: The whole answer; None takes the text that was emitted.
            termination_reason: Why the agent stopped where it could have gone on.

        Raises:
            TypeError: If either is not text.
        """
        _require_text(final_response)
        _require_text(termination_reason)
        self._execution.say(Completed(final_response, termination_reason))

    async def fail(self, error: SemibotError) -> None:
        """Say that the run failed. Nothing that follows is accepted.

        Args:
            error: Why; its ``code``, text and ``is_retryable`` become the event.
        """
        self._execution.say(Failed(error.code, str(error), error.is_retryable))

    def remember(self, *messages: Message) -> None:
        """Add to the conversation what later runs need; the user's message is there already.

        An adapter that remembers nothing gets the text that it emitted remembered as
        the assistant's message.

        Args:
            *messages: In the order of the conversation.

        Raises:
            LocalProtocolError: If JSON cannot say one of them; none is remembered.
        """
        for message in messages:
            check_json(unstructure(message), MAX_DEPTH)
        self._remembered.extend(messages)

    def spend(self, usage: Usage, *, model: str | None = None) -> None:
        """Add tokens to what the run has spent.

        Args:
            usage: The tokens.
            model: What they were spent on, if this program is to report them to the host;
                None if somebody else does, or nobody need know.
        """
        self._execution.usage += usage
        if model is not None:
            self._execution.model = model


def _require_text(value: object) -> None:
    """Refuse what an adapter without type checks may pass: it would break the run's end."""
    if value is not None and not isinstance(value, str):
        raise TypeError(f"run.complete() takes text, not {type(value).__name__}")
