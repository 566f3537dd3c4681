"""What a host says to a VM (protocol section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeAlias

import attrs
from attrs.validators import optional

from semibot.wire.codec import JsonObject, JsonValue

from .both_ways import ErrorDetail, ErrorFrame
from .limits import COUNT, LEVEL, NUMBER, TERM, check_id


@attrs.frozen(kw_only=True)
class ProviderSettings:
    """How to reach a model provider."""

    base_url: str | None = None
    """Base address, if not the provider's own."""
    default_model: str | None = None
    """Model to use if nobody says."""


@attrs.frozen(kw_only=True)
class InitData:
    """What a VM needs to know to begin."""

    user_id: str
    """The user."""
    org_id: str
    """The organization."""
    api_keys: JsonObject = attrs.field(factory=dict[str, JsonValue], repr=False)
    """Provider keys, each in its envelope."""
    protocol: int | None = attrs.field(default=None, validator=optional(LEVEL))
    """The level that both speak from here on; None is level 1."""
    epoch: int | None = attrs.field(default=None, validator=optional(COUNT))
    """Number of this link."""
    limits: Mapping[str, JsonValue] | None = None
    """Limits of the host."""
    heartbeat_interval_s: float | None = None
    """How often the VM is to send a heartbeat."""
    dead_after_s: float | None = None
    """After how much silence either side gives the link up."""
    providers: Mapping[str, ProviderSettings] | None = None
    """How to reach the providers."""


@attrs.frozen(kw_only=True)
class Init:
    """The host has accepted the link."""

    type: ClassVar[str] = "init"
    data: InitData
    """What the VM needs to know."""


@attrs.frozen(kw_only=True)
class HostHeartbeat:
    """Answer to every heartbeat of a level 2 VM."""

    type: ClassVar[str] = "heartbeat"
    echo: float | None = None
    """The VM's ``sent_at``."""


@attrs.frozen(kw_only=True)
class SessionSnapshot:
    """What a session continues from."""

    covers_seq: int = attrs.field(validator=COUNT)
    """Newest event that it covers."""
    checkpoint: JsonObject
    """The adapter-independent part: history and the like."""
    short_term_memory: JsonObject = attrs.field(factory=dict[str, JsonValue])
    """The session's memory."""
    conversation_state: JsonObject | None = None
    """Whatever else the VM wants back."""
    file_manifest: JsonObject | None = None
    """Files that the session knows."""


@attrs.frozen(kw_only=True)
class StartSessionData:
    """What a session is started with."""

    session_id: str = attrs.field(validator=check_id)
    """The session."""
    runtime_type: str | None = None
    """Which adapter; None and ``semigraph`` mean ``graph``."""
    agent_id: str | None = None
    """The agent."""
    agent_config: JsonObject = attrs.field(factory=dict[str, JsonValue])
    """System prompt, model and the like."""
    mcp_servers: tuple[JsonObject, ...] = ()
    """MCP servers on offer."""
    skill_index: tuple[JsonObject, ...] = ()
    """Skills on offer."""
    sub_agents: tuple[JsonObject, ...] = ()
    """Agents that may be delegated to."""
    session_config: JsonObject | None = None
    """Limits of the session."""
    openclaw_config: JsonObject | None = None
    """For the adapter ``openclaw``."""


@attrs.frozen(kw_only=True)
class StartSession:
    """The VM is to hold a session; idempotent."""

    type: ClassVar[str] = "start_session"
    data: StartSessionData
    """What it is started with."""
    command_id: str | None = attrs.field(default=None, validator=optional(check_id))
    """Level 2: the command."""
    term: int | None = attrs.field(default=None, validator=optional(TERM))
    """Level 2: fencing counter that its events carry."""
    next_seq: int | None = attrs.field(default=None, validator=optional(NUMBER))
    """Level 2: number of its next event."""
    snapshot: SessionSnapshot | None = None
    """Level 2: what it continues from."""


@attrs.frozen(kw_only=True)
class StopSessionData:
    """Which session is to stop."""

    session_id: str = attrs.field(validator=check_id)
    """The session."""
    reason: str | None = None
    """``user_closed``, ``timeout`` or ``admin``."""


@attrs.frozen(kw_only=True)
class StopSession:
    """The VM is to end a session; answered like a cancel."""

    type: ClassVar[str] = "stop_session"
    data: StopSessionData
    """Which session."""
    command_id: str | None = attrs.field(default=None, validator=optional(check_id))
    """Level 2: the command."""


