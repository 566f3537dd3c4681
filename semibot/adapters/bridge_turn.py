"""What a bridge child says about one run, in order, for the run that waits for it."""

from __future__ import annotations

from typing import Final, TypeAlias, final

import attrs
import trio

from semibot.wire.bridge import (
    BridgeComplete,
    BridgeError,
    BridgeEvent,
    BridgeTerminal,
    CpFireAndForget,
)

MAX_QUEUED_EVENTS: Final = 16
"""Most events of a turn that wait for the run; reading the child waits for the others.

Few, because each may be as long as a line: 1 MiB.
"""

RunFrame: TypeAlias = BridgeEvent | BridgeTerminal | CpFireAndForget
"""What a bridge says about a run."""


@attrs.define(eq=False)
class BridgeCounts:
    """What the children of one adapter did, added up."""

    starts: int = 0
    """Children that were started, or could not be."""
    dropped_events: int = 0
    """Events that belonged to no active run."""
    skipped_lines: int = 0
    """Lines that said nothing a bridge may say."""


@final
class Turn:
    """What a child says about one run.

    Args:
        run_id: The run.
        knows_runs: Whether the child was told so, and names the run in what it says.
    """

    def __init__(self, run_id: str, *, knows_runs: bool) -> None:
        self.run_id = run_id
        self.knows_runs = knows_runs
        self._put: trio.MemorySendChannel[RunFrame]
        self.frames: trio.MemoryReceiveChannel[RunFrame]
        self._put, self.frames = trio.open_memory_channel[RunFrame](MAX_QUEUED_EVENTS)
        self._over = trio.Event()

    @property
    def is_over(self) -> bool:
        """Whether the child has said how the run ends, or is gone."""
        return self._over.is_set()

    async def wait_over(self) -> None:
        """Wait until the child has said how the run ends, or is gone."""
        await self._over.wait()

    async def put(self, frame: RunFrame) -> bool:
        """Hand *frame* to the run if it belongs to it and somebody still listens.

        Waits only while :data:`MAX_QUEUED_EVENTS` wait for the run.

        Args:
            frame: What the child said.

        Returns:
            Whether the run gets it.
        """
        if not self._accepts(frame):
            return False
        if isinstance(frame, BridgeComplete | BridgeError):
            self._over.set()
        try:
            await self._put.send(frame)
        except trio.BrokenResourceError:
            return False
        return True

    def _accepts(self, frame: RunFrame) -> bool:
        if self._over.is_set():
            return False
        if frame.run_id is None:
            # A child that knows runs names them: this may be left over from an earlier
            # one. What it spends is spent all the same.
            return not self.knows_runs or isinstance(frame, CpFireAndForget)
        return frame.run_id == self.run_id

    def close(self) -> None:
        """Say that the child is gone; what it had said can still be read."""
        self._over.set()
        self._put.close()

    def abandon(self) -> None:
        """Say that nobody listens any more; what follows is dropped."""
        self.frames.close()
