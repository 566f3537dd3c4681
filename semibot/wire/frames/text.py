"""Frames to JSON text and back.

Session events are most of the traffic, so they have a way of their own: an event's JSON
travels as a *string* inside the frame, which :func:`encode_sse_event` quotes and the
decoders unquote, and nobody in between takes it apart or writes it again. The host looks
into it once, with :func:`peek_event`, because it passes it on to readers as it is.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias, TypeVar

import attrs

from semibot.errors import LocalProtocolError, RemoteProtocolError
from semibot.wire.codec import JsonObject, JsonValue, dump_json, load_json, structure, unstructure
from semibot.wire.events import TextChunk

from .from_host import FromHost
from .from_vm import Auth, FromVm, SseEvent
from .limits import MAX_BATCH_FRAMES, MAX_EVENT_BYTES, MAX_ID_LENGTH

PlaneFrame: TypeAlias = FromVm | FromHost
"""Every frame, but batches."""

_FROM_VM: Final[Mapping[str, type[FromVm]]] = {kind.type: kind for kind in typing.get_args(FromVm)}
_FROM_HOST: Final[Mapping[str, type[FromHost]]] = {
    kind.type: kind for kind in typing.get_args(FromHost)
}
_IN_BATCH: Final = {tag: kind for tag, kind in _FROM_VM.items() if kind is not Auth}

T = TypeVar("T")


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
    """Return an event's frame; quick, because most frames are events.

    Raises:
        LocalProtocolError: If its text is not Unicode.
    """
    numbers = "" if frame.seq is None else f'"term":{frame.term},"seq":{frame.seq},'
    run = "" if frame.run_id is None else f'"run_id":{dump_json(frame.run_id)},'
    return (
        f'{{"type":"sse_event","session_id":{dump_json(frame.session_id)},'
        f'{numbers}{run}"data":{dump_json(frame.data)}}}'
    )


def encode_batch(frames: Sequence[str]) -> str:
    """Return frames that are already encoded as one, without encoding them again.

    Args:
        frames: JSON texts from :func:`encode_frame`, 1 to :data:`MAX_BATCH_FRAMES`; one
            alone is returned as it is.

    Raises:
        LocalProtocolError: If there are none, or too many.
    """
    if not 1 <= len(frames) <= MAX_BATCH_FRAMES:
        raise LocalProtocolError(f"a batch has 1 to {MAX_BATCH_FRAMES} frames, not {len(frames)}")
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
            field is missing, wrong or out of range. A batch is refused as a whole.
    """
    events = _plain_events(text)
    if events is not None:
        return events
    value = _object(load_json(text))
    if value.get("type") == "batch":
        return tuple(_from_vm(item, _IN_BATCH) for item in _batched(value))
    return _from_vm(value, _FROM_VM)


def decode_from_host(text: str) -> FromHost | tuple[FromHost, ...]:
    """Return what a host said; see :func:`decode_from_vm`."""
    value = _object(load_json(text))
    if value.get("type") == "batch":
        return tuple(_from_host(item) for item in _batched(value))
    return _from_host(value)


_BATCH_HEAD: Final = '{"type":"batch","frames":['
_ID: Final = r'"([^"\\\x00-\x1f]{1,256})"'  # without escapes
_EVENT_HEAD: Final = re.compile(
    rf'\{{"type":"sse_event","session_id":{_ID},'
    rf'"term":([1-9][0-9]{{0,8}}),"seq":([1-9][0-9]{{0,17}}),"run_id":{_ID},"data":(?=")'
)
_string_decoder: Final = json.JSONDecoder()


def _plain_events(text: str) -> SseEvent | tuple[SseEvent, ...] | None:
    """Return the events of a text that is, to the letter, what :func:`encode_sse_event` writes.

    Nearly all traffic is, and this takes a third of the time of reading it as any JSON. None
    means that something is different, and the general way has to say what.
    """
    if "\\u" in text or not _is_unicode(text):
        return None
    is_batch = text.startswith(_BATCH_HEAD)
    end = len(_BATCH_HEAD) if is_batch else 0
    found: list[SseEvent] = []
    after = "},"
    # Most events have the next number and are else what the one before them is.
    before = behind = session_id = run_id = ""
    term = seq = 0
    while after == "},":
        seq += 1
        guess = f"{before}{seq}{behind}"
        if before and text.startswith(guess, end):
            start = end + len(guess)
        else:
            head = _EVENT_HEAD.match(text, end)
            if head is None:
                return None
            session_id, run_id = head[1], head[4]
            term, seq = int(head[2]), int(head[3])
            start = head.end()
            before, behind = text[end : head.start(3)], text[head.end(3) : start]
        try:
            data, end = _string_decoder.raw_decode(text, start)
            found.append(SseEvent(session_id, data, term, seq, run_id))
        except ValueError:
            return None
        after = text[end : end + 2]
        end += 2
    if is_batch:
        is_whole = after == "}]" and text[end:] == "}" and len(found) <= MAX_BATCH_FRAMES
        return tuple(found) if is_whole else None
    return found[0] if after == "}" and len(found) == 1 else None


