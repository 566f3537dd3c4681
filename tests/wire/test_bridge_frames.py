"""Lines to and from a bridge: exact shapes out, strict and tolerant reading in."""

from __future__ import annotations

import json
import typing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semibot.errors import LocalProtocolError, RemoteProtocolError
from semibot.wire.bridge import (
    BridgeComplete,
    BridgeDecoder,
    BridgeError,
    BridgeEvent,
    Cancel,
    ConfigUpdate,
    CpFireAndForget,
    CpRequest,
    CpResponse,
    FromBridge,
    Ready,
    RequestError,
    Snapshot,
    SnapshotResponse,
    Start,
    Stop,
    ToBridge,
    UserMessage,
    encode_frame,
)
from semibot.wire.codec import JsonObject
from semibot.wire.events import (
    FileCreated,
    PlanCreated,
    PlanStep,
    TextChunk,
    Thinking,
    ToolCallComplete,
    ToolCallStart,
    Usage,
)
from semibot.wire.jsonl import MAX_LINE_BYTES
from semibot.wire.level1 import MAX_ERROR_LENGTH, MAX_OPEN_CALLS

RECORDINGS = Path(__file__).parents[1] / "fixtures" / "plane"


def decode(*sayings: object) -> list[FromBridge]:
    """Return what one bridge's lines say, one second apart."""
    decoder = BridgeDecoder()
    return [
        decoder.decode(json.dumps(saying).encode(), float(number))
        for number, saying in enumerate(sayings)
    ]


def event(saying: object) -> object:
    (frame,) = decode(saying)
    assert isinstance(frame, BridgeEvent)
    return frame.event


# --- to the bridge --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frame", "shape"),
    [
        (
            Start(session_id="s", payload={"agent_id": "a"}),
            {"type": "start", "session_id": "s", "payload": {"agent_id": "a"}},
        ),
        (
            UserMessage(session_id="s", payload={"message": "m"}),
            {"type": "user_message", "session_id": "s", "payload": {"message": "m"}},
        ),
        (
            UserMessage(session_id="s", payload={}, run_id="r"),
            {"type": "user_message", "session_id": "s", "payload": {}, "run_id": "r"},
        ),
        (
            ConfigUpdate(session_id="s", payload={"agent_config": None}),
            {"type": "config_update", "session_id": "s", "payload": {"agent_config": None}},
        ),
        (Snapshot(id="i", session_id="s"), {"type": "snapshot", "id": "i", "session_id": "s"}),
        (Cancel(session_id="s"), {"type": "cancel", "session_id": "s"}),
        (
            Cancel(session_id="s", run_id="r"),
            {"type": "cancel", "session_id": "s", "run_id": "r"},
        ),
        (
            CpResponse(id="i", result={"a": [1]}, error=None),
            {"type": "cp_response", "id": "i", "result": {"a": [1]}, "error": None},
        ),
        (
            CpResponse(id="i", result=None, error=RequestError(code="C", message="m")),
            {
                "type": "cp_response",
                "id": "i",
                "result": None,
                "error": {"code": "C", "message": "m"},
            },
        ),
        (Stop(session_id="s"), {"type": "stop", "session_id": "s"}),
    ],
    ids=lambda value: getattr(value, "type", ""),
)
def test_a_frame_has_the_shape_of_the_protocol(frame: ToBridge, shape: JsonObject) -> None:
    line = encode_frame(frame)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == shape


def test_a_line_of_one_mebibyte_is_the_longest() -> None:
    def with_filler(size: int) -> bytes:
        return encode_frame(UserMessage(session_id="s", payload={"m": "x" * size}))

    overhead = len(with_filler(0)) - 1
    assert len(with_filler(MAX_LINE_BYTES - overhead)) == MAX_LINE_BYTES + 1
    with pytest.raises(LocalProtocolError, match="a user_message line would be longer than 1 MiB"):
        with_filler(MAX_LINE_BYTES - overhead + 1)


# --- from the bridge ------------------------------------------------------------------


