"""Hold the adapter of a session: enter its scope, stay in it, leave it, each bounded."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, final

import trio

from semibot.config import Deadlines
from semibot.errors import AdapterError, DeadlineExceeded, SemibotError
from semibot.lifetimes import deadline
from semibot.logs import get_logger
from semibot.wire.codec import MAX_DEPTH, JsonObject, check_json

from .adapter import Adapter, AdapterContext, AdapterFactory
from .ending import type_names
from .run import ActiveRun

log: Final = get_logger(__name__)

MAX_SNAPSHOT_DEPTH: Final = MAX_DEPTH - 4
"""How deeply an adapter's state may be nested: a checkpoint goes around it."""


@final
class AdapterHost:
    """The one task that is inside the adapter's scope, and what others ask of the adapter.

    Args:
        deadlines: The bounds.
    """

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines
        self._adapter: Adapter | None = None
        self._entered = trio.Event()
        self._leaves = trio.Event()
        self._left = trio.Event()
        self._patches: list[JsonObject] = []

    @property
    def name(self) -> str:
        """What to call the adapter in receipts and logs."""
        return type(self._adapter).__name__

    async def serve(
        self,
        factory: AdapterFactory,
        make_context: Callable[[trio.Nursery], AdapterContext],
        on_failure: Callable[[SemibotError], None],
    ) -> None:
        """Enter the adapter's scope, stay in it until :meth:`leave`, and leave it.

        Args:
            factory: Makes the scope.
            make_context: Makes what the factory gets, around the adapter's nursery.
            on_failure: Told of a failure before it is raised.

        Raises:
            SemibotError: If the adapter could not be entered, or a background task of
                it failed. What goes wrong while it is left is logged only.
        """
        failure: Exception | None = None
        start, stop = self._deadlines.session_adapter_start, self._deadlines.session_adapter_stop
        stays = trio.CancelScope(deadline=trio.current_time() + start)
        try:
            async with trio.open_nursery() as nursery:
                try:
                    with stays:
                        async with factory(make_context(nursery)) as adapter:
                            stays.deadline = math.inf
                            self._adapter = adapter
                            self._entered.set()
                            # Unbounded on purpose: the session lives as long as its block.
                            await self._leaves.wait()
                            stays.deadline = trio.current_time() + stop
                except Exception as exc:  # noqa: BLE001 - raised below, outside the nursery
                    failure = exc
                nursery.cancel_scope.cancel("the adapter was left")
        except ExceptionGroup as group:
            failure = AdapterError("a background task of the adapter failed", code="ADAPTER_FAILED")
            failure.__cause__ = group
        finally:
            self._left.set()
        if failure is None and stays.cancelled_caught:
            failure = (
                DeadlineExceeded("session.adapter_stop", stop)
                if self._entered.is_set()
                else DeadlineExceeded("session.adapter_start", start)
            )
        if failure is not None and self._leaves.is_set():
            log.warning("adapter failed while it was left", error=repr(failure))
        elif failure is not None:
            known = _as_semibot_error(failure)
            on_failure(known)
            raise known
        # Told to leave by the session, which cancels its services right afterwards.
        await trio.sleep_forever()

    async def wait_entered(self) -> None:
        """Wait until the adapter can be used."""
        await self._entered.wait()

    async def leave(self) -> None:
        """Leave the adapter's scope and wait until it is left."""
        self._leaves.set()
        await self._left.wait()

    def configure(self, patch: JsonObject) -> None:
        """Keep a change of configuration for the next run."""
        self._patches.append(patch)

    async def handle(self, run: ActiveRun) -> None:
        """Drive *run*, after the changes of configuration that came before it.

        Raises:
            Exception: Whatever the adapter raises; also if it refuses a change, which is
                then forgotten.
        """
        adapter = self._require()
        while self._patches:
            with deadline("session.adapter_start", self._deadlines.session_adapter_start):
                await adapter.update_config(self._patches.pop(0))
        await adapter.handle(run)

    async def take_snapshot(self) -> JsonObject | None:
        """Return what the adapter wants to be saved, or None; its faults are only logged."""
        try:
            with deadline("session.save", self._deadlines.session_save):
                snapshot = await self._require().get_snapshot()
            if snapshot is not None:
                check_json(snapshot, MAX_SNAPSHOT_DEPTH)
            return snapshot
        except Exception as exc:  # noqa: BLE001 - its fault must not lose the conversation
            log.warning("adapter gave no snapshot", error=repr(exc))
            return None

    def _require(self) -> Adapter:
        if self._adapter is None:
            raise AssertionError("the adapter was used before it was entered")
        return self._adapter


def _as_semibot_error(error: Exception) -> SemibotError:
    if isinstance(error, SemibotError):
        return error
    wrapped = AdapterError(f"the adapter raised {type_names(error)}; the cause has the traceback")
    wrapped.__cause__ = error
    return wrapped
