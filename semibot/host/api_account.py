"""Answer what a user asks about their execution plane, and about what it reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, cast, final

from semibot.wire.codec import JsonObject

from .answers import Answer, as_iso, success
from .asgi import Asked, Handler
from .bodies import NoFields, idempotency_of, number_asked, page_asked
from .core import HostCore

DEFAULT_DAYS: Final = 30
"""Days of totals if nobody says."""

MAX_DAYS: Final = 366
"""Most days of totals."""

_TIMES: Final = frozenset({"lastBootstrapAt", "lastHeartbeatAt", "disconnectedAt"})


@final
class AccountRoutes:
    """Answers the routes about a user's VM, audit log and usage.

    Args:
        core: The parts of the host.
    """

    def __init__(self, core: HostCore) -> None:
        self._core = core

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """What answers each route, by its name."""
        return {
            "vm_status": self.vm_status,
            "rebootstrap_vm": self.rebootstrap_vm,
            "list_audit": self.list_audit,
            "list_usage": self.list_usage,
        }

    async def vm_status(self, asked: Asked) -> Answer:
        """Return the state of the user's VM."""
        return success(_with_iso_times(await self._core.scheduler.status(asked.who.user_id)))

    async def rebootstrap_vm(self, asked: Asked) -> Answer:
        """Start the user's VM anew; a repeat under the same key only says how it stands."""
        core, who = self._core, asked.who
        body = asked.body_as(NoFields)
        idempotency = idempotency_of(asked.request.headers, asked.route.name, "", body)
        await core.store.ensure_user(who.user_id, who.org_id, vm_mode=None)
        if idempotency is not None:
            now = int(core.ports.wall_clock.now().timestamp() * 1000)
            first = await core.store.remember_answer(who.user_id, *idempotency, {"asked_at": now})
            vm = await core.store.newest_vm(who.user_id)
            began = None if vm is None else vm.last_bootstrap_at
            if began is not None and began >= cast("int", cast("JsonObject", first)["asked_at"]):
                state = await core.scheduler.status(who.user_id)
                status = state["status"]
                return success(
                    {
                        "ready": status == "ready",
                        "status": status,
                        "instanceId": state.get("instanceId"),
                    }
                )
        return success(await core.scheduler.rebootstrap(who.user_id))

    async def list_audit(self, asked: Asked) -> Answer:
        """Return one page of the user's audit log."""
        cursor, limit = page_asked(asked.query)
        page = await self._core.store.list_audit(asked.who.user_id, cursor, limit)
        return success({"audit": page.rows, "next_cursor": page.next_cursor})

    async def list_usage(self, asked: Asked) -> Answer:
        """Return one page of the user's usage reports, and daily totals."""
        cursor, limit = page_asked(asked.query)
        days = number_asked(asked.query, "days", DEFAULT_DAYS, MAX_DAYS)
        page = await self._core.store.list_usage(asked.who.user_id, cursor, limit)
        daily = await self._core.store.daily_usage(asked.who.user_id, days)
        return success({"usage": page.rows, "daily": daily, "next_cursor": page.next_cursor})


def _with_iso_times(status: JsonObject) -> JsonObject:
    """Return a VM's state with its times as people and browsers read them."""
    return {
        name: as_iso(value) if name in _TIMES and isinstance(value, int) else value
        for name, value in status.items()
    }
