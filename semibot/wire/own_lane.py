"""What a VM says for itself and not for a session: requests, reports, errors.

It belongs to one link and is empty when the next begins: those who put things here know
best what to say again. After a reconnect requests go before everything else, and reports
wait until the sessions have said again what was lost (protocol section 2, steps 8 to 10).
"""

from __future__ import annotations

from collections import deque
from typing import Protocol, final


class Outbound(Protocol):
    """Something that a VM says for itself when its turn comes."""

    def text(self) -> str | None:
        """Return the frame as of now, or None if it need not be sent any more."""
        ...

    def taken(self) -> None:
        """Learn that it is about to be written."""
        ...

    def written(self, level: int) -> None:
        """Learn that it was written to a link of *level*."""
        ...


@final
class OwnLane:
    """The VM's own way out; takes turns with those of sessions."""

    def __init__(self) -> None:
        self.is_waiting: bool = False
        """Whether it stands in the queue for its turn."""
        self._first: deque[Outbound] = deque()
        self._items: deque[Outbound] = deque()
        self._last: deque[Outbound] = deque()
        self._in_flight: list[Outbound] = []

    @property
    def goes_first(self) -> bool:
        """Whether everybody else has to wait for it."""
        return bool(self._first)

    @property
    def is_empty(self) -> bool:
        """Whether everything was written."""
        return not (self._first or self._items or self._last or self._in_flight)

    def put(self, item: Outbound, *, first: bool = False, last: bool = False) -> None:
        """Queue something.

        Args:
            item: What to say.
            first: Before everything that sessions say.
            last: Only after :meth:`release`.
        """
        (self._first if first else self._last if last else self._items).append(item)

    def release(self) -> None:
        """Let go what had to wait until now."""
        self._items.extend(self._last)
        self._last.clear()

    def head(self) -> str | None:
        """Return the next frame, without moving it; None if there is none."""
        for items in (self._first, self._items):
            while items:
                text = items[0].text()
                if text is not None:
                    return text
                items.popleft()
        return None

    def advance(self) -> None:
        """Count the next frame as taken."""
        item = (self._first or self._items).popleft()
        item.taken()
        self._in_flight.append(item)

    def written(self, level: int) -> None:
        """Tell what was taken that it was written."""
        items, self._in_flight = self._in_flight, []
        for item in items:
            item.written(level)

    def clear(self) -> None:
        """Forget everything, because the link is gone."""
        for items in (self._first, self._items, self._last, self._in_flight):
            items.clear()
        self.is_waiting = False
