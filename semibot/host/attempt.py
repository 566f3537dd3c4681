"""One start of one VM: what is known of its process and of its link, from start to end."""

from __future__ import annotations

import math
from typing import Final, final

import attrs
import trio

from semibot.observe.standstill import FROZEN_AFTER
from semibot.store.base import VmRow
from semibot.tools.processes import Child

MAX_ERROR_LENGTH: Final = 2000
"""Most characters of a command's stderr that are kept in the row."""


@final
@attrs.define(eq=False)
class Attempt:
    """One start of one VM. Its task is the scheduler's; links say when its VM comes and goes."""

    vm: VmRow
    """The row, as it was when the attempt began."""
    is_forced: bool
    """Whether it was asked for by name, so that a VM that runs is to be replaced."""
    is_automatic: bool = False
    """Whether nobody asked, but messages waited."""
    is_ready: bool = attrs.field(default=False, init=False)
    """Whether its link was up at some time."""
    is_replaced: bool = attrs.field(default=False, init=False)
    """Whether another attempt takes its place as soon as it has ended."""
    ready_at: float = attrs.field(default=math.inf, init=False)
    """When its link was up for the first time, on Trio's clock."""
    has_ended: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when its process is gone, and the row says so."""
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    """Cancelled to stop it."""
    _boot_hash: str | None = attrs.field(default=None, init=False)
    _epoch: int = attrs.field(default=0, init=False)
    _down_since: float = attrs.field(default=math.inf, init=False)
    _has_exited: bool = attrs.field(default=False, init=False)
    _changed: trio.Event = attrs.field(factory=trio.Event, init=False)

    # --- its link ---------------------------------------------------------------------

    def is_own(self, vm: VmRow) -> bool:
        """Return whether a link of the row *vm*, as it was accepted, is this attempt's.

        The row may have an older process that dials again, or one that its user started.
        """
        if vm.id != self.vm.id:
            return False
        if vm.mode == "external":
            return vm.boot_hash is not None and vm.boot_hash == self._boot_hash
        if vm.boot_hash is None:  # level 1, which tells processes apart by nothing
            return True
        if self.is_ready:
            return vm.boot_hash == self._boot_hash
        return vm.boot_hash != self.vm.boot_hash

    def link_up(self, vm: VmRow) -> None:
        """Note that its link is up."""
        if not self.is_ready:
            self.is_ready, self.ready_at = True, trio.current_time()
        self._boot_hash, self._epoch = vm.boot_hash, vm.epoch
        self._down_since = math.inf
        self._change()

    def link_down(self) -> None:
        """Note that its link is down; it may come up again."""
        self._down_since = trio.current_time()
        self._change()

    def is_superseded_in(self, newest: VmRow) -> bool:
        """Return whether another process has had a link since, or it was given up already."""
        if self._boot_hash is not None:
            return newest.boot_hash != self._boot_hash
        return newest.epoch != self._epoch

    def _change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # --- its process ------------------------------------------------------------------

    async def attend(
        self, child: Child, *, ready: float, lost_after: float, is_elsewhere: bool
    ) -> str | None:
        """Wait until its VM is ready, and then until it is gone.

        Args:
            child: The process, which is to be stopped afterwards.
            ready: What it may take to get ready, in seconds.
            lost_after: How long its link may be down, in seconds.
            is_elsewhere: Whether success of the process only means that a VM was started.

        Returns:
            What it died of; None if all was well.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_empty, child)
            nursery.start_soon(self._watch, child)
            error = await self._wait_ready(child, ready, is_elsewhere=is_elsewhere)
            if self.is_ready:
                error = await self._wait_gone(child, lost_after)
            nursery.cancel_scope.cancel("the VM has ended")
        return error

    async def _watch(self, child: Child) -> None:
        # Unbounded on purpose: a VM lives as long as it is needed.
        await child.wait()
        self._has_exited = True
        self._change()

    async def _wait_ready(self, child: Child, seconds: float, *, is_elsewhere: bool) -> str | None:
        with trio.move_on_after(seconds):  # noqa: ASYNC912 - ready already is fine
            while not self.is_ready:
                if self._has_exited and not (is_elsewhere and has_succeeded(child)):
                    return last_words(child) or "it ended without a link"
                await self._changed.wait()
        if self.is_ready:  # perhaps at the very end
            return None
        words = last_words(child)
        return f"no link within {seconds:g} s" + (f"; {words}" if words else "")

    async def _wait_gone(self, child: Child, lost_after: float) -> str | None:
        while not self._has_exited:
            until = self._down_since + lost_after
            with trio.CancelScope(deadline=until) as scope:
                await self._changed.wait()
            late = trio.current_time() - until
            if scope.cancelled_caught and late > FROZEN_AFTER:
                self._down_since += late  # this host stood still; nobody could dial it
                continue
            if scope.cancelled_caught and self._down_since < math.inf:
                return f"no link for {lost_after:g} s"  # it hangs
        return last_words(child)


async def _empty(child: Child) -> None:
    """Read what a VM says to nobody, so that it never waits for a reader."""
    while await child.receive_some():
        pass


def has_succeeded(child: Child) -> bool:
    """Return whether a process has ended, and well."""
    status = child.exit_status
    return status is not None and status.code == 0


def last_words(child: Child) -> str | None:
    """Return the end of what a VM wrote to stderr, or how it ended; None if all was well."""
    if has_succeeded(child):
        return None
    status = child.exit_status
    text = child.stderr_tail.decode("utf-8", "replace").strip()[-MAX_ERROR_LENGTH:].strip()
    if status is not None and status.signal is not None:  # what it said before says little
        return f"{status}; {text}" if text else str(status)
    return text or (None if status is None else str(status))
