from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semibot.host.heads import MAX_HEAD_BYTES, BadHead, HeadFilter

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3;name=value\r\nabc\r\n0\r\nTrailer: t\r\n\r\n"
)
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: a2V5\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
)


def feed_all(*pieces: bytes) -> bytes:
    heads = HeadFilter()
    return b"".join(heads.feed(piece) for piece in pieces)


def test_requests_go_through_as_they_are():
    assert feed_all(GET + POST + CHUNKED + GET) == GET + POST + CHUNKED + GET


@given(st.lists(st.integers(0, len(GET + POST + CHUNKED + UPGRADE) + 9), max_size=12))
def test_it_does_not_matter_where_the_network_cuts(cuts):
    stream = GET + POST + CHUNKED + UPGRADE + b"\x81\x00\x00\r\n\r\n"
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    pieces = [stream[start:end] for start, end in itertools.pairwise(edges)]
    assert feed_all(*pieces) == feed_all(stream)


def test_an_offer_of_compression_does_not_reach_the_parser():
    passed = feed_all(UPGRADE)
    assert b"permessage-deflate" not in passed
    assert b"Upgrade: websocket" in passed


def test_after_an_upgrade_bytes_are_nobodys_business():
    frames = b"GET / HTTP/9.9\r\n\r\n" * 3
    assert feed_all(UPGRADE, frames).endswith(frames)


@pytest.mark.parametrize(
    "lacks",
    [
        (b"GET", b"POST"),
        (b", Upgrade", b""),
        (b", Upgrade", b"\r\nConnection: Upgrade\r\nConnection: close"),
        (b"Sec-WebSocket-Version: 13\r\n", b""),
        (b"Version: 13", b"Version: 12"),
        (b"Sec-WebSocket-Key: a2V5\r\n", b""),
    ],
)
def test_what_is_no_handshake_is_a_request_and_the_next_one_is_checked(lacks):
    head = UPGRADE.replace(*lacks)
    assert b"websocket\r\n" not in feed_all(head)
    with pytest.raises(BadHead):
        feed_all(head, b"PRI * HTTP/2.0\r\n\r\n")


def test_an_upgrade_to_http2_is_not_seen():
    head = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n"
    assert feed_all(head) == GET


def test_empty_lines_before_a_request_are_left_out():
    assert feed_all(b"\r\n\r\n" + GET) == GET


def test_a_head_is_known_to_be_incomplete_until_it_is_not():
    heads = HeadFilter()
    assert not heads.is_inside_head
    assert heads.feed(GET[:10]) == b""
    assert heads.is_inside_head
    heads.feed(GET[10:])
    assert (heads.is_inside_head, heads.requests) == (False, 1)


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (b"Content-Length: 1\r\nTransfer-Encoding: chunked", 400),
        (b"Content-Length: 1\r\nContent-Length: 2", 400),
        (b"Content-Length: +1", 400),
        (b"Content-Length: 1, 1", 400),
        (b"Transfer-Encoding: gzip, chunked", 501),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 501),
        (b"Content-Length : 1", 400),
        (b"A: b\r\n folded", 400),
        (b"no colon", 400),
        (b"A: b\nUpgrade: h2c", 400),
        (b"A: b\n\nGET / HTTP/1.1", 400),
        (b"A: b\rC: d", 400),
        (b"A: \x00", 400),
        (b": no name", 400),
        (UPGRADE.strip().partition(b"\r\n")[2] + b"\r\nContent-Length: 1", 400),
        (b"A: " + b"x" * 100_000, 431),
    ],
)
def test_an_ambiguous_or_malformed_header_is_refused(lines, status):
    with pytest.raises(BadHead) as refused:
        feed_all(b"GET / HTTP/1.1\r\n" + lines + b"\r\n\r\n")
    assert refused.value.status == status


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"PRI * HTTP/2.0\r\n\r\n", 400),
        (b"\x16\x03\x01 not even http\r\n\r\n", 400),
        (b"x" * (MAX_HEAD_BYTES + 1), 431),
    ],
)
def test_what_is_no_request_is_refused(data, status):
    with pytest.raises(BadHead) as refused:
        feed_all(data)
    assert refused.value.status == status


@pytest.mark.parametrize(
    "size",
    [
        b"zz\r\n",
        b"\r\n",
        b"-1\r\n",
        b"1" * 2000,
        b"0x5\r\n",
        b"00000000000000000005\r\n",  # 15 digits of it would be the last chunk
        b"5;a\nb\r\n",
        b"5 6\r\n",
    ],
)
def test_a_malformed_chunk_is_refused(size):
    head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    with pytest.raises(BadHead, match="chunk"):
        feed_all(head + size)


def test_the_same_length_twice_is_no_contradiction():
    head = b"POST / HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab"
    assert feed_all(head + GET) == head + GET


@given(st.binary(max_size=300))
def test_no_bytes_break_it(data):
    with contextlib.suppress(BadHead):
        feed_all(data, data)
