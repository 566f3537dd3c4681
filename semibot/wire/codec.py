"""Turn JSON text into typed values and back, strictly.

Unknown fields are ignored, unknown types refused and nothing is coerced: cattrs alone
would turn ``5`` into ``"5"`` and ``"abc"`` into a tuple. Whatever is wrong comes out as
one error type, :exc:`~semibot.errors.RemoteProtocolError`, with the path to it.
"""

from __future__ import annotations

import json
import math
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NoReturn, TypeAlias, TypeVar

import attrs
import cattrs
from cattrs.errors import IterableValidationError, IterableValidationNote
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override
from typing_extensions import TypeAliasType

from semibot.errors import LocalProtocolError, RemoteProtocolError

if typing.TYPE_CHECKING:
    # Said twice, because pyright loses the recursion of a TypeAliasType that another module
    # reaches through JsonObject first. At run time each has to be an object of its own, so
    # that the converter can tell it from other unions and mappings.
    JsonValue: TypeAlias = (
        bool | int | float | str | Sequence["JsonValue"] | Mapping[str, "JsonValue"] | None
    )
    """Anything that JSON can say."""
    JsonObject: TypeAlias = Mapping[str, JsonValue]
    """A JSON object."""
else:
    JsonValue = TypeAliasType(
        "JsonValue",
        "bool | int | float | str | Sequence[JsonValue] | Mapping[str, JsonValue] | None",
    )
    """Anything that JSON can say."""
    JsonObject = TypeAliasType("JsonObject", "Mapping[str, JsonValue]")
    """A JSON object."""

MAX_DEPTH: Final = 64
"""How deeply JSON from outside may be nested."""

MAX_VALUES: Final = 500_000
"""How many values JSON from outside may have, about; more would stop everything for seconds."""

T = TypeVar("T")
_Hook: TypeAlias = Callable[[object, object], object]


class _Mismatch(ValueError):
    """What a hook raises; the path is added on the way out."""


# --- JSON text ------------------------------------------------------------------------


def dump_json(value: JsonValue) -> str:
    """Return *value* as compact JSON on one line.

    Args:
        value: What to encode. Mapping keys are strings; floats are finite.

    Raises:
        LocalProtocolError: If JSON cannot say it.
    """
    try:
        text = _encoder.encode(value)
        text.encode()  # a lone surrogate is valid in a str and nowhere else
    except (TypeError, ValueError, RecursionError) as exc:
        message = f"this value cannot be sent as JSON: {type(exc).__name__}"
        raise LocalProtocolError(message) from exc
    return text


def _as_plain(value: object) -> dict[object, object]:
    """Return a mapping of any class, such as a read-only one, as one that ``json`` knows."""
    if isinstance(value, Mapping):
        return dict(typing.cast("Mapping[object, object]", value))
    raise TypeError(type(value).__name__)


# Made once: `json.dumps` and `json.loads` with these options would make a new one for every
# call, which costs more than encoding an event.
_encoder: Final = json.JSONEncoder(
    ensure_ascii=False, separators=(",", ":"), allow_nan=False, default=_as_plain
)


