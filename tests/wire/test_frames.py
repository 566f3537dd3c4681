"""Frames between VM and host: shapes, bounds, recordings, and what is not one."""

from __future__ import annotations

import contextlib
import json
import time
import typing
from pathlib import Path
from typing import Final

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_strategies import EVENTS, IDS, JSON_VALUES, instances_of

from semibot.errors import LocalProtocolError, RemoteProtocolError
from semibot.wire.codec import JsonObject, dump_json
from semibot.wire.events import SessionEvent, encode_event
from semibot.wire.frames import (
    MAX_BATCH_FRAMES,
    MAX_EVENT_BYTES,
    MAX_ID_LENGTH,
    MAX_SEQ,
    MAX_TERM,
    Auth,
    Cancel,
    Cancelled,
    CommandAck,
    ConfigUpdate,
    ErrorFrame,
    EventPeek,
    FromHost,
    FromVm,
    HeldSession,
    HostAck,
    HostHeartbeat,
    Init,
    InitData,
    PlaneFrame,
    ProtocolRange,
    Request,
    Response,
    Resume,
    ResumeResponse,
    SessionStatus,
    SseEvent,
    StartSession,
    StartSessionData,
    Token,
    UserMessage,
    UserMessageData,
    VmHeartbeat,
    decode_from_host,
    decode_from_vm,
    encode_batch,
    encode_frame,
    encode_sse_event,
    peek_event,
)

RECORDINGS: Final = Path(__file__).parents[1] / "fixtures" / "plane"
FROM_VM: Final = typing.get_args(FromVm)
FROM_HOST: Final = typing.get_args(FromHost)


def label(value: object) -> str:
    return getattr(value, "__name__", type(value).__name__)


# --- round trips ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", FROM_VM, ids=label)
def test_a_host_reads_what_a_vm_writes(kind: type[FromVm]) -> None:
    @settings(deadline=None, max_examples=25)
    @given(instances_of(kind))
    def round_trip(frame: FromVm) -> None:
        text = encode_frame(frame)
        assert text.startswith(f'{{"type":"{kind.type}"')
        assert decode_from_vm(text) == frame

    round_trip()


@pytest.mark.parametrize("kind", FROM_HOST, ids=label)
def test_a_vm_reads_what_a_host_writes(kind: type[FromHost]) -> None:
    @settings(deadline=None, max_examples=25)
    @given(instances_of(kind))
    def round_trip(frame: FromHost) -> None:
        text = encode_frame(frame)
        assert text.startswith(f'{{"type":"{kind.type}"')
        assert decode_from_host(text) == frame

    round_trip()


@settings(deadline=None)
@given(st.lists(st.one_of(*(instances_of(kind) for kind in FROM_VM)), min_size=2, max_size=6))
def test_a_batch_is_the_frames_in_it(frames: list[FromVm]) -> None:
    text = encode_batch([encode_frame(frame) for frame in frames])
    if any(isinstance(frame, Auth) for frame in frames):
        with pytest.raises(RemoteProtocolError):
            decode_from_vm(text)
    else:
        assert decode_from_vm(text) == tuple(frames)


def test_a_batch_from_the_host_is_the_frames_in_it() -> None:
    frames = (HostAck(sessions={"s": 4}), HostHeartbeat(echo=1.5), Token(token="t"))
    assert decode_from_host(encode_batch([encode_frame(frame) for frame in frames])) == frames


def test_a_batch_of_one_is_that_frame() -> None:
    text = encode_frame(HostHeartbeat())
    assert encode_batch([text]) == text


@pytest.mark.parametrize("count", [0, MAX_BATCH_FRAMES + 1])
def test_a_batch_has_a_bounded_number_of_frames(count: int) -> None:
    text = encode_frame(HostHeartbeat())
    with pytest.raises(LocalProtocolError, match=f"1 to 512 frames, not {count}"):
        encode_batch([text] * count)
    with pytest.raises(RemoteProtocolError, match=r"1 to 512 frames @ \$\.frames"):
        decode_from_host('{"type":"batch","frames":[' + ",".join([text] * count) + "]}")
    assert len(decode_from_host(encode_batch([text] * MAX_BATCH_FRAMES))) == MAX_BATCH_FRAMES


