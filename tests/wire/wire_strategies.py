"""What Hypothesis draws the values of the wire from."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from typing import Final

import attrs
from hypothesis import strategies as st

from semibot.wire.codec import JsonObject, JsonValue
from semibot.wire.events import SessionEvent
from semibot.wire.frames import HeldSession, ProtocolRange, SseEvent
from semibot.wire.frames.limits import MAX_SEQ, MAX_TERM, Between, check_id

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
    if origin is Mapping:
        return st.dictionaries(st.text(), values_of(arguments[1]), max_size=3)
    if annotation is float:
        return st.floats(allow_nan=False, allow_infinity=False)
    if isinstance(annotation, type) and attrs.has(annotation):
        return instances_of(annotation)
    scalars = {str: st.text(), int: st.integers(), bool: st.booleans()}
    return typing.cast("st.SearchStrategy[object]", scalars[annotation])


IDS: Final = st.text(min_size=1, max_size=40)

# Classes whose fields depend on each other.
SPECIAL: Final[dict[type, st.SearchStrategy[object]]] = {
    ProtocolRange: st.lists(st.integers(1, 999), min_size=2, max_size=2).map(
        lambda ends: ProtocolRange(min=min(ends), max=max(ends))
    ),
    HeldSession: st.builds(
        lambda term, last, count: HeldSession(
            term=term, first_seq=max(1, last + 1 - count), last_seq=last
        ),
        st.integers(1, MAX_TERM),
        st.integers(0, MAX_SEQ - 1),
        st.integers(0, 1000),
    ),
    SseEvent: st.builds(
        lambda fields, numbers: SseEvent(**fields, **numbers),
        st.fixed_dictionaries({"session_id": IDS, "data": st.text()}, optional={"run_id": IDS}),
        st.just({})
        | st.fixed_dictionaries({"term": st.integers(1, MAX_TERM), "seq": st.integers(1, MAX_SEQ)}),
    ),
}


def valid_values(validator: object) -> st.SearchStrategy[object] | None:
    """Return a strategy for what a field's validator lets pass, if it is one of the wire's."""
    inner = getattr(validator, "validator", None)  # of attrs.validators.optional
    if inner is not None:
        values = valid_values(inner)
        return None if values is None else st.none() | values
    if isinstance(validator, Between):
        return st.integers(validator.low, validator.high)
    return IDS if validator is check_id else None


def instances_of(kind: type) -> st.SearchStrategy[object]:
    """Return a strategy for instances of an attrs class, optional fields absent or not."""
    if kind in SPECIAL:
        return SPECIAL[kind]
    hints = typing.get_type_hints(kind)
    required: dict[str, st.SearchStrategy[object]] = {}
    optional: dict[str, st.SearchStrategy[object]] = {}
    for field in attrs.fields(kind):
        where = required if field.default is attrs.NOTHING else optional
        values = valid_values(field.validator)
        where[field.name] = values_of(hints[field.name]) if values is None else values
    return st.fixed_dictionaries(required, optional=optional).map(lambda fields: kind(**fields))


EVENTS: Final = st.one_of(*(instances_of(kind) for kind in EVENT_CLASSES))
