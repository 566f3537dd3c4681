from __future__ import annotations

import json
import typing

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_strategies import EVENT_CLASSES, EVENTS, JSON_VALUES, instances_of

from semibot.errors import LocalProtocolError, RemoteProtocolError
from semibot.wire.events import (
    PROGRESS_TYPES,
    ExecutionComplete,
    ExecutionError,
    PlanCreated,
    PlanStep,
    PlanStepStart,
    ProgressEvent,
    SessionEvent,
    TerminalEvent,
    TextChunk,
    Thinking,
    ToolCallComplete,
    ToolCallStart,
    Usage,
    decode_event,
    encode_event,
)


@pytest.mark.parametrize("kind", EVENT_CLASSES)
def test_every_event_says_again_what_it_said(kind: type[SessionEvent]) -> None:
    @settings(deadline=None, max_examples=40)
    @given(instances_of(kind))
    def round_trip(event: SessionEvent) -> None:
        text = encode_event(event)
        assert decode_event(text) == event
        assert decode_event(text.encode()) == event
        assert decode_event(json.loads(text)) == event

    round_trip()


@settings(deadline=None)
@given(EVENTS)
def test_an_event_is_one_line_with_its_type_first(event: SessionEvent) -> None:
    text = encode_event(event)
    assert text.startswith(f'{{"type":"{event.type}"')
    assert "\n" not in text
    assert "\r" not in text
    assert None not in json.loads(text).values()


def test_every_event_has_a_type_of_its_own() -> None:
    types = [kind.type for kind in EVENT_CLASSES]
    assert len(set(types)) == len(types)
    assert all(name == name.lower() for name in types)


def test_terminal_events_are_not_progress() -> None:
    assert set(PROGRESS_TYPES) == set(typing.get_args(ProgressEvent))
    assert set(typing.get_args(TerminalEvent)) == {ExecutionComplete, ExecutionError}
    assert not set(PROGRESS_TYPES) & set(typing.get_args(TerminalEvent))


def test_events_cannot_be_changed() -> None:
    event = TextChunk(content="a")
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event.content = "b"  # type: ignore[misc]


def test_absent_fields_are_left_out() -> None:
    event = ExecutionComplete(run_id="r1", final_response="done")
    expected = '{"type":"execution_complete","run_id":"r1","final_response":"done"}'
    assert encode_event(event) == expected


def test_nested_values_are_said_with_all_their_fields() -> None:
    event = ExecutionComplete(run_id="r1", usage=Usage(tokens_in=3))
    assert json.loads(encode_event(event))["usage"] == {"tokens_in": 3, "tokens_out": 0}


def test_usage_adds_up() -> None:
    total = Usage(tokens_in=1, tokens_out=2) + Usage(tokens_in=10, tokens_out=20)
    assert total == Usage(tokens_in=11, tokens_out=22)


def test_unknown_fields_are_ignored() -> None:
    event = decode_event({"type": "text_chunk", "content": "a", "colour": {"x": [1]}})
    assert event == TextChunk(content="a")


@pytest.mark.parametrize("tag", ["nonsense", "", "TEXT_CHUNK", None, 1, [], {}, True])
def test_unknown_types_are_refused(tag: object) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_event(json.dumps({"type": tag, "content": "a"}))
    assert str(caught.value) == "unknown event type @ $.type"


def test_a_missing_type_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="unknown event type"):
        decode_event({"content": "a"})


@pytest.mark.parametrize("text", ["null", "1", '"text_chunk"', "[]", "[{}]", "true"])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError, match="expected an object"):
        decode_event(text)