# --- exact shapes ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "shape"),
    [
        (Auth(token="t"), {"type": "auth", "token": "t", "features": []}),
        (
            Auth(token="t", protocol=ProtocolRange(min=1, max=2), boot_id="b", dial=3),
            {
                "type": "auth",
                "token": "t",
                "protocol": {"min": 1, "max": 2},
                "boot_id": "b",
                "dial": 3,
                "features": [],
            },
        ),
        (
            SseEvent(session_id="s", data='{"type":"x"}'),
            {"type": "sse_event", "session_id": "s", "data": '{"type":"x"}'},
        ),
        (
            SseEvent(session_id="s", data="{}", term=2, seq=7, run_id="r"),
            {
                "type": "sse_event",
                "session_id": "s",
                "term": 2,
                "seq": 7,
                "run_id": "r",
                "data": "{}",
            },
        ),
        (
            SseEvent(session_id="s", data="{}", run_id="r"),
            {"type": "sse_event", "session_id": "s", "run_id": "r", "data": "{}"},
        ),
        (
            Response(id="i", result={"a": [1]}, error=None),
            {"type": "response", "id": "i", "result": {"a": [1]}, "error": None},
        ),
        (
            Cancelled(session_id="s", command_id="c", run_id=None, receipt={"a": 1}),
            {
                "type": "cancelled",
                "session_id": "s",
                "command_id": "c",
                "run_id": None,
                "receipt": {"a": 1},
            },
        ),
        (CommandAck(commands=("a",)), {"type": "ack", "commands": ["a"]}),
        (
            Resume(pending_ids=(), sessions={"s": HeldSession(term=1, first_seq=1, last_seq=0)}),
            {
                "type": "resume",
                "pending_ids": [],
                "sessions": {"s": {"term": 1, "first_seq": 1, "last_seq": 0}},
            },
        ),
        (
            ResumeResponse(results={}, sessions={"s": SessionStatus(fenced=True)}),
            {"type": "resume_response", "results": {}, "sessions": {"s": {"fenced": True}}},
        ),
        (
            StartSession(data=StartSessionData(session_id="s", runtime_type="semigraph")),
            {
                "type": "start_session",
                "data": {
                    "session_id": "s",
                    "runtime_type": "semigraph",
                    "agent_config": {},
                    "mcp_servers": [],
                    "skill_index": [],
                    "sub_agents": [],
                },
            },
        ),
        (
            UserMessage(session_id="s", data=UserMessageData(message="m"), run_id="r"),
            {
                "type": "user_message",
                "session_id": "s",
                "data": {"message": "m", "history": [], "metadata": {}},
                "run_id": "r",
            },
        ),
        (HostHeartbeat(), {"type": "heartbeat"}),
        (
            Init(data=InitData(user_id="u", org_id="o")),
            {"type": "init", "data": {"user_id": "u", "org_id": "o", "api_keys": {}}},
        ),
    ],
    ids=label,
)
def test_a_frame_has_the_shape_of_the_protocol(frame: PlaneFrame, shape: JsonObject) -> None:
    assert json.loads(encode_frame(frame)) == shape


def test_secrets_are_not_shown() -> None:
    frames = [
        Auth(token="hush", boot_id="hush"),
        Token(token="hush"),
        Init(data=InitData(user_id="u", org_id="o", api_keys={"openai": "hush"})),
    ]
    assert "hush" not in repr(frames)


def test_the_reason_of_a_cancel_is_found_in_both_places() -> None:
    assert Cancel(session_id="s", reason="a", data={"reason": "b"}).why == "a"
    assert Cancel(session_id="s", data={"reason": "b"}).why == "b"
    assert Cancel(session_id="s", data={"reason": 5}).why == "user_cancelled"
    assert Cancel(session_id="s").why == "user_cancelled"


