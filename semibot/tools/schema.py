"""Describe a function's parameters as a JSON schema, and fit a model's arguments to them.

Each annotation is compiled once, at decoration, into a :class:`Shape`: what the model is
told, and a strict conversion. Nothing is coerced: what a model sends either is what the
schema says, or comes back to it as an error that names the place.
"""

from __future__ import annotations

import enum
import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Final, ParamSpec, TypeAlias

import attrs
from typing_extensions import TypeAliasType

from semibot.errors import LocalProtocolError, RemoteProtocolError, UsageError
from semibot.wire.codec import (
    JsonObject,
    JsonValue,
    dump_json,
    load_json,
    structure,
)

from .docstrings import read_docstring

MAX_ARGUMENTS: Final = 256 * 1024
"""Longest text of arguments, in characters."""

P = ParamSpec("P")

Convert: TypeAlias = Callable[[JsonValue, str], object]


@attrs.frozen
class Shape:
    """What values of one annotation look like in JSON."""

    schema: JsonObject
    """Its JSON schema."""
    words: str
    """What it is, for error messages."""
    convert: Convert
    """Turns a JSON value at a path into the typed value, or raises RemoteProtocolError."""


@attrs.frozen(kw_only=True)
class _Parameter:
    name: str
    shape: Shape
    is_required: bool
    default: str | None
    """The default as JSON text, so that every call gets its own copy; None if JSON
    cannot say it or there is none."""


@attrs.frozen(kw_only=True)
class Bound:
    """Arguments that fit."""

    decided: JsonObject
    """As JSON data, defaults filled in: what a policy decides about."""
    values: Mapping[str, object]
    """As the function takes them; shares no mutable part with :attr:`decided`."""


