"""What either side of a link may say (protocol sections 3 and 4)."""

from __future__ import annotations

from typing import ClassVar

import attrs
from attrs.validators import optional

from .limits import LEVEL, NUMBER, check_id


@attrs.frozen(kw_only=True)
class ProtocolRange:
    """The levels that a side speaks."""

    min: int = attrs.field(validator=LEVEL)
    """The lowest."""
    max: int = attrs.field(validator=LEVEL)
    """The highest."""

    def __attrs_post_init__(self) -> None:
        if self.min > self.max:
            raise ValueError("min is greater than max")


@attrs.frozen(kw_only=True)
class ErrorDetail:
    """Why a request was not answered."""

    code: str
    """Stable name."""
    message: str
    """What went wrong."""


@attrs.frozen(kw_only=True)
class ErrorFrame:
    """Answer to a frame that was malformed or is refused."""

    type: ClassVar[str] = "error"
    code: str
    """Stable name, such as ``SEQ_GAP``."""
    message: str
    """What went wrong."""
    id: str | None = attrs.field(default=None, validator=optional(check_id))
    """The frame that is answered, if it had an id."""
    session_id: str | None = attrs.field(default=None, validator=optional(check_id))
    """The session that it is about."""
    expected: int | None = attrs.field(default=None, validator=optional(NUMBER))
    """With ``SEQ_GAP``: the number to send from."""
