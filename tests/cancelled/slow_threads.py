"""Worker threads on the loop that take a moment, or hang until somebody lets them end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import trio

MOMENT: Final = 0.01
"""What a job takes before and after it does its work, in seconds."""


class SlowThreads:
    """Runs blocking work on the loop, in the middle of a short wait, as threads do on a clock.

    A job whose waiter goes away before its work was done does it later, when
    :meth:`come_back` is called: that is what a thread does that hangs on a disk.
    """

    def __init__(self) -> None:
        self._hanging: set[str] = set()
        self._left: list[Callable[[], object]] = []

    def hang(self, limiter: str) -> None:
        """Let jobs of one limiter get nowhere from now on."""
        self._hanging.add(limiter)

    def come_back(self) -> None:
        """Do what was left behind; call it when the loop has ended."""
        while self._left:
            with suppress(Exception):  # nobody hears a thread that was left behind
                self._left.pop(0)()

    async def run_sync(
        self,
        fn: Callable[..., Any],
        *args: Any,
        limiter: str,
        abandon_on_cancel: bool = False,
        on_exit: Callable[[], None] | None = None,
    ) -> Any:
        """Run ``fn(*args)``; see :class:`semibot.ports.Threads`."""

        def work() -> Any:
            try:
                return fn(*args)
            finally:
                if on_exit is not None:
                    on_exit()

        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=not abandon_on_cancel):
            try:
                await trio.sleep(float("inf") if limiter in self._hanging else MOMENT)
            except trio.Cancelled:
                self._left.append(work)
                raise
            result = work()
            await trio.sleep(MOMENT)
            return result

    def in_use(self) -> Mapping[str, int]:
        """Return nothing: no thread is ever out."""
        return {}
