from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semibot.errors import ModelError
from semibot.models import ReasoningDelta, TextDelta
from semibot.models.chat_chunks import (
    MAX_ARGUMENTS,
    MAX_REPLY_ARGUMENTS,
    MAX_REPLY_CHARS,
    MAX_TOKENS,
    MAX_TOOL_CALLS,
    ReplyBuilder,
    error_words,
    reported_error,
)
from semibot.wire.codec import JsonValue
from semibot.wire.events import Usage


def builder() -> ReplyBuilder:
    return ReplyBuilder(lambda: "fresh")


def delta(**fields: JsonValue) -> JsonValue:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def piece(**fields: JsonValue) -> JsonValue:
    return delta(tool_calls=[fields])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)


def maybe(**fields: st.SearchStrategy[object]) -> st.SearchStrategy[dict[str, object]]:
    return st.fixed_dictionaries({}, optional={name: s | json_values for name, s in fields.items()})


function = maybe(name=st.text(max_size=4), arguments=st.text(max_size=4))
call = maybe(index=st.integers(0, 3), id=st.text(max_size=3), function=function)
deltas = maybe(content=st.text(), reasoning=st.text(), tool_calls=st.lists(call, max_size=3))
choice = maybe(delta=deltas, finish_reason=st.sampled_from(["stop", "length", ""]))
usage = maybe(prompt_tokens=st.integers(), completion_tokens=st.integers())
chunk = maybe(choices=st.lists(choice, max_size=2), usage=usage, error=json_values)


@given(st.lists(chunk | json_values, max_size=6))
def test_no_chunk_raises_anything_but_a_model_error(chunks: list[JsonValue]) -> None:
    reply = builder()
    with contextlib.suppress(ModelError):
        for item in chunks:
            reply.feed(item)
        built = reply.build()
        assert built.message.role == "assistant"
        assert built.usage.tokens_in >= 0


@given(st.lists(st.text(min_size=1), max_size=8))
def test_text_comes_out_as_it_went_in(texts: list[str]) -> None:
    reply = builder()
    passed_on = [item for text in texts for item in reply.feed(delta(content=text))[1]]
    assert passed_on == [TextDelta(text=text) for text in texts]
    assert reply.build().message.content == "".join(texts)


def test_calls_are_put_together_by_their_index() -> None:
    reply = builder()
    for item in (
        piece(index=0, id="a", type="function", function={"name": "one", "arguments": ""}),
        piece(index=1, id="b", function={"name": "two", "arguments": '{"y"'}),
        piece(index=0, function={"arguments": '{"x":1}'}),
        piece(index=1, function={"arguments": ":2}"}),
    ):
        has_progress, items = reply.feed(item)
        assert has_progress
        assert items == []
    calls = reply.build().message.tool_calls
    assert [(c.id, c.name, c.arguments) for c in calls] == [
        ("a", "one", '{"x":1}'),
        ("b", "two", '{"y":2}'),
    ]


def test_a_call_without_an_id_gets_one() -> None:
    reply = builder()
    reply.feed(piece(index=0, function={"name": "one", "arguments": "{}"}))
    assert reply.build().message.tool_calls[0].id == "fresh"


def test_calls_without_an_index_begin_with_their_name() -> None:
    reply = builder()
    reply.feed(piece(function={"name": "one", "arguments": "{"}))
    reply.feed(piece(function={"arguments": "}"}))
    reply.feed(piece(function={"name": "two"}))
    calls = reply.build().message.tool_calls
    assert [(c.name, c.arguments) for c in calls] == [("one", "{}"), ("two", "{}")]


def test_another_id_at_the_same_index_begins_another_call() -> None:
    reply = builder()
    reply.feed(piece(index=0, id="a", function={"name": "one", "arguments": "{}"}))
    reply.feed(piece(index=0, id="b", function={"name": "two", "arguments": "{}"}))
    reply.feed(piece(index=0, id="b", function={"arguments": ""}))
    assert [call.id for call in reply.build().message.tool_calls] == ["a", "b"]


def test_arguments_that_come_as_an_object_become_text() -> None:
    reply = builder()
    reply.feed(piece(index=0, id="a", function={"name": "one", "arguments": {"x": [1]}}))
    assert json.loads(reply.build().message.tool_calls[0].arguments) == {"x": [1]}


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_reasoning_is_passed_on_and_is_no_part_of_the_answer(field: str) -> None:
    reply = builder()
    assert reply.feed(delta(**{field: "hm"}))[1] == [ReasoningDelta(text="hm")]
    assert reply.build().message.content == ""


def test_reasoning_under_both_names_is_passed_on_once() -> None:
    assert len(builder().feed(delta(reasoning="hm", reasoning_content="hm"))[1]) == 1


def test_a_refusal_is_an_answer() -> None:
    reply = builder()
    reply.feed(delta(content=None, refusal="No."))
    assert reply.build().message.content == "No."


