"""Run the sessions of a VM as its host wants: the other end of the control channel.

Theory of operation. The channel hands over commands in order; each goes to its session at
once, and nothing here waits (``managed.py`` says what a session does with them). A session
that is not held any more may still be ending; whoever holds it next waits for it, because
there is one directory and one way out per session.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, cast, final

import attrs
import structlog
import trio

from semibot.config import Deadlines
from semibot.errors import LocalProtocolError, NotFound
from semibot.lifetimes import grace, open_services
from semibot.live import live_ports
from semibot.logs import get_logger
from semibot.observe.watchdog import open_watchdog
from semibot.ports import Ports
from semibot.wire.codec import JsonObject, unstructure
from semibot.wire.frames import (
    Cancel,
    Cancelled,
    Command,
    CommandAck,
    ConfigUpdate,
    StartSession,
    StartSessionData,
    StopSession,
    UserMessage,
)
from semibot.wire.plane import PlaneLink, PlaneSettings
from semibot.wire.receipts import Receipt

from .adapter import AdapterFactory
from .answers import Answers, Note
from .managed import ManagedSession
from .opening import existing_directory, on_disk
from .reports import Reporter
from .seats import MAX_OPEN, Seats
from .vm_parts import VmParts

log: Final = get_logger(__name__)

MAX_FORMER: Final = 256
"""How many sessions that have ended are remembered, for repeated commands."""


@attrs.frozen(kw_only=True)
class ManagerStatistics:
    """What a VM's sessions are doing, at one moment."""

    held: int
    """Sessions that the VM holds."""
    open: int
    """Those whose adapter is there."""
    running: int
    """Those with a run that has not ended."""
    ending: int
    """Sessions that are not held any more but have not quite ended."""


@asynccontextmanager
async def open_session_manager(
    link: PlaneLink,
    *,
    adapters: Mapping[str, AdapterFactory],
    workspace: Path | str,
    state_dir: Path | None = None,
    max_open: int = MAX_OPEN,
    on_configure: Callable[[PlaneSettings], None] | None = None,
    deadlines: Deadlines | None = None,
    ports: Ports | None = None,
) -> AsyncGenerator[SessionManager]:
    """Carry out what a host wants, until the block ends.

    The sessions run in tasks of this block; the body is yours. On exit new commands are
    refused and every run is interrupted; its terminal event, a snapshot and the reports
    are in *link* when the block ends. Exit waits for that, at most
    :attr:`Deadlines.stop_bound <semibot.Deadlines.stop_bound>` and a few saves; *link*,
    which is opened outside, then delivers it.

    Args:
        link: The way to the host, such as a control channel.
        adapters: What drives sessions, by ``runtime_type``; ``semigraph`` and nothing at
            all mean ``graph``.
        workspace: The directory that all agents work in.
        state_dir: Where sessions are kept; made if missing. None means the workspace's
            ``.semibot``. Tools cannot reach it.
        max_open: How many sessions have an adapter at once, at least 1. The others are put
            aside while they are idle, and go on at their next message.
        on_configure: Told what the host says in ``init``, such as keys for models, each
            time before any session is started with it; never waits.
        deadlines: The bounds.
        ports: The seams; real ones by default.

    Yields:
        The manager.

    Raises:
        WorkspaceUnusable: If the workspace is missing.
    """
    ports = ports or live_ports()
    bounds = deadlines or Deadlines()
    root = await on_disk(ports, bounds, existing_directory, Path(workspace))
    async with open_watchdog(ports), open_services() as services:
        reporter = Reporter(link)
        parts = VmParts(
            link=link,
            adapters=adapters,
            workspace=root,
            state_dir=None
            if state_dir is None
            else await on_disk(ports, bounds, state_dir.resolve),
            deadlines=bounds,
            ports=ports,
            seats=Seats(max_open),
            reporter=reporter,
        )
        manager = SessionManager(parts, on_configure)
        services.start_soon(manager.serve, name="sessions")
        services.start_soon(reporter.serve, name="reports")
        with link.attach(manager):
            try:
                yield manager
            finally:
                with grace("stop_bound", bounds.stop_bound + 2 * bounds.session_save):
                    await manager.drain("the VM was stopped")
                    await reporter.wait_idle()


