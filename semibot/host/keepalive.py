"""Wake idle readers in time for a keepalive, without a task and without a timer per wait.

A cancel scope per wait would cost more than all else that a relayed event costs. All readers
wait equally long, so they fall due in the order in which they began; one of those that wait,
the keeper, has a timer, wakes whoever is due, and hands its office on when it leaves.
"""

from __future__ import annotations

from typing import final

import trio

from .tail import Cursor, Tail


@final
class Keepalive:
    """The readers that wait, of all sessions."""

    def __init__(self) -> None:
        self._idle: dict[Cursor, tuple[float, Tail]] = {}  # when they are due, soonest first
        self._keeper: Cursor | None = None

    async def wait(self, cursor: Cursor, tail: Tail, due: float) -> None:
        """Wait until *tail* has changed or *due* has come; it may be too early.

        Args:
            cursor: Who waits; :meth:`leave` is to be called when it stops to.
            tail: What it waits for.
            due: On Trio's clock; the same in every call up to :meth:`leave`.
        """
        if cursor not in self._idle:
            if self._idle and due < next(reversed(self._idle.values()))[0]:
                # It has begun to wait before the last of the others, for something else.
                with trio.CancelScope(deadline=due):
                    await tail.wait_change()
                return
            self._idle[cursor] = (due, tail)
        if self._keeper is None:
            self._keeper = cursor
        if self._keeper is not cursor:
            await tail.wait_change()
            return
        first_due, _ = next(iter(self._idle.values()))
        with trio.CancelScope(deadline=first_due):
            await tail.wait_change()
        now = trio.current_time()
        for other_due, other_tail in self._idle.values():
            if other_due > now:
                break
            other_tail.wake()

    def leave(self, cursor: Cursor) -> None:
        """Take *cursor* off; if it was the keeper, the longest waiting one that sleeps is next.

        Who is awake needs no keeper: it becomes one itself when it waits again.
        """
        self._idle.pop(cursor, None)
        if self._keeper is cursor:
            self._keeper = None
            awake: Tail | None = None
            for other, (_, tail) in self._idle.items():
                if tail is awake:
                    continue
                if tail.wake():
                    self._keeper = other
                    break
                awake = tail
