"""Everything that reads what strangers say, and the one error that each may answer with.

:func:`attack` is what the tests run with few examples, and ``run.py`` with many.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import attrs
import hostile_samples as samples
from hostile_inputs import hostile, in_pieces
from hypothesis import HealthCheck, Phase, given, settings

from semibot.config.loader import HostFlags, load_host_settings
from semibot.errors import ConfigError, RemoteProtocolError, TokenRefused
from semibot.host.heads import HeadFilter
from semibot.security.envelope import open_keys
from semibot.wire.bridge import BridgeDecoder
from semibot.wire.codec import load_json
from semibot.wire.frames import (
    Resume,
    ResumeResponse,
    decode_from_host,
    decode_from_vm,
    encode_batch,
    encode_frame,
    peek_event,
)
from semibot.wire.jsonl import LineFramer
from semibot.wire.sse import EventId, SseDecoder

SECONDS = 1.0
"""What no input may take, in seconds of this thread's time."""

MEGABYTES = 200
"""What the process may grow by in all, in MiB."""


@attrs.frozen(kw_only=True)
class Target:
    """Something that reads what strangers say."""

    name: str
    samples: list[bytes]
    read: Callable[[bytes], object]
    refuses: type[Exception] | tuple[()]
    """The one error that it may raise."""
    is_json: bool = True
    is_stream: bool = False


def _as_text(data: bytes) -> str:
    """Return bytes as a text in which anything may stand, lone surrogates too."""
    return data.decode("utf-8", "surrogatepass" if b"\xed" in data else "replace")


def _text_of(data: bytes) -> str:
    try:
        return _as_text(data)
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_from_vm(data: bytes) -> None:
    """What is accepted can be said again, and means the same."""
    decoded = decode_from_vm(_text_of(data))
    frames = decoded if isinstance(decoded, tuple) else (decoded,)
    if frames:
        again = decode_from_vm(encode_batch([encode_frame(frame) for frame in frames]))
        assert (again if isinstance(again, tuple) else (again,)) == frames


def read_from_host(data: bytes) -> None:
    decoded = decode_from_host(_text_of(data))
    frames = decoded if isinstance(decoded, tuple) else (decoded,)
    if frames:
        again = decode_from_host(encode_batch([encode_frame(frame) for frame in frames]))
        assert (again if isinstance(again, tuple) else (again,)) == frames


def read_resume(data: bytes) -> None:
    frame = decode_from_vm(_text_of(data))
    if isinstance(frame, Resume):
        for held in (frame.sessions or {}).values():
            assert 1 <= held.first_seq <= held.last_seq + 1
            assert held.term >= 1


def read_resume_response(data: bytes) -> None:
    frame = decode_from_host(_text_of(data))
    if isinstance(frame, ResumeResponse):
        for status in (frame.sessions or {}).values():
            assert status.acked_seq is None or status.acked_seq >= 0


def read_event(data: bytes) -> None:
    peek_event(_text_of(data))


def read_event_id(data: bytes) -> None:
    text = _text_of(data)
    found = EventId.parse(text)
    assert found.term >= 0
    assert found.seq >= 0
    assert EventId.parse(str(found)) == found


def _pieces(data: bytes) -> list[bytes]:
    size = 1 + len(data) % 7
    start = data[:700]
    return [start[at : at + size] for at in range(0, len(start), size)] + [data[700:]]


def read_lines(data: bytes) -> None:
    framer, decoder = LineFramer(4096), BridgeDecoder()
    whole = LineFramer(4096).feed(data)
    lines = [line for piece in _pieces(data) for line in framer.feed(piece)]
    assert lines == whole
    for line in lines:
        try:
            decoder.decode(line, 0.0)
        except RemoteProtocolError:
            continue


def read_sse(data: bytes) -> None:
    decoder = SseDecoder(4096)
    whole = SseDecoder(4096).feed(data)
    assert [message for piece in _pieces(data) for message in decoder.feed(piece)] == whole


