"""Judge the numbers of a session's events as a host receives them (protocol section 5).

The host takes only the next number after the last *received* one. What it has received and
not yet committed is remembered by a hash, because after a fault the VM sends it again, and
other bytes under one number would make an id lie. No I/O and no clock; one object per session
and link, used by the link's reader and its committer.
"""

from __future__ import annotations

from collections import deque
from typing import TypeAlias, final

import attrs


@attrs.frozen
class Accept:
    """The next number: take the event."""


@attrs.frozen
class Duplicate:
    """The number is known, and its bytes are the same as far as is remembered here."""

    committed: int
    """Committed maximum, for the answer."""
    is_committed: bool
    """Whether the number itself is committed: only the store still knows its bytes."""


@attrs.frozen
class Gap:
    """Numbers are missing before this one."""

    expected: int
    """Number to send from."""


@attrs.frozen
class Conflict:
    """Other bytes came under this number before."""


@attrs.frozen
class Fenced:
    """The event is of a term that is not the session's."""


Verdict: TypeAlias = Accept | Duplicate | Gap | Conflict | Fenced
"""What is to be done about one event."""

_ACCEPT = Accept()


@final
class Incoming:
    """The numbers of one session.

    Args:
        term: Fencing counter that its events have to carry, from 1.
        committed: Committed maximum, 0 if there is none.
    """

    def __init__(self, term: int, committed: int) -> None:
        self._term = term
        self._committed = committed
        self._hashes: deque[int] = deque()

    @property
    def term(self) -> int:
        """Fencing counter of the session."""
        return self._term

    @property
    def committed(self) -> int:
        """Committed maximum."""
        return self._committed

    @property
    def received(self) -> int:
        """Number of the last event that was taken."""
        return self._committed + len(self._hashes)

    def judge(self, term: int, seq: int, run_id: str, data: str) -> Verdict:
        """Judge one event, and remember it if it is to be taken.

        Args:
            term: The event's fencing counter.
            seq: Its number; anything below 1 is a conflict.
            run_id: The run that says it.
            data: Its JSON text.
        """
        if term != self._term:
            return Fenced()
        ahead = seq - self._committed
        if ahead == len(self._hashes) + 1:
            self._hashes.append(hash((run_id, data)))
            return _ACCEPT
        if seq < 1:
            return Conflict()
        if ahead > len(self._hashes):
            return Gap(expected=self.received + 1)
        if ahead < 1:
            return Duplicate(committed=self._committed, is_committed=True)
        if self._hashes[ahead - 1] != hash((run_id, data)):
            return Conflict()
        return Duplicate(committed=self._committed, is_committed=False)

    def commit(self, seq: int) -> None:
        """Note that everything up to *seq* is committed; an older number changes nothing.

        Args:
            seq: Committed maximum. It may be above what was received here, when somebody
                else wrote: the session then goes on from there.
        """
        for _ in range(min(seq - self._committed, len(self._hashes))):
            self._hashes.popleft()
        self._committed = max(self._committed, seq)
