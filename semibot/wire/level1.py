"""Say in today's words what level 1 says: VMs to their host, bridges to their adapter.

Level 1 uses older names (``text``, ``tool_call``, ``tool_result``), wraps events
(``sse_event``, ``runtime_event``), leaves out fields that events need by now, and does not say
which run ends. :class:`OldEvents` knows all that and is what both ends share;
:class:`Level1Events` uses it for the host (protocol section 6, last paragraph). No I/O.
"""

from __future__ import annotations

import math
import re
import typing
from typing import Final, final

import attrs

from semibot.errors import AdapterError, RemoteProtocolError

from .codec import JsonObject, JsonValue, dump_json, load_json, structure
from .events import (
    PROGRESS_TYPES,
    ExecutionComplete,
    ExecutionError,
    TerminalEvent,
    Usage,
    cut_response,
    encode_event,
)
from .frames import load_event

MAX_ERROR_LENGTH: Final = 4000
"""Most characters of a peer's own error text that are passed on."""

MAX_OPEN_CALLS: Final = 256
"""Most tool calls without a result that are remembered; the oldest go first."""

_CODE: Final = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
_PROGRESS: Final = frozenset(kind.type for kind in PROGRESS_TYPES)


@attrs.frozen
class _OpenCall:
    id: str
    tool_name: str
    began_at: float


@final
class OldEvents:
    """Gives the events of one session their standard names and the fields they need.

    Args:
        prefix: What the ids of tool calls begin with that have none of their own.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._calls: list[_OpenCall] = []
        self._count = 0

    def forget_calls(self) -> None:
        """Forget the tool calls without a result; the run has ended."""
        self._calls.clear()

    def standard(self, raw: JsonObject, now: float) -> JsonObject:
        """Return an event that is not terminal as it is said today.

        Args:
            raw: The event, unwrapped. It is returned itself if nothing has to change.
            now: The current time in seconds, on any clock that does not jump; durations
                that are not given are measured with it.
        """
        match raw.get("type"):
            case "text":
                return {**raw, "type": "text_chunk"}
            case "thinking" if raw.get("stage") is None or raw["stage"] == "openclaw":
                return {**raw, "stage": "planning"}
            case "file_created" if raw.get("file_id") is None:
                return {**raw, "file_id": raw.get("url")}
            case "tool_call" | "tool_call_start":
                return self._call_start(raw, now)
            case "tool_result" | "tool_call_complete":
                return self._call_complete(raw, now)
            case _:
                return raw

    def _call_start(self, raw: JsonObject, now: float) -> JsonObject:
        given = raw.get("arguments", raw.get("input"))
        arguments: JsonValue = given
        if given is None:
            arguments = {}
        elif "arguments" not in raw and not isinstance(given, typing.Mapping):
            arguments = {"input": given}
        call_id = raw.get("call_id")
        if call_id is None:
            call_id = self._new_id()
        name = raw.get("tool_name")
        if isinstance(call_id, str) and isinstance(name, str):
            self._calls = [*self._calls[1 - MAX_OPEN_CALLS :], _OpenCall(call_id, name, now)]
        return {**raw, "type": "tool_call_start", "call_id": call_id, "arguments": arguments}

    def _call_complete(self, raw: JsonObject, now: float) -> JsonObject:
        call = self._take_call(raw.get("call_id"), raw.get("tool_name"), now)
        duration = raw.get("duration")
        if duration is None:
            duration = (now - call.began_at) * 1000
        if isinstance(duration, float) and math.isfinite(duration):
            duration = round(duration)
        return {
            "success": raw.get("error") is None,
            **raw,
            "type": "tool_call_complete",
            "call_id": call.id if raw.get("call_id") is None else raw["call_id"],
            "result": raw.get("result", raw.get("output")),
            "duration": duration,
        }

    def _take_call(self, call_id: JsonValue, name: JsonValue, now: float) -> _OpenCall:
        """Return the call that a result belongs to; the oldest of its tool if it has no id."""
        for call in self._calls:
            if call.id == call_id or (call_id is None and call.tool_name == name):
                self._calls.remove(call)
                return call
        return _OpenCall(self._new_id(), "", now)

    def _new_id(self) -> str:
        self._count += 1
        return f"{self._prefix}-{self._count}"


def unwrapped(raw: JsonObject) -> JsonObject:
    """Return the event inside a ``sse_event`` or ``runtime_event``, or *raw* itself.

    Raises:
        RemoteProtocolError: If there is no event inside.
    """
    match raw.get("type"):
        case "sse_event":
            data = raw.get("data")
            return as_object(load_json(data) if isinstance(data, str) else data, "$.data")
        case "runtime_event":
            event = as_object(raw.get("event"), "$.event")
            return {**as_object(event.get("data"), "$.event.data"), "type": event.get("event")}
        case _:
            return raw


def as_object(value: JsonValue, path: str) -> JsonObject:
    """Return *value* if it is an object.

    Raises:
        RemoteProtocolError: If it is not; it names *path*.
    """
    if not isinstance(value, typing.Mapping):
        raise RemoteProtocolError("expected an object", path)
    return value


def legible_terminal(raw: JsonObject) -> JsonObject:
    """Return the fields of a terminal event without those that would spoil it.

    A malformed end of a run is an end all the same: what is null, a code that is none and a
    usage that cannot be read are left out, and a long error is cut.
    """
    fields = {key: value for key, value in raw.items() if value is not None}
    code, error = fields.get("code"), fields.get("error")
    if not (isinstance(code, str) and _CODE.fullmatch(code)):
        fields.pop("code", None)
    if isinstance(error, str):
        fields["error"] = error[:MAX_ERROR_LENGTH]
    try:
        structure(fields.get("usage", {}), Usage)
    except RemoteProtocolError:
        fields.pop("usage", None)  # an answer is not lost because its price is illegible
    return fields


# --- for the host ---------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class TranslatedEvent:
    """An event of a level 1 VM in today's words."""

    type: str
    """Which event it is."""
    data: str
    """The event as JSON text."""
    terminal: TerminalEvent | None = None
    """The event itself, if it ends its run."""