@final
class SessionManager:
    """The sessions of a VM. Made only by :func:`open_session_manager`."""

    def __init__(
        self, parts: VmParts, on_configure: Callable[[PlaneSettings], None] | None
    ) -> None:
        self._parts = parts
        self._on_configure = on_configure
        self._settings: PlaneSettings | None = None
        self._held: dict[str, ManagedSession] = {}
        self._former: dict[str, ManagedSession] = {}
        self._alive: set[ManagedSession] = set()
        self._arrivals: deque[ManagedSession] = deque()
        self._news = trio.lowlevel.ParkingLot()
        self._changed = trio.lowlevel.ParkingLot()
        self._is_closing = False

    @property
    def settings(self) -> PlaneSettings | None:
        """What the host said last in ``init``, or None before it has."""
        return self._settings

    def statistics(self) -> ManagerStatistics:
        """Return a snapshot of what the sessions are doing."""
        held = self._held.values()
        return ManagerStatistics(
            held=len(held),
            open=sum(session.is_open for session in held),
            running=sum(session.unfinished > 0 for session in held),
            ending=len(self._alive - {*held}),
        )

    # --- what the channel calls -------------------------------------------------------

    def configure(self, settings: PlaneSettings) -> None:
        """Take what ``init`` said; sessions that open from now on see it."""
        self._settings = settings
        if self._on_configure is not None:
            self._on_configure(settings)

    def active_sessions(self) -> Sequence[str]:
        """Return the sessions that are held."""
        return tuple(self._held)

    def drop_session(self, session_id: str) -> None:
        """End a session silently: nothing more of it reaches the host."""
        former = self._former.get(session_id)
        if former is not None:
            former.fence()
        held = self._held.pop(session_id, None)
        if held is not None:
            log.warning("session is dropped", session_id=session_id)
            held.fence()
            self._remember(held)

    def command(self, frame: Command) -> None:
        """Take one command; a closing VM takes none.

        Raises:
            NotFound: For a message to a session that was not started; the channel tells
                the host.
            LocalProtocolError: If the host starts a session at a number that was used.
        """
        if self._is_closing:
            log.warning("command is refused: the VM stops", type=frame.type)
            return
        match frame:
            case StartSession():
                self._start(frame)
            case StopSession():
                self._pass_on(frame.data.session_id, frame)
                self._let_go(frame.data.session_id)
            case ConfigUpdate():
                self._pass_on(frame.target or "", frame)
            case UserMessage() | Cancel():
                self._pass_on(frame.session_id, frame)

    def _start(self, frame: StartSession) -> None:
        session_id = frame.data.session_id
        held = self._held.get(session_id)
        if held is not None and (frame.term is None or frame.term <= (held.term or 0)):
            held.take(frame)  # held already; what else it says does not count
            return
        if held is not None:
            held.fence()
            self._remember(held)
        before = self._former.get(session_id)
        session = ManagedSession(
            frame,
            self._parts,
            answers=Answers() if before is None else before.answers,
            predecessor=before,
        )
        self._held[session_id] = session
        self._alive.add(session)
        self._arrivals.append(session)
        self._news.unpark_all()
        session.take(frame)

    def _pass_on(self, session_id: str, frame: Command) -> None:
        session = self._held.get(session_id)
        if session is None and isinstance(frame, UserMessage) and frame.run_id is None:
            # A host of level 1 that says nothing about the session: the defaults will do.
            self._start(StartSession(data=StartSessionData(session_id=session_id)))
            session = self._held.get(session_id)
        session = session or self._former.get(session_id)
        if session is not None and not session.is_fenced:
            session.take(frame)
        elif frame.command_id is not None:
            self._answer_for_nobody(session_id, frame, frame.command_id)

    def _let_go(self, session_id: str) -> None:
        session = self._held.get(session_id)
        if session is not None and session.is_ending:  # it was not just a repeat
            del self._held[session_id]
            self._remember(session)

    def _remember(self, session: ManagedSession) -> None:
        self._former.pop(session.id, None)
        self._former[session.id] = session
        for other in [each for each in self._former.values() if each.is_gone][:-MAX_FORMER]:
            del self._former[other.id]

    def _answer_for_nobody(self, session_id: str, frame: Command, command_id: str) -> None:
        """Answer a command to a session that is not held: there is nothing to do."""
        log.warning("command to a session that is not held", session_id=session_id, type=frame.type)
        note: Note
        match frame:
            case Cancel() | StopSession():
                run_id = frame.run_id if isinstance(frame, Cancel) else None
                receipt = cast("JsonObject", unstructure(Receipt(run_id=run_id, already=True)))
                note = Cancelled(
                    session_id=session_id, command_id=command_id, run_id=run_id, receipt=receipt
                )
            case ConfigUpdate() | StartSession():
                note = CommandAck(commands=(command_id,))
            case UserMessage():  # there is no number that its events could have
                raise NotFound(f"session {session_id} is not held here; start it first")
        try:
            lane = self._parts.link.open_lane(session_id, 1, 1)
        except LocalProtocolError as exc:  # it has something to say from before, which goes first
            log.warning("command is not answered", session_id=session_id, error=str(exc))
            return
        lane.put_note(note)
        self._parts.link.close_lane(session_id)

    # --- the sessions' tasks ----------------------------------------------------------

    async def serve(self) -> None:
        """Hold the sessions until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                while self._arrivals:
                    nursery.start_soon(self._look_after, self._arrivals.popleft())
                # Unbounded on purpose: the host's next command.
                await self._news.park()

    async def _look_after(self, session: ManagedSession) -> None:
        try:
            with structlog.contextvars.bound_contextvars(session_id=session.id):
                await session.serve()
        except Exception:  # a bug in one session must not end the others
            log.exception("session broke down", session_id=session.id)
        finally:
            self._alive.discard(session)
            self._changed.unpark_all()

    async def drain(self, reason: str) -> None:
        """Take no more commands, interrupt every run, and wait until all have ended.

        Args:
            reason: Why, for the users.
        """
        self._is_closing = True
        for session in self._alive:
            session.close(reason)
        while self._alive:
            await self._changed.park()
