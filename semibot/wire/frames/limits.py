"""How large frames and the numbers and names in them may be (protocol section 2)."""

from __future__ import annotations

from typing import Final, final

import attrs

MAX_AUTH_BYTES: Final = 16 * 1024
"""Largest frame before ``auth`` has succeeded."""

MAX_FRAME_BYTES: Final = 10 * 1024 * 1024
"""Largest frame that is accepted afterwards."""

MAX_SENT_BYTES: Final = 256 * 1024
"""Largest frame that is made, except for one larger object."""

MAX_BATCH_BYTES: Final = 64 * 1024
"""Most bytes of frames in one batch."""

MAX_BATCH_FRAMES: Final = 512
"""Most frames in one batch."""

MAX_EVENT_BYTES: Final = 1024 * 1024
"""Largest ``data`` of one event."""

MEMORY_SESSION: Final = "__memory__"
"""The ``session_id`` of requests that belong to the VM and no session."""

MAX_TERM: Final = 10**9 - 1
"""Highest term: an event id has nine digits for it."""

MAX_SEQ: Final = 10**18 - 1
"""Highest number of an event: an event id has eighteen digits for it."""

MAX_ID_LENGTH: Final = 256
"""Most characters of an identifier."""


MAX_NAMED: Final = 10_000
"""Most things that one frame may name, such as commands or sessions."""

MAX_STACK: Final = 64
"""Most functions of the stack that a heartbeat tells."""


@final
@attrs.frozen
class Between:
    """Validates that a field lies in a range, ends included."""

    low: int
    high: int

    def __call__(self, _: object, field: attrs.Attribute[int], value: int) -> None:
        """Check one field.

        Raises:
            ValueError: If it is out of range; the codec turns that into a protocol error.
        """
        if not self.low <= value <= self.high:
            message = f"{field.name} is not between {self.low} and {self.high}"
            raise ValueError(message)


TERM: Final = Between(1, MAX_TERM)
"""A fencing counter."""

NUMBER: Final = Between(1, MAX_SEQ)
"""The number of an event."""

COUNT: Final = Between(0, MAX_SEQ)
"""A number that may be 0, which means none or nothing."""

LEVEL: Final = Between(1, 999)
"""A level of the protocol."""


def check_id(_: object, field: attrs.Attribute[str], value: str) -> None:
    """Check that an identifier is neither empty nor too long.

    Raises:
        ValueError: If it is either; the codec turns that into a protocol error.
    """
    if not 0 < len(value) <= MAX_ID_LENGTH:
        message = f"{field.name} is empty or too long"
        raise ValueError(message)
