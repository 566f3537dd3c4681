from __future__ import annotations

import contextlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semibot.errors import RemoteProtocolError
from semibot.models.event_stream import EventStreamReader, ServerEvent


def read(data: bytes, *cuts: int) -> list[ServerEvent]:
    reader = EventStreamReader()
    bounds = [0, *sorted(cuts), len(data)]
    events: list[ServerEvent] = []
    for start, end in pairwise(bounds):
        events += reader.feed(data[start:end])
    return events


def test_events_have_data_and_a_name() -> None:
    stream = b": keep-alive\n\ndata: one\n\nevent: error\ndata:two\r\ndata: three\r\n\r\nid: 5\n\n"
    assert read(stream) == [
        ServerEvent(data=b"one"),
        ServerEvent(data=b"two\nthree", name="error"),
    ]


def test_an_event_that_is_cut_off_is_dropped() -> None:
    assert read(b"data: one\n\ndata: tw") == [ServerEvent(data=b"one")]


@given(st.lists(st.integers(0, 40), max_size=8))
def test_it_does_not_matter_where_the_bytes_are_cut(cuts: list[int]) -> None:
    stream = b"data: [1]\r\n\r\nevent: x\ndata: b\n\n: c\n"
    assert read(stream, *cuts) == read(stream)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_protocol_error(data: bytes) -> None:
    with contextlib.suppress(RemoteProtocolError):
        for event in EventStreamReader(max_event_bytes=20).feed(data):
            assert len(event.data) <= 20 + event.data.count(b"\n")


@pytest.mark.parametrize("data", [b"data: " + b"x" * 30, b"data: 123456789\n" * 3])
def test_an_event_that_is_too_long_is_refused(data: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        EventStreamReader(max_event_bytes=20).feed(data)
