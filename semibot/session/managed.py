"""One session of a VM: what its host's commands do to it, in order.

Theory of operation. A session is *held* from ``start_session`` on, with its numbers and its
lane. Its *core*, which is the adapter and the directory, is open only while it is needed:
it is opened at once, but may fail to, or be closed to make room. Messages that come while it
is not open wait; so does a cancel of one of them, because it is the run that is marked, and
a marked run ends without its adapter. One task, :meth:`ManagedSession.serve`, opens and
closes the core and admits what has waited; everything else happens at once, in
:meth:`ManagedSession.take` or in the two methods that a run calls when it begins and ends.
That is why an answer always stands right behind the event that shows the effect.

A session ends in one of three ways, and a stronger one may overtake a weaker:

* *closed*: the VM stops. Runs are interrupted; their ends and a snapshot go out.
* *stopped*: the host wants no more of it. As closed, and the command is answered.
* *fenced*: somebody else holds it, or it is gone. Nothing more is said.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Final, cast, final

import attrs
import trio

from semibot.config import Deadlines
from semibot.errors import AdapterError, RemoteProtocolError, SemibotError, UsageError
from semibot.logs import get_logger
from semibot.ports import Ports
from semibot.wire.chat import Message
from semibot.wire.codec import JsonObject, scrub, structure, unstructure
from semibot.wire.frames import (
    Cancel,
    Cancelled,
    Command,
    CommandAck,
    ConfigUpdate,
    FireAndForget,
    StartSession,
    StopSession,
    UserMessage,
)
from semibot.wire.plane import Lane, PlaneLink
from semibot.wire.receipts import Receipt
from semibot.workspace.state import StateOrigin

from .adapter import AdapterFactory
from .answers import Answers, Note
from .core import SessionCore
from .ending import type_names
from .execution import Execution
from .journal import Journal
from .opening import SessionPlace, on_disk, open_core
from .reports import Reporter
from .seats import Seats
from .snapshots import make_snapshot, read_snapshot

log: Final = get_logger(__name__)

SNAPSHOT_INTERVAL: Final = 60.0
"""How often the host gets a snapshot while a run is active, in seconds."""

MAX_REMEMBERED: Final = 64
"""Of how many ended runs the receipts are kept, and of how many unknown ones the cancels."""

MAX_REASON: Final = 200
"""Most characters of the reason that a host gives."""

DEFAULT_RUNTIME: Final = "graph"
"""The adapter of a session whose host names none."""

_RUNTIMES: Final[Mapping[str | None, str]] = {None: DEFAULT_RUNTIME, "semigraph": DEFAULT_RUNTIME}


@attrs.frozen(kw_only=True)
class Plant:
    """What all sessions of a VM share."""

    link: PlaneLink
    """The way to the host."""
    adapters: Mapping[str, AdapterFactory]
    """What drives sessions, by ``runtime_type``."""
    workspace: Path
    """Where agents work; absolute."""
    state_dir: Path | None
    """Where sessions are kept; absolute. None means the workspace."""
    deadlines: Deadlines
    """The bounds."""
    ports: Ports
    """The seams."""
    seats: Seats
    """How many sessions may be open at once."""
    reporter: Reporter
    """The way of reports."""


class Ending(enum.IntEnum):
    """Why a session ends; a larger one overtakes a smaller one."""

    CLOSED = 1
    STOPPED = 2
    FENCED = 3


@final
class ManagedSession:
    """A session that the VM holds.

    Args:
        start: What it is started with.
        plant: What it shares with others.
        answers: What earlier commands of the same session were answered with.
        predecessor: The holding of the same session before this one, if it may still be
            there: it has the directory, and maybe something to say.
    """

    def __init__(
        self,
        start: StartSession,
        plant: Plant,
        *,
        answers: Answers,
        predecessor: ManagedSession | None = None,
    ) -> None:
        self.id: Final = start.data.session_id
        self.term: Final = start.term
        self.answers: Final = answers
        self._start: StartSession | None = start
        self._data = start.data
        self._plant = plant
        self._predecessor = predecessor
        before = 0 if predecessor is None else predecessor._journal.term
        self._journal = Journal(
            term=before + 1 if start.term is None else start.term,
            next_seq=start.next_seq or 1,
            max_bytes=0,  # the lane keeps what the host has not
        )
        self._lane: Lane | None = None
        self._early_notes: list[Note] = []
        self._core: SessionCore | None = None
        self._was_open = False
        self._opening = trio.CancelScope()
        self._wants_open = True
        self._is_aside = False
        self._arrived: deque[Execution] = deque()
        self._unfinished: dict[str, Execution] = {}
        self._commands: dict[str, str] = {}
        self._cancels: dict[str, list[str]] = {}
        self._stops: list[tuple[str, str | None]] = []
        self._receipts: dict[str, Receipt] = {}
        self._early_cancels: dict[str, str] = {}
        self._patches: list[JsonObject] = []
        self._ending: Ending | None = None
        self._news = trio.lowlevel.ParkingLot()
        self._snapshot_is_due = trio.Event()
        self._last_snapshot: tuple[str, int] | None = None
        self._gone = trio.Event()
        if predecessor is None or predecessor.is_fenced:
            self._open_lane()

    # --- where it stands --------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether its adapter is there."""
        return self._core is not None

    @property
    def unfinished(self) -> int:
        """How many runs have no terminal event yet."""
        return len(self._unfinished)

    @property
    def is_fenced(self) -> bool:
        """Whether it has nothing more to say."""
        return self._ending is Ending.FENCED

    @property
    def is_gone(self) -> bool:
        """Whether everything of it has ended."""
        return self._gone.is_set()

    @property
    def is_idle(self) -> bool:
        """Whether it could be put aside."""
        return self.is_open and not self._unfinished and not self.is_leaving

    @property
    def is_leaving(self) -> bool:
        """Whether its adapter will be closed soon."""
        return self._is_aside or self._ending is not None

    async def wait_gone(self) -> None:
        """Wait until everything of it has ended; bounded once it was told to end."""
        await self._gone.wait()

    # --- what others tell it; nothing here waits --------------------------------------

    def take(self, frame: Command) -> None:
        """Carry out a command, or prepare it; a repeat is only answered again."""
        command_id = frame.command_id
        if command_id is not None:
            if command_id in self.answers:
                self._repeat(command_id)
                return
            self.answers.expect(command_id)
        match frame:
            case StartSession():
                self._wants_open = True
                self._acknowledge(command_id)
            case UserMessage():
                self._take_message(frame)
            case Cancel():
                self._take_cancel(frame)
            case StopSession():
                self._take_stop(frame)
            case ConfigUpdate():
                self._patches.append(frame.patch)
                if self._core is not None:
                    self._core.host.configure(frame.patch)
                self._acknowledge(command_id)
        self._news.unpark_all()

    def put_aside(self) -> None:
        """Close the adapter until the next message."""
        self._is_aside = True
        self._news.unpark_all()

    def close(self, reason: str) -> None:
        """End because the VM stops."""
        self._end(Ending.CLOSED, reason)

    def fence(self) -> None:
        """End silently: from here on nothing of it reaches the host."""
        self._journal.lead_into(None)
        self._lane = None
        self.answers.clear()
        self._plant.link.discard_lane(self.id)
        self._end(Ending.FENCED, "another plane holds the session")

    def _end(self, ending: Ending, reason: str) -> None:
        self._ending = ending if self._ending is None else max(self._ending, ending)
        for run in [*self._unfinished.values()]:
            run.request_stop("interrupted", reason)
        if self._core is None:
            self._opening.cancel(reason)
        self._news.unpark_all()

    # --- commands ---------------------------------------------------------------------

    def _repeat(self, command_id: str) -> None:
        note = self.answers.of(command_id)
        if note is not None:  # else the answer is on its way
            self._say(note)

    def _take_message(self, frame: UserMessage) -> None:
        data = frame.data
        now = trio.current_time()
        run = Execution(
            id=frame.run_id or self._plant.ports.ids.new_id(),
            message=data.message,
            message_id=data.message_id or self._plant.ports.ids.new_id(),
            metadata=data.metadata,
            given_history=_messages(data.history) or None,
            expires_at=math.inf if data.deadline_ms is None else now + data.deadline_ms / 1000,
            journal=self._journal,
            observer=self,
        )
        if self._ending is not None or run.id in self._unfinished or run.id in self._receipts:
            log.warning("message is out of place", session_id=self.id, run_id=run.id)
            self._acknowledge(frame.command_id)
            return
        reason = self._early_cancels.pop(run.id, None)
        if data.cancelled:
            run.request_stop("cancelled", "cancelled before its turn")
        elif reason is not None:
            run.request_stop("cancelled", reason)
        elif not data.message.strip():
            run.fail_from_outside(UsageError("the message is blank"))
        if frame.command_id is not None:
            self._commands[run.id] = frame.command_id
        self._unfinished[run.id] = run
        self._arrived.append(run)
        self._is_aside = False
        self._plant.seats.use(self)

    def _take_cancel(self, frame: Cancel) -> None:
        reason = _short(frame.why)
        run_id = frame.run_id or next(iter(self._unfinished), None)
        run = None if run_id is None else self._unfinished.get(run_id)
        if run is not None:
            if frame.command_id is not None:
                self._cancels.setdefault(run.id, []).append(frame.command_id)
            run.request_stop("cancelled", reason)
            return
        known = None if run_id is None else self._receipts.get(run_id)
        if run_id is not None and known is None:
            _keep(self._early_cancels, run_id, reason)
        self._answer_stop(frame.command_id, known or Receipt(run_id=run_id, already=True))

    def _take_stop(self, frame: StopSession) -> None:
        run_id = next(iter(self._unfinished), None)
        if self.is_gone:
            self._answer_stop(frame.command_id, Receipt(run_id=None, already=True))
            return
        if frame.command_id is not None:
            self._stops.append((frame.command_id, run_id))
        reason = _short(frame.data.reason or "user_closed")
        self._end(Ending.STOPPED, f"the session was stopped ({reason})")

    def _acknowledge(self, command_id: str | None) -> None:
        if command_id is not None:
            self._answer(command_id, CommandAck(commands=(command_id,)))

    def _answer_stop(self, command_id: str | None, receipt: Receipt) -> None:
        if command_id is None:
            return
        note = Cancelled(
            session_id=self.id,
            command_id=command_id,
            run_id=receipt.run_id,
            receipt=cast("JsonObject", unstructure(receipt)),
        )
        self._answer(command_id, note)

    def _answer(self, command_id: str, note: Note) -> None:
        self.answers.give(command_id, note)
        self._say(note)

    def _say(self, note: Note) -> None:
        if self.is_fenced:
            return
        if self._lane is None:
            self._early_notes.append(note)
        else:
            self._lane.put_note(note)

    # --- what its runs tell it --------------------------------------------------------

    def run_begun(self, run: Execution) -> None:
        """Acknowledge the message, right behind ``run_started``."""
        self._acknowledge(self._commands.pop(run.id, None))

    def run_ended(self, run: Execution) -> None:
        """Answer the cancels of a run, right behind its terminal event."""
        self._unfinished.pop(run.id, None)
        receipt = run.receipt or Receipt(run_id=run.id, outcome=run.outcome, already=True)
        _keep(self._receipts, run.id, receipt)
        for command_id in self._cancels.pop(run.id, ()):
            self._answer_stop(command_id, receipt)
        self._plant.reporter.report_usage(self.id, run)
        self._snapshot_is_due.set()
        self._news.unpark_all()

    # --- the one task -----------------------------------------------------------------

    async def serve(self) -> None:
        """Hold the session until it ends; nothing that goes wrong in it is raised."""
        try:
            if self._predecessor is not None:
                # Bounded by the predecessor's stop bound: it was told to end.
                await self._predecessor.wait_gone()
                self._predecessor = None
            if self._lane is None and not self.is_fenced:
                self._open_lane()
            while self._ending is None:
                if self._wants_open or self._arrived:
                    await self._hold_open()
                else:
                    # Unbounded on purpose: the next command.
                    await self._news.park()
        finally:
            for run in [*self._unfinished.values()]:
                run.end_abruptly("the session has ended")
            self._finish()
            self._gone.set()

    def _open_lane(self) -> None:
        link, journal = self._plant.link, self._journal
        self._lane = link.open_lane(self.id, journal.term, journal.next_seq)
        journal.lead_into(self._lane)
        for note in self._early_notes:
            self._lane.put_note(note)
        self._early_notes.clear()

    def _finish(self) -> None:
        for command_id, run_id in self._stops:
            known = None if run_id is None else self._receipts.get(run_id)
            self._answer_stop(command_id, known or Receipt(run_id=None, already=True))
        if self._ending is Ending.STOPPED:
            self._plant.link.close_lane(self.id)

    async def _hold_open(self) -> None:
        """Open the core and keep it until the session ends, fails, or is put aside."""
        self._wants_open = self._is_aside = False
        self._opening = trio.CancelScope()
        has_opened = False
        failure: SemibotError | None = None
        try:
            with self._opening:
                factory = self._adapter_factory()
                await self._plant.seats.take(self)
                async with open_core(
                    factory,
                    await self._make_place(),
                    session_id=self.id,
                    payload=_payload(self._data),
                    control_plane=self._plant.link,
                    record=None,
                    deadlines=self._plant.deadlines,
                    ports=self._plant.ports,
                ) as core:
                    has_opened = self._was_open = True
                    self._start = None
                    await self._work(core)
        except SemibotError as exc:
            failure = exc
        except Exception as exc:  # a bug in it must not end the other sessions
            log.exception("session broke down", session_id=self.id)
            failure = AdapterError(f"the session broke down: {type_names(exc)}")
        finally:
            core, self._core = self._core, None
            self._plant.seats.give_back(self)
        if failure is not None:
            log.warning("session is not open", session_id=self.id, error=str(failure))
            if not has_opened:
                self._fail_arrived(failure)
        if core is not None:
            await self._put_snapshot(core)

    def _adapter_factory(self) -> AdapterFactory:
        asked = self._data.runtime_type
        name = _RUNTIMES.get(asked, asked)
        factory = self._plant.adapters.get(name or DEFAULT_RUNTIME)
        if factory is None:
            known = ", ".join(sorted(self._plant.adapters))
            raise AdapterError(
                f"this VM has no runtime {_short(str(asked))!r}; it has {known}",
                code="UNKNOWN_RUNTIME",
            )
        return factory

    async def _make_place(self) -> SessionPlace:
        plant, start = self._plant, self._start
        origin: StateOrigin | None = None
        if self.term is not None:
            checkpoint, memory = None, ""
            if start is not None:
                checkpoint, memory = await on_disk(
                    plant.ports, plant.deadlines, read_snapshot, start.snapshot, self.id
                )
            origin = StateOrigin(
                term=self.term,
                covers_seq=self._journal.next_seq - 1,
                checkpoint=checkpoint,
                memory=memory,
                keeps_local=self._was_open,
            )
        return SessionPlace(
            workspace=plant.workspace,
            state_dir=plant.state_dir,
            origin=origin,
            journal=self._journal,
            report=plant.reporter.report_call,
        )

    def _fail_arrived(self, error: SemibotError) -> None:
        while self._arrived:
            run = self._arrived.popleft()
            run.fail_from_outside(error)
            run.begin()
            run.end()

    async def _work(self, core: SessionCore) -> None:
        """Admit what arrives, until the core is to be closed."""
        self._core = core
        for patch in self._patches:
            core.host.configure(patch)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_snapshots, core)
            while not self.is_leaving:
                while self._arrived and not core.conductor.is_closing:
                    core.conductor.admit(self._arrived.popleft(), "interrupt")
                # Unbounded on purpose: the next command.
                await self._news.park()
            nursery.cancel_scope.cancel("the session is closed or put aside")

    # --- snapshots --------------------------------------------------------------------

    async def _keep_snapshots(self, core: SessionCore) -> None:
        """Put a snapshot into the lane after each run, and now and then during one."""
        while True:
            with trio.move_on_after(SNAPSHOT_INTERVAL):
                await self._snapshot_is_due.wait()
            if self._snapshot_is_due.is_set() or self._unfinished:
                await self._put_snapshot(core)

    async def _put_snapshot(self, core: SessionCore) -> None:
        """Put a snapshot into the lane, if there is anything new; what fails is logged."""
        self._snapshot_is_due = trio.Event()
        checkpoint = core.conversation.newest
        if checkpoint is None:
            return
        run = core.conductor.current
        is_running = run is not None and checkpoint.run_id == run.id and run.terminal_seq is None
        partial = run.text if run is not None and is_running else ""
        covers_seq = self._journal.next_seq - 1 if partial else checkpoint.covers_seq
        if self._last_snapshot == (checkpoint.id, covers_seq):
            return
        ports = self._plant.ports

        def make() -> JsonObject | None:
            return make_snapshot(
                checkpoint,
                core.state.memory,
                partial=partial,
                covers_seq=covers_seq,
                term=self.term,
            )

        try:
            params = await on_disk(ports, self._plant.deadlines, make)
        except (OSError, SemibotError) as exc:
            log.warning("no snapshot", session_id=self.id, error=repr(exc))
            return
        if params is not None and self._lane is not None:
            self._last_snapshot = (checkpoint.id, covers_seq)
            self._lane.put_snapshot(
                FireAndForget(
                    session_id=self.id,
                    method="snapshot_sync",
                    params=params,
                    id=ports.ids.new_id(),
                )
            )


def _payload(data: object) -> JsonObject:
    fields = cast("JsonObject", unstructure(data))
    return {name: value for name, value in fields.items() if name != "session_id"}


def _messages(history: tuple[JsonObject, ...]) -> tuple[Message, ...]:
    """Return a host's history; what is no message of a conversation is passed over."""
    found: list[Message] = []
    for item in history:
        try:
            found.append(structure(item, Message))
        except RemoteProtocolError as exc:
            log.warning("message of the history cannot be read", error=str(exc))
    return tuple(found)


def _short(text: str) -> str:
    return scrub(text)[:MAX_REASON]


def _keep(mapping: dict[str, object], key: str, value: object) -> None:
    mapping[key] = value
    while len(mapping) > MAX_REMEMBERED:
        del mapping[next(iter(mapping))]
