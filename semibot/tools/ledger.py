"""What a run has under way: the source of its receipt."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import final

import attrs
import trio

from semibot.wire.receipts import ActivityKind, ActivityRecord


@final
@attrs.define(eq=False)
class Activity:
    """One thing under way. Made by :class:`Ledger`."""

    kind: ActivityKind
    """What it is."""
    id: str
    """Identifier within the run."""
    name: str
    """Tool, model or program."""
    started_at: float
    """Trio's clock when it began."""
    pid: int | None = None
    """Process id, once there is one."""
    effect: str | None = None
    """Last known effect on the world; whoever causes one writes it here first."""
    is_open: bool = True
    """Whether it is still under way. Set from worker threads too: only ever to False."""
    ended_at: float | None = None
    """Trio's clock when it ended, where that was seen on the loop."""
    ended_by_itself: bool = False
    """Whether it ended without being stopped, so that no receipt says that it was."""

    def close(self) -> None:
        """Say that it is over. May be called from any thread, and again."""
        self.is_open = False

    def finish(self) -> None:
        """Say that it is over by itself: whoever was about to stop it came too late."""
        self.ended_by_itself = True
        self.close()

    def record(self) -> ActivityRecord:
        """Return what is known of it now."""
        return ActivityRecord(
            kind=self.kind,
            id=self.id,
            name=self.name,
            effect=self.effect,
            pid=self.pid,
            seconds=round(trio.current_time() - self.started_at, 3),
        )


@final
@attrs.define(eq=False)
class Ledger:
    """Everything that one run has under way."""

    _activities: list[Activity] = attrs.field(factory=list[Activity], init=False)

    def begin(
        self,
        kind: ActivityKind,
        id: str,
        name: str,
        *,
        pid: int | None = None,
        started_at: float | None = None,
    ) -> Activity:
        """Enter something whose end is not that of a block, such as a thread.

        Args:
            kind: What it is.
            id: Identifier within the run.
            name: Tool, model or program.
            pid: Process id of a child.
            started_at: Trio's clock when it began; None means now.

        Returns:
            The entry; whoever sees the end calls :meth:`Activity.close`.
        """
        self._activities = [activity for activity in self._activities if activity.is_open]
        activity = Activity(
            kind, id, name, trio.current_time() if started_at is None else started_at, pid
        )
        self._activities.append(activity)
        return activity

    @contextmanager
    def open(
        self, kind: ActivityKind, id: str, name: str, *, pid: int | None = None
    ) -> Generator[Activity]:
        """Enter something for the length of a block; see :meth:`begin`."""
        activity = self.begin(kind, id, name, pid=pid)
        try:
            yield activity
        finally:
            activity.ended_at = trio.current_time()
            activity.close()

    def under_way(self, at: float | None = None) -> tuple[Activity, ...]:
        """Return what is under way, oldest first.

        Args:
            at: A moment in the recent past, on Trio's clock; None means now.
        """
        return tuple(
            activity
            for activity in self._activities
            if activity.is_open
            or (at is not None and activity.ended_at is not None and activity.ended_at >= at)
        )
