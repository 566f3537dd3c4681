"""How a run ends: the table of protocol section 5, as one pure function."""

from __future__ import annotations

from typing import Literal, TypeAlias, cast

import attrs

from semibot.errors import AdapterError, LocalProtocolError, SemibotError
from semibot.wire.codec import scrub
from semibot.wire.events import (
    ExecutionComplete,
    ExecutionError,
    TerminalEvent,
    Usage,
    cut_response,
)
from semibot.wire.receipts import Outcome

StopOutcome: TypeAlias = Literal["cancelled", "timeout", "interrupted"]
"""How a run ends that was asked to stop."""


@attrs.frozen
class Stop:
    """Someone asked the run to stop."""

    outcome: StopOutcome
    """How it will have ended."""
    reason: str
    """Why."""
    at: float
    """Trio's clock when it was asked."""


@attrs.frozen
class Completed:
    """The adapter said that the run was answered."""

    final_response: str | None
    """The answer; None takes the text that was emitted."""
    termination_reason: str | None
    """Why the agent stopped where it could have gone on."""


@attrs.frozen
class Failed:
    """The adapter, or what drives it, said that the run failed."""

    code: str
    """Stable name of the failure."""
    error: str
    """What happened."""
    is_retryable: bool
    """Whether the same message may succeed later."""


def decide_ending(
    *,
    run_id: str,
    said: Completed | Failed | None,
    stop: Stop | None,
    raised: Exception | None,
    save_error: SemibotError | None,
    text: str,
    usage: Usage,
) -> tuple[Outcome, TerminalEvent]:
    """Return how the run ends and the event that says so; it can always be encoded.

    Args:
        run_id: The run.
        said: What the adapter said before anyone asked it to stop.
        stop: What was asked before the adapter said anything.
        raised: What the adapter raised.
        save_error: Why the conversation could not be saved. A run that would have
            completed then fails, because its answer would be lost.
        text: All text that was emitted.
        usage: Tokens spent.
    """
    if said is None and stop is not None:
        return stop.outcome, _stopped(run_id, stop, text, usage)
    if said is None:
        said = _failure(raised)
    if isinstance(said, Completed) and save_error is not None:
        said = Failed(save_error.code, str(save_error), save_error.is_retryable)
    if isinstance(said, Failed):
        return "failed", ExecutionError(
            run_id=run_id,
            code=scrub(said.code),
            error=cut_response(said.error)[0],
            retryable=said.is_retryable,
        )
    answer, was_cut = cut_response(text if said.final_response is None else said.final_response)
    return "completed", ExecutionComplete(
        run_id=run_id,
        final_response=answer,
        truncated=was_cut or None,
        usage=usage,
        termination_reason=_scrub_or_none(said.termination_reason),
    )


def _stopped(run_id: str, stop: Stop, text: str, usage: Usage) -> TerminalEvent:
    match stop.outcome:
        case "cancelled":
            partial, was_cut = cut_response(text)
            return ExecutionComplete(
                run_id=run_id,
                cancelled=True,
                partial_response=partial or None,
                truncated=was_cut or None,
                usage=usage,
                termination_reason=stop.reason,
            )
        case "timeout":
            return ExecutionError(
                run_id=run_id,
                code="DEADLINE_EXCEEDED",
                error=f"the run was stopped by its deadline {stop.reason}",
                retryable=True,
            )
        case "interrupted":
            return ExecutionError(
                run_id=run_id,
                code="INTERRUPTED",
                error=f"the run was interrupted: {stop.reason}",
                retryable=True,
            )


def _failure(error: Exception | None) -> Failed:
    match error:
        case None:
            return Failed(
                "ADAPTER_NO_OUTCOME",
                "the adapter returned without saying how the run ended; "
                "it must call run.complete() or run.fail()",
                is_retryable=False,
            )
        case LocalProtocolError():
            return Failed(AdapterError.code, str(error), is_retryable=False)
        case SemibotError():
            return Failed(error.code, str(error), error.is_retryable)
        case _:  # its text may hold prompts or keys, so only the type is said
            return Failed(
                AdapterError.code,
                f"the adapter raised {type_names(error)}; the log has the traceback",
                is_retryable=False,
            )


def type_names(error: BaseException) -> str:
    """Return the type of *error*, or of every leaf of a group; never its text."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return ", ".join(type_names(child) for child in group.exceptions)
    return type(error).__name__


def _scrub_or_none(text: str | None) -> str | None:
    return None if text is None else scrub(text)