def test_the_session_of_a_config_update_is_found_in_both_places() -> None:
    update = ConfigUpdate(data={"session_id": "b", "agent_config": {}})
    assert (update.target, update.patch) == ("b", {"agent_config": {}})
    assert attrs.evolve(update, session_id="a").target == "a"
    assert ConfigUpdate(data={"session_id": 5}).target is None


# --- recordings -----------------------------------------------------------------------


def recorded(name: str) -> list[tuple[str, JsonObject]]:
    lines = (RECORDINGS / name).read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(row["dir"], row["frame"]) for row in rows if "type" in row["frame"]]


@pytest.mark.parametrize("name", ["graph-exchange", "host-exchange", "openclaw-exchange"])
def test_every_recorded_frame_of_level_1_can_be_read(name: str) -> None:
    rows = recorded(f"{name}.jsonl")
    assert len(rows) > 15
    for direction, frame in rows:
        read = decode_from_vm if direction == "ep->cp" else decode_from_host
        decoded = read(json.dumps(frame))
        assert not isinstance(decoded, tuple)
        assert decoded.type == frame["type"]
        if isinstance(decoded, SseEvent):
            peek_event(decoded.data)


# --- what is not a frame --------------------------------------------------------------


@settings(deadline=None, max_examples=300)
@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda data: data.decode("latin-1")))
def test_no_text_raises_anything_but_a_protocol_error(text: str) -> None:
    for read in (decode_from_vm, decode_from_host, peek_event):
        with contextlib.suppress(RemoteProtocolError):
            read(text)


TAGS: Final = sorted({kind.type for kind in (*FROM_VM, *FROM_HOST)} | {"batch", "nonsense"})
FIELDS: Final = sorted(
    {field.name for kind in (*FROM_VM, *FROM_HOST) for field in attrs.fields(kind)} | {"frames"}
)
NEARLY_FRAMES: Final = st.recursive(
    st.fixed_dictionaries(
        {"type": st.sampled_from(TAGS)},
        optional={name: JSON_VALUES | st.integers(-2, 2) for name in FIELDS},
    ),
    lambda inner: st.builds(
        lambda frames: {"type": "batch", "frames": frames}, st.lists(inner, max_size=3)
    ),
    max_leaves=3,
)


@settings(deadline=None, max_examples=100)
@given(NEARLY_FRAMES)
def test_what_is_nearly_a_frame_raises_nothing_but_a_protocol_error(frame: JsonObject) -> None:
    text = dump_json(frame)
    for read in (decode_from_vm, decode_from_host, peek_event):
        with contextlib.suppress(RemoteProtocolError):
            read(text)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_a_damaged_frame_raises_nothing_but_a_protocol_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([*FROM_VM, *FROM_HOST]))
    text = encode_frame(typing.cast("PlaneFrame", data.draw(instances_of(kind))))
    place = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:place] + data.draw(st.text(max_size=2)) + text[place + 1 :]
    for read in (decode_from_vm, decode_from_host):
        with contextlib.suppress(RemoteProtocolError):
            read(damaged)


