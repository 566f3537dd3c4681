"""What is said about a tool call: the request, the decision, its end and the result."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias

import attrs

from semibot.wire.codec import JsonObject, JsonValue

from .permissions import Action

CallOutcome: TypeAlias = Literal["ok", "error", "timeout", "cancelled", "denied"]
"""How a tool call ended.

``timeout`` is the call's own limit; ``cancelled`` is the run's end, deadline included;
``error`` is the tool's failure, or a call that makes no sense; ``denied`` is the policy.
"""


@attrs.frozen(kw_only=True)
class CallRequest:
    """A tool call, as a model asks for it."""

    id: str
    """Identifier within the run."""
    name: str
    """The tool."""
    arguments: str
    """The arguments as the model wrote them: JSON text, possibly malformed."""
    limit: float | None = None
    """Longest that this call may take, in seconds; it can only shorten the tool's limit."""


@attrs.frozen(kw_only=True)
class Decision:
    """Whether a call may run. It is on record before anything happens."""

    id: str
    """Identifier of the decision."""
    call_id: str
    """The call."""
    run_id: str
    """Its run."""
    session_id: str
    """Its session."""
    tool_name: str
    """The tool."""
    arguments: JsonObject
    """The arguments that were decided: a copy, defaults filled in."""
    action: Action
    """What was decided."""
    rule: str
    """The rule that decided."""
    grant_id: str | None = None
    """The grant that decided, if one did."""
    reason: str
    """Why, in words."""


@attrs.frozen(kw_only=True)
class CreatedFile:
    """A file that a call has written into the workspace."""

    path: str
    """Path below the workspace, with ``/``."""
    size: int
    """Size in bytes."""
    mime_type: str
    """Media type, guessed from the name."""


@attrs.frozen(kw_only=True)
class CallEnded:
    """How a decided call ended. Every recorded decision is followed by exactly one."""

    decision_id: str
    """The decision."""
    call_id: str
    """The call."""
    run_id: str
    """Its run."""
    session_id: str
    """Its session."""
    tool_name: str
    """The tool."""
    outcome: CallOutcome
    """How it ended."""
    error: str | None = None
    """What went wrong, in words; None if the outcome is ``ok``."""
    effect: str | None = None
    """Last known effect on the world."""
    files: tuple[CreatedFile, ...] = ()
    """Files that it wrote."""
    duration_ms: int
    """Time taken, in milliseconds."""


@attrs.frozen(kw_only=True)
class CallResult:
    """What came out of a call, for the model and for events."""

    call_id: str
    """The call."""
    tool_name: str
    """The tool, as the model named it."""
    outcome: CallOutcome
    """How it ended."""
    result: JsonValue = None
    """What the tool returned, for events: at most 64 KiB of JSON; None unless it worked."""
    content: str
    """What the model reads: at most 100,000 characters, saying how it was cut."""
    error: str | None = None
    """What went wrong, in words; None if the outcome is ``ok``."""
    duration_ms: int
    """Time taken, in milliseconds."""
    decision_id: str | None = None
    """The decision on record; None if the call made no sense and nothing was decided."""
    files: tuple[CreatedFile, ...] = ()
    """Files that it wrote."""

    @property
    def event_error(self) -> str | None:
        """The ``error`` of a ``tool_call_complete`` event: the outcome's name, or the words."""
        return self.error if self.outcome in {"ok", "error"} else self.outcome


Recorder: TypeAlias = Callable[[Decision | CallEnded], Awaitable[None]]
"""Where decisions and ends are recorded, such as an audit file."""
