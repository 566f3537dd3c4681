"""What an adapter and its bridge child say to each other (protocol section 8).

Both directions are JSON lines. :func:`encode_frame` makes the lines for the bridge;
:class:`BridgeDecoder` reads those it writes. Bridges of level 1 use older names
(``text``, ``tool_call``, ``tool_result``), wrap events (``sse_event``, ``runtime_event``)
and leave out fields that events need by now; the decoder translates all that, so that
nobody else has to know.
"""

from __future__ import annotations

import typing
from typing import ClassVar, Final, TypeAlias, final

import attrs

from semibot.errors import LocalProtocolError, RemoteProtocolError

from .codec import JsonObject, JsonValue, load_json, structure, unstructure
from .events import PROGRESS_TYPES, ProgressEvent, Usage, decode_event
from .jsonl import MAX_LINE_BYTES, encode_line
from .level1 import OldEvents, as_object, legible_terminal, unwrapped

START_KEYS: Final = (
    "runtime_type",
    "agent_id",
    "agent_config",
    "openclaw_config",
    "mcp_servers",
    "skill_index",
    "sub_agents",
    "session_config",
)
"""All that a bridge is told about its session; nothing else of it reaches a child."""

EXECUTION_ERROR: Final = "OPENCLAW_EXECUTION_ERROR"
"""Code of a failed run whose bridge gives none."""

PROTOCOL_ERROR: Final = "OPENCLAW_BRIDGE_PROTOCOL"
"""Code of a run whose bridge broke the protocol."""

# --- to the bridge --------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Start:
    """The first line: which session this is."""

    type: ClassVar[str] = "start"
    session_id: str
    """The session."""
    payload: JsonObject
    """What started it; only :data:`START_KEYS`."""


@attrs.frozen(kw_only=True)
class UserMessage:
    """A run begins."""

    type: ClassVar[str] = "user_message"
    session_id: str
    """The session."""
    run_id: str | None = None
    """The run, if the bridge knows runs by their ids."""
    payload: JsonObject
    """``message``, ``history`` (which ends with it) and ``metadata``."""


@attrs.frozen(kw_only=True)
class ConfigUpdate:
    """The configuration changes for the next run."""

    type: ClassVar[str] = "config_update"
    session_id: str
    """The session."""
    payload: JsonObject
    """The fields that change."""


@attrs.frozen(kw_only=True)
class Snapshot:
    """The bridge is asked for its state."""

    type: ClassVar[str] = "snapshot"
    id: str
    """Identifier that the answer repeats."""
    session_id: str
    """The session."""


@attrs.frozen(kw_only=True)
class Cancel:
    """The run is to stop."""

    type: ClassVar[str] = "cancel"
    session_id: str
    """The session."""
    run_id: str | None = None
    """The run, if the bridge knows runs by their ids."""


@attrs.frozen(kw_only=True)
class RequestError:
    """Why a request was not answered."""

    code: str
    """Stable name."""
    message: str
    """What went wrong."""


@attrs.frozen(kw_only=True)
class CpResponse:
    """The answer to a :class:`CpRequest`."""

    type: ClassVar[str] = "cp_response"
    id: str
    """The request."""
    result: JsonValue
    """The answer; None beside an error."""
    error: RequestError | None = attrs.field()
    """Why there is no answer, or None."""


@attrs.frozen(kw_only=True)
class Stop:
    """The last line: the bridge is to exit."""

    type: ClassVar[str] = "stop"
    session_id: str
    """The session."""


ToBridge: TypeAlias = Start | UserMessage | ConfigUpdate | Snapshot | Cancel | CpResponse | Stop
"""Every frame that an adapter writes."""


def encode_frame(frame: ToBridge) -> bytes:
    """Return *frame* as one line.

    Raises:
        LocalProtocolError: If JSON cannot say it, or the line would be longer than
            :data:`~semibot.wire.jsonl.MAX_LINE_BYTES`.
    """
    fields = typing.cast("JsonObject", unstructure(frame))
    line = encode_line({"type": frame.type, **fields})
    if len(line) > MAX_LINE_BYTES + 1:
        raise LocalProtocolError(f"a {frame.type} line would be longer than 1 MiB")
    return line


# --- from the bridge ------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Ready:
    """The bridge can take messages."""

    features: tuple[str, ...] = ()
    """What it can do beyond level 1; ``run_id`` is the one that counts."""


