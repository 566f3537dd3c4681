"""Tell VMs what to do: per session in order, each command once (protocol sections 4 and 6).

Theory of operation. What is to be done stands in the store. Whenever something changes for a
session (a message, a cancel, the end of a run, a new link) it is *kicked*, and one task looks
at what the store says now and does what can be done now; so nothing is kept here that a
restart would lose, but which commands were sent on which link. A command's process is
committed before its first byte is written; it is sent again only to that process, once on
each of its links.

A session is worked on by one task at a time, and at most :data:`MAX_AT_ONCE` sessions are.
"""

from __future__ import annotations

from typing import Final, final

import attrs
import trio

from semibot.config import Deadlines
from semibot.config.settings import HostSettings
from semibot.errors import DeadlineExceeded, LinkFenced, LocalProtocolError, NotFound, StoreError
from semibot.lifetimes import deadline
from semibot.logs import get_logger
from semibot.ports import Ports
from semibot.store.base import (
    CancelAnswered,
    CancelAsked,
    CommandRow,
    RunRow,
    SessionRow,
    SessionWork,
    Store,
    VmRow,
)
from semibot.wire.codec import JsonObject
from semibot.wire.incoming import Incoming

from .command_frames import CommandFrames, send_message, side_command, start_session
from .intake import adopt_tail
from .legacy_dispatch import LegacyDispatch
from .links import Links
from .relay import Relay
from .vm_link import HeldHere, VmLink

log: Final = get_logger(__name__)

MAX_AT_ONCE: Final = 64
"""Sessions that are worked on at once; each may hold a history of 4 MiB."""

FIRST_RETRY: Final = 1.0
"""Until a session is tried again after the store failed, in seconds; doubles up to
:data:`LAST_RETRY`."""

LAST_RETRY: Final = 30.0
"""The longest wait between two tries, in seconds."""

IDLE_LOOK: Final = 1.0
"""How often :meth:`Dispatcher.wait_idle` looks if nothing tells it, in seconds."""


