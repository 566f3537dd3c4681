"""What is said on a link, read off the simulated network with semibot's own codec.

A tap is shown the bytes that one side sends; it splits them into WebSocket messages and
decodes those. It changes nothing, except that it can have one message said twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, final

from semibot.errors import RemoteProtocolError
from semibot.wire.frames import (
    Cancel,
    Cancelled,
    CommandAck,
    ConfigUpdate,
    FireAndForget,
    FromHost,
    FromVm,
    HostAck,
    HostHeartbeat,
    Request,
    Response,
    SseEvent,
    StartSession,
    StopSession,
    UserMessage,
    VmHeartbeat,
    decode_from_host,
    decode_from_vm,
)

Frame = FromVm | FromHost

COMMANDS: Final = (Cancel, ConfigUpdate, StartSession, StopSession, UserMessage)
"""What a host has a VM do; it says it again until it is answered."""

MAY_COME_TWICE: Final = (
    *COMMANDS, Cancelled, CommandAck, FireAndForget, HostAck, HostHeartbeat, Request, Response,
    SseEvent, VmHeartbeat,
)  # fmt: skip
"""What a peer may say again; a second handshake would be a mistake of its own."""

_TEXT: Final = 1
_CLOSE: Final = 8
_END_OF_HEAD: Final = b"\r\n\r\n"


@final
class Tap:
    """One direction of a link.

    Args:
        is_from_host: Whether the host sends in it.
        on_frames: Is told the frames of each message.
        on_close: Is told that the side says goodbye, and with what code.
    """

    def __init__(
        self,
        *,
        is_from_host: bool,
        on_frames: Callable[[Sequence[Frame]], None],
        on_close: Callable[[int], None],
    ) -> None:
        self._decode = decode_from_host if is_from_host else decode_from_vm
        self._on_frames = on_frames
        self._on_close = on_close
        self._buffer = bytearray()
        self._has_head = False
        self._text = bytearray()
        self.says_twice: Callable[[], None] | None = None
        """Is told, once, that the next message which may be was said twice."""
        self.twice: tuple[type, ...] = MAY_COME_TWICE
        """One of these has to be in that message."""

    def put(self, data: bytes) -> bytes | None:
        """Take what is sent; return what is to be said once more."""
        self._buffer += data
        if not self._has_head:
            end = self._buffer.find(_END_OF_HEAD)
            if end < 0:
                return None
            del self._buffer[: end + len(_END_OF_HEAD)]
            self._has_head = True
        again: bytes | None = None
        while (message := self._next()) is not None:
            raw, frames = message
            if not frames:
                continue
            self._on_frames(frames)
            # Said again it has to come next, so nothing of another message may be out.
            is_whole = raw[0] == 0x80 | _TEXT
            may_be = is_whole and all(isinstance(each, MAY_COME_TWICE) for each in frames)
            may_be = may_be and any(isinstance(each, self.twice) for each in frames)
            if self.says_twice is not None and may_be and not self._buffer:
                told, self.says_twice = self.says_twice, None
                told()
                again = raw
        return again

    def _next(self) -> tuple[bytes, Sequence[Frame]] | None:
        """Return the next WebSocket frame with what it says, or None if it is not whole."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        size, at = buffer[1] & 0x7F, 2
        if size >= 126:
            at = 4 if size == 126 else 10
            if len(buffer) < at:
                return None
            size = int.from_bytes(buffer[2:at], "big")
        mask = b""
        if buffer[1] & 0x80:
            mask = bytes(buffer[at : at + 4])
            at += 4
        if len(buffer) < at + size:
            return None
        raw = bytes(buffer[: at + size])
        opcode, is_last = buffer[0] & 0x0F, bool(buffer[0] & 0x80)
        del buffer[: at + size]
        return raw, self._said(opcode, is_last, _unmasked(raw[at:], mask))

    def _said(self, opcode: int, is_last: bool, payload: bytes) -> Sequence[Frame]:
        if opcode == _CLOSE:
            self._on_close(int.from_bytes(payload[:2], "big"))
        if opcode > _TEXT:
            return ()
        self._text += payload
        if not is_last:
            return ()
        text = self._text.decode()
        self._text.clear()
        try:
            frames = self._decode(text)
        except RemoteProtocolError:  # a fault may have made it up
            return ()
        return frames if isinstance(frames, tuple) else (frames,)


def _unmasked(data: bytes, mask: bytes) -> bytes:
    if not mask:
        return data
    key = int.from_bytes((mask * (len(data) // 4 + 1))[: len(data)], "little")
    return (int.from_bytes(data, "little") ^ key).to_bytes(len(data), "little")