EVENT: Final = {"type": "sse_event", "session_id": "s", "data": "{}"}
LONG: Final = "x" * (MAX_ID_LENGTH + 1)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ([], "expected an object @ $"),
        ({}, "unknown frame type @ $.type"),
        ({"type": 5}, "unknown frame type @ $.type"),
        ({"type": ["sse_event"]}, "unknown frame type @ $.type"),
        ({"type": "init", "data": {}}, "unknown frame type @ $.type"),
        ({"type": "auth"}, "required field 'token' is missing @ $"),
        ({"type": "auth", "token": "t", "dial": -1}, "dial is not between 0 and"),
        ({"type": "auth", "token": "t", "boot_id": ""}, "boot_id is empty or too long @ $"),
        (
            {"type": "auth", "token": "t", "protocol": {"min": 2, "max": 1}},
            "min is greater than max @ $.protocol",
        ),
        (
            {"type": "auth", "token": "t", "protocol": {"min": 0, "max": 1}},
            "min is not between 1 and 999 @ $.protocol",
        ),
        ({"type": "heartbeat"}, "required field 'active_sessions' is missing @ $"),
        ({"type": "resume"}, "required field 'pending_ids' is missing @ $"),
        (
            {
                "type": "resume",
                "pending_ids": [],
                "sessions": {"s": {"term": 1, "first_seq": 3, "last_seq": 1}},
            },
            "first_seq is beyond last_seq + 1 @ $.sessions['s']",
        ),
        (
            {"type": "resume", "pending_ids": [], "sessions": {"s": {"term": 0}}},
            "required field 'first_seq' is missing @ $.sessions['s']",
        ),
        ({"type": "request", "id": "", "session_id": "s", "method": "m", "params": {}}, "id is"),
        ({**EVENT, "session_id": ""}, "session_id is empty or too long @ $"),
        ({**EVENT, "session_id": LONG}, "session_id is empty or too long @ $"),
        ({**EVENT, "session_id": 5}, "expected a string @ $.session_id"),
        ({**EVENT, "data": {}}, "expected a string @ $.data"),
        ({**EVENT, "run_id": LONG}, "run_id is empty or too long @ $"),
        ({**EVENT, "run_id": ""}, "run_id is empty or too long @ $"),
        ({**EVENT, "seq": 1}, "term and seq come together or not at all @ $"),
        ({**EVENT, "term": 1}, "term and seq come together or not at all @ $"),
        ({**EVENT, "term": 1, "seq": 0}, "term or seq is out of range @ $"),
        ({**EVENT, "term": 0, "seq": 1}, "term or seq is out of range @ $"),
        ({**EVENT, "term": MAX_TERM + 1, "seq": 1}, "term or seq is out of range @ $"),
        ({**EVENT, "term": 1, "seq": MAX_SEQ + 1}, "term or seq is out of range @ $"),
        ({**EVENT, "term": True, "seq": 1}, "expected an integer @ $.term"),
        ({**EVENT, "term": 1, "seq": 1.0}, "expected an integer @ $.seq"),
        ({"type": "batch"}, "expected 1 to 512 frames @ $.frames"),
        ({"type": "batch", "frames": EVENT}, "expected 1 to 512 frames @ $.frames"),
        ({"type": "batch", "frames": [EVENT, 5]}, "expected an object @ $"),
        ({"type": "batch", "frames": [{"type": "batch", "frames": [EVENT]}]}, "unknown frame"),
        ({"type": "batch", "frames": [{"type": "auth", "token": "t"}]}, "unknown frame type"),
    ],
    ids=lambda value: None if isinstance(value, str) else dump_json(value)[:60],
)
def test_a_host_refuses_what_is_no_frame(frame: JsonObject, expected: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_from_vm(json.dumps(frame))
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        (5, "expected an object @ $"),
        ({"type": "auth", "token": "t"}, "unknown frame type @ $.type"),
        ({"type": "init"}, "required field 'data' is missing @ $"),
        (
            {"type": "init", "data": {"user_id": "u", "org_id": "o", "epoch": -1}},
            "epoch is not between 0 and",
        ),
        ({"type": "start_session", "data": {"session_id": "s"}, "term": 0}, "term is not between"),
        (
            {"type": "start_session", "data": {"session_id": "s"}, "next_seq": 0},
            "next_seq is not between 1",
        ),
        ({"type": "ack", "sessions": {"s": "5"}}, "expected an integer @ $.sessions['s']"),
        ({"type": "response", "id": "i"}, "required field 'result' is missing @ $"),
    ],
    ids=lambda value: None if isinstance(value, str) else dump_json(value)[:60],
)
def test_a_vm_refuses_what_is_no_frame(frame: JsonObject, expected: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_from_host(json.dumps(frame))
    assert str(caught.value).startswith(expected)


def test_our_own_frames_are_checked_too() -> None:
    with pytest.raises(ValueError, match="together"):
        SseEvent(session_id="s", data="{}", seq=1)
    with pytest.raises(ValueError, match="expected is not between"):
        ErrorFrame(code="SEQ_GAP", message="m", expected=0)
    with pytest.raises(LocalProtocolError):
        encode_sse_event(SseEvent(session_id="s", data="\ud800"))
    with pytest.raises(LocalProtocolError):
        encode_frame(Request(id="i", session_id="s", method="m", params={"a": float("nan")}))


def test_unknown_fields_are_ignored() -> None:
    heartbeat = decode_from_vm('{"type":"heartbeat","active_sessions":["s"],"new":1}')
    assert heartbeat == VmHeartbeat(active_sessions=("s",))


# --- the event inside -----------------------------------------------------------------


@settings(deadline=None)
@given(EVENTS)
def test_a_peek_says_what_an_event_is(event: SessionEvent) -> None:
    run_id = getattr(event, "run_id", None)
    if run_id is None or 0 < len(run_id) <= MAX_ID_LENGTH:
        assert peek_event(encode_event(event)) == EventPeek(event.type, run_id)


@given(IDS, IDS)
def test_a_peek_takes_any_type_of_a_sane_length(tag: str, run_id: str) -> None:
    assert peek_event(dump_json({"type": tag})) == EventPeek(tag, None)
    told = dump_json({"a": [{"type": 5}], "run_id": run_id, "type": tag})
    assert peek_event(told) == EventPeek(tag, run_id)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("", "not valid JSON @ $"),
        ("[]", "expected an object @ $"),
        ("{}", "expected the name of an event @ $.type"),
        ('{"type":5}', "expected the name of an event @ $.type"),
        ('{"type":""}', "expected the name of an event @ $.type"),
        (f'{{"type":"{LONG}"}}', "expected the name of an event @ $.type"),
        ('{"type":"a","run_id":5}', "expected the id of a run @ $.run_id"),
        ('{"type":"a","run_id":""}', "expected the id of a run @ $.run_id"),
        ('{"type":"a","type":"a"}', "an object repeats a key @ $"),
        ('{"type":"a","b":NaN}', "NaN is not JSON @ $"),
        ('{"type":"a"} {}', "not valid JSON @ $"),
        ('{"type":"a\ud800"}', "not valid Unicode @ $"),
        (r'{"type":"a\ud800"}', "not valid Unicode @ $"),
        ('{"type":"a","b":' + "[" * 65 + "]" * 65 + "}", "nested too deeply @ $"),
    ],
    ids=ascii,
)
def test_a_peek_refuses_what_is_no_event(data: str, expected: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        peek_event(data)
    assert str(caught.value) == expected


@pytest.mark.parametrize("letter", ["x", "日", "😀"])
def test_an_event_has_at_most_one_mebibyte(letter: str) -> None:
    shell = dump_json({"type": "a", "b": ""})
    room, width = MAX_EVENT_BYTES - len(shell), len(letter.encode())
    fits = dump_json({"type": "a", "b": letter * (room // width) + "x" * (room % width)})
    assert len(fits.encode()) == MAX_EVENT_BYTES
    assert peek_event(fits).type == "a"
    with pytest.raises(RemoteProtocolError, match="an event is longer than 1048576 bytes"):
        peek_event(fits + " ")


def test_json_a_hundred_thousand_levels_deep_is_refused_at_once() -> None:
    deep = '{"type":"a","b":' + "[" * 10**5 + "]" * 10**5 + "}"
    began = time.process_time()
    with pytest.raises(RemoteProtocolError, match="nested too deeply"):
        peek_event(deep)
    with pytest.raises(RemoteProtocolError):
        decode_from_vm('{"type":"request","params":' + '{"a":' * 10**5 + "0" + "}" * (10**5 + 1))
    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    "frame",
    [
        {"type": "ack", "commands": [""] * 10_001},
        {"type": "heartbeat", "active_sessions": [""] * 10_001},
        {"type": "resume", "pending_ids": [""] * 10_001},
    ],
)
def test_a_frame_names_so_many_things_and_no_more(frame):
    with pytest.raises(RemoteProtocolError):
        decode_from_vm(json.dumps(frame))
