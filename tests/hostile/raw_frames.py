"""WebSocket frames byte by byte, also those that no library would send (RFC 6455)."""

from __future__ import annotations

import json
import struct

import attrs
import trio

TEXT, BINARY, CLOSE, PING, PONG, CONTINUE = 1, 2, 8, 9, 10, 0

PATIENCE = 60.0
"""What an answer may take on a machine that is busy, in seconds; never waited for in vain."""


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    is_masked: bool,
    is_last: bool = True,
    rsv: int = 0,
    length: int | None = None,
    form: int | None = None,
) -> bytes:
    """Return a frame.

    Args:
        opcode: What it is.
        payload: Its data.
        is_masked: Whether it is masked, as those of clients must be.
        is_last: Whether no fragment follows.
        rsv: The three reserved bits.
        length: What it says its length is, if not the truth.
        form: Bits of the length: 7, 16 or 64; by default the fewest.
    """
    said = len(payload) if length is None else length
    if form is None:
        form = 7 if said < 126 else 16 if said < 2**16 else 64
    head = bytes([is_last << 7 | rsv << 4 | opcode])
    mask = is_masked << 7
    if form == 7:
        head += bytes([mask | said])
    elif form == 16:
        head += bytes([mask | 126]) + struct.pack("!H", said)
    else:
        head += bytes([mask | 127]) + struct.pack("!Q", said)
    return head + (b"\0\0\0\0" if is_masked else b"") + payload  # a mask of zeros changes nothing


def close_frame(code: int, reason: bytes = b"", *, is_masked: bool) -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason, is_masked=is_masked)


@attrs.define
class RawPeer:
    """One end of a WebSocket, by hand."""

    stream: trio.abc.Stream
    head: str = ""
    """Of the handshake."""
    texts: list[dict[str, object]] = attrs.field(factory=list)
    """Frames of the protocol that came and were not asked for, those of a batch one by one."""
    pongs: int = 0
    pings: int = 0
    close: int | None = None
    """The code of the close frame that came."""
    is_over: bool = False
    """Whether the connection has ended."""
    _data: bytearray = attrs.field(factory=bytearray)
    _turn: trio.Lock = attrs.field(factory=trio.Lock)

    async def send(self, data: bytes) -> bool:
        """Send bytes; return whether the other end still took them."""
        try:
            async with self._turn:
                await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    async def read_head(self) -> None:
        """Read what stands before the frames."""
        while b"\r\n\r\n" not in self._data:
            assert await self._more(), bytes(self._data)
        head, _, rest = bytes(self._data).partition(b"\r\n\r\n")
        self.head, self._data = head.decode("latin-1"), bytearray(rest)

    async def _more(self) -> bool:
        try:
            data = await self.stream.receive_some(65536)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        self._data += data
        self.is_over = not data
        return bool(data)

    async def _bytes(self, count: int) -> bytes | None:
        while len(self._data) < count:
            if not await self._more():
                return None
        taken = bytes(self._data[:count])
        del self._data[:count]
        return taken

    async def _next(self) -> tuple[int, bytes] | None:
        head = await self._bytes(2)
        if head is None:
            return None
        size = head[1] & 127
        if size > 125:
            extended = await self._bytes(2 if size == 126 else 8)
            if extended is None:
                return None
            size = int.from_bytes(extended, "big")
        mask = await self._bytes(4) if head[1] & 128 else b"\0\0\0\0"
        payload = await self._bytes(size)
        if mask is None or payload is None:
            return None
        key = mask * (size // 4 + 1)
        return head[0] & 15, bytes(a ^ b for a, b in zip(payload, key, strict=False))

    async def take(self) -> bool:
        """Take note of the next frame; return whether there was one."""
        found = await self._next()
        if found is None:
            return False
        opcode, payload = found
        if opcode == TEXT:
            value = json.loads(payload)
            self.texts += value["frames"] if value["type"] == "batch" else [value]
        elif opcode == PING:
            self.pings += 1
        elif opcode == PONG:
            self.pongs += 1
        elif opcode == CLOSE:
            self.close = int.from_bytes(payload[:2], "big") if payload else 1005
        return True

    async def hear(self, kind: str) -> dict[str, object]:
        """Return the next frame of the protocol of a kind; those before it are forgotten."""
        with trio.fail_after(PATIENCE):
            while True:
                while self.texts:
                    text = self.texts.pop(0)
                    if text["type"] == kind:
                        return text
                assert await self.take(), f"no {kind}; closed with {self.close}"

    async def wait_over(self) -> tuple[int | None, float]:
        """Return the close code, and how long the connection stood after it, in seconds."""
        closed_at = None
        with trio.fail_after(PATIENCE):
            while await self.take():
                if self.close is not None and closed_at is None:
                    closed_at = trio.current_time()
        return self.close, 0.0 if closed_at is None else trio.current_time() - closed_at
