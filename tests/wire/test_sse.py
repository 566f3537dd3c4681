"""Server-sent events: ids, writing, and reading by the standard's rules."""

from __future__ import annotations

import contextlib
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semibot.errors import LocalProtocolError, RemoteProtocolError
from semibot.wire.sse import (
    KEEPALIVE,
    EventId,
    SseDecoder,
    SseMessage,
    encode_sse,
    retry_line,
    sse_name,
)

# --- ids ------------------------------------------------------------------------------


@given(st.integers(0, 10**9 - 1), st.integers(0, 10**18 - 1))
def test_an_id_says_again_what_it_said(term: int, seq: int) -> None:
    assert EventId.parse(str(EventId(term, seq))) == EventId(term, seq)


@pytest.mark.parametrize(
    "text",
    [
        *("", "1", "1-", "-1", "1-2-3", " 1-2", "1-2 ", "1-2\n", "+1-2", "1--2", "1.0-2", "1_0-2"),
        *("٣-1", "²-1", "1234567890-1", "1-1234567890123456789", "1-2\x00", "9e9-1", "1-" * 9999),
    ],
    ids=ascii,
)
def test_what_does_not_look_like_an_id_is_refused(text: str) -> None:
    with pytest.raises(RemoteProtocolError, match="looks like 1-23"):
        EventId.parse(text)


def test_a_later_event_has_a_greater_id() -> None:
    ids = [EventId(2, 1), EventId(1, 10), EventId(1, 9), EventId(2, 0)]
    assert sorted(ids) == [EventId(1, 9), EventId(1, 10), EventId(2, 0), EventId(2, 1)]


# --- writing --------------------------------------------------------------------------


def test_an_event_is_three_lines_and_a_blank_one() -> None:
    written = encode_sse(EventId(2, 17), "message", '{"type":"text_chunk"}')
    assert written == b'id: 2-17\nevent: message\ndata: {"type":"text_chunk"}\n\n'
    assert encode_sse(None, "message", "ü") == "event: message\ndata: ü\n\n".encode()


def test_only_terminal_events_have_names_of_their_own() -> None:
    assert sse_name("execution_complete") == "execution_complete"
    assert sse_name("execution_error") == "execution_error"
    assert {sse_name(each) for each in ("text_chunk", "error", "open", "resync")} == {"message"}


def test_line_ends_in_data_become_further_data_lines() -> None:
    assert encode_sse(None, "message", "a\nb\rc\r\nd\n") == (
        b"event: message\ndata: a\ndata: b\ndata: c\ndata: d\ndata: \n\n"
    )


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\r\n"])
def test_a_name_is_one_line(name: str) -> None:
    with pytest.raises(LocalProtocolError, match="one line"):
        encode_sse(None, name, "{}")


def test_what_is_no_unicode_is_not_written() -> None:
    with pytest.raises(LocalProtocolError, match="lone surrogate"):
        encode_sse(None, "message", "\ud800")


LINE_ENDS = re.compile(r"\r\n|\r|\n")


@given(st.text(alphabet=st.sampled_from("ab:\r\n \u2028\x85ü") | st.characters(codec="utf-8")))
def test_no_data_can_forge_an_event(data: str) -> None:
    messages = SseDecoder().feed(
        encode_sse(EventId(1, 2), "message", data) + encode_sse(EventId(1, 3), "message", "end")
    )
    assert messages == [
        SseMessage(id="1-2", data=LINE_ENDS.sub("\n", data).encode()),
        SseMessage(id="1-3", data=b"end"),
    ]


def test_keepalives_and_retry_are_no_events() -> None:
    decoder = SseDecoder()
    assert decoder.feed(retry_line(1234) + KEEPALIVE) == []
    assert decoder.feed(b"data: x\n\n") == [SseMessage(data=b"x", retry=1234)]


# --- reading --------------------------------------------------------------------------


def read(data: bytes, *cuts: int) -> list[SseMessage]:
    decoder = SseDecoder()
    bounds = [0, *sorted(cuts), len(data)]
    messages: list[SseMessage] = []
    for start, end in pairwise(bounds):
        messages += decoder.feed(data[start:end])
    return messages


