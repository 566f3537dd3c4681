"""One session's ordered way out of a VM: events, notes and the newest snapshot.

See :mod:`semibot.wire.outgoing` for the theory. A lane only orders things; what may be
sent when, and how much may be kept, is decided there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Final, TypeAlias, final

import attrs


@final
@attrs.define(eq=False)
class LaneEvent:
    """An event, until it is acknowledged."""

    place: int
    """Where it stands in the lane's order."""
    seq: int
    """Its number."""
    text: str
    """Its frame."""
    size: int
    """Bytes of the frame."""


@final
@attrs.define(eq=False)
class LaneNote:
    """An answer to commands, until the host has named all of them."""

    place: int
    """Where it stands in the lane's order."""
    commands: set[str]
    """Commands that the host has yet to name."""
    text: str
    """Its frame."""
    size: int
    """Bytes of the frame."""


@final
@attrs.define(eq=False)
class LaneSnapshot:
    """What a session continues from elsewhere."""

    place: int
    """Where it stands in the lane's order."""
    id: str
    """What the host acknowledges it by; empty if it never will."""
    text: str
    """Its frame."""
    size: int
    """Bytes of the frame."""


LaneItem: TypeAlias = LaneEvent | LaneNote | LaneSnapshot
"""What a lane sends."""


@final
class SessionLane:
    """One session's ordered way out; made by :meth:`Outgoing.open`."""

    def __init__(self, session_id: str, term: int, next_seq: int) -> None:
        self.session_id: Final = session_id
        """The session."""
        self.term: Final = term
        """Fencing counter that its events carry."""
        self.last_seq: int = next_seq - 1
        """Newest event that was put here."""
        self.is_open: bool = True
        """Whether the session goes on; a closed lane only gets rid of what it has."""
        self.is_live: bool = True
        """False once it was discarded or replaced: what is put here then is ignored."""
        self.kept_bytes: int = 0
        """Bytes of events and notes that the host has not acknowledged."""
        self.is_held: bool = False
        """Whether the host has yet to answer for it on this link."""
        self.is_waiting: bool = False
        """Whether it stands in the queue for its turn."""
        self.places: int = 0
        """Places given out so far."""
        self.sent: deque[LaneEvent] = deque()
        self.unsent: deque[LaneEvent] = deque()
        self.sent_notes: deque[LaneNote] = deque()
        self.unsent_notes: deque[LaneNote] = deque()
        self.sent_snapshot: LaneSnapshot | None = None
        self.unsent_snapshot: LaneSnapshot | None = None

    @property
    def first_seq(self) -> int:
        """Oldest event without an acknowledgement; ``last_seq + 1`` if there is none."""
        for events in (self.sent, self.unsent):
            if events:
                return events[0].seq
        return self.last_seq + 1

    @property
    def is_empty(self) -> bool:
        """Whether the host has everything."""
        return not (
            self.sent
            or self.unsent
            or self.sent_notes
            or self.unsent_notes
            or self.sent_snapshot
            or self.unsent_snapshot
        )

    def next_place(self) -> int:
        """Return the place behind everything so far."""
        self.places += 1
        return self.places

    def head(self) -> LaneItem | None:
        """Return what is to be sent next, without moving it."""
        found: LaneItem | None = self.unsent[0] if self.unsent else None
        if self.unsent_notes and (found is None or self.unsent_notes[0].place < found.place):
            found = self.unsent_notes[0]
        snapshot = self.unsent_snapshot
        if snapshot is not None and (found is None or snapshot.place < found.place):
            found = snapshot
        return found

    def advance(self, head: LaneItem) -> None:
        """Count *head* as sent on this link."""
        match head:
            case LaneEvent():
                self.sent.append(self.unsent.popleft())
            case LaneNote():
                self.sent_notes.append(self.unsent_notes.popleft())
            case LaneSnapshot():
                # Without an id the host could never say that it has it.
                self.sent_snapshot = head if head.id else None
                self.unsent_snapshot = None

    def rewind(self) -> None:
        """Count nothing as sent any more."""
        self.unsent.extendleft(reversed(self.sent))
        self.sent.clear()
        self.unsent_notes.extendleft(reversed(self.sent_notes))
        self.sent_notes.clear()
        self.unsent_snapshot = self.unsent_snapshot or self.sent_snapshot
        self.sent_snapshot = None

    def take_over(self, earlier: SessionLane) -> None:
        """Go on from a lane of the same session that was closed.

        Events of an earlier term are left behind: the host refuses them for good.
        """
        self.places = earlier.places
        self.sent_notes, self.unsent_notes = earlier.sent_notes, earlier.unsent_notes
        if earlier.term == self.term:
            self.sent, self.unsent = earlier.sent, earlier.unsent
            self.sent_snapshot = earlier.sent_snapshot
            self.unsent_snapshot = earlier.unsent_snapshot
        kept: Iterable[LaneEvent | LaneNote]
        for kept in (self.sent, self.unsent, self.sent_notes, self.unsent_notes):
            self.kept_bytes += sum(item.size for item in kept)
