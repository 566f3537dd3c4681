"""What VMs of level 1 say, in today's words."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_strategies import EVENTS, JSON_VALUES

from semibot.errors import RemoteProtocolError
from semibot.wire.codec import JsonObject, dump_json
from semibot.wire.events import (
    FINAL_RESPONSE_LIMIT,
    PROGRESS_TYPES,
    ExecutionComplete,
    ExecutionError,
    Notify,
    RunStarted,
    SessionEvent,
    Usage,
    decode_event,
    encode_event,
)
from semibot.wire.frames import MAX_EVENT_BYTES
from semibot.wire.level1 import MAX_ERROR_LENGTH, Level1Events, TranslatedEvent

RECORDINGS: Final = Path(__file__).parents[1] / "fixtures" / "plane"


def translate(*sayings: JsonObject) -> list[JsonObject | None]:
    """Return what a session's events mean, one second apart."""
    events = Level1Events()
    found: list[JsonObject | None] = []
    for number, saying in enumerate(sayings):
        event = events.translate(json.dumps(saying), "run-1", float(number))
        found.append(None if event is None else json.loads(event.data))
    return found


def test_old_names_become_todays() -> None:
    assert translate(
        {"type": "text", "content": "a"},
        {"type": "tool_call", "tool_name": "t", "input": "x"},
        {"type": "tool_result", "tool_name": "t", "output": "y"},
        {"type": "thinking", "content": "c", "stage": "openclaw"},
        {"type": "file_created", "filename": "f", "url": "/u"},
    ) == [
        {"type": "text_chunk", "content": "a"},
        {
            "type": "tool_call_start",
            "call_id": "call-1",
            "tool_name": "t",
            "input": "x",
            "arguments": {"input": "x"},
        },
        {
            "type": "tool_call_complete",
            "call_id": "call-1",
            "tool_name": "t",
            "output": "y",
            "result": "y",
            "success": True,
            "duration": 1000,
        },
        {"type": "thinking", "content": "c", "stage": "planning"},
        {"type": "file_created", "file_id": "/u", "filename": "f", "url": "/u"},
    ]


def test_fields_that_are_null_count_as_absent() -> None:
    start, end = translate(
        {"type": "tool_call_start", "call_id": None, "tool_name": "t", "arguments": None},
        {"type": "tool_call_complete", "call_id": None, "tool_name": "t", "duration": None},
    )
    assert start == {
        "type": "tool_call_start",
        "call_id": "call-1",
        "tool_name": "t",
        "arguments": {},
    }
    assert end is not None
    assert (end["call_id"], end["duration"], end["success"]) == ("call-1", 1000, True)


def test_a_result_without_a_call_gets_an_id_of_its_own() -> None:
    (end,) = translate({"type": "tool_result", "tool_name": "t", "error": "no"})
    assert end is not None
    assert (end["call_id"], end["success"], end["duration"]) == ("call-1", False, 0)


def test_calls_without_a_result_are_forgotten_with_their_run() -> None:
    _, _, end = translate(
        {"type": "tool_call", "tool_name": "t"},
        {"type": "execution_complete", "final_response": "a"},
        {"type": "tool_result", "tool_name": "t"},
    )
    assert end is not None
    assert (end["call_id"], end["duration"]) == ("call-2", 0)


def test_wrapped_events_are_unwrapped() -> None:
    inner = {"type": "text", "content": "a"}
    assert (
        translate(
            {"type": "sse_event", "data": inner},
            {"type": "sse_event", "data": json.dumps(inner)},
            {"type": "runtime_event", "event": {"event": "text", "data": {"content": "a"}}},
        )
        == [{"type": "text_chunk", "content": "a"}] * 3
    )


@settings(deadline=None)
@given(EVENTS)
def test_todays_events_keep_their_text(event: SessionEvent) -> None:
    text = encode_event(event)
    translated = Level1Events().translate(text, "run-1", 0.0)
    if isinstance(event, RunStarted | Notify):
        assert translated is None
    elif isinstance(event, PROGRESS_TYPES):
        assert translated is not None
        assert (translated.type, translated.terminal) == (event.type, None)
        if event.type not in {"thinking", "file_created"} and "tool_call" not in event.type:
            assert translated.data == text
        assert decode_event(translated.data) == event


@pytest.mark.parametrize("tag", ["ping", "run_started", "notify", "nonsense", "cp_request"])
def test_what_readers_do_not_know_from_a_vm_is_dropped(tag: str) -> None:
    assert translate({"type": tag, "content": "a"}) == [None]


