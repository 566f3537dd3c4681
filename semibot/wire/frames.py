"""What a VM and a host say to each other over their link (protocol sections 3 and 4).

Every frame is one JSON object with a ``type``. The fields of level 2 are optional here,
because a peer of level 1 leaves them out; ``link.py`` knows which level a peer speaks.

Session events are most of the traffic, so they have a way of their own: an event's JSON
travels as a *string* inside the frame, which :func:`encode_sse_event` quotes and
:func:`decode_frame` unquotes, and nobody in between takes apart or writes again.
"""

from __future__ import annotations

import typing
from collections.abc import Sequence
from typing import ClassVar, Final, TypeAlias

import attrs

from semibot.errors import RemoteProtocolError

from .codec import JsonObject, JsonValue, dump_json, load_json, structure, unstructure

MEMORY_SESSION: Final = "__memory__"
"""The ``session_id`` of requests that belong to the VM and no session."""

MAX_AUTH_BYTES: Final = 16 * 1024
"""Largest frame before ``auth`` has succeeded."""

MAX_FRAME_BYTES: Final = 10 * 1024 * 1024
"""Largest frame that is accepted afterwards."""

MAX_SENT_BYTES: Final = 256 * 1024
"""Largest frame that is made, except for one larger object."""

MAX_BATCH_BYTES: Final = 64 * 1024
"""Most bytes of frames in one batch."""

MAX_BATCH_FRAMES: Final = 512
"""Most frames in one batch."""

MAX_EVENT_BYTES: Final = 1024 * 1024
"""Largest ``data`` of one event."""


# --- both ways ------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class ProtocolRange:
    """The levels that a side speaks."""

    min: int
    """The lowest."""
    max: int
    """The highest."""


@attrs.frozen(kw_only=True)
class ErrorDetail:
    """Why a request was not answered."""

    code: str
    """Stable name."""
    message: str
    """What went wrong."""


@attrs.frozen(kw_only=True)
class ErrorFrame:
    """Answer to a frame that was malformed or is refused."""

    type: ClassVar[str] = "error"
    code: str
    """Stable name, such as ``SEQ_GAP``."""
    message: str
    """What went wrong."""
    id: str | None = None
    """The frame that is answered, if it had an id."""
    session_id: str | None = None
    """The session that it is about."""
    expected: int | None = None
    """With ``SEQ_GAP``: the number to send from."""


# --- VM to host -----------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Auth:
    """The first frame: who the VM is."""

    type: ClassVar[str] = "auth"
    token: str = attrs.field(repr=False)
    """The VM token, a JWT."""
    protocol: ProtocolRange | None = None
    """Levels the VM speaks; None is level 1."""
    boot_id: str | None = attrs.field(default=None, repr=False)
    """Which process this is; a secret."""
    dial: int | None = None
    """Which connection attempt of the process."""
    features: tuple[str, ...] = ()
    """What the VM can do beyond its level."""


@attrs.frozen(kw_only=True)
class BlockReport:
    """The worst block of the VM's loop since the last heartbeat."""

    seconds: float
    """How long the loop stood still."""
    where: str
    """The function that held it up."""


@attrs.frozen(kw_only=True)
class VmHeartbeat:
    """The VM is alive."""

    type: ClassVar[str] = "heartbeat"
    active_sessions: tuple[str, ...]
    """Sessions that the VM holds."""
    lag_ms: float | None = None
    """How late the VM's loop is."""
    rss_bytes: int | None = None
    """Memory that the VM uses."""
    sent_at: float | None = None
    """The VM's monotonic clock, echoed by the host."""
    blocked: BlockReport | None = None
    """The worst block of the loop since the last heartbeat."""


@attrs.frozen(kw_only=True)
class Request:
    """The VM asks; answered once by :class:`Response`."""

    type: ClassVar[str] = "request"
    id: str
    """Identifier that the answer repeats."""
    session_id: str
    """The session, or :data:`MEMORY_SESSION`."""
    method: str
    """What is asked."""
    params: JsonObject
    """The details."""
    deadline_ms: int | None = None
    """How long the asker still waits, in milliseconds."""


@attrs.frozen(kw_only=True)
class RequestCancel:
    """Nobody waits for the answer any more."""

    type: ClassVar[str] = "request_cancel"
    id: str
    """The request."""


@attrs.frozen(kw_only=True)
class SseEvent:
    """A session says something."""

    type: ClassVar[str] = "sse_event"
    session_id: str
    """The session."""
    data: str
    """The event as JSON text; passed on as it is."""
    term: int | None = None
    """Level 2: fencing counter of the session."""
    seq: int | None = None
    """Level 2: number of the event."""
    run_id: str | None = None
    """Level 2: the run that says it."""


@attrs.frozen(kw_only=True)
class FireAndForget:
    """The VM reports something and wants no answer."""

    type: ClassVar[str] = "fire_and_forget"
    session_id: str
    """The session, or :data:`MEMORY_SESSION`."""
    method: str
    """What is reported."""
    params: JsonObject
    """The details."""
    id: str | None = None
    """Level 2: unique per user, for ever; a repeat changes nothing."""


