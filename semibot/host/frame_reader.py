"""Dispatch what a live VM says, frame by frame and in order (protocol sections 3 and 5)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, final

import trio

from semibot.errors import RemoteProtocolError
from semibot.lifetimes import deadline
from semibot.logs import get_logger
from semibot.store.base import (
    CancelAnswered,
    CommandsDone,
    IntakeOp,
    IntakeResult,
    ReportIn,
    SessionRow,
    StoredEvent,
)
from semibot.wire.events import ExecutionComplete, ExecutionError, ToolAuthRequired
from semibot.wire.frames import (
    Cancelled,
    CommandAck,
    ErrorFrame,
    FireAndForget,
    FromVm,
    HeldSession,
    HostAck,
    HostHeartbeat,
    Request,
    RequestCancel,
    SseEvent,
    VmHeartbeat,
    peek_event,
)
from semibot.wire.incoming import Accept, Conflict, Duplicate, Fenced, Gap

from .vm_link import HeldHere, VmLink, size_of

if TYPE_CHECKING:
    from .links import Links

log: Final = get_logger(__name__)

WAITS_FOR_COMMIT: Final = frozenset(
    {ExecutionComplete.type, ExecutionError.type, ToolAuthRequired.type}
)
"""Events that readers see only once they are committed: ends of runs, and asks."""

SESSION_LOST: Final = "SEQ_CONFLICT"
"""The one code after which a VM drops a session silently (section 5); for everything that
makes the host give up a session on a link that goes on."""


@final
class FrameReader:
    """What is done about each frame of one link.

    Args:
        links: Whose link it is.
        link: The link.
    """

    def __init__(self, links: Links, link: VmLink) -> None:
        self._links = links
        self._link = link
        self._heartbeat_due = trio.Event()

    def count(self, frames: Sequence[FromVm]) -> None:
        """Count frames that came."""
        for kind, number in Counter(frame.type for frame in frames).items():
            self._links.metrics.ws_messages_received_total.inc(number, type=kind)

    async def dispatch(self, frame: FromVm, size: int) -> None:
        """Deal with one frame.

        Args:
            frame: Any but ``auth`` and ``resume``.
            size: Bytes that it took on the wire, at least roughly.

        Raises:
            RemoteProtocolError: If it is malformed; nothing has changed.
            StoreError: If the store fails.
            DeadlineExceeded: ``store.commit``.
        """
        link = self._link
        match frame:
            case SseEvent():
                if link.legacy is not None:
                    await link.legacy.receive(frame.session_id, frame.data)
                else:
                    await self._event(frame)
            case VmHeartbeat():
                self._heartbeat(frame)
            case Request():
                self._links.requests.ask(link, frame)
            case RequestCancel():
                self._links.requests.cancel(link.user_id, frame.id)
            case FireAndForget():
                link.intake.put(self._report(frame), size)
            case CommandAck():
                link.intake.put(CommandsDone(command_ids=frame.commands), size)
            case Cancelled():
                answer = CancelAnswered(
                    session_id=frame.session_id,
                    command_id=frame.command_id,
                    run_id=frame.run_id,
                    receipt=frame.receipt,
                )
                link.intake.put(answer, size)
            case ErrorFrame():
                log.warning(
                    "VM refuses a frame",
                    user_id=link.user_id,
                    code=frame.code[:64],
                    id=frame.id,
                    session_id=frame.session_id,
                )
            case _:
                raise RemoteProtocolError("this frame is out of order", "$.type")

    # --- events -----------------------------------------------------------------------

    def take_plain(self, frame: SseEvent) -> bool:
        """Take an event about which there is nothing to say, as nearly all are.

        Returns:
            Whether it was taken; if not nothing has changed, and :meth:`dispatch` decides.
        """
        held = self._link.sessions.get(frame.session_id)
        if held is None or self._link.legacy is not None:
            return False
        tail, intake = held.tail, self._link.intake
        if tail.is_retired or intake.is_closed or not tail.is_settled:
            return False
        term, seq, run_id, data = frame.term, frame.seq, frame.run_id, frame.data
        if term is None or seq is None or run_id is None:
            return False
        try:
            kind = peek_event(data).type
        except RemoteProtocolError:
            return False
        if not isinstance(held.incoming.judge(term, seq, run_id, data), Accept):
            return False
        event = StoredEvent(term, seq, run_id, kind, data)
        tail.receive(event, waits_for_commit=kind in WAITS_FOR_COMMIT)
        intake.put_event(frame.session_id, event, size_of(data))
        return True

    async def _event(self, frame: SseEvent) -> None:
        if frame.term is None or frame.seq is None or frame.run_id is None:
            raise RemoteProtocolError("an event of level 2 has term, seq and run_id")
        session_id = frame.session_id
        held = self._link.sessions.get(session_id)
        if held is None:
            await self._refuse(frame)
            return
        try:
            kind = peek_event(frame.data).type
        except RemoteProtocolError as exc:
            # It would be sent again for ever; better lose its session than its link.
            self._error(session_id, SESSION_LOST, str(exc))
            await self._lose(session_id, "the execution plane said something malformed")
            raise
        tail = self._links.relay.loaded(session_id) or await self._links.relay.tail(session_id)
        if self._link.intake.is_closed:
            return  # the link has ended; it will be sent again on the next one
        if self._link.sessions.get(session_id) is not held:
            await self._refuse(frame)  # deleted while the tail was loaded
            return
        held.tail = tail
        event = StoredEvent(frame.term, frame.seq, frame.run_id, kind, frame.data)
        match held.incoming.judge(frame.term, frame.seq, frame.run_id, frame.data):
            case Accept():
                tail.receive(event, waits_for_commit=kind in WAITS_FOR_COMMIT)
                self._link.intake.put_event(session_id, event, size_of(frame.data))
            case Duplicate(committed=committed, is_committed=is_committed):
                if is_committed:
                    self._link.intake.put_repeat(session_id, event, size_of(frame.data))
                else:
                    self._link.send(HostAck(sessions={session_id: committed}))
            case Gap(expected=expected):
                self._error(session_id, "SEQ_GAP", "numbers are missing", expected=expected)
            case Conflict():
                await self._conflict(session_id)
            case Fenced():
                self._error(session_id, "FENCED", "the session has another term")
        self._settle(held)

    def _settle(self, held: HeldHere) -> None:
        if not held.tail.is_settled and held.incoming.received >= held.settles_at:
            held.tail.settle()

    async def _refuse(self, frame: SseEvent) -> None:
        """Deal with an event of a session that this link does not carry."""
        link, session_id = self._link, frame.session_id
        fate = link.fate_of(session_id)
        if fate is None:
            term, seq = frame.term or 1, frame.seq or 1
            named = {session_id: HeldSession(term=term, first_seq=seq, last_seq=seq)}
            with deadline("store.commit", self._links.deadlines.store_commit):
                found = await self._links.store.look_up_sessions(link.ref, named)
            known = found.get(session_id, "foreign")
            fate = "fenced" if isinstance(known, SessionRow) else known
            if session_id not in link.sessions:
                link.release(session_id, fate)
            self._error_of_fate(session_id, fate)
            if fate == "foreign":
                raise RemoteProtocolError("the session is not the user's", "$.session_id")
        if fate == "gone":
            link.send(HostAck(sessions={session_id: frame.seq or 0}))

    def _error_of_fate(self, session_id: str, fate: str) -> None:
        if fate == "fenced":
            self._error(session_id, SESSION_LOST, "the session is not held by this VM")

    async def _conflict(self, session_id: str) -> None:
        self._error(session_id, SESSION_LOST, "other bytes came under this number before")
        await self._lose(session_id, "the execution plane contradicts itself; send it again")

    async def _lose(self, session_id: str, message: str) -> None:
        await self._link.intake.commit()
        await self._links.lose_session(self._link, session_id, message=message)

    def _error(
        self, session_id: str, code: str, message: str, *, expected: int | None = None
    ) -> None:
        self._link.send(
            ErrorFrame(code=code, message=message, session_id=session_id, expected=expected)
        )

    # --- heartbeats and reports -------------------------------------------------------

    def _heartbeat(self, frame: VmHeartbeat) -> None:
        if frame.blocked is not None:
            log.warning(
                "VM stood still",
                user_id=self._link.user_id,
                seconds=frame.blocked.seconds,
                where=frame.blocked.where[:200],
            )
        self._links.pulses.beat(self._link, frame)
        if self._link.level > 1:
            self._link.send(HostHeartbeat(echo=frame.sent_at))
        else:
            self._links.metrics.ws_sessions_per_connection.set(
                len(frame.active_sessions), user_id=self._link.user_id
            )
        self._heartbeat_due.set()

    async def note_heartbeats(self) -> None:
        """Write heartbeats into the VM's row, until cancelled; several may become one.

        Closes the link if it is no longer the VM's.

        Raises:
            StoreError: If the store fails.
            DeadlineExceeded: ``store.commit``.
        """
        while True:
            # Unbounded on purpose: the reader bounds the silence.
            await self._heartbeat_due.wait()
            self._heartbeat_due = trio.Event()
            with deadline("store.commit", self._links.deadlines.store_commit):
                is_current = await self._links.store.touch_vm(self._link.ref)
            if not is_current:
                self._link.close(4009, "superseded")

    def _report(self, frame: FireAndForget) -> ReportIn:
        return ReportIn(
            id=None if self._link.level == 1 else frame.id,
            session_id=frame.session_id,
            method=frame.method,
            params=frame.params,
        )

    # --- after a commit ---------------------------------------------------------------

    async def after_commit(self, ops: Sequence[IntakeOp], result: IntakeResult) -> None:
        """Acknowledge what is committed, and tell everybody who waits for it.

        Raises:
            StoreError: If a session that has to be given up could not be.
            DeadlineExceeded: ``store.commit``.
        """
        link, links = self._link, self._links
        acked = dict(result.committed)
        for session_id, seq in result.committed.items():
            held = link.sessions.get(session_id)
            if held is not None:
                held.incoming.commit(seq)
        for session_id, why in result.refused.items():
            if why == "gone":
                link.release(session_id, "gone")
                acked[session_id] = _newest(ops, session_id)
        if link.level > 1 and (acked or result.done_ids):
            link.send(HostAck(sessions=acked, ids=result.done_ids))
        for name, why in result.dropped:
            log.info("report dropped", user_id=link.user_id, report=name[:64], reason=why)
        link.sent.difference_update(result.done_ids)
        for session_id, run_id in result.ended_runs:
            links.runs_ended(session_id, link.user_id, run_id)
        stopped: list[str] = []
        for op in ops:
            if isinstance(op, CancelAnswered):
                links.cancel_answered(op)
                if op.command_id in link.stops:
                    stopped.append(link.stops.pop(op.command_id))
        # From here on it waits for the store.
        for session_id in stopped:
            if session_id in link.sessions:
                await links.lose_session(link, session_id, message="the session was stopped")
        for session_id, why in result.refused.items():
            if why == "conflict":
                await self._give_up(session_id, "other bytes came before")
            elif why == "fenced":
                await self._give_up(session_id, "the session is not held by this VM")

    async def _give_up(self, session_id: str, message: str) -> None:
        if session_id in self._link.sessions:
            self._error(session_id, SESSION_LOST, message)
            await self._links.lose_session(
                self._link,
                session_id,
                message="the execution plane contradicts itself; send it again",
            )


def _newest(ops: Sequence[IntakeOp], session_id: str) -> int:
    """Return the highest number that came of a session."""
    return max(
        (
            event.seq
            for op in ops
            if not isinstance(op, CommandsDone | CancelAnswered | ReportIn)
            and op.session_id == session_id
            for event in op.events
        ),
        default=0,
    )
