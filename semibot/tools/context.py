"""What a tool is given besides its arguments."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar, TypeVarTuple, final

import attrs
import trio

from semibot.config import Deadlines
from semibot.ports import Ports

from .ledger import Activity, Ledger
from .paths import ConfinedDirectory
from .threads import BlockingCall, Workers

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


@final
@attrs.frozen(kw_only=True, eq=False)
class ToolContext:
    """One call, as its tool sees it. Made by the gate.

    A parameter of this type is filled in by the gate and hidden from the model.
    """

    call_id: str
    """The call."""
    session_id: str
    """Its session."""
    run_id: str
    """Its run."""
    files: ConfinedDirectory | None
    """The workspace, without a way out; None if there is none. Its methods block."""
    ports: Ports
    """The seams to the outside world."""
    deadlines: Deadlines
    """The bounds."""
    activity: Activity
    """The call in the ledger. Write into its ``effect`` what you are about to do to the
    world, and then what you did: a receipt repeats it."""
    ledger: Ledger
    """What the run has under way, for whatever the tool starts."""
    _ends_at: float = attrs.field(alias="ends_at")
    _workers: Workers = attrs.field(alias="workers", repr=False)
    _is_abandoned: threading.Event = attrs.field(alias="is_abandoned", repr=False)
    _created: list[str] = attrs.field(factory=list[str], init=False, repr=False)

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody waits for this call's thread any more.

        An async tool is cancelled like any Trio task. A thread is not: a sync tool that
        works for long looks here now and then, and returns.
        """
        return self._is_abandoned.is_set()

    @property
    def created(self) -> tuple[str, ...]:
        """The files that were reported with :meth:`add_file`, in order, each once."""
        return tuple(dict.fromkeys(self._created))

    def add_file(self, path: str) -> None:
        """Report a file that the tool has written, so that the user is told.

        Args:
            path: Its path in the workspace; ignored if there is no such file at the end.
        """
        self._created.append(path)

    def remaining(self) -> float:
        """Return how much time is left for this call, in seconds, at least 0.

        May be called from the thread of a sync tool too.
        """
        try:
            now = trio.current_time()
        except RuntimeError:  # in a worker thread
            now = trio.from_thread.run_sync(trio.current_time)
        return max(0.0, self._ends_at - now)

    async def run_blocking(self, fn: Callable[[*Ts], T], *args: *Ts, limiter: str = "files") -> T:
        """Run a blocking function in a worker thread.

        A cancellation leaves the thread behind; it then stays in the ledger until it
        ends.

        Args:
            fn: Blocking function. What keeps Python's lock while it works, such as the
                search for a pattern, belongs in a child process instead.
            *args: Its arguments.
            limiter: ``files`` for quick file work, ``tools`` for anything longer.

        Raises:
            ToolError: If abandoned threads hold all places.
        """
        thread = self.ledger.begin("thread", self.call_id, self.activity.name)
        call = BlockingCall(thread)
        try:
            return await self._workers.run(call, limiter, fn, *args)
        finally:
            thread.effect = self.activity.effect
