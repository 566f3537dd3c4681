from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Literal, NewType, Optional

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typing_extensions import TypeAliasType

from semibot.errors import RemoteProtocolError, UsageError
from semibot.tools.schema import MAX_ARGUMENTS, describe_parameters, parse_arguments, shape_of
from semibot.wire.codec import JsonObject, JsonValue

UserId = NewType("UserId", str)
Sizes = TypeAliasType("Sizes", list[int])


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.Enum):
    LOW = 1


@attrs.frozen
class Point:
    x: int
    y: int = 0
    _label: str | None = None
    seen: bool = attrs.field(default=False, init=False)


@attrs.frozen
class Line:
    points: list[Point]


@attrs.frozen
class Tree:
    child: Tree | None = None


@attrs.frozen
class Even:
    number: int = attrs.field()

    @number.validator
    def _check(self, _, value):
        if value % 2:
            raise ValueError("odd")


@attrs.frozen
class Silent:
    number: int = attrs.field()

    @number.validator
    def _check(self, _, value):
        raise ValueError


@attrs.frozen
class Dangling:
    thing: Nowhere  # noqa: F821 - that is the point


class Context:
    pass


SHAPES = [
    (str, {"type": "string"}, "a", "a"),
    (int, {"type": "integer"}, 3, 3),
    (float, {"type": "number"}, 3, 3.0),
    (bool, {"type": "boolean"}, True, True),
    (type(None), {"type": "null"}, None, None),
    (UserId, {"type": "string"}, "u", "u"),
    (Sizes, {"type": "array", "items": {"type": "integer"}}, [1], [1]),
    (list[int], {"type": "array", "items": {"type": "integer"}}, [1, 2], [1, 2]),
    (Sequence[str], {"type": "array", "items": {"type": "string"}}, ["a"], ["a"]),
    (tuple[str, ...], {"type": "array", "items": {"type": "string"}}, ["a"], ("a",)),
    (
        dict[str, float],
        {"type": "object", "additionalProperties": {"type": "number"}},
        {"a": 1},
        {"a": 1.0},
    ),
    (Mapping[str, bool], {"type": "object", "additionalProperties": {"type": "boolean"}}, {}, {}),
    (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}, "b", "b"),
    (Literal[1, "x"], {"enum": [1, "x"]}, 1, 1),
    (Colour, {"type": "string", "enum": ["red", "blue"]}, "blue", Colour.BLUE),
    (int | None, {"anyOf": [{"type": "integer"}, {"type": "null"}]}, None, None),
    (Optional[str], {"anyOf": [{"type": "string"}, {"type": "null"}]}, "a", "a"),  # noqa: UP045
    (JsonValue, {}, [{"a": [1]}], [{"a": [1]}]),
    (JsonObject, {"type": "object"}, {"a": 1}, {"a": 1}),
    (
        Point,
        {
            "type": "object",
            "properties": {
                "x": {"type": "integer"},
                "y": {"type": "integer"},
                "label": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            },
            "required": ["x"],
            "additionalProperties": False,
        },
        {"x": 1, "label": "here"},
        Point(1, 0, "here"),
    ),
]


@pytest.mark.parametrize(("annotation", "schema", "value", "converted"), SHAPES)
def test_annotations_have_a_schema_and_a_conversion(annotation, schema, value, converted):
    shape = shape_of(annotation, "parameter 'p'")
    assert shape.schema == schema
    result = shape.convert(value, "$")
    assert result == converted
    assert type(result) is type(converted)


@pytest.mark.parametrize(
    ("annotation", "value", "message"),
    [
        (str, 5, "expected a string @ $"),
        (int, True, "expected an integer @ $"),
        (int, 3.0, "expected an integer @ $"),
        (int, "3", "expected an integer @ $"),
        (float, "3", "expected a finite number @ $"),
        (bool, 1, "expected true or false @ $"),
        (type(None), 0, "expected null @ $"),
        (list[int], "12", "expected an array @ $"),
        (list[int], [1, "2"], "expected an integer @ $[1]"),
        (list[list[int]], [[1], [None]], "expected an integer @ $[1][0]"),
        (dict[str, int], [], "expected an object @ $"),
        (dict[str, int], {"a": "b"}, "expected an integer @ $.a"),
        (Literal["a", "b"], "c", "expected one of a, b @ $"),
        (Literal[1], True, "expected one of 1 @ $"),
        (Colour, "green", "expected one of red, blue @ $"),
        (Colour, [], "expected one of red, blue @ $"),
        (int | None, "x", "expected an integer or null @ $"),
        (Point | None, {"x": "1"}, "expected an integer @ $.x"),
        (JsonObject, [], "expected an object @ $"),
        (Point, 5, "expected an object @ $"),
        (Point, {}, "required field 'x' is missing @ $"),
        (Point, {"x": 1, "z": 2}, "unknown field 'z'; known: x, y, label @ $"),
        (Line, {"points": [{"x": 1}, {"x": None}]}, "expected an integer @ $.points[1].x"),
        (Even, {"number": 3}, "odd @ $"),
        (Silent, {"number": 3}, "invalid value @ $"),
    ],
)
def test_nothing_is_coerced_and_the_error_names_the_place(annotation, value, message):
    shape = shape_of(annotation, "parameter 'p'")
    with pytest.raises(RemoteProtocolError) as caught:
        shape.convert(value, "$")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "annotation",
    [
        object,
        list,
        dict,
        set[int],
        dict[int, str],
        tuple[int, str],
        bytes,
        Level,
        Tree,
        Dangling,
        Context,
        list[bytes],
        "text",
    ],
)
def test_annotations_without_a_shape_are_refused_by_name(annotation):
    with pytest.raises(UsageError, match="parameter 'p'"):
        shape_of(annotation, "parameter 'p'")