def _is_unicode(text: str) -> bool:
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _batched(value: JsonObject) -> Sequence[JsonValue]:
    frames = value.get("frames")
    if not isinstance(frames, list) or not 1 <= len(frames) <= MAX_BATCH_FRAMES:
        raise RemoteProtocolError(f"expected 1 to {MAX_BATCH_FRAMES} frames", "$.frames")
    return frames


def _from_vm(value: JsonValue, kinds: Mapping[str, type[FromVm]]) -> FromVm:
    if isinstance(value, dict) and value.get("type") == "sse_event":
        return _sse_event(value)
    return structure(value, _kind_of(value, kinds))


def _from_host(value: JsonValue) -> FromHost:
    return structure(value, _kind_of(value, _FROM_HOST))


def _kind_of(value: JsonValue, kinds: Mapping[str, type[T]]) -> type[T]:
    tag = _object(value).get("type")
    kind = kinds.get(tag) if isinstance(tag, str) else None
    if kind is None:
        raise RemoteProtocolError("unknown frame type", "$.type")
    return kind


def _object(value: JsonValue) -> JsonObject:
    if not isinstance(value, dict):
        raise RemoteProtocolError("expected an object")
    return value


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
        try:
            return SseEvent(session_id=session_id, data=data, term=term, seq=seq, run_id=run_id)
        except ValueError as exc:
            raise RemoteProtocolError(str(exc)) from None
    return structure(value, SseEvent)  # says what is wrong


# --- the event inside -----------------------------------------------------------------


@attrs.frozen
class EventPeek:
    """What a host needs to know of an event that it passes on."""

    type: str
    """Which event it is."""
    run_id: str | None
    """The run that it names; only first and terminal events have to."""


_CHUNK_PEEK: Final = EventPeek(TextChunk.type, None)
_TEXT: Final = r'[^"\\\x00-\x1f\ud800-\udfff]*'
_CHUNK: Final = re.compile(
    rf'\{{"type":"{TextChunk.type}","content":"{_TEXT}(?:\\["\\/bfnrt]{_TEXT})*"\}}'
)
"""A piece of text as semibot's VMs say it: most events are, so they are not taken apart."""


def load_event(data: str) -> JsonObject:
    """Return the object that the ``data`` of an :class:`SseEvent` says.

    Raises:
        RemoteProtocolError: If it is longer than :data:`MAX_EVENT_BYTES`, not strict JSON or
            no object.
    """
    # A character has at most four bytes, so that a short text is not measured.
    if len(data) > MAX_EVENT_BYTES // 4 and _byte_length(data) > MAX_EVENT_BYTES:
        raise RemoteProtocolError(f"an event is longer than {MAX_EVENT_BYTES} bytes")
    return _object(load_json(data))


def peek_event(data: str) -> EventPeek:
    """Check the ``data`` of an :class:`SseEvent` and return what it is.

    Args:
        data: The event as JSON text.

    Raises:
        RemoteProtocolError: If it is longer than :data:`MAX_EVENT_BYTES`, is not strict
            JSON, no object, or its ``type`` or ``run_id`` is not a string of a sane length.
    """
    if len(data) <= MAX_EVENT_BYTES // 4 and _CHUNK.fullmatch(data):
        return _CHUNK_PEEK
    value = load_event(data)
    tag, run_id = value.get("type"), value.get("run_id")
    if type(tag) is not str or not 0 < len(tag) <= MAX_ID_LENGTH:
        raise RemoteProtocolError("expected the name of an event", "$.type")
    if run_id is not None and (type(run_id) is not str or not 0 < len(run_id) <= MAX_ID_LENGTH):
        raise RemoteProtocolError("expected the id of a run", "$.run_id")
    return EventPeek(tag, run_id)


def _byte_length(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