@attrs.frozen(kw_only=True)
class HeldSession:
    """What a VM still holds of a session's events."""

    term: int
    """Fencing counter of the session."""
    first_seq: int
    """Oldest event without an acknowledgement; ``last_seq + 1`` if there is none."""
    last_seq: int
    """Newest event; one less than the next number."""


@attrs.frozen(kw_only=True)
class Resume:
    """What the VM still waits for and holds, after every ``init``."""

    type: ClassVar[str] = "resume"
    pending_ids: tuple[str, ...]
    """Requests without an answer."""
    sessions: typing.Mapping[str, HeldSession] | None = None
    """Level 2: every session that the VM holds."""


@attrs.frozen(kw_only=True)
class CommandAck:
    """Commands that took effect; stands after the events that show the effect."""

    type: ClassVar[str] = "ack"
    commands: tuple[str, ...]
    """The commands."""


@attrs.frozen(kw_only=True)
class Cancelled:
    """The answer to a cancel, or to a stop of a session."""

    type: ClassVar[str] = "cancelled"
    session_id: str
    """The session."""
    command_id: str
    """The command that is answered."""
    run_id: str | None = attrs.field()
    """The run that was cancelled, or None."""
    receipt: JsonObject
    """A :class:`~semibot.wire.receipts.Receipt` as JSON data."""


# --- host to VM -----------------------------------------------------------------------


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
    protocol: int | None = None
    """The level that both speak from here on; None is level 1."""
    epoch: int | None = None
    """Number of this link."""
    limits: typing.Mapping[str, JsonValue] | None = None
    """Limits of the host."""
    heartbeat_interval_s: float | None = None
    """How often the VM is to send a heartbeat."""
    dead_after_s: float | None = None
    """After how much silence either side gives the link up."""
    providers: typing.Mapping[str, ProviderSettings] | None = None
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

    covers_seq: int
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

    session_id: str
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
    command_id: str | None = None
    """Level 2: the command."""
    term: int | None = None
    """Level 2: fencing counter that its events carry."""
    next_seq: int | None = None
    """Level 2: number of its next event."""
    snapshot: SessionSnapshot | None = None
    """Level 2: what it continues from."""


@attrs.frozen(kw_only=True)
class StopSessionData:
    """Which session is to stop."""

    session_id: str
    """The session."""
    reason: str | None = None
    """``user_closed``, ``timeout`` or ``admin``."""


@attrs.frozen(kw_only=True)
class StopSession:
    """The VM is to end a session; answered like a cancel."""

    type: ClassVar[str] = "stop_session"
    data: StopSessionData
    """Which session."""
    command_id: str | None = None
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
    message_id: str | None = None
    """Level 2: identifier of the message."""
    deadline_ms: int | None = None
    """Level 2: what is left of the caller's budget, in milliseconds."""
    cancelled: bool | None = None
    """Level 2: open the run and end it as cancelled, without the adapter."""


@attrs.frozen(kw_only=True)
class UserMessage:
    """A run is to begin."""

    type: ClassVar[str] = "user_message"
    session_id: str
    """The session."""
    data: UserMessageData
    """The message."""
    command_id: str | None = None
    """Level 2: the command."""
    run_id: str | None = None
    """Level 2: the run."""


@attrs.frozen(kw_only=True)
class Cancel:
    """A run is to stop."""

    type: ClassVar[str] = "cancel"
    session_id: str
    """The session."""
    reason: str | None = None
    """Why; level 1 hosts say it in ``data``, which is read as well."""
    data: JsonObject | None = None
    """``reason``, if it is not at the top."""
    command_id: str | None = None
    """Level 2: the command."""
    run_id: str | None = None
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
    session_id: str | None = None
    """The session, if it is not in ``data``."""
    command_id: str | None = None
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
    id: str
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

    acked_seq: int | None = None
    """Newest event that is committed; the session goes on from there."""
    fenced: bool | None = None
    """The VM does not hold the session any more: drop it silently."""
    gone: bool | None = None
    """The session was deleted: drop it silently."""


@attrs.frozen(kw_only=True)
class ResumeResponse:
    """Answer to :class:`Resume`."""

    type: ClassVar[str] = "resume_response"
    results: typing.Mapping[str, RequestStatus]
    """By request."""
    sessions: typing.Mapping[str, SessionStatus] | None = None
    """Level 2: by session."""


@attrs.frozen(kw_only=True)
class HostAck:
    """What the host's store has committed."""

    type: ClassVar[str] = "ack"
    sessions: typing.Mapping[str, int] = attrs.field(factory=dict[str, int])
    """By session the newest event, cumulative."""
    ids: tuple[str, ...] = ()
    """Outbox rows, and commands whose answer has been committed."""


@attrs.frozen(kw_only=True)
class Token:
    """A renewed VM token."""

    type: ClassVar[str] = "token"
    token: str = attrs.field(repr=False)
    """The token."""


