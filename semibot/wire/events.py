"""What a session says: the events of protocol section 5, as frozen values.

Every event has a ``type`` tag on the wire. A run's events begin with
:class:`RunStarted` and end with exactly one terminal event,
:class:`ExecutionComplete` or :class:`ExecutionError`.
"""

from __future__ import annotations

import typing
from typing import ClassVar, Final, Literal, TypeAlias

import attrs

from semibot.errors import RemoteProtocolError
from semibot.wire.codec import (
    JsonObject,
    JsonValue,
    dump_json,
    load_json,
    scrub,
    structure,
    unstructure,
)

Stage: TypeAlias = Literal["analyzing", "planning", "reasoning", "concluding"]
"""Where in its work the agent is when it thinks."""

Severity: TypeAlias = Literal["low", "medium", "high", "critical"]
"""How much a notice matters."""

FINAL_RESPONSE_LIMIT: Final = 32 * 1024
"""Most bytes of UTF-8 in ``final_response`` and ``partial_response``."""


@attrs.frozen(kw_only=True)
class RunStarted:
    """A run has begun; carries the question, so that every reader sees it."""

    type: ClassVar[str] = "run_started"
    run_id: str
    """The run."""
    message_id: str
    """The message that it answers."""
    message: str
    """The message's text."""


@attrs.frozen(kw_only=True)
class Thinking:
    """What the agent thinks on the way; never part of the answer."""

    type: ClassVar[str] = "thinking"
    content: str
    """A piece of text, appended to earlier ones of the same stage."""
    stage: Stage
    """Which part of the work it belongs to."""


@attrs.frozen(kw_only=True)
class PlanStep:
    """One step of a plan."""

    id: str
    """Identifier within the run."""
    title: str
    """What the step does, for people."""


@attrs.frozen(kw_only=True)
class PlanCreated:
    """The model has decided on the next steps."""

    type: ClassVar[str] = "plan_created"
    steps: tuple[PlanStep, ...]
    """In the order in which they start."""


@attrs.frozen(kw_only=True)
class PlanStepStart:
    """A step begins."""

    type: ClassVar[str] = "plan_step_start"
    step_id: str
    """The step's ``id`` in :class:`PlanCreated`."""
    title: str
    """What the step does."""
    tool: str | None = None
    """Name of the tool that it uses."""
    params: JsonObject | None = None
    """The tool's arguments."""


@attrs.frozen(kw_only=True)
class PlanStepComplete:
    """A step has worked."""

    type: ClassVar[str] = "plan_step_complete"
    step_id: str
    """The step."""
    title: str
    """What the step did."""
    result: JsonValue = None
    """What came out of it."""
    duration_ms: int
    """Time taken, in milliseconds."""


@attrs.frozen(kw_only=True)
class PlanStepFailed:
    """A step has not worked; the others go on."""

    type: ClassVar[str] = "plan_step_failed"
    step_id: str
    """The step."""
    title: str
    """What the step was to do."""
    error: str
    """Why it did not."""


@attrs.frozen(kw_only=True)
class ToolCallStart:
    """A tool call has been asked for."""

    type: ClassVar[str] = "tool_call_start"
    call_id: str
    """Identifier within the run."""
    tool_name: str
    """The tool."""
    arguments: JsonObject
    """Its arguments as the model gave them."""


@attrs.frozen(kw_only=True)
class ToolCallComplete:
    """A tool call has ended, one way or another."""

    type: ClassVar[str] = "tool_call_complete"
    call_id: str
    """The call."""
    tool_name: str
    """The tool."""
    result: JsonValue = None
    """What it returned; None unless it worked."""
    success: bool
    """Whether it worked."""
    error: str | None = None
    """``timeout``, ``cancelled``, ``denied`` or what went wrong, in words."""
    duration: int
    """Time taken, in milliseconds."""


@attrs.frozen(kw_only=True)
class SkillCallStart:
    """A skill is being read."""

    type: ClassVar[str] = "skill_call_start"
    skill_id: str
    """The skill."""
    skill_name: str
    """Its name, for people."""
    arguments: JsonObject
    """What the model asked for."""


@attrs.frozen(kw_only=True)
class SkillCallComplete:
    """A skill has been read, or could not be."""

    type: ClassVar[str] = "skill_call_complete"
    skill_id: str
    """The skill."""
    skill_name: str
    """Its name."""
    result: JsonValue = None
    """What came out of it."""
    success: bool
    """Whether it worked."""
    error: str | None = None
    """What went wrong."""
    duration: int
    """Time taken, in milliseconds."""


@attrs.frozen(kw_only=True)
class McpCallStart:
    """A tool of an MCP server is being called."""

    type: ClassVar[str] = "mcp_call_start"
    server_id: str
    """The server."""
    tool_name: str
    """Its tool."""
    arguments: JsonObject
    """The arguments."""


@attrs.frozen(kw_only=True)
class McpCallComplete:
    """A tool of an MCP server has answered, or has not."""

    type: ClassVar[str] = "mcp_call_complete"
    server_id: str
    """The server."""
    tool_name: str
    """Its tool."""
    result: JsonValue = None
    """What it returned."""
    success: bool
    """Whether it worked."""
    error: str | None = None
    """What went wrong."""
    duration: int
    """Time taken, in milliseconds."""


@attrs.frozen(kw_only=True)
class ToolAuthRequired:
    """The user is asked whether a tool may run."""

    type: ClassVar[str] = "tool_auth_required"
    ask_id: str
    """The question; answered once."""
    tool_name: str
    """The tool."""
    arguments_preview: str
    """Its arguments, shortened for people."""
    reason: str
    """Why it is asked."""
    expires_at: str
    """When no answer means no; ISO 8601, UTC."""
    suggested_grants: tuple[JsonObject, ...] = ()
    """Grants that would answer this and similar questions."""