# --- the end of a run -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("saying", "expected"),
    [
        (
            {"type": "execution_complete", "final_response": "a"},
            ExecutionComplete(run_id="run-1", final_response="a"),
        ),
        (
            {"type": "execution_complete", "content": "a", "usage": {"tokens_in": 1}},
            ExecutionComplete(run_id="run-1", final_response="a", usage=Usage(tokens_in=1)),
        ),
        (
            {"type": "execution_complete", "final_response": None, "usage": "free"},
            ExecutionComplete(run_id="run-1", final_response=""),
        ),
        (
            {"type": "execution_complete", "content": 5, "run_id": "another"},
            ExecutionComplete(run_id="run-1", final_response=""),
        ),
        (
            {"type": "execution_complete", "cancelled": True},
            ExecutionComplete(run_id="run-1", cancelled=True),
        ),
        (
            {"type": "execution_complete", "cancelled": True, "final_response": "a"},
            ExecutionComplete(run_id="run-1", cancelled=True, partial_response="a"),
        ),
        (
            {
                "type": "execution_complete",
                "cancelled": True,
                "final_response": "a",
                "partial_response": "b",
            },
            ExecutionComplete(run_id="run-1", cancelled=True, partial_response="b"),
        ),
        (
            {"type": "execution_error", "code": "OPENCLAW_BRIDGE_EXITED", "error": "e"},
            ExecutionError(run_id="run-1", code="OPENCLAW_BRIDGE_EXITED", error="e"),
        ),
        (
            {"type": "execution_error", "code": "no code", "error": None},
            ExecutionError(run_id="run-1", code="ADAPTER_ERROR", error="the VM gave no reason"),
        ),
        (
            {"type": "execution_error", "code": "X", "error": "e" * 5000, "retryable": True},
            ExecutionError(run_id="run-1", code="X", error="e" * MAX_ERROR_LENGTH, retryable=True),
        ),
        (
            {"type": "execution_error", "error": ["e"]},
            ExecutionError(
                run_id="run-1",
                code="REMOTE_PROTOCOL",
                error="the VM ended the run with a malformed execution_error: "
                "expected a string @ $.error",
            ),
        ),
        (
            {"type": "execution_complete", "final_response": 5},
            ExecutionError(
                run_id="run-1",
                code="REMOTE_PROTOCOL",
                error="the VM ended the run with a malformed execution_complete: "
                "expected a string @ $.final_response",
            ),
        ),
    ],
    ids=lambda value: dump_json(value)[:70] if isinstance(value, dict) else "",
)
def test_a_terminal_event_is_made_whole(saying: JsonObject, expected: SessionEvent) -> None:
    event = Level1Events().translate(json.dumps(saying), "run-1", 0.0)
    assert event == TranslatedEvent(
        type=expected.type, data=encode_event(expected), terminal=expected
    )


def test_long_responses_are_cut() -> None:
    long = "日" * FINAL_RESPONSE_LIMIT
    complete, cancelled = translate(
        {"type": "execution_complete", "final_response": long},
        {"type": "execution_complete", "cancelled": True, "partial_response": long},
    )
    assert complete is not None
    assert cancelled is not None
    for event, field in ((complete, "final_response"), (cancelled, "partial_response")):
        assert event["truncated"] is True
        assert event[field] == "日" * (FINAL_RESPONSE_LIMIT // 3)


# --- recordings, and what is no event -------------------------------------------------


@pytest.mark.parametrize("name", ["graph-exchange", "host-exchange", "openclaw-exchange"])
def test_recorded_sessions_come_out_in_todays_words(name: str) -> None:
    lines = (RECORDINGS / f"{name}.jsonl").read_text("utf-8").splitlines()
    frames = [json.loads(line)["frame"] for line in lines]
    events = Level1Events()
    said = [frame["data"] for frame in frames if frame.get("type") == "sse_event"]
    assert said
    for number, data in enumerate(said):
        event = events.translate(data, "run-1", float(number))
        assert event is not None
        assert decode_event(event.data).type == event.type


NAMES: Final = (
    *("sse_event", "runtime_event", "text", "tool_call", "tool_result", "thinking"),
    *("file_created", "execution_complete", "execution_error"),
)
FIELDS: Final = (
    *("data", "event", "content", "call_id", "tool_name", "duration", "input", "run_id"),
    *("code", "error", "usage", "cancelled", "final_response"),
)
NEARLY_EVENTS: Final = st.fixed_dictionaries(
    {"type": st.sampled_from(NAMES)}, optional=dict.fromkeys(FIELDS, JSON_VALUES)
)


@settings(deadline=None)
@given(st.text(max_size=40) | NEARLY_EVENTS.map(dump_json))
def test_nothing_raises_anything_but_a_protocol_error(data: str) -> None:
    with contextlib.suppress(RemoteProtocolError):
        Level1Events().translate(data, "run-1", 1.0)


@settings(deadline=None)
@given(NEARLY_EVENTS)
def test_an_end_is_an_end_however_malformed(event: JsonObject) -> None:
    text = dump_json({**event, "type": "execution_error"})
    translated = Level1Events().translate(text, "run-1", 1.0)
    assert translated is not None
    assert translated.terminal == decode_event(translated.data)
    assert translated.terminal.run_id == "run-1"


@pytest.mark.parametrize(
    "data",
    [
        *("{", "[]", "{}", '{"type":5}', '{"type":"sse_event"}', '{"type":"sse_event","data":"["}'),
        '{"type":"runtime_event","event":{"event":"text"}}',
        " " * MAX_EVENT_BYTES + "{}",
    ],
    ids=lambda data: data[:40],
)
def test_what_is_no_event_is_refused(data: str) -> None:
    with pytest.raises(RemoteProtocolError):
        Level1Events().translate(data, "run-1", 0.0)
