"""What Hypothesis makes of valid inputs: the same with something wrong, and anything at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

NASTY_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1.5,
    -0.0,
    2**31,
    2**53,
    2**63,
    10**18,
    10**40,
    1e308,
    "",
    "x",
    "1-1",
    "null",
    "\0",
    "\u202e",
    "\ud800",
    "\U0001f600" * 3,
    "x" * 300,
    "x" * 5000,
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"type": "batch", "frames": []},
    {"type": "heartbeat"},
    [{"type": "batch", "frames": [{"type": "batch", "frames": []}]}],
    list(range(600)),
]
"""Values that code forgets."""

NASTY_TOKENS = [
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"1" * 400,
    b"1" * 5000,
    b'"\\ud800"',
    b'"\\udc00\\ud800"',
    b'"\\u0000"',
    b"\xff",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\0",
    b"[" * 100,
    b"[" * 100_000,
    b'{"a":' * 200,
    b"//",
    b"'",
    b"\r",
    b"\n",
    b"\r\n\r\n",
    b"\x85",
    b",",
    b"}",
    b'"type":"auth",',
    b'"a":1,"a":1,',
]
"""Texts that parsers stumble over."""


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _places(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            found += _places(inner, (*path, index))
    return found


def _changed(value: Any, path: tuple[Any, ...], how: str, new: Any) -> Any:
    """Return *value* with what is at *path* replaced, removed, doubled or renamed."""
    if not path:
        return new
    value = json.loads(json.dumps(value))
    place = value
    for key in path[:-1]:
        place = place[key]
    last = path[-1]
    if how == "remove":
        del place[last]
    elif how == "rename" and isinstance(place, dict):
        place[str(new)[:40]] = place.pop(last)
    elif how == "double" and isinstance(place, list):
        place.append(place[last])
    else:
        place[last] = new
    return value


@st.composite
def broken_json(draw: st.DrawFn, samples: Sequence[bytes]) -> bytes:
    """Draw a valid JSON text with one to three values that are not what they should be."""
    value = json.loads(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(_places(value)))
        how = draw(st.sampled_from(["replace", "replace", "remove", "rename", "double"]))
        value = _changed(value, path, how, draw(st.sampled_from(NASTY_VALUES)))
    return json.dumps(value, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


@st.composite
def broken_bytes(draw: st.DrawFn, samples: Sequence[bytes]) -> bytes:
    """Draw a valid text with one to four places where bytes were changed, cut or put in."""
    data = bytearray(draw(st.sampled_from(samples)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        to = min(len(data), at + draw(st.integers(0, 12)))
        match draw(st.sampled_from(["put", "nasty", "cut", "flip", "double", "end", "splice"])):
            case "put":
                data[at:to] = draw(st.binary(max_size=8))
            case "nasty":
                data[at:to] = draw(st.sampled_from(NASTY_TOKENS))
            case "cut":
                del data[at:to]
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "double":
                data[at:at] = data[at:to] * draw(st.integers(1, 40))
            case "end":
                del data[at:]
            case _:
                data[at:] = draw(st.sampled_from(samples))[at:]
    return bytes(data)


def hostile(samples: Sequence[bytes], *, is_json: bool = True) -> st.SearchStrategy[bytes]:
    """Return a strategy for inputs: valid, nearly valid, and arbitrary."""
    near = [broken_bytes(samples), st.binary(max_size=200), st.sampled_from(samples)]
    if is_json:
        near = [broken_json(samples), broken_json(samples), *near]
    return st.one_of(*near)


@st.composite
def in_pieces(draw: st.DrawFn, samples: Sequence[bytes], *, is_json: bool) -> bytes:
    """Draw a stream of several such inputs, one behind the other."""
    parts = draw(st.lists(hostile(samples, is_json=is_json), min_size=1, max_size=4))
    ends = draw(st.sampled_from([b"\n", b"\r\n", b"", b"\n\n", b"\0\n"]))
    return ends.join(parts) + ends
