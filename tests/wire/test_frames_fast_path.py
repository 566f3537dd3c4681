"""What is read in a quick way is read as the general way would, and everything else by that."""

from __future__ import annotations

import json

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from semibot.errors import RemoteProtocolError
from semibot.wire.events import TextChunk
from semibot.wire.frames import (
    MAX_SEQ,
    SseEvent,
    decode_from_vm,
    encode_batch,
    encode_sse_event,
    peek_event,
)
from semibot.wire.frames.text import _plain_events

EVENT = SseEvent(session_id="s", term=1, seq=2, run_id="r", data='{"type":"x"}')
TEXT = encode_sse_event(EVENT)
CHUNK = '{"type":"text_chunk","content":"%s"}'

texts = st.text(st.characters(exclude_categories=["Cs"]))
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
events = st.builds(
    SseEvent,
    session_id=ids,
    run_id=ids,
    term=st.integers(1, 999_999_999),
    seq=st.integers(1, 10**18 - 1),
    data=texts,
)


@given(st.lists(events, min_size=1, max_size=5))
def test_what_was_encoded_is_decoded(sent):
    decoded = decode_from_vm(encode_batch([encode_sse_event(event) for event in sent]))
    assert decoded == (tuple(sent) if len(sent) > 1 else sent[0])


def test_events_of_semibot_take_the_quick_way():
    assert _plain_events(TEXT) == EVENT
    assert _plain_events(encode_batch([TEXT, TEXT])) == (EVENT, EVENT)


@pytest.mark.parametrize(
    "then",
    [
        EVENT,
        attrs.evolve(EVENT, seq=3),
        attrs.evolve(EVENT, seq=30),
        attrs.evolve(EVENT, seq=3, term=11),
        attrs.evolve(EVENT, seq=3, session_id="t"),
        attrs.evolve(EVENT, seq=3, run_id="q"),
    ],
)
def test_an_event_is_read_for_itself_whatever_the_one_before_it_is(then):
    sent = (EVENT, then, attrs.evolve(then, seq=then.seq + 1))
    assert _plain_events(encode_batch([encode_sse_event(event) for event in sent])) == sent


def test_the_number_after_the_highest_one_is_refused():
    highest = encode_sse_event(attrs.evolve(EVENT, seq=MAX_SEQ))
    too_high = highest.replace(str(MAX_SEQ), str(MAX_SEQ + 1))
    with pytest.raises(RemoteProtocolError, match="seq is out of range"):
        decode_from_vm(encode_batch([highest, too_high]))


@pytest.mark.parametrize(
    "text",
    [
        TEXT + " ",
        " " + TEXT,
        TEXT[:-1],
        TEXT + ",",
        TEXT + "," + TEXT,
        TEXT.replace('"term":1', '"term":01'),
        TEXT.replace('"term":1', '"term":1.0'),
        TEXT.replace('"s"', '"\\u0073"'),
        TEXT.replace('"s"', '"\ud800"'),
        TEXT.replace('"s"', '""'),
        TEXT.replace("x", "\n"),
        TEXT.replace("x", '"'),
        TEXT[:-1] + ',"seq":3}',
        encode_batch([TEXT, TEXT])[:-1],
        encode_batch([TEXT, TEXT]) + "}",
        encode_batch([TEXT, TEXT])[:-2] + ",]}",
        '{"type":"batch","frames":[' + ",".join([TEXT] * 513) + "]}",
    ],
)
def test_whatever_looks_different_is_left_to_the_general_way(text):
    assert _plain_events(text) is None


@given(st.one_of(texts, st.text(st.sampled_from('"\\/bfnrtu0d\n\x7f\u2028'))))
def test_a_chunk_is_seen_as_what_json_says(content):
    data = CHUNK % content
    try:
        is_chunk = "content" in json.loads(data) and "\\u" not in data
    except ValueError:
        is_chunk = False
        with pytest.raises(RemoteProtocolError):
            peek_event(data)
    if is_chunk:
        assert peek_event(data).type == TextChunk.type
        assert peek_event(data).run_id is None


@pytest.mark.parametrize("content", ["\ud800", "\\ud800", "\\x", "a\x1f", "\\"])
def test_a_chunk_that_is_no_json_is_refused(content):
    with pytest.raises(RemoteProtocolError):
        peek_event(CHUNK % content)