def test_events_have_data_and_a_name() -> None:
    stream = b": keep-alive\n\ndata: one\n\nevent: error\ndata:two\r\ndata: three\r\n\r\nid: 5\n\n"
    assert read(stream) == [
        SseMessage(data=b"one"),
        SseMessage(data=b"two\nthree", event="error"),
    ]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        # The three examples of the standard.
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [SseMessage(data=b"YHOO\n+2\n10")]),
        (
            b": test\n\ndata: first\nid: 1\n\ndata:second\nid\n\ndata:  third\n\n",
            [
                SseMessage(data=b"first", id="1"),
                SseMessage(data=b"second"),
                SseMessage(data=b" third"),
            ],
        ),
        (b"data\n\ndata\ndata\n\ndata:", [SseMessage(data=b""), SseMessage(data=b"\n")]),
        (b"data:test\n\ndata: test\n\n", [SseMessage(data=b"test")] * 2),
        # An id stays until the next, also where nothing is dispatched.
        (b"id: a\n\ndata: x\n\n", [SseMessage(data=b"x", id="a")]),
        (b"id: a\0b\ndata: x\n\n", [SseMessage(data=b"x")]),
        # An event's name goes with the event, dispatched or not.
        (b"event: a\n\ndata: x\n\n", [SseMessage(data=b"x")]),
        (b"event\ndata: x\n\n", [SseMessage(data=b"x")]),
        (b"event: \xff\ndata: x\n\n", [SseMessage(data=b"x", event="\ufffd")]),
        (b"retry: 10\ndata: x\n\n", [SseMessage(data=b"x", retry=10)]),
        (b"retry: 1x\ndata: x\n\n", [SseMessage(data=b"x")]),
        (b"retry\ndata: x\n\n", [SseMessage(data=b"x")]),
        (b"retry: 99999999999\ndata: x\n\n", [SseMessage(data=b"x")]),
        (b"Data: y\n data: z\nother\ndata: x\n\n", [SseMessage(data=b"x")]),
        (b"\xef\xbb\xbfdata: x\n\n", [SseMessage(data=b"x")]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: x\n\ndata: y\n\n", [SseMessage(data=b"y")]),
        (
            b"data: a\r\rdata: b\r\n\r\ndata: c\n\r",
            [SseMessage(data=x) for x in (b"a", b"b", b"c")],
        ),
        ("data: a\u2028b\x0bc\n\n".encode(), [SseMessage(data="a\u2028b\x0bc".encode())]),
        (b"", []),
    ],
)
def test_a_stream_is_read_as_the_standard_says(stream: bytes, expected: list[SseMessage]) -> None:
    assert read(stream) == expected
    assert read(stream, *range(len(stream))) == expected


def test_an_event_that_is_cut_off_is_dropped() -> None:
    assert read(b"data: one\n\ndata: tw") == [SseMessage(data=b"one")]


@given(st.lists(st.integers(0, 60), max_size=8))
def test_it_does_not_matter_where_the_bytes_are_cut(cuts: list[int]) -> None:
    stream = b"\xef\xbb\xbfdata: [1]\r\n\r\nevent: x\ndata: b\r\rid: 3\rdata: c\n\n: d\n"
    assert read(stream, *(min(cut, len(stream)) for cut in cuts)) == read(stream)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        for event in SseDecoder(max_event_bytes=20).feed(data):
            assert len(event.data) <= 20


@pytest.mark.parametrize(
    "data",
    [b"data: " + b"x" * 21, b"data: " + b"x" * 21 + b"\n", b"data: 123456789\n" * 3],
)
def test_an_event_that_is_too_long_is_refused(data: bytes) -> None:
    for step in (1, 7, len(data)):
        decoder = SseDecoder(max_event_bytes=20)
        with pytest.raises(RemoteProtocolError, match="is longer than 20 bytes"):
            for start in range(0, len(data), step):
                decoder.feed(data[start : start + step])


def test_an_event_of_the_longest_size_is_accepted() -> None:
    stream = b"data: 1234567890\ndata: 123456789\n\n" + b"data: " + b"x" * 20 + b"\n\n"
    decoder = SseDecoder(max_event_bytes=20)
    assert [len(event.data) for event in decoder.feed(stream)] == [20, 20]
