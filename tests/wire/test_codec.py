from __future__ import annotations

import contextlib
import json
import math
import time
import types
import typing
from collections.abc import Sequence
from typing import Literal

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_strategies import JSON_VALUES, instances_of

from semibot.errors import LocalProtocolError, RemoteProtocolError
from semibot.wire.chat import Message, ToolCallRequest, ToolSpec
from semibot.wire.codec import (
    MAX_DEPTH,
    JsonObject,
    JsonValue,
    dump_json,
    load_json,
    structure,
    unstructure,
)
from semibot.wire.receipts import ActivityRecord, Receipt


@attrs.frozen(kw_only=True)
class Point:
    x: int
    name: str | None = None


@attrs.frozen(kw_only=True)
class Shape:
    points: tuple[Point, ...] = ()
    scale: float = 1.0
    kind: Literal["line", "area"] = "line"
    data: JsonValue = None
    options: JsonObject | None = None
    tags: Sequence[str] = attrs.field(factory=list)


# --- JSON text ------------------------------------------------------------------------


@settings(deadline=None)
@given(JSON_VALUES)
def test_json_says_again_what_it_said(value: JsonValue) -> None:
    text = dump_json(value)
    assert load_json(text) == value
    assert load_json(text.encode()) == value
    assert load_json(bytearray(text.encode())) == value
    assert "\n" not in text


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=100) | st.text(max_size=100))
def test_whatever_can_be_loaded_can_be_dumped(data: bytes | str) -> None:
    try:
        value = load_json(data)
    except RemoteProtocolError:
        return
    assert load_json(dump_json(value)) == value


def test_json_is_compact_and_unicode() -> None:
    assert (
        dump_json({"a": [1, 2.5, None, True], "ü": "日本"}) == '{"a":[1,2.5,null,true],"ü":"日本"}'
    )


def test_a_read_only_mapping_and_a_tuple_are_json_too() -> None:
    value = {"a": types.MappingProxyType({"b": (1, 2)})}
    assert dump_json(value) == '{"a":{"b":[1,2]}}'


def nested(depth: int) -> str:
    return "[" * depth + "0" + "]" * depth


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ('{"a":1,}', "not valid JSON"),
        ("{'a':1}", "not valid JSON"),
        ("1 2", "not valid JSON"),
        ("01", "not valid JSON"),
        ('"\n"', "not valid JSON"),
        ("9" * 5000, "not valid JSON"),
        ("\ufeff{}", "not valid JSON"),
        ("NaN", "NaN is not JSON"),
        ("[Infinity]", "Infinity is not JSON"),
        ('{"a":-Infinity}', "-Infinity is not JSON"),
        ("1e999", "a number is too large"),
        ("[-1e999]", "a number is too large"),
        ('{"a":1,"a":1}', "an object repeats a key"),
        ('[{"b":{"a":1,"a":2}}]', "an object repeats a key"),
        (b"\xff", "not valid Unicode"),
        (b'"\xed\xa0\x80"', "not valid Unicode"),
        ('"\ud800"', "not valid Unicode"),
        (r'"\ud800"', "not valid Unicode"),
        (r'"\udc00\ud800"', "not valid Unicode"),
        (r'{"\ud800":1}', "not valid Unicode"),
        (nested(MAX_DEPTH + 1), "nested too deeply"),
        (nested(100_000), "nested too deeply"),
        ('{"a":' * 65 + "0" + "}" * 65, "nested too deeply"),
    ],
)
def test_what_is_not_strict_json_is_refused(data: str | bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        load_json(data)
    assert str(caught.value) == f"{reason} @ $"


def test_an_escaped_surrogate_pair_is_a_character() -> None:
    assert load_json(r'"\ud83d\ude00"') == "😀"


def test_nesting_up_to_the_bound_is_accepted() -> None:
    assert dump_json(load_json(nested(MAX_DEPTH))) == nested(MAX_DEPTH)


def endless() -> list[object]:
    value: list[object] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, {"a": -math.inf}, b"bytes", {1, 2}, object(), "\ud800", endless()],
    ids=repr,
)
def test_what_json_cannot_say_is_refused(value: object) -> None:
    with pytest.raises(LocalProtocolError, match="cannot be sent as JSON"):
        dump_json(value)  # type: ignore[arg-type]


def deep(levels: int) -> JsonValue:
    value: JsonValue = 0
    for _ in range(levels):
        value = [value]
    return value


def test_data_that_is_nested_without_bound_is_refused_on_the_way_out() -> None:
    with pytest.raises(LocalProtocolError, match="RecursionError"):
        dump_json(deep(100_000))


@pytest.mark.parametrize(
    "data",
    [
        "[" * 2**20,
        '{"a":' * 2**18,
        "[" + "[]," * 2**18 + "[]]",
        "[" + "9" * 2**20,
        "[" + ("9" * 4000 + ",") * 250 + "0]",
        '"' + r"\ud800" * 2**17 + '"',
        '"' + r"\ud83d\ude00" * 2**16 + '"',
        "{" + ",".join(f'"{key}":0' for key in range(2**16)) + "}",
        '{"a":0' + ',"a":0' * 2**17 + "}",
        "[" + "1e308," * 2**17 + "0]",
        "\x00" * 2**20,
    ],
    ids=lambda data: f"{data[:12]}...",
)
def test_a_megabyte_made_to_hurt_takes_less_than_a_second(data: str) -> None:
    began = time.process_time()
    with contextlib.suppress(RemoteProtocolError):
        load_json(data)
    assert time.process_time() - began < 1