@attrs.frozen(kw_only=True)
class ToolAuthDenied:
    """A tool may not run."""

    type: ClassVar[str] = "tool_auth_denied"
    ask_id: str
    """The question, or the decision's own id where nobody was asked."""
    tool_name: str
    """The tool."""
    reason: str
    """Why not, and how to allow it."""


@attrs.frozen(kw_only=True)
class TextChunk:
    """A piece of the answer. All pieces together are the answer."""

    type: ClassVar[str] = "text_chunk"
    content: str
    """Text to append."""


@attrs.frozen(kw_only=True)
class FileCreated:
    """The agent has made a file."""

    type: ClassVar[str] = "file_created"
    file_id: str
    """Identifier."""
    filename: str
    """Name, relative to the workspace where it lies in one."""
    mime_type: str
    """Media type."""
    size: int
    """Size in bytes."""
    url: str
    """Where it can be fetched."""


@attrs.frozen(kw_only=True)
class Notify:
    """A fact for the user; only in a user's inbox session."""

    type: ClassVar[str] = "notify"
    notice_id: str
    """The notice."""
    kind: str
    """What it is about."""
    severity: Severity
    """How much it matters."""
    title: str
    """One line."""
    summary: str
    """A few lines."""
    case: str | None = None
    """What it belongs to."""


@attrs.frozen(kw_only=True)
class Usage:
    """Tokens spent."""

    tokens_in: int = 0
    """Tokens read by the model."""
    tokens_out: int = 0
    """Tokens written by it."""

    def __add__(self, other: Usage) -> Usage:
        """Return the sum; counts from outside are held between 0 and 2**53."""
        return Usage(
            tokens_in=_bounded(self.tokens_in) + _bounded(other.tokens_in),
            tokens_out=_bounded(self.tokens_out) + _bounded(other.tokens_out),
        )


def _bounded(count: int) -> int:
    return max(0, min(count, 2**53))


def cut_response(text: str) -> tuple[str, bool]:
    """Return *text* in at most :data:`FINAL_RESPONSE_LIMIT` bytes, and whether it was cut."""
    text = scrub(text)
    encoded = text.encode()
    if len(encoded) <= FINAL_RESPONSE_LIMIT:
        return text, False
    return encoded[:FINAL_RESPONSE_LIMIT].decode(errors="ignore"), True


@attrs.frozen(kw_only=True)
class ExecutionComplete:
    """Terminal: the run was answered, or cancelled."""

    type: ClassVar[str] = "execution_complete"
    run_id: str
    """The run."""
    final_response: str | None = None
    """The whole answer, cut at 32 KiB; the text chunks are the truth."""
    cancelled: bool | None = None
    """True if the run was cancelled; then there is no ``final_response``."""
    partial_response: str | None = None
    """What of the answer was said before the cancel, cut at 32 KiB."""
    truncated: bool | None = None
    """True if the response was cut."""
    usage: Usage | None = None
    """Tokens spent by the run."""
    termination_reason: str | None = None
    """Why the agent stopped where it could have gone on, such as ``max_iterations``."""


@attrs.frozen(kw_only=True)
class ExecutionError:
    """Terminal: the run failed, ran out of time or was interrupted."""

    type: ClassVar[str] = "execution_error"
    run_id: str
    """The run."""
    code: str
    """Stable name of the failure."""
    error: str
    """What happened and what to do, for people."""
    retryable: bool | None = None
    """Whether the same message may succeed when it is sent again."""


ProgressEvent: TypeAlias = (
    Thinking
    | PlanCreated
    | PlanStepStart
    | PlanStepComplete
    | PlanStepFailed
    | ToolCallStart
    | ToolCallComplete
    | SkillCallStart
    | SkillCallComplete
    | McpCallStart
    | McpCallComplete
    | ToolAuthRequired
    | ToolAuthDenied
    | TextChunk
    | FileCreated
)
"""What an adapter may emit while a run goes on."""

TerminalEvent: TypeAlias = ExecutionComplete | ExecutionError
"""What ends a run."""

SessionEvent: TypeAlias = RunStarted | ProgressEvent | Notify | TerminalEvent
"""Every event of a session."""

_EVENT_TYPES: Final[dict[str, type[SessionEvent]]] = {
    kind.type: kind for kind in typing.get_args(SessionEvent)
}

PROGRESS_TYPES: Final = typing.get_args(ProgressEvent)
"""The classes of :data:`ProgressEvent`, for ``isinstance``."""


def encode_event(event: SessionEvent) -> str:
    """Return *event* as one line of JSON, ``type`` first, absent fields left out.

    Raises:
        LocalProtocolError: If a field holds something that JSON cannot say.
    """
    fields = unstructure(event)
    return dump_json({"type": event.type, **typing.cast("JsonObject", fields)})


def decode_event(data: str | bytes | JsonObject) -> SessionEvent:
    """Return the event that *data* says.

    Args:
        data: JSON text, its UTF-8 bytes, or an object that is already decoded.

    Raises:
        RemoteProtocolError: If it is no JSON object, has an unknown ``type``, or a
            field is missing or of the wrong type. Unknown fields are ignored.
    """
    value = load_json(data) if isinstance(data, str | bytes) else data
    if not isinstance(value, typing.Mapping):
        raise RemoteProtocolError("expected an object")
    tag = value.get("type")
    kind = _EVENT_TYPES.get(tag) if isinstance(tag, str) else None
    if kind is None:
        raise RemoteProtocolError("unknown event type", "$.type")
    return structure(value, kind)
