"""Speak for VMs of level 1: number their events, make receipts, end what they do not end.

Theory of operation. A level 1 VM says events without numbers and without a run, answers no
cancel and acknowledges nothing. Here each of its sessions has at most one *open run*, the one
whose message was written last; what the VM says belongs to it. The host makes the
``run_started``, gives every event the next number, and ends the run at the first terminal
event, or by itself where the VM does not (protocol section 6). Whatever the VM says while no
run is open is dropped and counted.

All events wait for their commit before readers see them. If a commit fails they are lost with
the link, as a level 1 VM sends nothing twice; the run stays open, and ends by its next terminal
event or by silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, cast, final

import attrs
import trio

from semibot.config import Deadlines
from semibot.logs import get_logger
from semibot.store.base import CancelAnswered, LinkRef, SessionRow, Store, StoredEvent
from semibot.wire.codec import JsonObject, unstructure
from semibot.wire.events import (
    ExecutionComplete,
    ExecutionError,
    RunStarted,
    TerminalEvent,
    Usage,
    encode_event,
)
from semibot.wire.frames import Cancel, FromHost, peek_event
from semibot.wire.level1 import Level1Events
from semibot.wire.receipts import ActivityRecord, Outcome, Receipt

from .intake import Intake, adopt_tail
from .relay import Relay
from .tail import Tail

log: Final = get_logger(__name__)


@final
@attrs.define(eq=False, kw_only=True)
class OpenRun:
    """The run that a level 1 session is busy with. Times are on Trio's clock."""

    run_id: str
    message_id: str
    message: str
    has_started: bool = False
    """Whether its ``run_started`` was made."""
    cancels: list[str] = attrs.field(factory=list[str])
    """Commands that wait for its receipt."""
    reason: str | None = None
    """Why it is to stop; None: it is not."""
    cancelled_at: float = math.inf
    """When it was asked to stop first."""
    ends_at: float = math.inf
    """When the host ends it, because it does not stop."""
    silent_until: float = math.inf
    """When the host gives it up, after a reconnect, unless it says something."""
    expires_at: float = math.inf
    """When the caller's budget ends."""

    @property
    def next_at(self) -> float:
        """When something is to be done about it."""
        return min(self.ends_at, self.silent_until, self.expires_at)


@final
@attrs.define(eq=False)
class _Session:
    id: str
    term: int
    next_seq: int
    tail: Tail
    """Kept here, so that it stays in memory while the session is held."""
    words: Level1Events = attrs.field(factory=Level1Events)
    run: OpenRun | None = None
    needs_restart: bool = False
    """Whether the VM may still be busy with a run that the host has ended."""
    dropped: int = 0
    """Events that came while no run was open."""


