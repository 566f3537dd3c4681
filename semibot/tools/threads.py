"""Run blocking functions in worker threads that a run may have to leave behind.

A thread cannot be killed. So a call whose thread is cut off is *abandoned*: its result is
discarded, it stays in the run's ledger until it really ends, and it keeps its place among
the worker threads. When abandoned threads hold all places, new calls are refused at once
instead of waiting for nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TypeVar, TypeVarTuple, final

import attrs

from semibot.errors import ToolError
from semibot.live import THREAD_LIMITS
from semibot.ports import Threads

from .ledger import Activity

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@final
@attrs.define(eq=False)
class BlockingCall:
    """One function on its way through a worker thread."""

    activity: Activity
    """Its entry in the ledger, kept open until the thread is done."""
    has_started: bool = attrs.field(default=False, init=False)
    """Whether a thread was found for it."""
    is_abandoned: threading.Event = attrs.field(factory=threading.Event)
    """Set when nobody waits for it any more; a polite function looks at it and returns."""
    _lock: threading.Lock = attrs.field(factory=threading.Lock, init=False, repr=False)

    def start(self) -> None:
        """Say, in the thread, that the function begins now.

        Raises:
            ToolError: If it was given up before; it must not run then.
        """
        with self._lock:
            if self.is_abandoned.is_set():
                raise ToolError("given up before it began")
            self.has_started = True

    def abandon(self) -> None:
        """Say that nobody waits any more; a function that has not begun never will."""
        with self._lock:
            self.is_abandoned.set()
            if not self.has_started:
                self.activity.close()


@final
@attrs.define(eq=False)
class Workers:
    """The worker threads of one gate.

    Args:
        threads: Where they come from.
        capacity: How many abandoned threads of a limiter there may be before new calls
            are refused.
    """

    _threads: Threads = attrs.field(alias="threads")
    _capacity: Mapping[str, int] = attrs.field(default=THREAD_LIMITS, alias="capacity")
    _abandoned: dict[str, list[Activity]] = attrs.field(
        factory=dict[str, list[Activity]], init=False
    )

    def abandoned(self, limiter: str) -> int:
        """Return how many abandoned threads of a limiter have not ended yet."""
        still_open = [each for each in self._abandoned.get(limiter, ()) if each.is_open]
        self._abandoned[limiter] = still_open
        return len(still_open)

    async def run(self, call: BlockingCall, limiter: str, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        """Run ``fn(*args)`` in a thread; a cancellation leaves it behind.

        Args:
            call: Keeps track of it.
            limiter: Name of the capacity limiter.
            fn: Blocking function.
            *args: Its arguments.

        Raises:
            ToolError: If abandoned threads hold all places.
        """
        abandoned = self.abandoned(limiter)
        if abandoned >= self._capacity[limiter]:
            call.activity.close()
            raise ToolError(
                f"tool capacity: {abandoned} earlier calls still hold their threads; "
                "try again when they have ended"
            )

        def work() -> T:
            call.start()
            return fn(*args)

        try:
            return await self._threads.run_sync(
                work, limiter=limiter, abandon_on_cancel=True, on_exit=call.activity.close
            )
        except BaseException:
            # Nothing is left to await: either the function raised, and its thread is
            # done, or this task was cancelled, and the thread goes on without it.
            call.abandon()
            if call.activity.is_open:
                self._abandoned[limiter].append(call.activity)
            raise
