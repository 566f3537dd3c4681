from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_strategies import JSON_VALUES

from semibot.errors import LocalProtocolError, RemoteProtocolError
from semibot.wire.codec import JsonValue, load_json
from semibot.wire.jsonl import MAX_LINE_BYTES, LineFramer, encode_line

LINES = st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=8)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """Return *data* in pieces, some of them empty."""
    ends = sorted(place % (len(data) + 1) for place in places)
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


@settings(deadline=None)
@given(st.lists(JSON_VALUES, max_size=4), st.lists(st.integers(min_value=0), max_size=6))
def test_what_is_encoded_comes_out_of_the_framer_however_it_is_cut(
    values: list[JsonValue], places: list[int]
) -> None:
    framer = LineFramer()
    data = b"".join(encode_line(value) for value in values)
    lines = [line for piece in cut(data, places) for line in framer.feed(piece)]
    assert [load_json(line) for line in lines] == values
    assert framer.close() is None


@settings(deadline=None)
@given(LINES, st.binary(max_size=8), st.lists(st.integers(min_value=0), max_size=8))
def test_arbitrary_chunks_give_the_same_lines(
    lines: list[bytes], rest: bytes, places: list[int]
) -> None:
    rest = rest.replace(b"\n", b"")
    data = b"".join(line + b"\n" for line in lines) + rest
    framer = LineFramer()
    found = [line for piece in cut(data, places) for line in framer.feed(bytearray(piece))]
    assert found == [line.removesuffix(b"\r") for line in lines]
    assert framer.close() == (rest or None)


@settings(deadline=None)
@given(LINES, st.lists(st.integers(min_value=0), max_size=8), st.integers(0, 12))
def test_a_line_is_refused_for_its_length_however_it_is_cut(
    lines: list[bytes], places: list[int], most: int
) -> None:
    data = b"".join(line + b"\n" for line in lines)
    framer = LineFramer(most)
    too_long = any(len(line) > most for line in lines)
    try:
        for piece in cut(data, places):
            framer.feed(piece)
    except RemoteProtocolError as exc:
        refused = str(exc)
    else:
        refused = ""
    assert refused == (f"a line is longer than {most} bytes @ $" if too_long else "")


def test_a_line_that_never_ends_is_refused_before_its_newline() -> None:
    framer = LineFramer(10)
    assert framer.feed(b"0123456789") == []
    with pytest.raises(RemoteProtocolError, match="longer than 10 bytes"):
        framer.feed(b"x")
    assert framer.close() is None


def test_the_bound_does_not_count_the_newline() -> None:
    assert LineFramer(3).feed(b"abc\n") == [b"abc"]
    assert LineFramer().feed(b"x" * MAX_LINE_BYTES + b"\n") == [b"x" * MAX_LINE_BYTES]


def test_a_refused_line_is_not_kept_in_memory() -> None:
    framer = LineFramer(10)
    with pytest.raises(RemoteProtocolError):
        framer.feed(b"x" * 20_000_000)
    assert framer.feed(b"ok\n") == [b"ok"]


def test_lines_may_end_as_they_do_on_windows() -> None:
    assert LineFramer().feed(b"a\r\nb\r\n\r\n") == [b"a", b"b", b""]


def test_what_stands_after_the_last_newline_comes_out_at_the_end() -> None:
    framer = LineFramer()
    assert framer.feed(b"a\nhalf") == [b"a"]
    assert framer.close() == b"half"
    assert framer.close() is None


def test_many_small_pieces_of_a_long_line_are_searched_once() -> None:
    framer = LineFramer()
    began = time.process_time()
    for _ in range(MAX_LINE_BYTES // 64):
        assert framer.feed(b"x" * 64) == []
    assert framer.feed(b"\n") == [b"x" * MAX_LINE_BYTES]
    assert time.process_time() - began < 1


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "\u2028", "\x85", "\x00", "日本"])
def test_no_text_breaks_a_line(text: str) -> None:
    line = encode_line({"text": text})
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert load_json(line) == {"text": text}


def test_what_json_cannot_say_is_refused() -> None:
    with pytest.raises(LocalProtocolError):
        encode_line({"x": float("inf")})