@final
class LegacySessions:
    """The sessions of one level 1 link. Its service is :meth:`serve`.

    Args:
        relay: Publishes events, after their commit.
        intake: Commits them.
        send: Queues a frame for the VM.
        deadlines: ``run_cancel_grace`` is how long a VM may take to stop a run,
            ``vm_lost_after`` how long a run may be silent after a reconnect.
    """

    def __init__(
        self,
        *,
        relay: Relay,
        intake: Intake,
        send: Callable[[FromHost], object],
        deadlines: Deadlines,
    ) -> None:
        self._relay = relay
        self._intake = intake
        self._send = send
        self._deadlines = deadlines
        self._sessions: dict[str, _Session] = {}
        self._changed = trio.Event()
        self.dropped: int = 0
        """Events that came while no run was open."""

    # --- what the host does -----------------------------------------------------------

    async def restore(self, store: Store, link: LinkRef) -> None:
        """Find the runs that were under way when an earlier link of the VM ended.

        A cancel that was written then counts as asked now; a run that says nothing within
        ``vm.lost_after`` is given up.
        """
        now = trio.current_time()
        for session_id, row in (await store.held_sessions(link)).items():
            work = await store.session_work(session_id)
            run = next((run for run in work.open_runs if run.is_written), None) if work else None
            if work is None or run is None:
                continue
            said = await store.read_history(session_id, run.id, 1)
            open_run = OpenRun(
                run_id=run.id,
                message_id=run.message_id,
                message=_content(said[-1]) if said else "",
                has_started=run.first_seq is not None,
                silent_until=now + self._deadlines.vm_lost_after,
            )
            (await self._adopt(row)).run = open_run
            for command in work.commands:
                if command.kind == "cancel" and command.run_id == run.id and command.boot_hash:
                    self._wants_end(open_run, command.id, str(command.payload.get("reason")))
        self._wake()

    async def prepare(self, row: SessionRow) -> None:
        """Make a session known that the VM now holds, before its message is written."""
        session = await self._adopt(row)
        if session.dropped:
            log.info("events without a run", session_id=row.id, dropped=session.dropped)
            session.dropped = 0

    def take_restart(self, session_id: str) -> bool:
        """Return, once, whether a session has to be stopped first: it may still be busy."""
        session = self._sessions[session_id]
        needs_restart, session.needs_restart = session.needs_restart, False
        return needs_restart

    async def begin(self, session_id: str, run: OpenRun) -> None:
        """Open the run whose message is being written: says ``run_started``."""
        session = self._sessions[session_id]
        session.run = run
        self._wake()
        await self._start(session, run)

    def ask_cancel(self, session_id: str, run_id: str, command_id: str, reason: str) -> None:
        """Have a run end as cancelled: by the VM, or by the host after ``run.cancel_grace``.

        A run that has ended meanwhile is answered at once.
        """
        session = self._sessions.get(session_id)
        run = session.run if session is not None else None
        if run is None or run.run_id != run_id:
            receipt = Receipt(run_id=run_id, already=True)
            self._answer(session_id, [command_id], receipt)
            return
        self._send(Cancel(session_id=session_id, data={"reason": reason}))
        self._wants_end(run, command_id, reason)
        self._wake()

    def stop(self, session_id: str, run_id: str, reason: str) -> None:
        """Have a run end as cancelled, without anybody who waits for a receipt."""
        session = self._sessions.get(session_id)
        run = session.run if session is not None else None
        if run is not None and run.run_id == run_id:
            self._send(Cancel(session_id=session_id, data={"reason": reason}))
            self._wants_end(run, None, reason)
            self._wake()

    def wrote(self, session_id: str, last_seq: int) -> None:
        """Note that the host itself put events into a session, up to *last_seq*."""
        session = self._sessions.get(session_id)
        if session is not None:
            session.next_seq = max(session.next_seq, last_seq + 1)

    def drop(self, session_id: str) -> None:
        """Forget a session; what the VM still says of it is dropped."""
        self._sessions.pop(session_id, None)

    async def _adopt(self, row: SessionRow) -> _Session:
        tail = await adopt_tail(self._relay, row.id, row.term, row.last_seq)
        known = self._sessions.get(row.id)
        if known is None or known.term != row.term:
            known = self._sessions[row.id] = _Session(row.id, row.term, row.last_seq + 1, tail)
        return known

    def _wants_end(self, run: OpenRun, command_id: str | None, reason: str) -> None:
        if command_id is not None and command_id not in run.cancels:
            run.cancels.append(command_id)
        if run.reason is None:
            run.reason = reason
            run.cancelled_at = trio.current_time()
            run.ends_at = run.cancelled_at + self._deadlines.run_cancel_grace

    # --- what the VM says -------------------------------------------------------------

    async def receive(self, session_id: str, data: str) -> None:
        """Take one event of the VM.

        Raises:
            RemoteProtocolError: If it is none.
        """
        session = self._sessions.get(session_id)
        run = session.run if session is not None else None
        if session is None or run is None:
            self._drop_event(session, data)
            return
        event = session.words.translate(data, run.run_id, trio.current_time())
        run.silent_until = math.inf
        if event is None:
            return
        await self._start(session, run)
        if session.run is not run:  # the host ended it meanwhile
            self._drop_event(session, data)
        elif event.terminal is None:
            await self._say(session, run.run_id, event.type, event.data)
        elif run.reason is not None:
            await self._end(session, run, _as_cancelled(event.terminal))
        else:
            session.run = None
            await self._say(session, run.run_id, event.type, event.data)

    def _drop_event(self, session: _Session | None, data: str) -> None:
        peek_event(data)  # refuses what is no event
        self.dropped += 1
        if session is not None:
            session.dropped += 1

    async def serve(self) -> None:
        """End the runs whose time has come, until cancelled."""
        while True:
            self._changed = trio.Event()
            now = trio.current_time()
            for session in tuple(self._sessions.values()):
                if session.run is not None and session.run.next_at <= now:
                    await self._overdue(session, session.run, now)
            runs = [session.run for session in self._sessions.values() if session.run is not None]
            next_at = min((run.next_at for run in runs), default=math.inf)
            # Unbounded on purpose while no run has a bound.
            with trio.CancelScope(deadline=next_at):
                await self._changed.wait()

    async def _overdue(self, session: _Session, run: OpenRun, now: float) -> None:
        if run.ends_at <= now:
            log.warning("VM did not stop a run", session_id=session.id, run_id=run.run_id)
            session.needs_restart = True
            end = ExecutionComplete(run_id=run.run_id, cancelled=True)
            await self._end(session, run, end, is_forced=True)
        elif run.silent_until <= now:
            log.warning("run is silent", session_id=session.id, run_id=run.run_id)
            session.needs_restart = True
            self._send(Cancel(session_id=session.id, data={"reason": "timeout"}))
            lost = ExecutionError(
                run_id=run.run_id,
                code="INTERRUPTED",
                error="nothing more came from the execution plane; send the message again",
                retryable=True,
            )
            await self._end(session, run, lost, is_forced=True)
        else:
            run.expires_at = math.inf
            if run.reason is None:
                self._send(Cancel(session_id=session.id, data={"reason": "timeout"}))
            self._wants_end(run, None, "timeout")

    async def _start(self, session: _Session, run: OpenRun) -> None:
        if not run.has_started:
            run.has_started = True
            started = RunStarted(run_id=run.run_id, message_id=run.message_id, message=run.message)
            await self._say(session, run.run_id, started.type, encode_event(started))

    async def _end(
        self, session: _Session, run: OpenRun, end: TerminalEvent, *, is_forced: bool = False
    ) -> None:
        """End a run that was to stop, and answer everybody who asked for that."""
        session.run = None  # first, so that nobody else ends it while this waits
        await self._start(session, run)
        await self._say(session, run.run_id, end.type, encode_event(end))
        outcome: Outcome = "cancelled" if isinstance(end, ExecutionComplete) else "interrupted"
        seconds = max(0.0, trio.current_time() - run.cancelled_at)
        left = ActivityRecord(kind="adapter", id=run.run_id, name="level 1 VM", seconds=seconds)
        receipt = Receipt(
            run_id=run.run_id,
            outcome=outcome,
            reason=run.reason,
            abandoned=(left,) if is_forced else (),
            usage=_usage_of(end),
            seconds=seconds,
        )
        self._answer(session.id, run.cancels, receipt)

    def _answer(self, session_id: str, command_ids: list[str], receipt: Receipt) -> None:
        for command_id in command_ids:
            answer = CancelAnswered(
                session_id=session_id,
                command_id=command_id,
                run_id=receipt.run_id,
                receipt=cast("JsonObject", unstructure(receipt)),
            )
            self._intake.put(answer, 0)

    async def _say(self, session: _Session, run_id: str, event_type: str, data: str) -> None:
        """Give an event its number and take it; it is published after its commit."""
        session.tail = tail = await self._relay.tail(session.id)
        if self._sessions.get(session.id) is not session or self._intake.is_closed:
            return  # deleted, or the link ended, while the tail was loaded
        event = StoredEvent(
            term=session.term, seq=session.next_seq, run_id=run_id, type=event_type, data=data
        )
        tail.receive(event, waits_for_commit=True)
        self._intake.put_event(session.id, event, len(data))
        session.next_seq += 1

    def _wake(self) -> None:
        self._changed.set()


def _as_cancelled(end: TerminalEvent) -> ExecutionComplete:
    """Return the end of a run that was to stop, whatever its VM called it."""
    if isinstance(end, ExecutionError):
        return ExecutionComplete(run_id=end.run_id, cancelled=True)
    said = end.partial_response if end.final_response is None else end.final_response
    return attrs.evolve(end, cancelled=True, final_response=None, partial_response=said or None)


def _usage_of(end: TerminalEvent) -> Usage:
    return (end.usage if isinstance(end, ExecutionComplete) else None) or Usage()


def _content(message: JsonObject) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else ""