@attrs.frozen(kw_only=True)
class CpRequest:
    """The bridge asks the control plane."""

    id: str
    """Identifier that the answer repeats."""
    method: str
    """What is asked."""
    params: JsonObject = attrs.field(factory=dict[str, JsonValue])
    """The details."""


@attrs.frozen(kw_only=True)
class CpFireAndForget:
    """The bridge reports to the control plane and wants no answer."""

    run_id: str | None = None
    """The run, if the bridge says so."""
    method: str
    """What is reported."""
    params: JsonObject = attrs.field(factory=dict[str, JsonValue])
    """The details."""


@attrs.frozen(kw_only=True)
class SnapshotResponse:
    """The bridge's state."""

    id: str
    """The request."""
    snapshot: JsonObject | None = None
    """The state, or None if it has none."""


@attrs.frozen(kw_only=True)
class BridgeEvent:
    """An event of the run."""

    run_id: str | None
    """The run, if the bridge says so."""
    event: ProgressEvent
    """The event, in its standard form."""


@attrs.frozen(kw_only=True)
class BridgeComplete:
    """The bridge says that the run was answered, or cancelled."""

    run_id: str | None = None
    """The run, if the bridge says so."""
    final_response: str | None = None
    """The whole answer."""
    cancelled: bool | None = None
    """Whether the run was cancelled."""
    usage: Usage | None = None
    """Tokens spent."""
    termination_reason: str | None = None
    """Why it stopped where it could have gone on."""


@attrs.frozen(kw_only=True)
class BridgeError:
    """The bridge says that the run failed."""

    run_id: str | None = None
    """The run, if the bridge says so."""
    code: str = EXECUTION_ERROR
    """Stable name of the failure."""
    error: str = "the bridge gave no reason"
    """What happened."""
    retryable: bool | None = None
    """Whether the same message may succeed later."""


BridgeTerminal: TypeAlias = BridgeComplete | BridgeError
"""What ends a run for the bridge."""

FromBridge: TypeAlias = (
    Ready | CpRequest | CpFireAndForget | SnapshotResponse | BridgeEvent | BridgeTerminal
)
"""Every frame that a bridge writes."""

_FRAMES: Final[dict[str, type[Ready | CpRequest | CpFireAndForget | SnapshotResponse]]] = {
    "ready": Ready,
    "cp_request": CpRequest,
    "cp_fire_and_forget": CpFireAndForget,
    "snapshot_response": SnapshotResponse,
}


@final
class BridgeDecoder:
    """Reads the lines of one bridge child; does no I/O and knows no clock."""

    def __init__(self) -> None:
        self._old = OldEvents("bridge")

    def decode(self, line: bytes, now: float) -> FromBridge:
        """Return what a line says.

        Args:
            line: One line, without its newline; the caller has bounded its length.
            now: The current time in seconds, on any clock that does not jump; durations
                that the bridge does not give are measured with it.

        Raises:
            RemoteProtocolError: If it says nothing that a bridge may say. A malformed
                end of a run is an end all the same: it comes out as a
                :class:`BridgeError` with the code :data:`PROTOCOL_ERROR`.
        """
        raw = as_object(load_json(line), "$")
        tag = raw.get("type")
        kind = _FRAMES.get(tag) if isinstance(tag, str) else None
        return self._event(raw, now) if kind is None else structure(raw, kind)

    def _event(self, raw: JsonObject, now: float) -> FromBridge:
        run_id = raw.get("run_id")
        raw = unwrapped(raw)
        run_id = raw.get("run_id", run_id)
        known_run_id = run_id if isinstance(run_id, str) else None
        match raw.get("type"):
            case "execution_complete":
                self._old.forget_calls()
                return _terminal({**raw, "run_id": known_run_id}, BridgeComplete)
            case "execution_error":
                self._old.forget_calls()
                return _terminal({**raw, "run_id": known_run_id}, BridgeError)
            case _:
                decoded = decode_event(self._old.standard(raw, now))
        if not isinstance(decoded, PROGRESS_TYPES):
            raise RemoteProtocolError("an event that a bridge does not say", "$.type")
        return BridgeEvent(run_id=known_run_id, event=typing.cast("ProgressEvent", decoded))


def _terminal(raw: JsonObject, kind: type[BridgeComplete | BridgeError]) -> BridgeTerminal:
    try:
        return structure(legible_terminal(raw), kind)
    except RemoteProtocolError as exc:
        return BridgeError(
            run_id=typing.cast("str | None", raw["run_id"]),
            code=PROTOCOL_ERROR,
            error=f"the bridge ended the run with a malformed {raw['type']}: {exc}",
        )