@final
class Dispatcher:
    """Writes commands. Its service is :meth:`serve`. It reports to *links* as their desk.

    Args:
        store: Where commands are.
        relay: Publishes what the host says itself.
        links: Where commands go.
        settings: Of the host.
        ports: The seams.
        deadlines: ``store_commit`` bounds every step.
    """

    def __init__(
        self,
        *,
        store: Store,
        relay: Relay,
        links: Links,
        settings: HostSettings,
        ports: Ports,
        deadlines: Deadlines,
    ) -> None:
        self._store = store
        self._relay = relay
        self._links = links
        self._ports = ports
        self._deadlines = deadlines
        self._frames = CommandFrames(store=store, settings=settings, ports=ports)
        self._level1 = LegacyDispatch(store, self._frames)
        self._wanted: dict[str, str] = {}
        self._again: set[str] = set()
        self._busy: set[str] = set()
        self._pausing: dict[str, trio.Event] = {}
        self._users: set[str] = set()
        self._work = trio.lowlevel.ParkingLot()
        self._receipts: dict[str, set[trio.Event]] = {}
        self._runs_ended = trio.lowlevel.ParkingLot()
        links.report_to(self)

    # --- what others say --------------------------------------------------------------

    def kick(self, session_id: str, user_id: str) -> None:
        """Note that something has changed for a session; never waits."""
        if session_id in self._busy:
            self._again.add(session_id)
            if session_id in self._pausing:
                self._pausing[session_id].set()
        else:
            self._wanted[session_id] = user_id
            self._work.unpark_all()

    def link_up(self, vm: VmRow) -> None:
        """Look at all sessions of a user whose VM is back."""
        self._users.add(vm.user_id)
        self._work.unpark_all()

    def link_down(self, vm: VmRow) -> None:
        """Do nothing: what was sent stands in the store."""

    def runs_ended(self, session_id: str, run_ids: tuple[str, ...]) -> None:
        """Wake those who wait for the receipts of runs that have ended."""
        for run_id in run_ids:
            self._wake(run_id)
        self._runs_ended.unpark_all()

    def cancel_answered(self, answer: CancelAnswered) -> None:
        """Wake those who wait for this receipt."""
        self._wake(answer.command_id)
        if answer.run_id is not None:
            self._wake(answer.run_id)

    # --- what people want -------------------------------------------------------------

    async def cancel(
        self, user_id: str, session_id: str, run_id: str | None, reason: str
    ) -> CancelAsked:
        """Cancel a run, or the current one (protocol section 6).

        Raises:
            NotFound: If the session is not the user's, or the run not the session's.
            StoreError: If the store fails.
            DeadlineExceeded: ``store.commit``.
        """
        with deadline("store.commit", self._deadlines.store_commit):
            asked = await self._store.ask_cancel(
                user_id, session_id, run_id, self._ports.ids.new_id(), reason
            )
        self.kick(session_id, user_id)
        return asked

    async def wait_receipt(self, run_id: str, command_id: str) -> JsonObject:
        """Wait for the answer to a cancel; the caller bounds it.

        Args:
            run_id: The run.
            command_id: The cancel that is pending.

        Returns:
            The receipt; with ``vm_lost`` if the VM is gone; with ``already`` if the run, or
            its session, ended without one.

        Raises:
            StoreError: If the store fails.
            DeadlineExceeded: ``store.commit``.
        """
        while True:
            changed = trio.Event()
            keys = (run_id, command_id)
            for key in keys:
                self._receipts.setdefault(key, set()).add(changed)
            try:
                with deadline("store.commit", self._deadlines.store_commit):
                    answer = await self._answer_of(run_id, command_id)
                if answer is not None:
                    return answer
                await changed.wait()
            finally:
                for key in keys:
                    self._forget(key, changed)

    async def _answer_of(self, run_id: str, command_id: str) -> JsonObject | None:
        run = await self._store.get_run(run_id)
        if run is not None and run.receipt is None:
            work = await self._store.session_work(run.session_id)
            if work is not None and any(command.id == command_id for command in work.commands):
                return None
            run = await self._store.get_run(run_id)  # the receipt came with the command's end
        if run is None:  # its session was deleted
            return {"run_id": run_id, "already": True}
        if run.receipt is not None:
            return run.receipt
        if run.outcome is None:
            return None
        return {"run_id": run_id, "outcome": run.outcome, "already": True}

    def _wake(self, key: str) -> None:
        for waiting in self._receipts.get(key, ()):
            waiting.set()

    def _forget(self, key: str, waiting: trio.Event) -> None:
        events = self._receipts[key]
        events.discard(waiting)
        if not events:
            del self._receipts[key]

    async def delete_session(self, user_id: str, session_id: str) -> bool:
        """Delete a session, and have its VM stop it.

        Returns:
            Whether it existed and was the user's.

        Raises:
            StoreError: If the store fails.
            DeadlineExceeded: ``store.commit``.
        """
        command_id = self._ports.ids.new_id()
        with deadline("store.commit", self._deadlines.store_commit):
            deleted = await self._store.delete_session(user_id, session_id, command_id)
        if deleted is None:
            return False
        link = self._links.of_user(user_id)
        if link is not None:
            link.release(session_id, "gone")
        self._relay.forget(session_id)
        for waiting in tuple(self._receipts):  # its runs are gone: whoever waits looks again
            self._wake(waiting)
        self.kick(session_id, user_id)
        return True

    async def wait_idle(self, user_id: str) -> None:
        """Wait until no run of the user is under way on its VM; the caller bounds it.

        Returns at once if no VM of the user is connected.

        Raises:
            StoreError: If the store fails.
        """
        while True:
            link = self._links.of_user(user_id)
            if link is None or not await self._is_busy(link):
                return
            with trio.move_on_after(IDLE_LOOK):
                await self._runs_ended.park()

    async def _is_busy(self, link: VmLink) -> bool:
        for session_id in await self._store.held_sessions(link.ref):
            work = await self._store.session_work(session_id)
            if work is not None and work.open_runs:
                return True
        return False

    # --- working ----------------------------------------------------------------------

    async def serve(self) -> None:
        """Do what is to be done, until cancelled."""
        room = trio.CapacityLimiter(MAX_AT_ONCE)
        async with trio.open_nursery() as nursery:
            while True:
                for user_id in tuple(self._users):
                    nursery.start_soon(self._kick_all, user_id)
                self._users.clear()
                for session_id, user_id in self._wanted.items():
                    self._busy.add(session_id)
                    nursery.start_soon(self._work_on, session_id, user_id, room)
                self._wanted.clear()
                # Unbounded on purpose: there may be nothing to do for hours.
                await self._work.park()

    async def _kick_all(self, user_id: str) -> None:
        pause = FIRST_RETRY
        while True:
            try:
                with deadline("store.commit", self._deadlines.store_commit):
                    waiting = await self._store.sessions_with_work(user_id)
            except (StoreError, DeadlineExceeded) as exc:
                log.warning("commands could not be read", user_id=user_id, error=str(exc))
                await trio.sleep(pause)
                pause = min(2 * pause, LAST_RETRY)
                continue
            for session_id in waiting:
                self.kick(session_id, user_id)
            return

    async def _work_on(self, session_id: str, user_id: str, room: trio.CapacityLimiter) -> None:
        """Work on one session until nothing has changed since the last look."""
        pause = FIRST_RETRY
        try:
            while True:  # noqa: ASYNC913 - looking is a checkpoint
                self._again.discard(session_id)
                try:
                    async with room:
                        await self._look(session_id, user_id)
                    pause = FIRST_RETRY
                    if session_id not in self._again:
                        return
                except (NotFound, LinkFenced, LocalProtocolError) as exc:
                    # Somebody else was quicker: deleted it, or took the VM over.
                    log.info("commands have to wait", session_id=session_id, reason=str(exc))
                    if session_id not in self._again:
                        return
                except (StoreError, DeadlineExceeded) as exc:
                    log.warning("commands could not be sent", session_id=session_id, error=str(exc))
                    await self._pause(session_id, pause)
                    pause = min(2 * pause, LAST_RETRY)
        except Exception:
            log.exception("commands of a session are stuck", session_id=session_id)
        finally:
            self._busy.discard(session_id)
            if session_id in self._again:  # after a failure, something new may help
                self._again.discard(session_id)
                self.kick(session_id, user_id)

    async def _pause(self, session_id: str, seconds: float) -> None:
        """Wait until it may work again, at most until the next kick."""
        kicked = self._pausing[session_id] = trio.Event()
        try:
            with trio.move_on_after(seconds):
                await kicked.wait()
        finally:
            del self._pausing[session_id]

    async def _look(self, session_id: str, user_id: str) -> None:
        """Do for one session what can be done now."""
        work = await self._read(session_id)
        if work is None:
            return
        link = self._links.of_user(user_id)
        if link is not None and _is_astray(work.session, link):
            await self._recover(work, link)
            return
        if _has_cancelled_head(work, link):
            await self._end_unwritten(session_id, link)
            work = await self._read(session_id)
        if work is None or link is None or not link.is_live:
            return
        with deadline("store.commit", self._deadlines.store_commit):
            if link.legacy is not None:
                await self._level1.look(work, link, link.legacy)
            else:
                await self._tell(work, link)

    async def _recover(self, work: SessionWork, link: VmLink) -> None:
        """Deal with a session whose holder is not what this link carries."""
        session_id = work.session.id
        with deadline("store.commit", self._deadlines.store_commit):
            row = await self._store.get_session(link.user_id, session_id)
            if row is None:  # deleted: what is left is to have it stopped
                await self._stop_deleted(work, link)
                return
        await self._links.lose_session(
            link, session_id, message="the session has moved; send the message again"
        )

    async def _stop_deleted(self, work: SessionWork, link: VmLink) -> None:
        if not _is_holder(work.session, link):
            await self._store.finish_commands([command.id for command in work.commands])
            return
        for command in work.commands:
            if command.kind == "stop_session" and command.id not in link.sent:
                await self._send(command, link)

    async def _read(self, session_id: str) -> SessionWork | None:
        with deadline("store.commit", self._deadlines.store_commit):
            return await self._store.session_work(session_id)

    async def _end_unwritten(self, session_id: str, link: VmLink | None) -> None:
        """End the runs at the head of the queue that were cancelled before their turn."""
        with deadline("store.commit", self._deadlines.store_commit):
            said = await self._store.end_unwritten_runs(session_id, outcome="cancelled")
        if said is None:
            return
        if link is not None and link.legacy is not None and said.events:
            link.legacy.wrote(session_id, said.events[-1].seq)
        self._relay.publish_loss(said)
        self.runs_ended(session_id, said.ended_runs)

    # --- level 2 ----------------------------------------------------------------------

    async def _tell(self, work: SessionWork, link: VmLink) -> None:
        """Send what can be sent now."""
        session = work.session
        if session.holder_vm is None:
            if not any(command.kind == "user_message" for command in work.commands):
                await self._store.finish_commands(
                    [each.id for each in work.commands if each.kind != "config_update"]
                )
                return
            await self._hold(session.id, link)
        runs = {run.id: run for run in work.open_runs}
        turn = work.open_runs[0].id if work.open_runs else None
        is_waiting = False
        for command in work.commands:
            if command.id in link.sent:
                continue
            match command.kind:
                case "user_message":
                    run = runs.get(command.run_id or "")
                    if run is not None and run.id == turn:
                        await self._send_message(session, command, run, link)
                    else:
                        is_waiting = True
                case "cancel":
                    run = runs.get(command.run_id or "")
                    if run is None or run.is_written:
                        await self._send(command, link)
                case "stop_session":
                    await self._send(command, link)
                case "config_update":
                    if not is_waiting:
                        await self._send(command, link)

    async def _hold(self, session_id: str, link: VmLink) -> None:
        """Make the link's process the holder, and have it start the session."""
        held = await self._store.hold_session(session_id, link.ref)
        session = held.session
        tail = await adopt_tail(self._relay, session_id, session.term, session.last_seq)
        tail.settle()  # nobody holds an earlier event any more
        link.hold(
            session_id, HeldHere(Incoming(session.term, session.last_seq), tail, session.last_seq)
        )
        frame = start_session(held, await self._frames.start_data(held), self._ports.ids.new_id())
        if not link.send(frame):
            log.warning("snapshot is too big and left out", session_id=session_id)
            link.send(attrs.evolve(frame, snapshot=None))

    async def _send_message(
        self, session: SessionRow, command: CommandRow, run: RunRow, link: VmLink
    ) -> None:
        history = await self._frames.history(session.id, run.id)
        if command.boot_hash != link.boot:
            await self._store.mark_written(command.id, link.ref)
        # A cancel may have come before it was marked: then nobody else tells the VM.
        run = await self._store.get_run(run.id) or run
        if link.is_live:
            link.sent.add(command.id)
            send_message(link, self._frames.user_message(session, command, run, history))

    async def _send(self, command: CommandRow, link: VmLink) -> None:
        if command.boot_hash != link.boot:
            await self._store.mark_written(command.id, link.ref)
        if link.is_live:
            link.sent.add(command.id)
            if command.kind == "stop_session":
                link.stops[command.id] = command.session_id
            link.send(side_command(command))


def _is_holder(session: SessionRow, link: VmLink) -> bool:
    return (session.holder_vm, session.holder_boot) == (link.vm.id, link.boot)


def _is_astray(session: SessionRow, link: VmLink) -> bool:
    """Whether somebody holds the session, but not this link as it is."""
    if session.holder_vm is None:
        return False
    is_carried = link.legacy is not None or session.id in link.sessions
    return not (is_carried and _is_holder(session, link))


def _has_cancelled_head(work: SessionWork, link: VmLink | None) -> bool:
    """Whether the host has to end the next run itself: cancelled, and no VM will open it."""
    is_ours = work.session.holder_vm is None or (link is not None and link.legacy is not None)
    head = work.open_runs[0] if work.open_runs else None
    return is_ours and head is not None and head.wants_cancel and not head.is_written
