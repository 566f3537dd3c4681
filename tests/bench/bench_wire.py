"""The load generator's end of sockets: as little work for each event as possible.

Frames are encoded and masked before the clock starts, and streams are not parsed: every
event of the load has :data:`MARK` in it exactly once, so counting bytes counts events, and
as they come in order, the n-th mark of a stream is the n-th event.
"""

from __future__ import annotations

import base64
import json
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import attrs
import trio

MARK = b"~"
"""In every event of the load once, and nowhere else."""

BUFFER_BYTES = 4 * 1024 * 1024
"""Of the kernel, for a reader, so that the generator never slows a server."""

_MASK = b"\x5a\xc3\x91\x2e"


@attrs.frozen
class Line:
    """A session that the VM holds: what its events are called."""

    session_id: str
    run_id: str
    term: int
    next_seq: int


def make_frames(lines: Sequence[Line], count: int, batch: int, turn: int = 1) -> list[bytes]:
    """Return WebSocket frames with *count* events in all; sessions take turns.

    Args:
        lines: The sessions.
        count: Events.
        batch: Events in one frame; 1 means bare ones.
        turn: Events that a session says before it is the next one's turn.
    """
    event = json.dumps(
        {"type": "text_chunk", "content": "~ a few words of text"}, separators=(",", ":")
    )
    data = json.dumps(event)
    heads = [
        f'{{"type":"sse_event","session_id":"{line.session_id}","term":{line.term},"seq":'
        for line in lines
    ]
    tails = [f',"run_id":"{line.run_id}","data":{data}}}' for line in lines]
    seqs = [line.next_seq for line in lines]
    texts = []
    for which in _turns(len(lines), count, turn):
        texts.append(f"{heads[which]}{seqs[which]}{tails[which]}")
        seqs[which] += 1
    if batch == 1:
        return [text_frame(text) for text in texts]
    groups = (texts[start : start + batch] for start in range(0, count, batch))
    return [text_frame(f'{{"type":"batch","frames":[{",".join(group)}]}}') for group in groups]


def advance(lines: Sequence[Line], count: int, turn: int = 1) -> list[Line]:
    """Return the sessions as they are after *count* events of :func:`make_frames`."""
    said = Counter(_turns(len(lines), count, turn))
    return [
        attrs.evolve(line, next_seq=line.next_seq + said[which]) for which, line in enumerate(lines)
    ]


def _turns(sessions: int, count: int, turn: int) -> Iterable[int]:
    """Return which session says each of *count* events."""
    return (number // turn % sessions for number in range(count))


def text_frame(text: str, opcode: int = 1) -> bytes:
    """Return a client's frame, masked as clients have to."""
    data = text.encode()
    size = len(data)
    if size < 126:
        head = bytes([0x80 | opcode, 0x80 | size])
    elif size < 65536:
        head = bytes([0x80 | opcode, 0xFE]) + size.to_bytes(2, "big")
    else:
        head = bytes([0x80 | opcode, 0xFF]) + size.to_bytes(8, "big")
    mask = (_MASK * (size // 4 + 1))[:size]
    masked = int.from_bytes(data, "big") ^ int.from_bytes(mask, "big")
    return head + _MASK + masked.to_bytes(size, "big")


async def _dial(port: int, *, buffer_bytes: int | None = None) -> trio.SocketStream:
    plain = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    if buffer_bytes is not None:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    try:
        await plain.connect(("127.0.0.1", port))
    except BaseException:
        plain.close()
        raise
    return trio.SocketStream(plain)


async def _read_head(stream: trio.SocketStream, status: bytes) -> tuple[bytes, bytes]:
    """Return the head of an answer, and what came behind it."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = await stream.receive_some(65536)
        assert piece, data
        data += piece
    head, _, rest = data.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 " + status), data
    return head, rest


@attrs.define(eq=False)
class Link:
    """A WebSocket to a server, as its client."""

    stream: trio.SocketStream
    _rest: bytes = b""

    async def send(self, **frame: object) -> None:
        """Send one frame that is not part of the load."""
        await self.stream.send_all(text_frame(json.dumps(frame)))

    async def receive(self) -> list[dict[str, object]]:
        """Return the frames of the next message; a batch has several. Pings are answered."""
        while True:
            opcode, payload = await self._receive_frame()
            if opcode == 9:
                await self.stream.send_all(text_frame(payload.decode(), opcode=10))
            elif opcode == 1:
                frame = json.loads(payload)
                return frame["frames"] if frame["type"] == "batch" else [frame]
            else:
                raise AssertionError(f"the server ends the link: {payload!r}")

    async def _receive_frame(self) -> tuple[int, bytes]:
        head = await self._receive_exactly(2)
        assert head[0] & 0x80, "servers here do not fragment"
        size = head[1]
        if size >= 126:
            size = int.from_bytes(await self._receive_exactly(2 if size == 126 else 8), "big")
        return head[0] & 15, await self._receive_exactly(size)

    async def _receive_exactly(self, size: int) -> bytes:
        while len(self._rest) < size:
            piece = await self.stream.receive_some(65536)
            assert piece, "the server has gone"
            self._rest += piece
        data, self._rest = self._rest[:size], self._rest[size:]
        return data


async def open_link(port: int, path: str) -> Link:
    """Connect as a VM does."""
    stream = await _dial(port)
    key = base64.b64encode(os.urandom(16)).decode()
    await stream.send_all(
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    _, rest = await _read_head(stream, b"101")
    return Link(stream, rest)


@attrs.define(eq=False)
class Reader:
    """One event stream; counts events."""

    stream: trio.SocketStream
    session_id: str
    run_id: str
    count: int = 0
    """Events that have come."""

    async def read(self, pause: float, on_events: Callable[[int], None]) -> None:
        """Read until cancelled.

        Args:
            pause: Seconds to let bytes gather between two reads, as reading them one by one
                would cost the generator more than most servers.
            on_events: Told how many events came.
        """
        while data := await self.stream.receive_some(1024 * 1024):
            if number := data.count(MARK):
                self.count += number
                on_events(number)
            if pause:
                await trio.sleep(pause)
        raise AssertionError("the server ended a stream")


async def open_reader(
    port: int, method: str, path: str, body: object = None, token: str = ""
) -> Reader:
    """Send a request that is answered by an event stream, and wait for its head."""
    stream = await _dial(port, buffer_bytes=BUFFER_BYTES)
    data = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    if token:
        lines.append(f"Authorization: Bearer {token}")
    await stream.send_all("\r\n".join([*lines, "", ""]).encode() + data)
    head, rest = await _read_head(stream, b"200")
    headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
    names = (headers.get(name, b"").decode() for name in (b"x-session-id", b"x-run-id"))
    if not rest:  # what comes first says that the stream is registered
        rest = await stream.receive_some(65536)
    return Reader(stream, *names, count=rest.count(MARK))


def in_pieces(frames: Iterable[bytes], size: int = 64 * 1024) -> list[bytes]:
    """Join frames to what one write takes, as a busy sender's kernel would."""
    pieces, piece, length = [], [], 0
    for frame in frames:
        piece.append(frame)
        length += len(frame)
        if length >= size:
            pieces.append(b"".join(piece))
            piece, length = [], 0
    return [*pieces, b"".join(piece)] if piece else pieces
