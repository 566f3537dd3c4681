"""What is done to either end of a link, and how it must answer."""

from __future__ import annotations

import json

import attrs
from raw_frames import BINARY, CLOSE, CONTINUE, PING, PONG, TEXT, close_frame, frame

LIVES = "lives"
"""Instead of a close code: the link goes on."""

BROKEN = "broken"
"""Instead of a close code: the connection ends without one, because whoever breaks the rules of
WebSockets is not spoken to any more."""

SILENT = "silent"
"""Instead of a close code: nothing happens until the silence has lasted too long."""


@attrs.frozen
class Case:
    """One misdeed."""

    name: str
    data: bytes
    answer: int | str
    """The close code, or one of the words above."""


def cases(*, is_masked: bool, alive: dict[str, object]) -> list[Case]:
    """Return the table for one end.

    Args:
        is_masked: Whether whoever does it is the client.
        alive: A frame of the protocol that is always fine.
    """

    def put(opcode: int, payload: bytes = b"", **fields: object) -> bytes:
        return frame(opcode, payload, **{"is_masked": is_masked, **fields})

    text = json.dumps(alive).encode()
    half = len(text) // 2
    first = put(TEXT, text[:half], is_last=False)
    last = put(CONTINUE, text[half:])
    return [
        Case("an empty binary frame", put(BINARY), 1003),
        Case("a binary frame", put(BINARY, b"\0\xff" * 9), 1003),
        Case("an empty text", put(TEXT), LIVES),
        Case("a text that is no JSON", put(TEXT, b"hello"), LIVES),
        Case("five texts that are no JSON", put(TEXT, b"x") * 5, 4400),
        Case("the wrong masking", put(TEXT, text, is_masked=not is_masked), BROKEN),
        Case("RSV1", put(TEXT, text, rsv=4), BROKEN),
        Case("RSV2", put(TEXT, text, rsv=2), BROKEN),
        Case("RSV3 on a ping", put(PING, rsv=1), BROKEN),
        Case("a reserved opcode", put(3, text), BROKEN),
        Case("a reserved control opcode", put(11), BROKEN),
        Case("a text in two fragments", first + last, LIVES),
        Case(
            "a text in fragments of one byte",
            put(TEXT, is_last=False)
            + b"".join(put(CONTINUE, text[i : i + 1], is_last=False) for i in range(len(text)))
            + put(CONTINUE),
            LIVES,
        ),
        Case("control frames between fragments", first + put(PING) + put(PONG) + last, LIVES),
        Case("a fragment of nothing", put(CONTINUE, text), BROKEN),
        Case("a text inside a text", first + put(TEXT, text), BROKEN),
        Case("a control frame that is too long", put(PING, b"x" * 126), BROKEN),
        Case("a control frame in fragments", put(PING, b"x", is_last=False), BROKEN),
        Case("a pong that nobody asked for", put(PONG, b"x" * 125), LIVES),
        Case("a flood of pings", put(PING, b"x" * 125) * 5000, LIVES),
        Case("bad UTF-8", put(TEXT, b'{"type":"\xc3\x28"}'), BROKEN),
        Case("a surrogate in UTF-8", put(TEXT, b'"\xed\xa0\x80"'), BROKEN),
        Case("bad UTF-8 over two fragments", put(TEXT, b"\xc3", is_last=False) + last, BROKEN),
        Case("a length in more bits than it needs", put(TEXT, text[:9], form=16), BROKEN),
        Case("a length in far more bits", put(TEXT, text[:9], form=64), BROKEN),
        Case("a length beyond 63 bits", put(TEXT, length=2**63, form=64), BROKEN),
        Case("a length that nobody has", put(TEXT, length=2**62, form=64), SILENT),
        Case("a frame that is too big", put(TEXT, b"x" * (10 * 1024 * 1024 + 1)), 1009),
        Case(
            "fragments that are too big",
            put(TEXT, b"x", is_last=False) + put(CONTINUE, b"x" * (512 * 1024), is_last=False) * 21,
            1009,
        ),
        Case("a close", close_frame(1000, b"bye", is_masked=is_masked), 1000),
        Case("a close without a code", put(CLOSE), 1005),
        Case("a close of one byte", put(CLOSE, b"\x03"), BROKEN),
        Case("a close code that is none", close_frame(999, is_masked=is_masked), BROKEN),
        Case("a close code for nobody", close_frame(1006, is_masked=is_masked), BROKEN),
        Case("a close with bad UTF-8", close_frame(1000, b"\xff", is_masked=is_masked), BROKEN),
        Case("half a frame and silence", put(TEXT, text)[:7], SILENT),
        Case("half a text and silence", first, SILENT),
    ]
