"""Report to the host what runs spent and what the gate decided, without holding them up."""

from __future__ import annotations

from collections import deque
from typing import Final, cast, final

import trio

from semibot.errors import SemibotError
from semibot.logs import get_logger
from semibot.tools.calls import CallEnded, Decision
from semibot.wire.codec import JsonObject, unstructure
from semibot.wire.plane import PlaneLink

from .execution import Execution

log: Final = get_logger(__name__)

MAX_WAITING_REPORTS: Final = 1024
"""How many reports may wait to get into the outbox; more are dropped, and that is logged."""

_PRIVATE: Final = frozenset({"arguments", "session_id"})
"""Fields of a decision that stay on the VM, in ``audit.jsonl``, or are in the frame anyway."""


@final
class Reporter:
    """The way of reports into the channel's outbox, which is on disk.

    Args:
        link: The channel.
    """

    def __init__(self, link: PlaneLink) -> None:
        self._link = link
        self._waiting: deque[tuple[str, str, JsonObject]] = deque()
        self._news = trio.lowlevel.ParkingLot()
        self._idle = trio.lowlevel.ParkingLot()
        self._is_busy = False

    def report_usage(self, session_id: str, run: Execution) -> None:
        """Report the tokens of an ended run, if it is known what they were spent on."""
        usage = run.usage
        if run.model is None or not (usage.tokens_in or usage.tokens_out):
            return
        params: JsonObject = {
            "model": run.model,
            "tokens_in": usage.tokens_in,
            "tokens_out": usage.tokens_out,
        }
        self._put(session_id, "usage_report", params)

    def report_call(self, entry: Decision | CallEnded) -> None:
        """Report what the gate decided, or how a call ended; not the call's arguments."""
        event = "tool_decision" if isinstance(entry, Decision) else "tool_call_ended"
        fields = cast("JsonObject", unstructure(entry))
        details = {name: value for name, value in fields.items() if name not in _PRIVATE}
        self._put(entry.session_id, "audit_log", {"event": event, "details": details})

    def _put(self, session_id: str, method: str, params: JsonObject) -> None:
        if len(self._waiting) >= MAX_WAITING_REPORTS:
            log.error("report is dropped", session_id=session_id, method=method)
            return
        self._waiting.append((session_id, method, params))
        self._news.unpark_all()

    async def serve(self) -> None:
        """Hand reports over until cancelled."""
        while True:
            while self._waiting:
                self._is_busy = True
                session_id, method, params = self._waiting.popleft()
                try:
                    # Bounded by the channel: it writes to its own disk.
                    await self._link.fire_and_forget(session_id, method, params)
                except SemibotError as exc:
                    log.warning("report failed", session_id=session_id, error=str(exc))
            self._is_busy = False
            self._idle.unpark_all()
            # Unbounded on purpose: the next report.
            await self._news.park()

    async def wait_idle(self) -> None:
        """Wait until everything is in the outbox."""
        while self._waiting or self._is_busy:
            await self._idle.park()