FromVm: TypeAlias = (
    Auth
    | VmHeartbeat
    | Request
    | RequestCancel
    | SseEvent
    | FireAndForget
    | Resume
    | CommandAck
    | Cancelled
    | ErrorFrame
)
"""Every frame that a VM sends, but batches."""

Command: TypeAlias = StartSession | StopSession | UserMessage | Cancel | ConfigUpdate
"""What a host wants done."""

FromHost: TypeAlias = (
    Init | HostHeartbeat | Command | Response | ResumeResponse | HostAck | Token | ErrorFrame
)
"""Every frame that a host sends, but batches."""

PlaneFrame: TypeAlias = FromVm | FromHost
"""Every frame, but batches."""

_FROM_VM: Final[typing.Mapping[str, type[FromVm]]] = {
    kind.type: kind for kind in typing.get_args(FromVm)
}
_FROM_HOST: Final[typing.Mapping[str, type[FromHost]]] = {
    kind.type: kind for kind in typing.get_args(FromHost)
}


# --- to text --------------------------------------------------------------------------


def encode_frame(frame: PlaneFrame) -> str:
    """Return *frame* as JSON text, ``type`` first, absent fields left out.

    Raises:
        LocalProtocolError: If JSON cannot say it.
    """
    if isinstance(frame, SseEvent):
        return encode_sse_event(frame)
    fields = typing.cast("JsonObject", unstructure(frame))
    return dump_json({"type": frame.type, **fields})


def encode_sse_event(frame: SseEvent) -> str:
    """Return an event's frame; quick, because most frames are events."""
    numbers = ""
    if frame.seq is not None:
        run = "" if frame.run_id is None else f'"run_id":{dump_json(frame.run_id)},'
        numbers = f'"term":{frame.term},"seq":{frame.seq},{run}'
    return (
        f'{{"type":"sse_event","session_id":{dump_json(frame.session_id)},'
        f'{numbers}"data":{dump_json(frame.data)}}}'
    )


def encode_batch(frames: Sequence[str]) -> str:
    """Return frames that are already encoded as one, without encoding them again.

    Args:
        frames: JSON texts from :func:`encode_frame`; one alone is returned as it is.
    """
    if len(frames) == 1:
        return frames[0]
    return '{"type":"batch","frames":[' + ",".join(frames) + "]}"


# --- from text ------------------------------------------------------------------------


def decode_from_vm(text: str) -> FromVm | tuple[FromVm, ...]:
    """Return what a VM said: one frame, or the frames of a batch.

    Args:
        text: A text message; the caller has bounded its size.

    Raises:
        RemoteProtocolError: If it is not strict JSON, no object, of an unknown type, or a
            field is missing or wrong. A batch is refused as a whole.
    """
    value = load_json(text)
    if isinstance(value, dict) and value.get("type") == "batch":
        return tuple(_from_vm(item) for item in _batched(value))
    return _from_vm(value)


def decode_from_host(text: str) -> FromHost | tuple[FromHost, ...]:
    """Return what a host said; see :func:`decode_from_vm`."""
    value = load_json(text)
    if isinstance(value, dict) and value.get("type") == "batch":
        return tuple(_from_host(item) for item in _batched(value))
    return _from_host(value)


def _batched(value: JsonObject) -> Sequence[JsonValue]:
    frames = value.get("frames")
    if not isinstance(frames, list) or not 1 <= len(frames) <= MAX_BATCH_FRAMES:
        raise RemoteProtocolError(f"expected 1 to {MAX_BATCH_FRAMES} frames", "$.frames")
    return typing.cast("list[JsonValue]", frames)


def _from_vm(value: JsonValue) -> FromVm:
    kind = _FROM_VM.get(_type_of(value))
    if kind is None:
        raise RemoteProtocolError("unknown frame type", "$.type")
    if kind is SseEvent:
        return _sse_event(typing.cast("JsonObject", value))
    return structure(value, kind)


def _from_host(value: JsonValue) -> FromHost:
    kind = _FROM_HOST.get(_type_of(value))
    if kind is None:
        raise RemoteProtocolError("unknown frame type", "$.type")
    return structure(value, kind)


def _type_of(value: JsonValue) -> str:
    if not isinstance(value, dict):
        raise RemoteProtocolError("expected an object")
    tag = value.get("type")
    return tag if isinstance(tag, str) else ""


def _sse_event(value: JsonObject) -> SseEvent:
    """Return an event's frame without the general machinery."""
    session_id, data = value.get("session_id"), value.get("data")
    term, seq, run_id = value.get("term"), value.get("seq"), value.get("run_id")
    if (
        type(session_id) is str
        and type(data) is str
        and (term is None or type(term) is int)
        and (seq is None or type(seq) is int)
        and (run_id is None or type(run_id) is str)
    ):
        return SseEvent(session_id=session_id, data=data, term=term, seq=seq, run_id=run_id)
    return structure(value, SseEvent)  # says what is wrong
