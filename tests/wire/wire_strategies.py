"""What Hypothesis draws the values of the wire from."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Final

import attrs
from hypothesis import strategies as st

from semibot.wire.codec import JsonObject, JsonValue
from semibot.wire.events import SessionEvent

EVENT_CLASSES: Final = typing.get_args(SessionEvent)

SCALARS: Final = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)

JSON_VALUES: Final = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)

JSON_OBJECTS: Final = st.dictionaries(st.text(), JSON_VALUES, max_size=4)


def values_of(annotation: object) -> st.SearchStrategy[object]:
    """Return a strategy for values of what a field of the wire may be annotated with."""
    if annotation is JsonValue:
        return JSON_VALUES
    if annotation is JsonObject:
        return JSON_OBJECTS
    if annotation is type(None):
        return st.none()
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin in {typing.Union, types.UnionType}:
        return st.one_of(*(values_of(argument) for argument in arguments))
    if origin in {tuple, Sequence}:
        items = st.lists(values_of(arguments[0]), max_size=3)
        return items.map(tuple) if origin is tuple else items
    if annotation is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    if isinstance(annotation, type) and attrs.has(annotation):
        return instances_of(annotation)
    scalars = {str: st.text(), int: st.integers(), bool: st.booleans()}
    return typing.cast("st.SearchStrategy[object]", scalars[annotation])


def instances_of(kind: type) -> st.SearchStrategy[object]:
    """Return a strategy for instances of an attrs class, optional fields absent or not."""
    hints = typing.get_type_hints(kind)
    required: dict[str, st.SearchStrategy[object]] = {}
    optional: dict[str, st.SearchStrategy[object]] = {}
    for field in attrs.fields(kind):
        where = required if field.default is attrs.NOTHING else optional
        where[field.name] = values_of(hints[field.name])
    return st.fixed_dictionaries(required, optional=optional).map(lambda fields: kind(**fields))


EVENTS: Final = st.one_of(*(instances_of(kind) for kind in EVENT_CLASSES))