@final
class Level1Events:
    """Translates the events of one session that a level 1 VM holds."""

    def __init__(self) -> None:
        self._old = OldEvents("call")

    def translate(self, data: str, run_id: str, now: float) -> TranslatedEvent | None:
        """Return what an event says, or None if readers do not know its type.

        ``run_started`` is dropped too: for level 1 the host makes it. What already is in
        today's words keeps its text.

        Args:
            data: The ``data`` of an ``sse_event`` frame.
            run_id: The run that is open; terminal events are given it.
            now: The current time in seconds, on any clock that does not jump.

        Raises:
            RemoteProtocolError: If it is too long or no JSON object with a ``type``.
        """
        told = load_event(data)
        raw = unwrapped(told)
        match raw.get("type"):
            case ExecutionComplete.type | ExecutionError.type:
                self._old.forget_calls()
                end = _terminal(raw, run_id)
                return TranslatedEvent(type=end.type, data=encode_event(end), terminal=end)
            case _:
                standard = self._old.standard(raw, now)
        tag = standard.get("type")
        if not isinstance(tag, str):
            raise RemoteProtocolError("expected the name of an event", "$.type")
        if tag not in _PROGRESS:
            return None
        return TranslatedEvent(type=tag, data=data if standard == told else dump_json(standard))


def _terminal(raw: JsonObject, run_id: str) -> TerminalEvent:
    fields = {**legible_terminal(raw), "run_id": run_id}
    try:
        if raw["type"] == ExecutionComplete.type:
            return _complete(fields)
        fields = {"code": AdapterError.code, "error": "the VM gave no reason", **fields}
        return structure(fields, ExecutionError)
    except RemoteProtocolError as exc:
        return ExecutionError(
            run_id=run_id,
            code=exc.code,
            error=f"the VM ended the run with a malformed {raw['type']}: {exc}",
        )


def _complete(fields: JsonObject) -> ExecutionComplete:
    end = structure(fields, ExecutionComplete)
    answer, partial = end.final_response, end.partial_response
    if end.cancelled:
        partial = answer if partial is None else partial
        answer = None
    elif answer is None:
        content = fields.get("content")  # older still
        answer = content if isinstance(content, str) else ""
    answer, is_cut = (None, False) if answer is None else cut_response(answer)
    partial, is_part_cut = (None, False) if partial is None else cut_response(partial)
    return attrs.evolve(
        end,
        final_response=answer,
        partial_response=partial,
        truncated=is_cut or is_part_cut or end.truncated,
    )