def read_settings(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "semibot.toml").write_bytes(data)
        load_host_settings({}, HostFlags(), default_data_dir=Path(directory))


def read_vm_token(data: bytes) -> None:
    claims = samples.TOKENS.verify_vm_token(_text_of(data))
    assert claims.user_id == "u1"


def read_user_token(data: bytes) -> None:
    claims = samples.TOKENS.verify_user_token(_text_of(data))
    assert claims.user_id == "u1"


def read_keys(data: bytes) -> None:
    value = load_json(data)
    if isinstance(value, dict):
        open_keys(value, "vm-token-1")


def read_heads(data: bytes) -> None:
    heads = HeadFilter()
    for piece in _pieces(data):
        heads.feed(piece)


TARGETS = [
    Target(
        name="frames of a VM",
        samples=samples.FROM_VM,
        read=read_from_vm,
        refuses=RemoteProtocolError,
    ),
    Target(
        name="frames of a host",
        samples=samples.FROM_HOST,
        read=read_from_host,
        refuses=RemoteProtocolError,
    ),
    Target(
        name="resume",
        samples=[each for each in samples.FROM_VM if b'"resume"' in each],
        read=read_resume,
        refuses=RemoteProtocolError,
    ),
    Target(
        name="resume_response",
        samples=[each for each in samples.FROM_HOST if b'"resume_response"' in each],
        read=read_resume_response,
        refuses=RemoteProtocolError,
    ),
    Target(
        name="data of an event",
        samples=[b'{"type":"text_chunk","content":"x"}', *samples.FROM_BRIDGE],
        read=read_event,
        refuses=RemoteProtocolError,
    ),
    Target(
        name="event ids",
        samples=samples.EVENT_IDS,
        read=read_event_id,
        refuses=RemoteProtocolError,
        is_json=False,
    ),
    Target(
        name="lines of a bridge",
        samples=samples.FROM_BRIDGE,
        read=read_lines,
        refuses=RemoteProtocolError,
        is_stream=True,
    ),
    Target(
        name="event streams",
        samples=samples.SSE,
        read=read_sse,
        refuses=RemoteProtocolError,
        is_json=False,
        is_stream=True,
    ),
    Target(
        name="the settings file",
        samples=samples.SETTINGS,
        read=read_settings,
        refuses=ConfigError,
        is_json=False,
    ),
    Target(
        name="VM tokens",
        samples=samples.JWT,
        read=read_vm_token,
        refuses=TokenRefused,
        is_json=False,
    ),
    Target(
        name="user tokens",
        samples=samples.JWT,
        read=read_user_token,
        refuses=TokenRefused,
        is_json=False,
    ),
    Target(
        name="sealed keys",
        samples=samples.KEYS,
        read=read_keys,
        refuses=RemoteProtocolError,
    ),
    Target(
        name="request heads",
        samples=samples.HEADS,
        read=read_heads,
        refuses=RemoteProtocolError,
        is_json=False,
        is_stream=True,
    ),
]


@attrs.define
class Outcome:
    """What came of an attack."""

    accepted: int = 0
    refused: int = 0
    slowest: float = 0.0
    """Seconds of one input."""


def attack(target: Target, examples: int) -> Outcome:
    """Give *target* as many inputs; they are the same each time.

    Raises:
        AssertionError: If one takes too long, or too much memory.
        Exception: Whatever it raises that it may not.
    """
    outcome = Outcome()
    strategy = in_pieces if target.is_stream else hostile

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy(target.samples, is_json=target.is_json))
    def probe(data: bytes) -> None:
        start = time.thread_time()
        try:
            target.read(data)
        except target.refuses as exc:
            outcome.refused += 1
            length = len(str(exc))
        else:
            length = 0
            outcome.accepted += 1
        seconds = time.thread_time() - start
        outcome.slowest = max(outcome.slowest, seconds)
        assert seconds < SECONDS, f"{seconds:.2f} s"
        assert length < 4000

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    probe()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < MEGABYTES, f"{grown:.0f} MiB more"
    return outcome