STEP = {"id": "1", "title": "look"}
TOOL_CALL = {"type": "tool_call_start", "call_id": "c", "tool_name": "t"}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"type": "text_chunk"}, "required field 'content' is missing @ $.content"),
        ({"type": "text_chunk", "content": 5}, "expected a string @ $.content"),
        ({"type": "text_chunk", "content": None}, "expected a string @ $.content"),
        (
            {"type": "plan_created", "steps": [STEP, {"id": "2", "title": 7}]},
            "expected a string @ $.steps[1].title",
        ),
        (
            {"type": "plan_created", "steps": [STEP, {"id": "2"}]},
            "required field 'title' is missing @ $.steps[1].title",
        ),
        ({"type": "plan_created", "steps": [STEP, 3]}, "expected an object @ $.steps[1]"),
        ({"type": "plan_created", "steps": "ab"}, "expected an array @ $.steps"),
        ({"type": "plan_created", "steps": {"0": STEP}}, "expected an array @ $.steps"),
        (
            {"type": "thinking", "content": "a", "stage": "dreaming"},
            "expected one of analyzing, planning, reasoning, concluding @ $.stage",
        ),
        (
            {"type": "execution_complete", "run_id": "r", "usage": {"tokens_in": "3"}},
            "expected an integer @ $.usage.tokens_in",
        ),
        (
            {"type": "execution_complete", "run_id": "r", "cancelled": 1},
            "expected true or false @ $.cancelled",
        ),
        ({**TOOL_CALL, "arguments": []}, "expected an object @ $.arguments"),
        ({**TOOL_CALL, "arguments": "{}"}, "expected an object @ $.arguments"),
    ],
)
def test_an_error_says_what_is_wrong_and_where(fields: dict[str, object], expected: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_event(json.dumps(fields))
    assert str(caught.value) == expected


def test_an_error_does_not_quote_the_data() -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        decode_event({"type": "thinking", "content": "sk-secret", "stage": "sk-secret"})
    assert "sk-secret" not in str(caught.value)


def test_what_json_cannot_say_is_refused_on_the_way_out() -> None:
    event = ToolCallStart(call_id="c", tool_name="t", arguments={"x": float("nan")})
    with pytest.raises(LocalProtocolError, match="cannot be sent as JSON"):
        encode_event(event)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_raise_nothing_but_the_one_error(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        decode_event(data)


def mutated(text: str) -> st.SearchStrategy[bytes]:
    """Return a strategy for *text* with one piece of it cut out or replaced."""
    data = text.encode()
    positions = st.integers(min_value=0, max_value=len(data))
    return st.builds(
        lambda start, length, piece: data[:start] + piece + data[start + length :],
        positions,
        st.integers(min_value=0, max_value=8),
        st.binary(max_size=8) | st.sampled_from([b'"', b"{", b"]", b"\\ud800", b"NaN", b"1e999"]),
    )


@settings(deadline=None, max_examples=300)
@given(EVENTS.map(encode_event).flatmap(mutated))
def test_a_damaged_event_is_an_event_or_the_one_error(data: bytes) -> None:
    try:
        event = decode_event(data)
    except RemoteProtocolError:
        return
    assert decode_event(encode_event(event)) == event


@settings(deadline=None, max_examples=300)
@given(EVENTS, st.data())
def test_an_event_with_one_field_of_another_kind_is_an_event_or_the_one_error(
    event: SessionEvent, data: st.DataObject
) -> None:
    fields = json.loads(encode_event(event))
    name = data.draw(st.sampled_from(sorted(fields)))
    fields[name] = data.draw(JSON_VALUES)
    wrong: str | None = None
    try:
        assert decode_event(fields).type == fields["type"]
    except RemoteProtocolError as exc:
        wrong = exc.path
    assert wrong is None or wrong.startswith(f"$.{name}")


def test_examples_of_the_protocol_are_understood() -> None:
    assert decode_event(b'{"type":"thinking","content":"hm","stage":"planning"}') == Thinking(
        content="hm", stage="planning"
    )
    assert decode_event(
        '{"type":"plan_created","steps":[{"id":"1","title":"read"}]}'
    ) == PlanCreated(steps=(PlanStep(id="1", title="read"),))
    assert decode_event(
        '{"type":"plan_step_start","step_id":"1","title":"read","tool":"read_file",'
        '"params":{"path":"a.txt"}}'
    ) == PlanStepStart(step_id="1", title="read", tool="read_file", params={"path": "a.txt"})
    assert decode_event(
        '{"type":"tool_call_complete","call_id":"c","tool_name":"t","success":false,'
        '"error":"timeout","duration":5}'
    ) == ToolCallComplete(call_id="c", tool_name="t", success=False, error="timeout", duration=5)