@attrs.frozen(kw_only=True)
class UserMessageData:
    """A message and what is known about it."""

    message: str
    """The text."""
    history: tuple[JsonObject, ...] = ()
    """The newest messages, ending with this one; not empty: the truth for messages."""
    metadata: JsonObject = attrs.field(factory=dict[str, JsonValue])
    """For the adapter."""
    message_id: str | None = attrs.field(default=None, validator=optional(check_id))
    """Level 2: identifier of the message."""
    deadline_ms: int | None = attrs.field(default=None, validator=optional(COUNT))
    """Level 2: what is left of the caller's budget, in milliseconds."""
    cancelled: bool | None = None
    """Level 2: open the run and end it as cancelled, without the adapter."""


@attrs.frozen(kw_only=True)
class UserMessage:
    """A run is to begin."""

    type: ClassVar[str] = "user_message"
    session_id: str = attrs.field(validator=check_id)
    """The session."""
    data: UserMessageData
    """The message."""
    command_id: str | None = attrs.field(default=None, validator=optional(check_id))
    """Level 2: the command."""
    run_id: str | None = attrs.field(default=None, validator=optional(check_id))
    """Level 2: the run."""


@attrs.frozen(kw_only=True)
class Cancel:
    """A run is to stop."""

    type: ClassVar[str] = "cancel"
    session_id: str = attrs.field(validator=check_id)
    """The session."""
    reason: str | None = None
    """Why; level 1 hosts say it in ``data``, which is read as well."""
    data: JsonObject | None = None
    """``reason``, if it is not at the top."""
    command_id: str | None = attrs.field(default=None, validator=optional(check_id))
    """Level 2: the command."""
    run_id: str | None = attrs.field(default=None, validator=optional(check_id))
    """Level 2: the run; None is the oldest that has not ended."""

    @property
    def why(self) -> str:
        """The reason, wherever it is said."""
        inner = (self.data or {}).get("reason")
        return self.reason or (inner if isinstance(inner, str) else "") or "user_cancelled"


@attrs.frozen(kw_only=True)
class ConfigUpdate:
    """The configuration changes at the next run."""

    type: ClassVar[str] = "config_update"
    data: JsonObject
    """The fields that change; level 1 hosts say the session in here too."""
    session_id: str | None = attrs.field(default=None, validator=optional(check_id))
    """The session, if it is not in ``data``."""
    command_id: str | None = attrs.field(default=None, validator=optional(check_id))
    """Level 2: the command."""

    @property
    def target(self) -> str | None:
        """The session, wherever it is said."""
        inner = self.data.get("session_id")
        return self.session_id or (inner if isinstance(inner, str) else None)

    @property
    def patch(self) -> JsonObject:
        """The fields that change."""
        return {key: value for key, value in self.data.items() if key != "session_id"}


@attrs.frozen(kw_only=True)
class Response:
    """The answer to a :class:`Request`."""

    type: ClassVar[str] = "response"
    id: str = attrs.field(validator=check_id)
    """The request."""
    result: JsonValue
    """The answer; None beside an error."""
    error: ErrorDetail | None = attrs.field()
    """Why there is no answer, or None."""


@attrs.frozen(kw_only=True)
class RequestStatus:
    """What became of a request that the VM named in ``resume``."""

    status: str
    """``completed``, ``failed``, ``pending``, or ``lost``, which is also ``not_found``."""
    data: JsonValue = None
    """The answer, if completed."""
    error: ErrorDetail | None = None
    """Why there is none, if failed."""


@attrs.frozen(kw_only=True)
class SessionStatus:
    """What the host knows of a session that the VM named in ``resume``."""

    acked_seq: int | None = attrs.field(default=None, validator=optional(COUNT))
    """Newest event that is committed; the session goes on from there."""
    fenced: bool | None = None
    """The VM does not hold the session any more: drop it silently."""
    gone: bool | None = None
    """The session was deleted: drop it silently."""


@attrs.frozen(kw_only=True)
class ResumeResponse:
    """Answer to :class:`Resume`."""

    type: ClassVar[str] = "resume_response"
    results: Mapping[str, RequestStatus]
    """By request."""
    sessions: Mapping[str, SessionStatus] | None = None
    """Level 2: by session."""


@attrs.frozen(kw_only=True)
class HostAck:
    """What the host's store has committed."""

    type: ClassVar[str] = "ack"
    sessions: Mapping[str, int] = attrs.field(factory=dict[str, int])
    """By session the newest event, cumulative."""
    ids: tuple[str, ...] = ()
    """Outbox rows, and commands whose answer has been committed."""


@attrs.frozen(kw_only=True)
class Token:
    """A renewed VM token."""

    type: ClassVar[str] = "token"
    token: str = attrs.field(repr=False)
    """The token."""


Command: TypeAlias = StartSession | StopSession | UserMessage | Cancel | ConfigUpdate
"""What a host wants done."""

FromHost: TypeAlias = (
    Init | HostHeartbeat | Command | Response | ResumeResponse | HostAck | Token | ErrorFrame
)
"""Every frame that a host sends, but batches."""
