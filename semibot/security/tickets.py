"""One-time tickets and boot ids: kept as hashes, so that a copy of the database opens nothing."""

from __future__ import annotations

import hashlib

from semibot.ports import IdSource
from semibot.secret import Secret


def new_ticket(ids: IdSource) -> Secret:
    """Return a new one-time ticket, 128 random bits.

    Args:
        ids: Where fresh identifiers come from.
    """
    return Secret(ids.new_id())


def hash_secret(text: str) -> str:
    """Return the SHA-256 of a ticket or boot id as 64 hexadecimal digits.

    Only hashes are stored and compared; 128 random bits need no salt and no slow hash.
    """
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
