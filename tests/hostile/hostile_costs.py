"""Inputs that are made to cost much: they may cost what their length says, and no more."""

from __future__ import annotations

import json
import time
import tracemalloc
from collections.abc import Callable

from hostile_samples import TOKENS
from hostile_targets import (
    SECONDS,
    read_event,
    read_event_id,
    read_from_host,
    read_from_vm,
    read_heads,
    read_settings,
    read_vm_token,
)

from semibot.errors import ConfigError, RemoteProtocolError, TokenRefused
from semibot.wire.bridge import BridgeDecoder
from semibot.wire.frames import MAX_FRAME_BYTES
from semibot.wire.jsonl import MAX_LINE_BYTES, LineFramer
from semibot.wire.sse import SseDecoder

MIB = 1024 * 1024
REFUSALS = (RemoteProtocolError, ConfigError, TokenRefused)


def fill(size: int, start: bytes, each: bytes, end: bytes) -> bytes:
    return start + each * ((size - len(start) - len(end)) // len(each)) + end


def frames(size: int = MAX_FRAME_BYTES) -> dict[str, bytes]:
    """Return frames of at most *size* bytes, by what is in them."""
    return {
        "brackets": b"[" * size,
        "pairs of brackets": fill(size, b"[", b"[],", b"1]"),
        "objects in objects": fill(size, b"", b'{"a":', b""),
        "digits": b"1" * size,
        "a long number": fill(size, b'{"type":"heartbeat","sent_at":', b"9", b"}"),
        "a long fraction": fill(size, b'{"type":"heartbeat","sent_at":0.', b"9", b"}"),
        "an exponent": fill(size, b'{"type":"heartbeat","sent_at":1e', b"9", b"}"),
        "numbers": fill(size, b'{"type":"heartbeat","active_sessions":[', b"1,", b"1]}"),
        "texts": fill(size, b'{"type":"heartbeat","active_sessions":[', b'"",', b'""]}'),
        "escapes": fill(size, b'{"type":"sse_event","session_id":"s","data":"', b"\\u00e9", b'"}'),
        "half surrogates": fill(
            size, b'{"type":"sse_event","session_id":"s","data":"', b"\\ud800", b'"}'
        ),
        "backslashes": fill(size, b'{"type":"sse_event","session_id":"s","data":"', b"\\\\", b'"}'),
        "quotes": b'"' * size,
        "no end of a text": fill(size, b'{"type":"sse_event","data":"', b"x", b""),
        "keys": b"{" + b",".join(b'"%d":1' % n for n in range(size // 12)) + b"}",
        "the same key": fill(size, b"{", b'"a":1,', b'"a":1}'),
        "blanks": fill(size, b'{"type":"heartbeat",', b" ", b'"active_sessions":[]}'),
        "many frames": fill(
            size,
            b'{"type":"batch","frames":[',
            b'{"type":"heartbeat","active_sessions":[]},',
            b"1]}",
        ),
        "batches in batches": fill(size, b"", b'{"type":"batch","frames":[', b""),
        "events": fill(
            size,
            b'{"type":"batch","frames":[',
            b'{"type":"sse_event","session_id":"s","data":"{}","term":1,"seq":1,"run_id":"r"},',
            b"1]}",
        ),
        "an event of brackets": json.dumps(
            {"type": "sse_event", "session_id": "s", "data": "[" * (size // 10)}
        ).encode(),
        "a long id": fill(size, b'{"type":"request_cancel","id":"', b"x", b'"}'),
    }


READERS = {"vm": read_from_vm, "host": read_from_host}


def read_lines(data: bytes) -> None:
    framer, decoder = LineFramer(), BridgeDecoder()
    for start in range(0, len(data), 65536):
        for line in framer.feed(data[start : start + 65536]):
            decoder.decode(line, 0.0)


def read_lines_in_drops(data: bytes) -> None:
    framer = LineFramer()
    for start in range(0, len(data), 16):
        framer.feed(data[start : start + 16])


def read_sse(data: bytes) -> None:
    decoder = SseDecoder()
    for start in range(0, len(data), 16):
        decoder.feed(data[start : start + 16])


OTHERS: dict[str, tuple[Callable[[bytes], None], bytes]] = {
    "a line of a bridge": (read_lines, b"[" * (MAX_LINE_BYTES - 1) + b"\n"),
    "lines of nothing": (read_lines_in_drops, b"\n" * (MIB // 4)),
    "a line in drops": (read_lines_in_drops, b"x" * MAX_LINE_BYTES),
    "an event in drops": (read_sse, b"data: " + b"x" * (MIB - 100)),
    "data lines": (read_sse, b"data:\n" * (MIB // 24)),
    "line ends": (read_sse, b"\r" * (MIB // 4)),
    "an event id": (read_event_id, b"1" * MIB + b"-1"),
    "data of an event": (read_event, b'{"type":"text_chunk","content":' + b"[" * MIB),
    "settings": (read_settings, b"a." * 4000 + b"b = 1"),
    "nested settings": (read_settings, b"allow = " + b"[" * 8000),
    "a large settings file": (read_settings, b"# " + b"x" * MAX_FRAME_BYTES),
    "a long number in settings": (read_settings, b"port = " + b"1" * 8000),
    "a long token": (read_vm_token, b"a" * MAX_FRAME_BYTES),
    "a token of points": (read_vm_token, b"." * 8192),
    "a token with a long head": (
        read_vm_token,
        b"W1tb" * 2000 + b"." + TOKENS.make_vm_token("u1", "o1").encode(),
    ),
    "a head without an end": (read_heads, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 10_000),
    "a head of line ends": (read_heads, b"\r\n" * 20_000),
}


def cost(read: Callable[[bytes], None], data: bytes) -> tuple[float, float]:
    """Return the seconds of this thread and the MiB that an input takes, at most of two tries.

    The memory is 0 for large inputs, as watching it makes everything ten times slower.
    """
    seconds = peak = 0.0
    for _ in range(2):  # what else the machine does may spoil one of two
        start = time.thread_time()
        _attempt(read, data)
        seconds = time.thread_time() - start
        if seconds < SECONDS / 4:
            break
    if len(data) <= MIB // 4:
        tracemalloc.start()
        try:
            _attempt(read, data)
            peak = tracemalloc.get_traced_memory()[1] / MIB
        finally:
            tracemalloc.stop()
    return seconds, peak


def _attempt(read: Callable[[bytes], None], data: bytes) -> None:
    try:
        read(data)
    except REFUSALS:
        return