# --- typed values ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [Message, ToolCallRequest, ToolSpec, ActivityRecord, Receipt, Shape]
)
def test_typed_values_say_again_what_they_said(kind: type) -> None:
    @settings(deadline=None, max_examples=30)
    @given(instances_of(kind))
    def round_trip(value: object) -> None:
        assert structure(load_json(dump_json(unstructure(value))), kind) == value

    round_trip()


def test_fields_that_are_none_are_left_out() -> None:
    assert unstructure(Point(x=1)) == {"x": 1}
    assert unstructure(Shape(options={"a": None})) == {
        "points": [],
        "scale": 1.0,
        "kind": "line",
        "options": {"a": None},
        "tags": [],
    }


SAMPLES: typing.Final = {
    "null": None,
    "true": True,
    "zero": 0,
    "one": 1,
    "integer": 7,
    "float": 1.5,
    "whole": 1.0,
    "huge": 10**400,
    "nan": math.nan,
    "text": "abc",
    "digit": "1",
    "empty text": "",
    "array": [],
    "array of integers": [1],
    "array of text": ["a"],
    "object": {},
    "point": {"x": 1},
    "bytes": b"abc",
    "set": {1},
    "odd keys": {1: 2},
}

INTEGERS = {"zero", "one", "integer", "huge"}
TEXTS = {"text", "digit", "empty text"}
ARRAYS = {"array", "array of integers", "array of text"}
OBJECTS = {"object", "point"}
FLOATS = {"float", "whole"}


@pytest.mark.parametrize(
    ("kind", "accepted"),
    [
        (str, TEXTS),
        (int, INTEGERS),
        (bool, {"true"}),
        (float, (INTEGERS | FLOATS) - {"huge"}),
        (type(None), {"null"}),
        (int | None, INTEGERS | {"null"}),
        (tuple[int, ...], {"array", "array of integers"}),
        (list[int], {"array", "array of integers"}),
        (Sequence[str], {"array", "array of text"}),
        (Literal["abc", 1], {"text", "one"}),
        (Point, {"point"}),
        (Point | None, {"point", "null"}),
        (JsonObject, OBJECTS),
        (JsonValue, INTEGERS | FLOATS | TEXTS | ARRAYS | OBJECTS | {"null", "true"}),
    ],
    ids=str,
)
def test_nothing_is_coerced(kind: type[object], accepted: set[str]) -> None:
    for name, value in SAMPLES.items():
        if name in accepted:
            structure(value, kind)
        else:
            with pytest.raises(RemoteProtocolError):
                structure(value, kind)


def test_an_accepted_value_keeps_its_type() -> None:
    assert type(structure(1, float)) is float
    assert type(structure(1.0, JsonValue)) is float
    assert type(structure(True, JsonValue)) is bool
    assert structure([1, 2], tuple[int, ...]) == (1, 2)
    assert structure([1, 2], list[int]) == [1, 2]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"points": [{"x": 1}, {"x": "1"}]}, "expected an integer @ $.points[1].x"),
        ({"points": [{"x": 1}, {}]}, "required field 'x' is missing @ $.points[1].x"),
        ({"points": [None]}, "expected an object @ $.points[0]"),
        ({"scale": 10**400}, "expected a finite number @ $.scale"),
        ({"scale": True}, "expected a finite number @ $.scale"),
        ({"kind": "LINE"}, "expected one of line, area @ $.kind"),
        ({"data": {"a": [math.nan]}}, "expected JSON data @ $.data"),
        ({"data": {"a": {1: 2}}}, "object keys are strings @ $.data"),
        ({"options": [1]}, "expected an object @ $.options"),
        ({"tags": ["a", " @ ", 3]}, "expected a string @ $.tags[2]"),
        ([], "expected an object @ $"),
    ],
)
def test_an_error_names_the_first_problem_and_its_place(value: object, expected: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        structure(value, Shape)
    assert str(caught.value) == expected
    reason, _, path = expected.partition(" @ $")
    assert (caught.value.reason, caught.value.path) == (reason, f"${path}")


def test_an_error_from_a_validator_of_the_class_says_its_text() -> None:
    @attrs.frozen
    class Even:
        value: int = attrs.field()

        @value.validator
        def _check(self, _: object, value: int) -> None:
            if value % 2:
                raise ValueError("must be even" if value > 0 else "")
            if value > 100:
                raise OSError("a bug")

    assert structure({"value": 2}, Even) == Even(2)
    with pytest.raises(RemoteProtocolError, match=r"must be even @ \$"):
        structure({"value": 3}, Even)
    with pytest.raises(RemoteProtocolError, match=r"invalid value @ \$"):
        structure({"value": -3}, Even)
    with pytest.raises(RemoteProtocolError, match=r"expected another type @ \$"):
        structure({"value": 102}, Even)


def test_decoded_values_do_not_share_the_data_they_came_from() -> None:
    data = json.loads('{"points":[{"x":1}]}')
    shape = structure(data, Shape)
    data["points"][0]["x"] = 2
    assert shape.points == (Point(x=1),)


@pytest.mark.parametrize("text", ["[" + "[]," * 300_000 + "1]", "[" + "1," * 600_000 + "1]"])
def test_a_flood_of_values_is_refused_before_they_are_made(text):
    with pytest.raises(RemoteProtocolError, match="too many values"):
        load_json(text)


@pytest.mark.parametrize(
    "text", ["[{," * 300_000, '\\"[{,' * 200_000, '"' * 600_000 + "[" * 600_000]
)
def test_what_stands_in_strings_is_no_value(text):
    assert load_json(json.dumps([text])) == [text]


def test_an_open_string_costs_no_more_than_its_length():
    text = "[" * 600_000 + '"' + '\\"' * 1_000_000
    with pytest.raises(RemoteProtocolError):
        load_json(text)