def scrub(text: str) -> str:
    """Return *text* with what is no Unicode, a lone surrogate, replaced by U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def check_json(value: JsonValue, max_depth: int) -> None:
    """Check that *value* can be written, and read back by :func:`load_json`.

    Args:
        value: What somebody else's code made.
        max_depth: How deeply it may be nested.

    Raises:
        LocalProtocolError: If not.
    """
    try:
        read_back = load_json(dump_json(value))
    except RemoteProtocolError as exc:
        raise LocalProtocolError(f"this value cannot be kept as JSON: {exc.reason}") from None
    if _depth_exceeds(read_back, max_depth):
        raise LocalProtocolError("this value cannot be kept as JSON: nested too deeply")


def load_json(data: str | bytes | bytearray) -> JsonValue:
    """Return the value that *data* says.

    Args:
        data: JSON text, or its UTF-8 bytes. The caller has bounded the size.

    Raises:
        RemoteProtocolError: If it is not strict JSON, is nested deeper than
            :data:`MAX_DEPTH`, has more than :data:`MAX_VALUES` values, repeats a key, or
            contains a lone surrogate or a number that is too large to be said again.
    """
    try:
        if isinstance(data, str):
            data.encode()
            text = data
        else:
            text = bytes(data).decode("utf-8", "strict")
        if _count_marks(text) > MAX_VALUES < _count_marks(_STRING.sub("", text)):
            raise RemoteProtocolError("too many values")
        value = _decode(text)
        if "\\u" in text and _SURROGATE_ESCAPE.search(text):
            json.dumps(value, ensure_ascii=False).encode()  # pairs are fine, halves are not
    except UnicodeError:
        message = "not valid Unicode"
    except RecursionError:
        message = "nested too deeply"
    except _Mismatch as exc:
        message = str(exc)
    except ValueError:  # JSONDecodeError, or an integer of thousands of digits
        message = "not valid JSON"
    else:
        # As many levels need as many brackets; most texts have fewer, and are not walked.
        may_be_deep = text.count("{") + text.count("[") > MAX_DEPTH
        if may_be_deep and _depth_exceeds(value, MAX_DEPTH):
            raise RemoteProtocolError("nested too deeply")
        return value
    raise RemoteProtocolError(message)


_SPACE: Final = " \t\n\r"
# Possessive and closed or not, so that a hostile text costs no more than its length.
_STRING: Final = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
_SURROGATE_ESCAPE: Final = re.compile(r"\\u[dD][89a-fA-F]")


def _refuse_constant(name: str) -> NoReturn:
    message = f"{name} is not JSON"
    raise _Mismatch(message)


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        message = "a number is too large"
        raise _Mismatch(message)
    return number


def _unique_pairs(pairs: list[tuple[str, JsonValue]]) -> dict[str, JsonValue]:
    found = dict(pairs)
    if len(found) != len(pairs):
        message = "an object repeats a key"
        raise _Mismatch(message)
    return found


_decoder: Final = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique_pairs
)


def _count_marks(text: str) -> int:
    """Return how many values *text* has at most, if none of it lies in strings."""
    return text.count(",") + text.count("[") + text.count("{")


def _decode(text: str) -> JsonValue:
    """Return what ``_decoder.decode(text)`` returns, in less time if no space is around it."""
    text = text.lstrip(_SPACE) if text[:1] in _SPACE else text
    value: JsonValue
    value, end = _decoder.raw_decode(text)
    if end != len(text) and text[end:].strip(_SPACE):
        raise ValueError("something stands behind the value")
    return value


def _depth_exceeds(value: JsonValue, limit: int) -> bool:
    """Return whether what :func:`load_json` made, of lists and dicts, is nested deeper."""
    level: list[JsonValue] = [value]
    for _ in range(limit + 1):
        deeper: list[JsonValue] = []
        for item in level:
            if isinstance(item, dict):
                deeper.extend(item.values())
            elif isinstance(item, list):
                deeper.extend(item)
        if not deeper:
            return False
        level = deeper
    return True


# --- typed values ---------------------------------------------------------------------


def structure(value: object, as_type: type[T]) -> T:
    """Return decoded JSON as a typed value.

    Args:
        value: What :func:`load_json` returned.
        as_type: An attrs class, a scalar, a ``Literal``, or a list, a tuple of one type or
            an optional of those.

    Raises:
        RemoteProtocolError: If it does not fit, with the path to what does not.
    """
    try:
        return _converter.structure(value, as_type)
    except (cattrs.BaseValidationError, _Mismatch, TypeError, ValueError, KeyError) as exc:
        reason, path = _first_problem(exc)
        raise RemoteProtocolError(reason, path) from None


def unstructure(value: object) -> JsonValue:
    """Return a typed value as plain JSON data. Fields that are None are left out."""
    plain: JsonValue = _converter.unstructure(value)
    return plain


def _first_problem(exc: BaseException) -> tuple[str, str]:
    text = cattrs.transform_error(exc, format_exception=_describe)[0]
    reason, _, path = text.partition(" @ $")
    return reason, "$" + path


def _describe(exc: BaseException, as_type: type | None) -> str:
    match exc:
        case _Mismatch():
            return str(exc)
        case KeyError():
            return f"required field {exc.args[0]!r} is missing"
        case ValueError():
            return str(exc) or "invalid value"
        case _:
            return "expected " + getattr(as_type, "__name__", "another type")


def _exactly(kind: type[object], words: str) -> _Hook:
    def check(value: object, _: object) -> object:
        if type(value) is not kind:
            message = f"expected {words}"
            raise _Mismatch(message)
        return value

    return check


def _number(value: object, _: object) -> float:
    if type(value) is int or type(value) is float:
        try:
            number = float(value)
        except OverflowError:  # JSON integers have no bound, floats do
            number = math.inf
        if math.isfinite(number):
            return number
    message = "expected a finite number"
    raise _Mismatch(message)


def _none(value: object, _: object) -> None:
    if value is not None:
        message = "expected null"
        raise _Mismatch(message)


def _json_value(value: object, _: object) -> object:
    require_json(value)
    return value


def _json_object(value: object, _: object) -> object:
    require_json(_mapping(value))
    return value


def _mapping(value: object) -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        message = "expected an object"
        raise _Mismatch(message)
    return typing.cast("Mapping[str, object]", value)


def require_json(value: object) -> None:
    """Check that *value* is JSON data; raise ``ValueError`` if it is not."""
    # The classes that a decoder makes come first: a frame may have millions of them.
    kind = type(value)
    if kind in _PLAIN:
        return
    if kind is list:
        for item in typing.cast("list[object]", value):
            if type(item) not in _PLAIN:
                require_json(item)
        return
    match value:
        case None | bool() | int() | str():
            return
        case float() if math.isfinite(value):
            return
        case Mapping():
            for key, item in typing.cast("Mapping[object, object]", value).items():
                if not isinstance(key, str):
                    message = "object keys are strings"
                    raise _Mismatch(message)
                require_json(item)
        case list() | tuple():
            for item in typing.cast("Sequence[object]", value):
                require_json(item)
        case _:
            message = "expected JSON data"
            raise _Mismatch(message)


_PLAIN: Final = frozenset({type(None), bool, int, str})


def _literal(value: object, as_type: object) -> object:
    allowed = typing.get_args(as_type)
    if not any(value == item and type(value) is type(item) for item in allowed):
        message = "expected one of " + ", ".join(map(str, allowed))
        raise _Mismatch(message)
    return value


def _is_literal(as_type: object) -> bool:
    return typing.get_origin(as_type) is typing.Literal


def _is_sequence(as_type: object) -> bool:
    return typing.get_origin(as_type) in {tuple, list, Sequence}


def _sequence_hook(as_type: object, converter: cattrs.Converter) -> _Hook:
    inner: type[object] = typing.get_args(as_type)[0]
    as_tuple = typing.get_origin(as_type) is tuple

    def hook(value: object, _: object) -> object:
        if not isinstance(value, list | tuple):
            message = "expected an array"
            raise _Mismatch(message)
        items: list[object] = []
        for index, item in enumerate(typing.cast("Sequence[object]", value)):
            try:
                items.append(converter.structure(item, inner))
            except Exception as exc:  # noqa: BLE001 - cattrs does the same; structure() sorts it out
                exc.add_note(IterableValidationNote("", index, inner))
                raise IterableValidationError("", [exc], list) from None  # pyright: ignore[reportCallIssue] - its __new__ takes three
        return tuple(items) if as_tuple else items

    return hook


def _attrs_hook(as_type: type[object], converter: cattrs.Converter) -> _Hook:
    build = typing.cast("_Hook", make_dict_structure_fn(as_type, converter))

    def hook(value: object, _: object) -> object:
        return build(_mapping(value), as_type)

    return hook


def _omit_none(as_type: type, converter: cattrs.Converter) -> Callable[[object], object]:
    fields = {
        field.name: override(omit_if_default=True)
        for field in attrs.fields(as_type)
        if field.default is None
    }
    # One override a field, which the types of its other parameters do not foresee.
    return make_dict_unstructure_fn(as_type, converter, **fields)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportUnknownVariableType]


def _is(alias: object) -> Callable[[object], bool]:
    return lambda as_type: as_type is alias


def _unchanged(value: object) -> object:
    return value


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=True, unstruct_collection_overrides={})
    converter.register_structure_hook(str, _exactly(str, "a string"))
    converter.register_structure_hook(int, _exactly(int, "an integer"))
    converter.register_structure_hook(bool, _exactly(bool, "true or false"))
    converter.register_structure_hook(float, _number)
    converter.register_structure_hook(type(None), _none)
    converter.register_structure_hook_func(_is(JsonValue), _json_value)
    converter.register_structure_hook_func(_is(JsonObject), _json_object)
    converter.register_structure_hook_func(_is_literal, _literal)
    converter.register_structure_hook_factory(_is_sequence, _sequence_hook)
    converter.register_structure_hook_factory(attrs.has, _attrs_hook)
    converter.register_unstructure_hook_func(_is(JsonValue), _unchanged)
    converter.register_unstructure_hook_func(_is(JsonObject), _unchanged)
    converter.register_unstructure_hook_factory(attrs.has, _omit_none)
    return converter


_converter: Final = _make_converter()
