"""Turn what a tool returned into something bounded: for events and for the model.

A result may be 50 MB of text, a list of a million numbers, or no JSON at all. Nothing here
looks at more of it than it needs: the encoder stops at its bound, and only results that
are small are encoded on the loop.
"""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Final, TypeAlias, cast

import attrs

from semibot.errors import ToolError
from semibot.logs import get_logger
from semibot.wire.codec import MAX_DEPTH, JsonValue

from .context import ToolContext

MAX_RESULT: Final = 64 * 1024
"""Most bytes of JSON that a result takes in an event."""
MAX_CONTENT: Final = 100_000
"""Most characters that a model reads of a result."""
MAX_ERROR: Final = 4_000
"""Most characters of an error's text."""

_QUICK: Final = 8 * 1024
_PREVIEW: Final = 4_000
_NOTE: Final = 400

Keep: TypeAlias = Callable[[str], Awaitable[str]]
"""Stores a long text and returns its path below the workspace."""

log: Final = get_logger(__name__)


@attrs.frozen
class Rendered:
    """A result, bounded."""

    result: JsonValue
    """For events."""
    content: str
    """For the model."""


@attrs.frozen
class Encoded:
    """JSON text, or its beginning."""

    text: str
    """The text."""
    is_whole: bool
    """Whether it is all of it."""


async def render(value: object, context: ToolContext, keep: Keep | None) -> Rendered:
    """Return *value* bounded.

    Args:
        value: What a tool returned.
        context: The call.
        keep: Where a text goes that the model cannot read in one piece; None drops the rest.

    Raises:
        ToolError: If JSON cannot say *value*; names the type.
    """
    if isinstance(value, str):
        return Rendered(_fit_event(value), await _fit_content(value, keep))
    encoded = encode(value, _QUICK)
    if not encoded.is_whole:
        encoded = await context.run_blocking(encode, value, MAX_CONTENT)
    text, size = encoded.text, len(encoded.text.encode())
    if encoded.is_whole and size <= MAX_RESULT:
        return Rendered(cast("JsonValue", json.loads(text)), text)
    result: dict[str, JsonValue] = {
        "truncated": True,
        "bytes" if encoded.is_whole else "bytes_at_least": size,
        "preview": text[:_PREVIEW],
    }
    if encoded.is_whole:
        return Rendered(result, text)
    shown = text[: MAX_CONTENT - _NOTE]
    note = f"[cut here: the result goes on after {len(shown)} characters]"
    return Rendered(result, f"{shown}\n{note}")


def shorten_error(text: str) -> str:
    """Return an error's text, at most :data:`MAX_ERROR` characters of valid Unicode."""
    shown = text if len(text) <= MAX_ERROR else text[: MAX_ERROR - 4] + " ..."
    return _valid(shown)


# --- text -----------------------------------------------------------------------------


def _valid(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # a str can hold halves of characters


def _json_size(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode())


def _fit_event(text: str) -> str:
    if len(text) <= MAX_RESULT and _json_size(_valid(text)) <= MAX_RESULT:
        return _valid(text)
    head = _valid(text[:MAX_RESULT])
    room = MAX_RESULT - _NOTE
    while (size := _json_size(head)) > room:
        head = head[: len(head) * room // size]
    return f"{head}\n[cut here: the first {len(head)} of {len(text)} characters]"


async def _fit_content(text: str, keep: Keep | None) -> str:
    if len(text) <= MAX_CONTENT:
        return _valid(text)
    head = _valid(text[: MAX_CONTENT - _NOTE])
    note = f"cut here: the first {len(head)} of {len(text)} characters"
    path = None if keep is None else await _try_keep(text, keep)
    if path is not None and len(path) < _NOTE - 100:
        note += f"; all of it is in the file {path}"
    return f"{head}\n[{note}]"


async def _try_keep(text: str, keep: Keep) -> str | None:
    try:
        return await keep(text)
    except Exception as exc:  # noqa: BLE001 - the call has worked; a full disk changes nothing
        log.warning("large result not kept", error=repr(exc))
        return None


# --- JSON with a bound ----------------------------------------------------------------


def encode(value: object, limit: int) -> Encoded:
    """Return *value* as JSON text, at most about *limit* characters of it.

    Args:
        value: JSON data; tuples and any mapping will do.
        limit: Where to stop, in characters.

    Raises:
        ToolError: If what was looked at has something in it that JSON cannot say.
    """
    pieces: list[str] = []
    size = 0
    for piece in _pieces(value, limit, MAX_DEPTH):
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            return Encoded(_valid("".join(pieces)[:limit]), is_whole=False)
    return Encoded(_valid("".join(pieces)), is_whole=True)


def _pieces(value: object, limit: int, depth: int) -> Iterator[str]:
    match value:
        case None | bool():
            yield {None: "null", True: "true", False: "false"}[value]
        case str():
            yield json.dumps(value[: limit + 1], ensure_ascii=False)
        case int():
            yield _integer(value)
        case float():
            if not math.isfinite(value):
                raise ToolError(f"the tool returned {value}, which is not JSON")
            yield float.__repr__(value)
        case list() | tuple() | Mapping():
            if depth == 0:
                raise ToolError(f"the tool returned data nested deeper than {MAX_DEPTH}")
            if isinstance(value, Mapping):
                yield from _object_pieces(cast("Mapping[object, object]", value), limit, depth)
            else:
                yield from _array_pieces(cast("list[object]", value), limit, depth)
        case _:
            name = type(value).__name__
            raise ToolError(f"the tool returned {name}; only text and JSON data can be used")


def _integer(value: int) -> str:
    try:
        return int.__repr__(value)
    except ValueError:
        raise ToolError("the tool returned an integer of thousands of digits") from None


def _array_pieces(value: list[object], limit: int, depth: int) -> Iterator[str]:
    opening = "["
    for item in value:
        yield opening
        yield from _pieces(item, limit, depth - 1)
        opening = ","
    yield "]" if opening == "," else "[]"


def _object_pieces(value: Mapping[object, object], limit: int, depth: int) -> Iterator[str]:
    opening = "{"
    for key, item in value.items():
        if not isinstance(key, str):
            name = type(key).__name__
            raise ToolError(f"the tool returned an object with a key of type {name}; use strings")
        yield opening + json.dumps(key[: limit + 1], ensure_ascii=False) + ":"
        yield from _pieces(item, limit, depth - 1)
        opening = ","
    yield "}" if opening == "," else "{}"