@attrs.frozen(kw_only=True)
class Parameters:
    """The parameters of a function that a model can set."""

    schema: JsonObject
    """JSON schema of the arguments, an object schema."""
    context_name: str | None
    """The parameter that takes the context, hidden from the model."""
    _parameters: tuple[_Parameter, ...] = attrs.field(alias="parameters")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parameters, in order."""
        return tuple(parameter.name for parameter in self._parameters)

    def bind(self, arguments: JsonObject) -> Bound:
        """Return *arguments* as the function takes them.

        Args:
            arguments: JSON data that nobody else holds.

        Raises:
            RemoteProtocolError: If an argument is missing, unknown or of the wrong type.
        """
        unknown = sorted(arguments.keys() - set(self.names))
        if unknown:
            known = ", ".join(self.names) or "none"
            raise RemoteProtocolError(f"unknown argument {unknown[0][:60]!r}; known: {known}")
        decided: dict[str, JsonValue] = {}
        values: dict[str, object] = {}
        for parameter in self._parameters:
            if parameter.name in arguments:
                value = arguments[parameter.name]
            elif parameter.default is not None:
                value = json.loads(parameter.default)
            elif parameter.is_required:
                raise RemoteProtocolError(f"required argument {parameter.name!r} is missing")
            else:
                continue
            decided[parameter.name] = value
            values[parameter.name] = parameter.shape.convert(value, f"$.{parameter.name}")
        return Bound(decided=decided, values=values)


def parse_arguments(text: str) -> JsonObject:
    """Return the arguments that a model wrote.

    Args:
        text: JSON text; empty means no arguments.

    Raises:
        RemoteProtocolError: If it is no JSON object, or longer than
            :data:`MAX_ARGUMENTS`.
    """
    if len(text) > MAX_ARGUMENTS:
        raise RemoteProtocolError(f"longer than {MAX_ARGUMENTS} characters")
    if not text.strip():
        return {}
    value = load_json(text)
    if not isinstance(value, Mapping):
        raise RemoteProtocolError("expected one JSON object")
    return value


# --- functions ------------------------------------------------------------------------


def describe_parameters(function: Callable[P, object], context_type: type) -> Parameters:
    """Return the parameters of *function*.

    Args:
        function: A typed function.
        context_type: A parameter of this type is hidden from the model.

    Raises:
        UsageError: If a parameter has no annotation, or one that JSON has no shape for;
            names the parameter.
    """
    name = getattr(function, "__qualname__", repr(function))
    hints = _hints_of(function, f"tool {name}")
    descriptions = read_docstring(function.__doc__).parameters
    context_name: str | None = None
    parameters: list[_Parameter] = []
    properties: dict[str, JsonValue] = {}
    for parameter in inspect.signature(function).parameters.values():
        where = f"tool {name}, parameter {parameter.name!r}"
        annotation: object = hints.get(parameter.name, inspect.Parameter.empty)
        if parameter.kind not in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}:
            raise UsageError(f"{where}: a model can only pass arguments by name")
        if annotation is inspect.Parameter.empty:
            raise UsageError(f"{where}: needs an annotation")
        if annotation is context_type:
            if context_name is not None:
                raise UsageError(f"{where}: one context is enough")
            context_name = parameter.name
            continue
        shape = shape_of(annotation, where)
        described = _describe(parameter, shape)
        parameters.append(described)
        properties[parameter.name] = _property(described, descriptions.get(parameter.name))
    schema: dict[str, JsonValue] = {
        "type": "object",
        "properties": properties,
        "required": [each.name for each in parameters if each.is_required],
        "additionalProperties": False,
    }
    return Parameters(schema=schema, context_name=context_name, parameters=tuple(parameters))


def _hints_of(annotated: object, where: str) -> dict[str, object]:
    try:
        return typing.get_type_hints(annotated)
    except (NameError, TypeError, AttributeError, SyntaxError) as exc:
        raise UsageError(
            f"{where}: the annotations cannot be read ({exc}); what they name must be imported "
            "or defined at the top of its module, for real and not for type checkers only"
        ) from exc


def _describe(parameter: inspect.Parameter, shape: Shape) -> _Parameter:
    default: object = parameter.default
    is_required = default is inspect.Parameter.empty
    return _Parameter(
        name=parameter.name,
        shape=shape,
        is_required=is_required,
        default=None if is_required else _default_text(default, shape),
    )


def _default_text(default: object, shape: Shape) -> str | None:
    plain: object = default.value if isinstance(default, enum.Enum) else default
    try:
        text = dump_json(typing.cast("JsonValue", plain))
        shape.convert(json.loads(text), "$")
    except (LocalProtocolError, RemoteProtocolError):
        return None
    return text


def _property(parameter: _Parameter, description: str | None) -> JsonObject:
    found = dict(parameter.shape.schema)
    if description:
        found["description"] = description
    if parameter.default is not None:
        found["default"] = json.loads(parameter.default)
    return found


# --- annotations ----------------------------------------------------------------------

_SCALARS: Final[Mapping[object, tuple[str, str]]] = types.MappingProxyType(
    {
        str: ("string", "a string"),
        int: ("integer", "an integer"),
        float: ("number", "a number"),
        bool: ("boolean", "true or false"),
        type(None): ("null", "null"),
    }
)

_UNIONS: Final[frozenset[object]] = frozenset({typing.Union, types.UnionType})
_ARRAYS: Final[frozenset[object]] = frozenset({list, Sequence})
_MAPPINGS: Final[frozenset[object]] = frozenset({dict, Mapping})


def shape_of(annotation: object, where: str, enclosing: tuple[type, ...] = ()) -> Shape:
    """Return what values of *annotation* look like.

    Args:
        annotation: A scalar, list, tuple, mapping, Literal, string Enum, union, attrs
            class, ``JsonValue`` or ``JsonObject``.
        where: What is annotated, for the error.
        enclosing: The attrs classes that it is a part of.

    Raises:
        UsageError: If JSON has no shape for it.
    """
    if annotation in (JsonValue, JsonObject):
        return _json_shape(annotation)
    if isinstance(annotation, typing.NewType):
        return shape_of(annotation.__supertype__, where, enclosing)
    if isinstance(annotation, TypeAliasType):
        return shape_of(annotation.__value__, where, enclosing)
    origin, arguments = _parts_of(annotation)
    if origin is typing.Literal:
        return _literal_shape(annotation, arguments)
    if origin in _UNIONS:
        return _union_shape([shape_of(each, where, enclosing) for each in arguments])
    if origin in _ARRAYS or (origin is tuple and arguments[1:] == (...,)):
        return _array_shape(shape_of(arguments[0], where, enclosing), origin)
    if origin in _MAPPINGS and arguments[0] is str:
        return _mapping_shape(shape_of(arguments[1], where, enclosing))
    kind = _as_class(annotation)
    if kind in _SCALARS:
        return _scalar_shape(kind)
    if issubclass(kind, enum.Enum):
        return _enum_shape(kind, where)
    if attrs.has(kind):
        return _object_shape(kind, where, enclosing)
    raise UsageError(
        f"{where}: a model cannot be told what {getattr(annotation, '__name__', annotation)} is; "
        "use str, int, float, bool, None, list[T], tuple[T, ...], dict[str, T], Literal, an Enum "
        "of strings, a union or an attrs class of those, or JsonValue"
    )


def _parts_of(annotation: object) -> tuple[object, tuple[object, ...]]:
    return typing.get_origin(annotation), typing.get_args(annotation)


def _as_class(annotation: object) -> type[object]:
    return annotation if isinstance(annotation, type) else object


def _fit(value: JsonValue, kind: type[object], path: str) -> object:
    try:
        return structure(value, kind)
    except RemoteProtocolError as exc:
        raise RemoteProtocolError(exc.reason, path) from None


def _scalar_shape(kind: type[object]) -> Shape:
    name, words = _SCALARS[kind]
    return Shape({"type": name}, words, lambda value, path: _fit(value, kind, path))


def _json_shape(annotation: object) -> Shape:
    if annotation is JsonValue:
        return Shape({}, "any value", lambda value, _: _copy(value))

    def convert(value: JsonValue, path: str) -> object:
        if not isinstance(value, Mapping):
            raise RemoteProtocolError("expected an object", path)
        return _copy(value)

    return Shape({"type": "object"}, "an object", convert)


def _copy(value: JsonValue) -> JsonValue:
    """Return a deep copy, so that a tool cannot change what was decided."""
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_copy(item) for item in value]
    return value


def _literal_shape(annotation: object, choices: tuple[object, ...]) -> Shape:
    schema: dict[str, JsonValue] = {"enum": [typing.cast("JsonValue", each) for each in choices]}
    if all(isinstance(each, str) for each in choices):
        schema = {"type": "string", **schema}
    kind = typing.cast("type[object]", annotation)
    words = "one of " + ", ".join(map(str, choices))
    return Shape(schema, words, lambda value, path: _fit(value, kind, path))


def _enum_shape(kind: type[enum.Enum], where: str) -> Shape:
    choices: list[str] = []
    for member in kind:
        if not isinstance(member.value, str):
            raise UsageError(f"{where}: the values of {kind.__name__} must be strings")
        choices.append(member.value)
    words = "one of " + ", ".join(choices)

    def convert(value: JsonValue, path: str) -> object:
        if value not in choices:
            raise RemoteProtocolError(f"expected {words}", path)
        return kind(value)

    return Shape({"type": "string", "enum": list(choices)}, words, convert)


def _union_shape(members: list[Shape]) -> Shape:
    words = " or ".join(member.words for member in members)

    def convert(value: JsonValue, path: str) -> object:
        deepest = RemoteProtocolError(f"expected {words}", path)
        for member in members:
            try:
                return member.convert(value, path)
            except RemoteProtocolError as exc:
                if len(exc.path) > len(deepest.path):  # one member fitted, but for a part of it
                    deepest = exc
        raise deepest from None

    return Shape({"anyOf": [member.schema for member in members]}, words, convert)


def _array_shape(item: Shape, origin: object) -> Shape:
    def convert(value: JsonValue, path: str) -> object:
        if not isinstance(value, list):
            raise RemoteProtocolError("expected an array", path)
        items = [item.convert(each, f"{path}[{index}]") for index, each in enumerate(value)]
        return tuple(items) if origin is tuple else items

    return Shape({"type": "array", "items": item.schema}, f"an array of {item.words}", convert)


def _mapping_shape(item: Shape) -> Shape:
    def convert(value: JsonValue, path: str) -> object:
        if not isinstance(value, Mapping):
            raise RemoteProtocolError("expected an object", path)
        return {key: item.convert(each, f"{path}.{key[:60]}") for key, each in value.items()}

    return Shape({"type": "object", "additionalProperties": item.schema}, "an object", convert)


def _object_shape(kind: type, where: str, enclosing: tuple[type, ...]) -> Shape:
    if kind in enclosing:
        raise UsageError(f"{where}: {kind.__name__} contains itself, which has no finite schema")
    hints = _hints_of(kind, where)
    fields: dict[str, Shape] = {}
    required: list[str] = []
    for field in attrs.fields(kind):
        if field.init:
            fields[field.alias] = shape_of(
                hints.get(field.name), f"{where}, field {field.name!r}", (*enclosing, kind)
            )
            if field.default is attrs.NOTHING:
                required.append(field.alias)

    def convert(value: JsonValue, path: str) -> object:
        if not isinstance(value, Mapping):
            raise RemoteProtocolError("expected an object", path)
        for name in (*value, *required):
            if name not in fields:
                known = ", ".join(fields)
                raise RemoteProtocolError(f"unknown field {name[:60]!r}; known: {known}", path)
            if name not in value:
                raise RemoteProtocolError(f"required field {name!r} is missing", path)
        converted = {name: fields[name].convert(value[name], f"{path}.{name}") for name in value}
        try:
            return kind(**converted)
        except (TypeError, ValueError, UsageError) as exc:  # what the class's validators say
            reason = exc.args[0] if exc.args else "invalid value"
            raise RemoteProtocolError(str(reason), path) from exc

    schema: dict[str, JsonValue] = {
        "type": "object",
        "properties": {name: shape.schema for name, shape in fields.items()},
        "required": list(required),
        "additionalProperties": False,
    }
    return Shape(schema, "an object", convert)