# --- parameters -----------------------------------------------------------------------


def paint(
    context: Context,
    what: str,
    colour: Colour = Colour.RED,
    sizes: Sequence[int] = (1, 2),
    where: Point | None = None,
    start: Point = Point(1),
    bad: int = None,  # type: ignore[assignment]  # noqa: RUF013 - that is the point
) -> str:
    """Paint something.

    Args:
        context: The call.
        what: The thing.
        colour: Its new colour.
    """
    return what


def test_a_signature_becomes_an_object_schema_without_the_context():
    parameters = describe_parameters(paint, Context)
    assert parameters.context_name == "context"
    assert parameters.names == ("what", "colour", "sizes", "where", "start", "bad")
    schema = parameters.schema
    assert schema["required"] == ["what"]
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert properties["what"] == {"type": "string", "description": "The thing."}
    assert properties["colour"]["default"] == "red"
    assert properties["colour"]["description"] == "Its new colour."
    assert properties["sizes"]["default"] == [1, 2]
    assert properties["where"]["default"] is None
    assert "default" not in properties["start"]  # JSON cannot say it
    assert "default" not in properties["bad"]  # it does not fit its own annotation


def test_defaults_are_filled_in_before_anything_is_decided():
    bound = describe_parameters(paint, Context).bind({"what": "door"})
    assert bound.decided == {"what": "door", "colour": "red", "sizes": [1, 2], "where": None}
    assert bound.values == {
        "what": "door",
        "colour": Colour.RED,
        "sizes": [1, 2],
        "where": None,
    }


def keep(tags: list[str] = [], data: JsonValue = None, extra: JsonObject = {}) -> None:  # noqa: B006
    """Keep what is given."""


def test_what_the_function_gets_shares_nothing_with_what_was_decided():
    parameters = describe_parameters(keep, Context)
    bound = parameters.bind({"data": {"list": [1, {"a": 2}]}, "extra": {"k": [1]}})
    bound.values["tags"].append("changed")
    bound.values["data"]["list"][1]["a"] = "changed"
    bound.values["extra"]["k"].append("changed")
    assert bound.decided == {
        "tags": [],
        "data": {"list": [1, {"a": 2}]},
        "extra": {"k": [1]},
    }
    assert parameters.bind({}).values["tags"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "required argument 'what' is missing"),
        ({"what": "a", "colr": "red"}, "unknown argument 'colr'; known: what, colour"),
        ({"what": 5}, r"expected a string @ \$\.what"),
        ({"what": "a", "sizes": [1, "x"]}, r"expected an integer @ \$\.sizes\[1\]"),
        ({"what": "a", "context": {}}, "unknown argument 'context'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(RemoteProtocolError, match=message):
        describe_parameters(paint, Context).bind(arguments)


def test_a_function_without_parameters_says_so():
    def nothing() -> None:
        pass

    with pytest.raises(RemoteProtocolError, match="known: none"):
        describe_parameters(nothing, Context).bind({"a": 1})


def untyped(a) -> None:
    pass


def starred(*a: int) -> None:
    pass


def keywords(**a: int) -> None:
    pass


def positional(a: int, /) -> None:
    pass


def dangling(a: Nowhere) -> None:  # noqa: F821 - that is the point
    pass


def twice(a: Context, b: Context) -> None:
    pass


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (untyped, "'a': needs an annotation"),
        (starred, "'a': a model can only pass arguments by name"),
        (keywords, "'a': a model can only pass arguments by name"),
        (positional, "'a': a model can only pass arguments by name"),
        (dangling, "tool dangling: the annotations cannot be read"),
        (twice, "'b': one context is enough"),
    ],
)
def test_functions_that_cannot_be_described_are_refused(function, message):
    with pytest.raises(UsageError, match=message):
        describe_parameters(function, Context)


# --- text -----------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "  ", "{}", "\n{}\n"])
def test_no_text_means_no_arguments(text):
    assert parse_arguments(text) == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected one JSON object"),
        ("'a'", "not valid JSON"),
        ('{"a": NaN}', "NaN is not JSON"),
        ('{"a": 1, "a": 2}', "repeats a key"),
        ('{"a": "\\ud800"}', "not valid Unicode"),
        (" " * MAX_ARGUMENTS + "{}", "longer than"),
    ],
)
def test_text_that_is_no_object_is_refused(text, message):
    with pytest.raises(RemoteProtocolError, match=message):
        parse_arguments(text)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["what", "colour", "sizes", "where", "start"]), JSON))
def test_any_object_either_fits_or_is_refused_with_a_path(arguments):
    path = "$"
    try:
        bound = describe_parameters(paint, Context).bind(arguments)
    except RemoteProtocolError as exc:
        path = exc.path
    else:
        assert {key: bound.decided[key] for key in arguments} == arguments
    assert path.startswith("$")
