"""The adapter that simulations run by default: it does what the message says.

``say COUNT DELAY SIZE WORK`` says COUNT chunks of SIZE letters with DELAY seconds between
them; ``a`` in WORK reports something to the host, ``r`` asks it something, ``c`` takes its time
to clean up when it is cancelled, and says and does something meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, final

import trio

from semibot.errors import DeadlineExceeded, RequestFailed, StoreError
from semibot.lifetimes import grace
from semibot.session import ActiveRun, Adapter, AdapterContext, AdapterFactory
from semibot.wire.events import TextChunk

from .happenings import Answered, Asked, RunWorks
from .lives import Life

CLEAN_UP: Final = 1.5
"""How long that takes, in seconds."""

STEPS: Final = 5
"""In so many steps."""


def talker_of(life: Life) -> AdapterFactory:
    """Return what makes the talkers of a VM."""

    @asynccontextmanager
    async def open_talker(context: AdapterContext) -> AsyncGenerator[Adapter]:
        yield _Talker(life, context)

    return open_talker


@final
class _Talker(Adapter):
    def __init__(self, life: Life, context: AdapterContext) -> None:
        self._life = life
        self._context = context

    async def handle(self, run: ActiveRun) -> None:
        _, count, delay, size, work = run.message.split()[:5]
        try:
            await self._say(run, int(count), float(delay), int(size), work)
        except trio.Cancelled:
            if "c" in work:
                with grace("run.cancel_grace", CLEAN_UP + 1.0):
                    await self._clean_up(run)
            raise
        await run.complete()

    async def _say(self, run: ActiveRun, count: int, delay: float, size: int, work: str) -> None:
        for index in range(count):
            await trio.sleep(delay)
            self._work_on(run)
            await run.emit(TextChunk(content=f"{run.id[:6]}.{index} ".ljust(size, "x")))
            if index == 0 and "a" in work:
                await self._report(run)
            if index == 1 and "r" in work:
                await self._ask()

    async def _clean_up(self, run: ActiveRun) -> None:
        for step in range(STEPS):
            await trio.sleep(CLEAN_UP / STEPS)
            self._work_on(run)
            await run.emit(TextChunk(content=f"{run.id[:6]} clean-up {step} "))

    def _work_on(self, run: ActiveRun) -> None:
        self._life.world.tell(RunWorks(run_id=run.id, life=self._life))

    async def _report(self, run: ActiveRun) -> None:
        life, context = self._life, self._context
        event = f"audit {run.id}"
        life.world.asked_reports.add(event)
        try:
            await context.control_plane.fire_and_forget(
                context.session_id, "audit_log", {"event": event, "details": {}}
            )
        except (StoreError, RequestFailed) as exc:
            if life.is_alive and not life.world.is_disk_excused(life):
                life.world.violate("no_failure", f"a report failed: {exc!r}", exc)
        else:
            if life.is_alive:
                life.reports.add(event)

    async def _ask(self) -> None:
        life, context = self._life, self._context
        world = life.world
        number = world.next_number()
        world.tell(Asked(number=number, life=life))
        try:
            await context.control_plane.request(
                context.session_id, "memory_search", {"query": "x", "top_k": 3}
            )
            result = "answered"
        except (RequestFailed, DeadlineExceeded) as exc:
            result = type(exc).__name__
        finally:
            world.tell(Answered(number=number))
        world.trace.note("request", result)