def test_what_is_not_about_a_run_is_read_as_it_is() -> None:
    assert decode(
        {"type": "ready"},
        {"type": "ready", "features": ["run_id", "else"], "unknown": 1},
        {"type": "cp_request", "id": "i", "session_id": "s", "method": "m", "params": {"a": 1}},
        {"type": "cp_request", "id": "i", "method": "m"},
        {"type": "cp_fire_and_forget", "session_id": "s", "method": "m", "params": {"a": 1}},
        {"type": "snapshot_response", "id": "i", "session_id": "s", "snapshot": {"a": 1}},
        {"type": "snapshot_response", "id": "i", "snapshot": None},
    ) == [
        Ready(),
        Ready(features=("run_id", "else")),
        CpRequest(id="i", method="m", params={"a": 1}),
        CpRequest(id="i", method="m"),
        CpFireAndForget(method="m", params={"a": 1}),
        SnapshotResponse(id="i", snapshot={"a": 1}),
        SnapshotResponse(id="i"),
    ]


def test_standard_events_are_read_with_their_run() -> None:
    frames = decode(
        {"type": "text_chunk", "content": "a", "run_id": "r"},
        {"type": "plan_created", "steps": [{"id": "1", "title": "t"}]},
    )
    assert frames == [
        BridgeEvent(run_id="r", event=TextChunk(content="a")),
        BridgeEvent(run_id=None, event=PlanCreated(steps=(PlanStep(id="1", title="t"),))),
    ]


@pytest.mark.parametrize(
    "saying",
    [
        {"type": "text", "content": "a"},
        {"type": "text_chunk", "content": "a"},
        {"type": "sse_event", "data": {"type": "text", "content": "a"}},
        {"type": "sse_event", "data": '{"type": "text_chunk", "content": "a"}'},
        {"type": "runtime_event", "event": {"event": "text", "data": {"content": "a"}}},
        {"type": "runtime_event", "event": {"event": "text_chunk", "data": {"content": "a"}}},
    ],
)
def test_old_names_and_wrappers_mean_the_same(saying: JsonObject) -> None:
    assert event(saying) == TextChunk(content="a")


def test_the_run_may_stand_inside_or_outside_a_wrapper() -> None:
    inner = {"type": "text", "content": "a"}
    assert [
        frame.run_id
        for frame in decode(
            {"type": "sse_event", "data": {**inner, "run_id": "in"}, "run_id": "out"},
            {"type": "sse_event", "data": inner, "run_id": "out"},
            {"type": "sse_event", "data": {**inner, "run_id": 7}},
        )
        if isinstance(frame, BridgeEvent)
    ] == ["in", "out", None]


@pytest.mark.parametrize("stage", [{}, {"stage": "openclaw"}, {"stage": "planning"}])
def test_thinking_without_a_stage_of_ours_is_planning(stage: JsonObject) -> None:
    thinking = event({"type": "thinking", "content": "hm", **stage})
    assert thinking == Thinking(content="hm", stage="planning")


def test_a_file_without_an_id_is_known_by_its_url() -> None:
    file = {"type": "file_created", "filename": "f", "mime_type": "m", "size": 1, "url": "/u"}
    assert event(file) == FileCreated(file_id="/u", filename="f", mime_type="m", size=1, url="/u")
    assert event({**file, "file_id": "i"}) == FileCreated(
        file_id="i", filename="f", mime_type="m", size=1, url="/u"
    )


def test_old_tool_calls_get_ids_that_belong_together_and_measured_durations() -> None:
    assert [
        frame.event
        for frame in decode(
            {"type": "tool_call", "tool_name": "ls", "input": {"path": "a"}},
            {"type": "tool_call", "tool_name": "ls", "input": "b"},
            {"type": "tool_call", "tool_name": "pwd"},
            {"type": "tool_result", "tool_name": "pwd", "output": "/"},
            {"type": "tool_result", "tool_name": "ls", "output": ["x"]},
            {"type": "tool_result", "tool_name": "ls", "error": "gone"},
            {"type": "tool_result", "tool_name": "ls", "output": None},
        )
        if isinstance(frame, BridgeEvent)
    ] == [
        ToolCallStart(call_id="bridge-1", tool_name="ls", arguments={"path": "a"}),
        ToolCallStart(call_id="bridge-2", tool_name="ls", arguments={"input": "b"}),
        ToolCallStart(call_id="bridge-3", tool_name="pwd", arguments={}),
        ToolCallComplete(
            call_id="bridge-3", tool_name="pwd", result="/", success=True, duration=1000
        ),
        ToolCallComplete(
            call_id="bridge-1", tool_name="ls", result=["x"], success=True, duration=4000
        ),
        ToolCallComplete(
            call_id="bridge-2", tool_name="ls", error="gone", success=False, duration=4000
        ),
        ToolCallComplete(
            call_id="bridge-4", tool_name="ls", success=True, duration=0
        ),  # its start was never said
    ]