def test_usage_counts_in_a_chunk_of_its_own_and_beside_others() -> None:
    reply = builder()
    assert reply.feed({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": -1}})[0]
    assert reply.usage == Usage(tokens_in=3, tokens_out=0)
    assert reply.feed({"usage": {"prompt_tokens": "many", "completion_tokens": 2}})[0]
    assert reply.build().usage == Usage(tokens_in=0, tokens_out=2)


@pytest.mark.parametrize(
    ("said", "believed"),
    [(10**4299, MAX_TOKENS), (2**53, 2**53), (-(10**4299), 0), (True, 0), (1.5, 0), ("7", 0)],
    ids=["endless", "most", "negative", "boolean", "fraction", "text"],
)
def test_only_a_whole_number_of_tokens_is_believed(said: JsonValue, believed: int) -> None:
    reply = builder()
    reply.feed({"usage": {"prompt_tokens": said, "completion_tokens": said}})
    assert reply.usage == Usage(tokens_in=believed, tokens_out=believed)


def test_the_finish_reason_is_kept_if_it_is_a_word() -> None:
    for reason, kept in [("length", "length"), ("so much\ntext", "other")]:
        reply = builder()
        assert reply.feed({"choices": [{"finish_reason": reason}]}) == (True, [])
        assert reply.build().finish_reason == kept


@pytest.mark.parametrize(
    "item",
    [
        {"choices": []},
        {"choices": [], "usage": None, "prompt_filter_results": []},
        {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"index": 0, "delta": None, "finish_reason": ""}]},
        {"choices": [{"delta": {"tool_calls": []}}]},
        {"choices": [{"delta": {"tool_calls": None}}]},
    ],
)
def test_chunks_that_say_nothing_are_no_progress(item: JsonValue) -> None:
    assert builder().feed(item) == (False, [])


@pytest.mark.parametrize(
    "item",
    [
        5,
        None,
        [],
        {},
        {"choices": "x"},
        {"choices": [5]},
        {"choices": [{"delta": 5}]},
        {"choices": [{"delta": {"content": ["x"]}}]},
        {"choices": [{"delta": {"reasoning": 5}}]},
        {"choices": [{"delta": {"tool_calls": {}}}]},
        {"choices": [{"delta": {"tool_calls": [5]}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": "0"}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": 5}]}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": 5}}]}}]},
        {"choices": [{"delta": {}, "finish_reason": 5}]},
        {"choices": [], "usage": 5},
    ],
)
def test_another_shape_is_a_protocol_error(item: JsonValue) -> None:
    with pytest.raises(ModelError) as caught:
        builder().feed(item)
    assert caught.value.code == "MODEL_PROTOCOL"
    assert not caught.value.is_retryable


def test_a_call_without_a_name_is_a_protocol_error() -> None:
    reply = builder()
    reply.feed(piece(index=0, id="a", function={"arguments": "{}"}))
    with pytest.raises(ModelError, match="no name"):
        reply.build()


def test_an_endless_reply_is_cut_off() -> None:
    reply = builder()
    text = "x" * (MAX_REPLY_CHARS // 4)
    with pytest.raises(ModelError, match="longer than"):
        for _ in range(5):
            reply.feed(delta(content=text))


@pytest.mark.parametrize("as_object", [False, True])
def test_a_call_with_endless_arguments_is_cut_off(as_object: bool) -> None:
    reply = builder()
    half: JsonValue = "x" * (MAX_ARGUMENTS // 2)
    arguments = {"a": half} if as_object else half
    reply.feed(piece(index=0, id="a", function={"name": "t", "arguments": half}))
    with pytest.raises(ModelError, match=f"longer than {MAX_ARGUMENTS} ") as caught:
        for _ in range(2):
            reply.feed(piece(index=0, function={"arguments": arguments}))
    assert caught.value.code == "MODEL_PROTOCOL"


def test_many_calls_with_long_arguments_are_cut_off() -> None:
    reply = builder()
    most = MAX_REPLY_ARGUMENTS // MAX_ARGUMENTS
    for index in range(most):
        function = {"name": "t", "arguments": "x" * MAX_ARGUMENTS}
        reply.feed(piece(index=index, id=f"c{index}", function=function))
    with pytest.raises(ModelError, match=f"longer than {MAX_REPLY_ARGUMENTS} ") as caught:
        reply.feed(piece(index=most, id="last", function={"name": "t", "arguments": "x"}))
    assert caught.value.code == "MODEL_PROTOCOL"


def test_too_many_calls_are_cut_off() -> None:
    reply = builder()
    with pytest.raises(ModelError, match="more than"):
        for index in range(MAX_TOOL_CALLS + 1):
            reply.feed(piece(index=index, id=f"c{index}", function={"name": "t"}))


@pytest.mark.parametrize(
    ("error", "code", "is_retryable"),
    [
        ({"code": "rate_limit_exceeded"}, "MODEL_RATE_LIMITED", True),
        ({"type": "invalid_request_error"}, "MODEL_REFUSED", False),
        ({"code": 502, "message": "secret prompt"}, "MODEL_SERVER_ERROR", True),
        ("secret prompt", "MODEL_SERVER_ERROR", True),
    ],
)
def test_an_error_in_the_stream_is_told_by_its_code(
    error: JsonValue, code: str, is_retryable: bool
) -> None:
    with pytest.raises(ModelError) as caught:
        builder().feed({"error": error})
    assert (caught.value.code, caught.value.is_retryable) == (code, is_retryable)
    assert "secret" not in str(caught.value)


def test_only_short_codes_of_a_server_are_repeated() -> None:
    assert error_words({"type": "a_b", "code": "c.d"}) == " (a_b, c.d)"
    assert error_words({"type": "same", "code": "same"}) == " (same)"
    assert error_words({"type": "my key is sk-1", "code": None}) == ""
    assert error_words({"type": "x" * 65, "code": {"a": 1}}) == ""
    assert str(reported_error({"code": 429})).endswith("(429)")
