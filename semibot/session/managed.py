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
from typing import Final, TypeVar, cast, final

import trio

from semibot.errors import (
    AdapterError,
    LocalProtocolError,
    RemoteProtocolError,
    SemibotError,
    UsageError,
)
from semibot.logs import get_logger
from semibot.wire.chat import Message
from semibot.wire.codec import JsonObject, scrub, structure, unstructure
from semibot.wire.frames import (
    Cancel,
    Cancelled,
    Command,
    CommandAck,
    ConfigUpdate,
    StartSession,
    StopSession,
    UserMessage,
)
from semibot.wire.plane import Lane
from semibot.wire.receipts import Receipt
from semibot.workspace.state import StateOrigin

from .answers import Answers, Note
from .core import SessionCore
from .ending import type_names
from .execution import Execution
from .journal import Journal
from .opening import SessionPlace, on_disk, open_core
from .snapshots import SnapshotKeeper, read_snapshot
from .vm_parts import VmParts

log: Final = get_logger(__name__)

T = TypeVar("T")

MAX_REMEMBERED: Final = 64
"""How many receipts, cancels of unknown runs and changes of configuration are kept."""

MAX_REASON: Final = 200
"""Most characters of the reason that a host gives."""


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
        parts: What it shares with others.
        answers: What earlier commands of the same session were answered with.
        predecessor: The holding of the same session before this one, if it may still be
            there: it has the directory, and maybe something to say.
    """

    def __init__(
        self,
        start: StartSession,
        parts: VmParts,
        *,
        answers: Answers,
        predecessor: ManagedSession | None = None,
    ) -> None:
        self.id: Final = start.data.session_id
        self.term: Final = start.term
        self.answers: Final = answers
        self._start: StartSession | None = start
        self._data = start.data
        self._parts = parts
        self._predecessor = predecessor
        self._journal: Journal = self._make_journal(start, predecessor)
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
        self._snapshots = SnapshotKeeper(self.id, self.term, parts.deadlines, parts.ports)
        self._gone = trio.Event()
        if predecessor is None or predecessor.is_fenced:
            self._open_lane()

    @staticmethod
    def _make_journal(start: StartSession, predecessor: ManagedSession | None) -> Journal:
        term = start.term or 1  # level 1 knows no terms
        if predecessor is not None:
            before = predecessor._journal
            if not predecessor.is_fenced and start.term in {None, before.term}:
                return before  # goes on, so that no number is used twice
            if start.term is None:
                term = before.term + 1
        # Nothing is kept here: the lane keeps what the host has not.
        return Journal(term=term, next_seq=start.next_seq or 1, max_bytes=0)

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
    def is_ending(self) -> bool:
        """Whether it was told to end."""
        return self._ending is not None

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
                self._wants_open = not self.is_open
                self._acknowledge(command_id)
            case UserMessage():
                self._take_message(frame)
            case Cancel():
                self._take_cancel(frame)
            case StopSession():
                self._take_stop(frame)
            case ConfigUpdate():
                self._patches = [*self._patches, frame.patch][-MAX_REMEMBERED:]
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
        self._parts.link.discard_lane(self.id)
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
            id=frame.run_id or self._parts.ports.ids.new_id(),
            message=data.message,
            message_id=data.message_id or self._parts.ports.ids.new_id(),
            metadata=data.metadata,
            given_history=_messages(data.history) or None,
            expires_at=math.inf if data.deadline_ms is None else now + data.deadline_ms / 1000,
            journal=self._journal,
            observer=self,
        )
        if run.id in self._unfinished or run.id in self._receipts:
            log.warning("message of a run that is there already", run_id=run.id)
            self._acknowledge(frame.command_id)
            return
        if self._ending is not None:
            log.warning("message to a session that ends", run_id=run.id)
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
        self._parts.seats.use(self)

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
        self._parts.reporter.report_usage(self.id, run)
        self._snapshots.ask()
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
                try:
                    self._open_lane()
                except LocalProtocolError as exc:  # the host goes back to numbers that were used
                    log.warning("session is given up", error=str(exc))
                    self.fence()
            while self._ending is None:
                if self._wants_open or self._arrived:
                    await self._hold_open()
                else:
                    # Unbounded on purpose: the next command.
                    await self._news.park()
        finally:
            try:
                for run in [*self._unfinished.values()]:
                    run.end_abruptly("the session has ended")
                self._finish()
            finally:
                self._gone.set()

    def _open_lane(self) -> None:
        link, journal = self._parts.link, self._journal
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
            self._parts.link.close_lane(self.id)

    async def _hold_open(self) -> None:
        """Open the core and keep it until the session ends, fails, or is put aside."""
        self._wants_open = self._is_aside = False
        self._opening = trio.CancelScope()
        has_opened = False
        failure: SemibotError | None = None
        try:
            with self._opening:
                factory = self._parts.find_adapter(self._data.runtime_type)
                await self._parts.seats.take(self)
                async with open_core(
                    factory,
                    await self._make_place(),
                    session_id=self.id,
                    payload=_payload(self._data),
                    control_plane=self._parts.link,
                    record=None,
                    deadlines=self._parts.deadlines,
                    ports=self._parts.ports,
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
            used, self._core = self._core, None
            self._parts.seats.give_back(self)
        if failure is not None:
            log.warning("session is not open", session_id=self.id, error=str(failure))
            if not has_opened:
                self._fail_arrived(failure)
        if used is not None:
            await self._snapshots.put(used, self._current_lane)

    def _current_lane(self) -> Lane | None:
        return self._lane

    async def _make_place(self) -> SessionPlace:
        parts, start = self._parts, self._start
        origin: StateOrigin | None = None
        if self.term is not None:
            checkpoint, memory = None, ""
            if start is not None:
                checkpoint, memory = await on_disk(
                    parts.ports, parts.deadlines, read_snapshot, start.snapshot, self.id
                )
            origin = StateOrigin(
                term=self.term,
                covers_seq=self._journal.next_seq - 1,
                checkpoint=checkpoint,
                memory=memory,
                keeps_local=self._was_open,
            )
        return SessionPlace(
            workspace=parts.workspace,
            state_dir=parts.state_dir,
            origin=origin,
            journal=self._journal,
            report=parts.reporter.report_call,
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
        self._wants_open = False  # said again while it was opened
        for patch in self._patches:
            core.host.configure(patch)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._snapshots.serve, core, self._current_lane)
            while not self.is_leaving:
                while self._arrived and not core.conductor.is_closing:
                    core.conductor.admit(self._arrived.popleft(), "interrupt")
                # Unbounded on purpose: the next command.
                await self._news.park()
            nursery.cancel_scope.cancel("the session is closed or put aside")


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


def _keep(mapping: dict[str, T], key: str, value: T) -> None:
    mapping[key] = value
    while len(mapping) > MAX_REMEMBERED:
        del mapping[next(iter(mapping))]