def test_what_a_tool_call_says_of_itself_is_kept() -> None:
    start = {"type": "tool_call_start", "call_id": "c", "tool_name": "t", "arguments": {"a": 1}}
    end = {
        "type": "tool_call_complete",
        "call_id": "c",
        "tool_name": "t",
        "result": 1,
        "success": False,
        "error": "e",
        "duration": 12.6,
    }
    first, second = decode(start, end)
    assert isinstance(first, BridgeEvent)
    assert isinstance(second, BridgeEvent)
    assert first.event == ToolCallStart(call_id="c", tool_name="t", arguments={"a": 1})
    assert second.event == ToolCallComplete(
        call_id="c", tool_name="t", result=1, success=False, error="e", duration=13
    )


def test_calls_without_a_result_are_forgotten_in_the_end() -> None:
    decoder = BridgeDecoder()
    call = b'{"type": "tool_call", "tool_name": "t"}'
    result = b'{"type": "tool_result", "tool_name": "t"}'
    for _ in range(MAX_OPEN_CALLS + 10):
        decoder.decode(call, 0.0)
    frame = decoder.decode(result, 0.0)
    assert isinstance(frame, BridgeEvent)
    assert isinstance(frame.event, ToolCallComplete)
    assert frame.event.call_id == "bridge-11"
    decoder.decode(b'{"type": "execution_complete"}', 0.0)
    frame = decoder.decode(result, 0.0)
    assert isinstance(frame, BridgeEvent)
    assert isinstance(frame.event, ToolCallComplete)
    assert frame.event.call_id == f"bridge-{MAX_OPEN_CALLS + 11}"


# --- the end of a run -----------------------------------------------------------------


def test_the_end_of_a_run_is_read_with_what_it_has() -> None:
    assert decode(
        {"type": "execution_complete"},
        {"type": "execution_complete", "final_response": "f", "run_id": "r", "cancelled": None},
        {
            "type": "execution_complete",
            "cancelled": True,
            "usage": {"tokens_in": 1, "tokens_out": 2},
            "termination_reason": "t",
        },
        {"type": "execution_error"},
        {"type": "execution_error", "code": "A_CODE", "error": "e", "retryable": True},
        {"type": "sse_event", "data": {"type": "execution_complete"}, "run_id": "r"},
    ) == [
        BridgeComplete(),
        BridgeComplete(final_response="f", run_id="r"),
        BridgeComplete(
            cancelled=True, usage=Usage(tokens_in=1, tokens_out=2), termination_reason="t"
        ),
        BridgeError(),
        BridgeError(code="A_CODE", error="e", retryable=True),
        BridgeComplete(run_id="r"),
    ]


@pytest.mark.parametrize("code", ["not a code", "", "lower", 7, "A" * 65, "A\nB"])
def test_a_code_that_is_none_becomes_the_general_one(code: object) -> None:
    (error,) = decode({"type": "execution_error", "code": code, "error": "e"})
    assert error == BridgeError(error="e")
    assert error.code == "OPENCLAW_EXECUTION_ERROR"


def test_a_long_error_text_is_cut() -> None:
    (error,) = decode({"type": "execution_error", "error": "e" * (MAX_ERROR_LENGTH + 1)})
    assert error == BridgeError(error="e" * MAX_ERROR_LENGTH)


def test_an_answer_is_not_lost_because_its_price_is_illegible() -> None:
    usage = {"tokens_in": 1.5}
    (frame,) = decode({"type": "execution_complete", "final_response": "f", "usage": usage})
    assert frame == BridgeComplete(final_response="f")


