"""Watch the request heads of one connection before the HTTP parser sees them.

The parser behind us agrees to compression of WebSocket messages, follows upgrades to HTTP/2,
prefers ``Transfer-Encoding`` where ``Content-Length`` contradicts it, and waits for a head
as long as somebody drips bytes. None of that has a setting, so it is decided here, on the
bytes. No I/O and no clock: the stream in ``server.py`` feeds it.
"""

from __future__ import annotations

import re
from typing import Final, Literal, TypeAlias, final

from semibot.errors import RemoteProtocolError

MAX_HEAD_BYTES: Final = 32 * 1024
"""Largest request head, the request line included."""

MAX_CHUNK_LINE: Final = 1024
"""Longest line that gives the size of a chunk, or one trailer."""

_DROPPED: Final = (b"sec-websocket-extensions", b"http2-settings")
_REQUEST_LINE: Final = re.compile(rb"[!-~]+ [!-~]+ HTTP/1\.[01]")
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[\t -~\x80-\xff]*)?[ \t]*")
_STRAY_LINE_END: Final = re.compile(rb"[\x00\r\n]")
_LENGTH: Final = re.compile(rb"[0-9]{1,18}")

_State: TypeAlias = Literal["head", "body", "chunk_size", "chunk", "trailers", "upgraded"]


class BadHead(RemoteProtocolError):
    """Raised for a request that is answered here and goes no further.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@final
class HeadFilter:
    """Passes on the bytes of a connection, with its request heads checked and cleaned."""

    def __init__(self) -> None:
        self._state: _State = "head"
        self._buffer = bytearray()
        self._left = 0
        self.requests: int = 0
        """How many heads were passed on."""

    @property
    def is_inside_head(self) -> bool:
        """Whether a head has begun and not ended."""
        return self._state == "head" and bool(self._buffer)

    @property
    def is_upgraded(self) -> bool:
        """Whether what comes now are the frames of a WebSocket."""
        return self._state == "upgraded"

    def feed(self, data: bytes | bytearray) -> bytes:
        """Return what may go to the parser; it is empty while a head is incomplete.

        Args:
            data: The next bytes of the connection.

        Raises:
            BadHead: If a request is malformed or ambiguous (RFC 9112 section 6.3), or its
                head is too large.
        """
        self._buffer += data
        passed = bytearray()
        while self._buffer:
            before = len(self._buffer), self._state
            match self._state:
                case "head":
                    self._read_head(passed)
                case "body" | "chunk":
                    self._pass_body(passed)
                case "chunk_size" | "trailers":
                    self._read_line(passed)
                case "upgraded":
                    passed += self._buffer
                    self._buffer.clear()
            if (len(self._buffer), self._state) == before:
                break  # needs more bytes
        return bytes(passed)

    # --- heads ------------------------------------------------------------------------

    def _read_head(self, passed: bytearray) -> None:
        while self._buffer.startswith(b"\r\n"):  # RFC 9112 section 2.2 lets them stand before
            del self._buffer[:2]
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 and len(self._buffer) <= MAX_HEAD_BYTES:
            return
        if end < 0 or end > MAX_HEAD_BYTES:
            raise BadHead(431, "the request head is too large")
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        passed += self._clean(head)
        self.requests += 1

    def _clean(self, head: bytes) -> bytes:
        request, *lines = head.split(b"\r\n")
        if not _REQUEST_LINE.fullmatch(request):
            raise BadHead(400, "the request line is malformed, or not HTTP/1.1")
        kept = [request]
        lengths: set[bytes] = set()
        is_chunked = wants_websocket = False
        may_upgrade = request.startswith(b"GET ") and _is_handshake(lines)
        for line in lines:
            name, colon, value = line.partition(b":")
            lowered, value = name.lower(), value.strip(b" \t")
            # The parser would take a line feed alone for the end of a line, or of the head.
            if not colon or not name or name != name.strip(b" \t") or _STRAY_LINE_END.search(line):
                raise BadHead(400, "a header is malformed")
            if lowered in _DROPPED:
                continue
            if lowered == b"upgrade":
                if value.lower() != b"websocket" or not may_upgrade:
                    continue
                wants_websocket = True
            elif lowered == b"content-length":
                lengths.add(value)
            elif lowered == b"transfer-encoding":
                if value.lower() != b"chunked" or is_chunked:
                    raise BadHead(501, "this transfer encoding is not supported")
                is_chunked = True
            kept.append(line)
        self._state, self._left = self._framing(lengths, is_chunked, wants_websocket)
        return b"\r\n".join(kept) + b"\r\n\r\n"

    def _framing(
        self, lengths: set[bytes], is_chunked: bool, wants_websocket: bool
    ) -> tuple[_State, int]:
        if is_chunked and lengths:
            raise BadHead(400, "Content-Length and Transfer-Encoding contradict each other")
        if is_chunked:
            return "chunk_size", 0
        if len(lengths) > 1 or not all(_LENGTH.fullmatch(value) for value in lengths):
            raise BadHead(400, "Content-Length is malformed")
        left = int(lengths.pop()) if lengths else 0
        if wants_websocket:
            if left:
                raise BadHead(400, "an upgrade has no body")
            return "upgraded", 0
        return ("body", left) if left else ("head", 0)

    # --- bodies -----------------------------------------------------------------------

    def _pass_body(self, passed: bytearray) -> None:
        piece = self._buffer[: self._left]
        passed += piece
        del self._buffer[: len(piece)]
        self._left -= len(piece)
        if not self._left:
            self._state = "head" if self._state == "body" else "chunk_size"

    def _read_line(self, passed: bytearray) -> None:
        end = self._buffer.find(b"\r\n")
        if end > MAX_CHUNK_LINE or (end < 0 and len(self._buffer) > MAX_CHUNK_LINE):
            raise BadHead(400, "a chunk of the body is malformed")
        if end < 0:
            return
        line = bytes(self._buffer[:end])
        passed += self._buffer[: end + 2]
        del self._buffer[: end + 2]
        if self._state == "trailers":
            if not line:
                self._state = "head"
            return
        size = _CHUNK_SIZE.fullmatch(line)
        if size is None:
            raise BadHead(400, "a chunk of the body is malformed")
        length = int(size[1], 16)
        # The two bytes behind a chunk are its line end.
        self._state, self._left = ("chunk", length + 2) if length else ("trailers", 0)


def _is_handshake(lines: list[bytes]) -> bool:
    """Return whether the parser will take a GET for a WebSocket's handshake, and answer it.

    From there on bytes go through unseen, so whatever is anything less must stay a request:
    it would be followed by others, or stay open for ever after its refusal.
    """
    said: dict[bytes, bytes] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        said[name.lower()] = value.strip(b" \t").lower()
    tokens = [token.strip(b" \t") for token in said.get(b"connection", b"").split(b",")]
    return (
        b"upgrade" in tokens
        and said.get(b"sec-websocket-version") == b"13"
        and b"sec-websocket-key" in said
    )
