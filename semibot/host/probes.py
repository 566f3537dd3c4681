"""Answer those who watch the host: is it alive, is it ready, what did it count, what can it do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, final

import semibot
from semibot.errors import DeadlineExceeded, StoreError
from semibot.lifetimes import deadline
from semibot.wire.codec import JsonValue, dump_json

from .answers import RETRY_AFTER, Answer, HttpError, success
from .asgi import Asked, Handler
from .bodies import MAX_BODY_BYTES, MAX_BUDGET_MS, MAX_MESSAGE_BYTES, MAX_PAGE, RUNTIMES
from .core import HostCore
from .metrics import CONTENT_TYPE
from .openapi import describe
from .safety import has_local_user

MAX_WAITING: Final = 16
"""Runs that one session may queue (protocol section 6)."""


@final
class ProbeRoutes:
    """Answers the routes about the host itself.

    Args:
        core: The parts of the host.
    """

    def __init__(self, core: HostCore) -> None:
        self._core = core

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """What answers each route, by its name."""
        return {
            "livez": self.livez,
            "readyz": self.readyz,
            "metrics": self.metrics,
            "openapi": self.openapi,
            "host_info": self.host_info,
        }

    async def livez(self, asked: Asked) -> Answer:  # noqa: ASYNC124 - a handler
        """Say that the process answers."""
        return success({"status": "alive"})

    async def readyz(self, asked: Asked) -> Answer:
        """Say whether the host takes work.

        Raises:
            HttpError: If it starts, drains or cannot store.
        """
        reasons: list[JsonValue] = []
        if not self._core.status.is_ready:
            reasons.append("starting")
        if self._core.status.is_draining:
            reasons.append("draining")
        if not await self._can_store():
            reasons.append("store")
        if reasons:
            raise HttpError(
                503,
                "NOT_READY",
                "the host takes no work: " + ", ".join(map(str, reasons)),
                details={"reasons": reasons},
                headers={"Retry-After": str(RETRY_AFTER)},
            )
        return success({"status": "ready"})

    async def _can_store(self) -> bool:
        """Whether the store works; one that has failed is tried, as nobody else may do so."""
        if self._core.store.failure is None:
            return True
        try:
            with deadline("store.commit", self._core.deadlines.store_commit):
                await self._core.store.check()
        except (StoreError, DeadlineExceeded):
            return False
        return True

    async def metrics(self, asked: Asked) -> Answer:  # noqa: ASYNC124 - a handler
        """Return what was counted; where there are many users, without saying who they are."""
        user_id = asked.who.user_id
        is_alone = has_local_user(self._core.settings)

        def shows(label: str, value: str) -> bool:
            return is_alone or label not in {"user_id", "session_id"} or value == user_id

        metrics, relay = self._core.metrics, self._core.relay
        metrics.sse_events_forwarded_total.catch_up(relay.events_forwarded)
        metrics.sse_readers_active.set(relay.reader_count)
        metrics.vm_liveness.replace("state", self._core.links.pulses.counts())
        metrics.sse_buffer_size.replace("session_id", relay.buffered())
        text = metrics.exposition(shows)
        return Answer(body=text.encode(), content_type=CONTENT_TYPE)

    async def openapi(self, asked: Asked) -> Answer:  # noqa: ASYNC124 - a handler
        """Return the description of all routes."""
        return Answer(body=dump_json(describe(semibot.__version__)).encode())

    async def host_info(self, asked: Asked) -> Answer:  # noqa: ASYNC124 - a handler
        """Return what a program wants to know before it asks for anything else."""
        settings, deadlines = self._core.settings, self._core.deadlines
        return success(
            {
                "name": "semibot",
                "version": semibot.__version__,
                "mode": settings.run_mode,
                "auth": "local" if has_local_user(settings) else "bearer",
                "runtimes": list(RUNTIMES),
                "limits": {
                    "body_bytes": MAX_BODY_BYTES,
                    "message_bytes": MAX_MESSAGE_BYTES,
                    "waiting_runs": MAX_WAITING,
                    "page": MAX_PAGE,
                    "budget_ms": MAX_BUDGET_MS,
                    "keepalive_s": deadlines.http_keepalive,
                    "stall_timeout_s": deadlines.http_stall_timeout,
                },
            }
        )