@pytest.mark.parametrize(
    ("saying", "path"),
    [
        ({"type": "execution_complete", "final_response": {"text": "f"}}, "$.final_response"),
        ({"type": "execution_complete", "cancelled": "yes"}, "$.cancelled"),
        ({"type": "execution_error", "error": {"message": "m"}}, "$.error"),
    ],
)
def test_a_malformed_end_is_an_end(saying: JsonObject, path: str) -> None:
    (error,) = decode({**saying, "run_id": "r"})
    assert isinstance(error, BridgeError)
    assert (error.run_id, error.code) == ("r", "OPENCLAW_BRIDGE_PROTOCOL")
    assert path in error.error


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("saying", "path"),
    [
        ([], "$"),
        ("text", "$"),
        ({}, "$.type"),
        ({"type": "weird"}, "$.type"),
        ({"type": ["text"]}, "$.type"),
        ({"type": "start", "session_id": "s"}, "$.type"),
        ({"type": "run_started", "run_id": "r", "message_id": "m", "message": "t"}, "$.type"),
        ({"type": "text"}, "$.content"),
        ({"type": "text", "content": 5}, "$.content"),
        ({"type": "thinking", "content": "a", "stage": "musing"}, "$.stage"),
        ({"type": "thinking", "content": "a", "stage": []}, "$.stage"),
        ({"type": "tool_call", "input": {}}, "$.tool_name"),
        ({"type": "tool_call", "tool_name": "t", "call_id": 5}, "$.call_id"),
        ({"type": "tool_call_start", "tool_name": "t", "arguments": "a"}, "$.arguments"),
        ({"type": "tool_result", "tool_name": "t", "duration": "long"}, "$.duration"),
        ({"type": "file_created", "filename": "f"}, "$.file_id"),
        ({"type": "sse_event"}, "$.data"),
        ({"type": "sse_event", "data": {"type": "ready"}}, "$.type"),
        ({"type": "sse_event", "data": {"type": "sse_event", "data": {}}}, "$.type"),
        ({"type": "sse_event", "data": "{"}, "$"),
        ({"type": "runtime_event"}, "$.event"),
        ({"type": "runtime_event", "event": {"event": "text"}}, "$.event.data"),
        ({"type": "runtime_event", "event": {"data": {}}}, "$.type"),
        ({"type": "cp_request", "method": "m"}, "$.id"),
        ({"type": "cp_request", "id": 1, "method": "m"}, "$.id"),
        ({"type": "cp_request", "id": "i", "method": "m", "params": []}, "$.params"),
        ({"type": "snapshot_response", "id": "i", "snapshot": "s"}, "$.snapshot"),
        ({"type": "ready", "features": "run_id"}, "$.features"),
    ],
)
def test_a_line_that_says_nothing_a_bridge_may_say_is_refused(saying: object, path: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode(saying)
    assert caught.value.path == path


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
TYPES = [
    *("text", "text_chunk", "thinking", "tool_call", "tool_result", "tool_call_start"),
    *("tool_call_complete", "file_created", "execution_complete", "execution_error"),
    *("sse_event", "runtime_event", "ready", "cp_request", "cp_fire_and_forget"),
    *("snapshot_response", "run_started", "notify", "plan_created", "weird"),
]
FIELDS = [
    *("content", "stage", "tool_name", "input", "output", "arguments", "call_id", "duration"),
    *("success", "error", "result", "url", "final_response", "code", "usage", "cancelled"),
    *("retryable", "data", "event", "features", "id", "method", "params", "snapshot", "run_id"),
]


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_no_bytes_raise_anything_else(lines: list[bytes]) -> None:
    decoder = BridgeDecoder()
    for line in lines:
        with pytest.raises(RemoteProtocolError):
            decoder.decode(line, 0.0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(TYPES) | JSON,
            st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6),
        ),
        max_size=5,
    )
)
def test_no_object_raises_anything_else(sayings: list[tuple[object, dict[str, object]]]) -> None:
    decoder = BridgeDecoder()
    for kind, fields in sayings:
        line = json.dumps({**fields, "type": kind}).encode()
        try:
            frame = decoder.decode(line, 1.5)
        except RemoteProtocolError:
            continue
        assert isinstance(frame, typing.get_args(FromBridge))


@given(st.text(), st.none() | st.text())
def test_text_arrives_unchanged(content: str, run_id: str | None) -> None:
    saying = {"type": "text", "content": content, "run_id": run_id}
    decoded = BridgeDecoder().decode(json.dumps(saying).encode(), 0.0)
    assert decoded == BridgeEvent(run_id=run_id, event=TextChunk(content=content))


@pytest.mark.parametrize("name", ["mock", "sdk"])
def test_everything_that_recorded_bridges_said_is_understood(name: str) -> None:
    text = (RECORDINGS / f"bridge-{name}.jsonl").read_text("utf-8")
    lines = [json.loads(line) for line in text.splitlines()]
    sayings = [line["msg"] for line in lines if line["dir"] == "bridge->adapter"]
    frames = decode(*sayings)
    assert sum(isinstance(frame, BridgeComplete) for frame in frames) == 2
    assert sum(isinstance(frame, BridgeError) for frame in frames) == 2
    assert sum(isinstance(frame, SnapshotResponse) for frame in frames) == 1
