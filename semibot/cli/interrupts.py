"""What Ctrl-C and SIGTERM mean, depending on what the program is doing.

=========================  ==============================  ===========================
the program ...            Ctrl-C                          Ctrl-C again
=========================  ==============================  ===========================
answers, interactively     cancels the run                 leaves at once
answers one message        cancels the run, then leaves    leaves at once
waits for a message        says how to leave               leaves at once
opens or closes            leaves                          leaves at once
=========================  ==============================  ===========================

SIGTERM interrupts the run and leaves; with any signal after it the program leaves at
once. "Leaves" closes the session in order. "At once" gives all clean-up together one
second, and ends the process hard after two; its children then die by their guard.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Final, Protocol, final

import attrs
import trio

from semibot.lifetimes import StopClock, open_services, open_stop_clock

from . import exits
from .logs import hush_logs

_KEY_REASON: Final = "user_cancelled"
"""Why a run is cancelled by Ctrl-C."""

CLEANUP_BOUND: Final = 1.0
"""What all clean-up together may take when leaving at once, in seconds."""

HARD_BOUND: Final = 2.0
"""When the process is ended hard, in seconds after it was told to leave at once."""

SHOW_BOUND: Final = 1.0
"""What showing the end of a run may take once the program leaves, in seconds."""


class Stoppable(Protocol):
    """A run, here or elsewhere, that signals may stop."""

    async def cancel(self, reason: str = ..., /) -> object:
        """Stop it, and wait until it has ended."""
        ...

    def interrupt(self, reason: str, /) -> None:
        """Ask it to stop because this program ends; never waits."""
        ...


@final
@attrs.define(eq=False)
class Interrupts:
    """The meaning of signals at each moment. Made by :func:`open_interrupts`."""

    _clock: StopClock
    _end_process: Callable[[int], object]
    exit_code: int | None = attrs.field(default=None, init=False)
    """The exit code that signals have decided on, if they have."""
    was_hurried: bool = attrs.field(default=False, init=False)
    """Whether the program was told twice to end."""
    body: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    """What leaving cancels."""
    _run: Stoppable | None = attrs.field(default=None, init=False)
    _is_interactive: bool = attrs.field(default=False, init=False)
    _on_key: Callable[[], object] | None = attrs.field(default=None, init=False)
    _prompt: trio.CancelScope | None = attrs.field(default=None, init=False)
    _was_pressed: bool = attrs.field(default=False, init=False)
    _is_gone: threading.Event = attrs.field(factory=threading.Event, init=False)

    @contextmanager
    def during(
        self, run: Stoppable, *, is_interactive: bool, on_key: Callable[[], object]
    ) -> Generator[None]:
        """Let signals stop *run* while the block shows it.

        Args:
            run: The run under way.
            is_interactive: Whether the program goes on after Ctrl-C.
            on_key: Called at each Ctrl-C; does not wait.
        """
        self._run, self._is_interactive, self._was_pressed = run, is_interactive, False
        self._on_key = on_key
        try:
            yield
        finally:
            self._run, self._is_interactive, self._was_pressed = None, False, False
            self._on_key = None

    @contextmanager
    def at_prompt(self) -> Generator[trio.CancelScope]:
        """Let the first Ctrl-C end the block, which waits for a message.

        Ctrl-C in two such blocks with nothing typed in between leaves.

        Yields:
            The scope; ``cancelled_caught`` says afterwards whether Ctrl-C was pressed.
        """
        with trio.CancelScope() as scope:
            self._prompt = scope
            try:
                yield scope
                self._was_pressed = False
            finally:
                self._prompt = None

    async def serve(self, signals: AsyncIterator[int]) -> None:
        """Act on signals until cancelled.

        Args:
            signals: What :func:`trio.open_signal_receiver` yields.
        """
        async with trio.open_nursery() as nursery:
            async for number in signals:
                if number == signal.SIGINT and self._on_key is not None:
                    self._on_key()
                if self.exit_code is not None:
                    nursery.start_soon(self._leave_at_once, self.exit_code)
                elif number == signal.SIGTERM:
                    self.exit_code = exits.TERMINATED
                    nursery.start_soon(self._leave, self._run)
                elif self._was_pressed:
                    self.exit_code = exits.INTERRUPTED
                    nursery.start_soon(self._leave_at_once, self.exit_code)
                elif self._prompt is not None:
                    self._was_pressed = True
                    self._prompt.cancel("Ctrl-C")
                elif self._run is not None and self._is_interactive:
                    self._was_pressed = True
                    nursery.start_soon(self._run.cancel, _KEY_REASON)
                else:
                    self.exit_code = exits.INTERRUPTED
                    nursery.start_soon(self._leave, self._run)

    async def _leave(self, run: Stoppable | None) -> None:
        if run is None:
            self.body.cancel("the program was told to end")
            return
        if self.exit_code == exits.TERMINATED:
            run.interrupt("the program was told to end")
        # Bounded by run.cancel_grace and session.save.
        await run.cancel(_KEY_REASON)
        # The run has ended; its end is still to be shown, unless nobody reads it.
        self.body.deadline = trio.current_time() + SHOW_BOUND

    async def _leave_at_once(self, exit_code: int) -> None:
        hush_logs()
        self.was_hurried = True
        self._clock.stop(CLEANUP_BOUND)
        # A prompt ends in order, because nothing is under way that could hold it up.
        scope = self.body if self._prompt is None else self._prompt
        scope.cancel("the program was told twice to end")
        # In a thread, so that it happens also if the loop stands still.
        await trio.to_thread.run_sync(
            self._end_hard, exit_code, limiter=trio.CapacityLimiter(1), abandon_on_cancel=True
        )

    def disarm(self) -> None:
        """Everything has ended, so that nothing need be ended hard."""
        self._is_gone.set()

    def _end_hard(self, exit_code: int) -> None:
        if not self._is_gone.wait(HARD_BOUND):
            self._end_process(exit_code)


@asynccontextmanager
async def open_interrupts(
    end_process: Callable[[int], object] = os._exit,
) -> AsyncGenerator[Interrupts]:
    """Give signals their meaning inside the block, which a signal may cancel.

    Signals are heard until everything inside has ended, so that clean-up can be hurried.

    Args:
        end_process: What ends the process hard.

    Yields:
        The handle. After the block its ``exit_code`` says whether a signal ended it.
    """
    with (
        open_stop_clock() as clock,
        trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals,
    ):
        interrupts = Interrupts(clock, end_process)
        try:
            async with open_services() as services:
                services.start_soon(interrupts.serve, signals, name="signals")
                with interrupts.body:
                    yield interrupts
        finally:
            interrupts.disarm()
