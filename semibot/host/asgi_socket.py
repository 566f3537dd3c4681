"""A WebSocket as ASGI gives it: text frames of a bounded size in and out, and one close."""

from __future__ import annotations

from typing import Final, final

import trio

from semibot.wire.link import CloseCode

from .server import Receive, Send
from .vm_link import size_of

GONE: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What sending raises when nobody is there any more."""


@final
class Refused(Exception):
    """Raised where the socket is to be closed.

    Attributes:
        code: Close code (protocol section 2).
        reason: A constant word or two.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


@final
class PeerGone(Exception):
    """Raised where nobody is there any more."""


@final
class AsgiSocket:
    """One WebSocket. One task receives, one sends.

    Args:
        receive: Gives the next ASGI message.
        send: Takes one; the server bounds how long it may take.
    """

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._is_gone = False
        self._is_closed = False

    async def accept(self) -> None:
        """Finish the handshake, without a subprotocol.

        Raises:
            PeerGone: If the client does not wait for it.
        """
        message = await self._receive()
        if message["type"] != "websocket.connect":
            self._is_gone = True
            raise PeerGone
        await self._put({"type": "websocket.accept"})

    async def receive(self, max_bytes: int) -> str:
        """Return the next text frame.

        Args:
            max_bytes: Most bytes of UTF-8 that it may have.

        Raises:
            Refused: If it is binary (1003) or too big (1009).
            PeerGone: If there are no more.
        """
        message = await self._receive()
        if message["type"] != "websocket.receive":
            self._is_gone = True
            raise PeerGone
        text = message.get("text")
        if not isinstance(text, str):
            raise Refused(CloseCode.NOT_TEXT, "text frames only")
        # A character has at most four bytes, so that a short text is not measured.
        if len(text) > max_bytes // 4 and size_of(text) > max_bytes:
            raise Refused(CloseCode.TOO_BIG, "frame too big")
        return text

    async def send(self, text: str) -> None:
        """Send a text frame.

        Raises:
            PeerGone: If nobody is there any more.
        """
        await self._put({"type": "websocket.send", "text": text})

    async def close(self, code: int, reason: str) -> None:
        """Send the close frame, if there is still somebody to get it; only once."""
        if self._is_gone or self._is_closed:
            return
        self._is_closed = True
        try:
            await self._put({"type": "websocket.close", "code": code, "reason": reason})
        except PeerGone:
            return

    async def _put(self, message: dict[str, object]) -> None:
        if self._is_gone:
            raise PeerGone
        try:
            await self._send(message)
        except GONE:
            self._is_gone = True
            raise PeerGone from None
