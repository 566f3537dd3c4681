"""Cursors of pages: opaque outside, checked when they come back.

A cursor is no secret and grants nothing, since every page asks for its owner; it only has to be
one that was made here, for pages of the same kind.
"""

from __future__ import annotations

import base64
from typing import Final

import attrs

from semibot.errors import BadCursor, RemoteProtocolError
from semibot.wire.codec import dump_json, load_json, structure, unstructure

LONGEST: Final = 512
"""Most characters of a cursor."""

LARGEST: Final = 2**63 - 1
"""Largest integer of the database."""


@attrs.frozen(kw_only=True)
class _Place:
    kind: str
    at: int
    id: str


def make_cursor(kind: str, at: int, id: str = "") -> str:
    """Return the cursor behind a row.

    Args:
        kind: What the pages are of.
        at: The integer that rows are sorted by.
        id: What sorts rows of the same *at*.
    """
    text = dump_json(unstructure(_Place(kind=kind, at=at, id=id)))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(kind: str, cursor: str) -> tuple[int, str]:
    """Return the ``at`` and ``id`` of a cursor.

    Raises:
        BadCursor: If :func:`make_cursor` did not make it for this *kind*.
    """
    try:
        if len(cursor) > LONGEST:
            raise ValueError
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        place = structure(load_json(text), _Place)
    except (ValueError, RemoteProtocolError):
        place = None
    if place is None or place.kind != kind or not -LARGEST <= place.at <= LARGEST:
        raise BadCursor("this cursor was not made here; begin again without one")
    return place.at, place.id
