"""What a VM has to say to its host and makes of what the host says, whatever becomes of links.

Everything here outlives a connection: lanes of sessions, requests, the outbox, and the
handler that carries commands out. Nothing here waits but the askers of requests and
reports. A connection takes batches from :attr:`Exchange.outgoing` and hands in frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Final, TypeAlias, final

import attrs
import trio

from semibot.config import Deadlines
from semibot.errors import RemoteProtocolError, RequestFailed, SemibotError
from semibot.lifetimes import deadline
from semibot.logs import get_logger
from semibot.ports import Ports
from semibot.wire.codec import JsonObject, JsonValue
from semibot.wire.frames import (
    Cancel,
    Cancelled,
    Command,
    CommandAck,
    ConfigUpdate,
    ErrorDetail,
    ErrorFrame,
    FireAndForget,
    FromHost,
    HostAck,
    HostHeartbeat,
    Init,
    Request,
    RequestCancel,
    Response,
    Resume,
    ResumeResponse,
    StartSession,
    StopSession,
    Token,
    UserMessage,
    encode_frame,
)
from semibot.wire.outgoing import Outgoing
from semibot.wire.own_lane import Outbound
from semibot.wire.pending import Pending, PendingRequest
from semibot.wire.plane import CommandHandler, PlaneSettings
from semibot.wire.session_lane import SessionLane

from .outbox import Outbox, OutboxRow

log: Final = get_logger(__name__)

MAX_WAITING_COMMANDS: Final = 1000
"""Commands that are kept while nobody carries them out."""

_Answer: TypeAlias = ErrorFrame | RequestCancel


@final
@attrs.frozen
class _Said:
    """A frame that is sent once, on this link or never."""

    frame: _Answer

    def text(self) -> str:
        return encode_frame(self.frame)

    def taken(self) -> None:
        """Do nothing."""

    def written(self, level: int) -> None:
        """Do nothing."""


@final
@attrs.frozen
class _Report:
    """A row of the outbox, on its way."""

    row: OutboxRow
    outbox: Outbox
    level: int

    def text(self) -> str | None:
        if self.row.is_acknowledged:
            return None
        if self.level < 2:
            return encode_frame(attrs.evolve(self.row.frame, id=None))
        return self.row.encoded

    def taken(self) -> None:
        """Do nothing: it stays in the outbox."""

    def written(self, level: int) -> None:
        """Forget it if the host will never acknowledge it."""
        if level < 2 and self.row.frame.id is not None:
            self.outbox.acknowledge([self.row.frame.id])


@final
class Exchange:
    """What outlives connections. Made by :func:`~.control_channel.open_control_channel`.

    Args:
        ports: The seams.
        deadlines: ``channel.request``.
    """

    def __init__(self, ports: Ports, deadlines: Deadlines) -> None:
        self._ports = ports
        self._deadlines = deadlines
        self.outgoing: Final = Outgoing()
        """What is to be said."""
        self.pending: Final = Pending(trio.current_time)
        """Requests without an answer."""
        self._outbox: Outbox | None = None
        self._handler: CommandHandler | None = None
        self._settings: PlaneSettings | None = None
        self._commands: deque[Command] = deque()
        self._room = trio.lowlevel.ParkingLot()
        self._news = trio.lowlevel.ParkingLot()
        self._named: tuple[str, ...] = ()
        self._level = 0  # of the link that is live; 0 if none is
        self._is_closed = False
        self.renewed_token: str | None = None
        """The newest token that the host sent."""
        self.dropped_frames: int = 0
        """Frames that were malformed, late or meant for nobody."""
        self.lost_sessions: int = 0
        """Sessions that the host told to end."""

    # --- for the session manager ---

    @contextmanager
    def attach(self, handler: CommandHandler) -> Generator[None]:
        """See :meth:`semibot.wire.plane.PlaneLink.attach`."""
        if self._handler is not None:
            raise trio.BusyResourceError("somebody carries out this channel's commands already")
        self._handler = handler
        try:
            if self._settings is not None:
                handler.configure(self._settings)
            while self._commands:
                self._carry_out(handler, self._commands.popleft())
            yield
        finally:
            self._handler = None

    def open_lane(self, session_id: str, term: int, next_seq: int) -> ExchangeLane:
        """See :meth:`semibot.wire.plane.PlaneLink.open_lane`."""
        lane = self.outgoing.open(session_id, term, next_seq)
        return ExchangeLane(self, lane)

    def close_lane(self, session_id: str) -> None:
        """See :meth:`semibot.wire.plane.PlaneLink.close_lane`."""
        self.outgoing.close(session_id)
        self.notify()

    def discard_lane(self, session_id: str) -> None:
        """See :meth:`semibot.wire.plane.PlaneLink.discard_lane`."""
        self.outgoing.discard(session_id)
        self.make_room()

    async def request(self, session_id: str, method: str, params: JsonObject) -> JsonValue:
        """See :meth:`semibot.wire.plane.PlaneLink.request`."""
        if self._is_closed:
            raise RequestFailed("REQUEST_FAILED", "the channel to the host is closed")
        frame = Request(
            id=self._ports.ids.new_id(), session_id=session_id, method=method, params=params
        )
        await trio.lowlevel.checkpoint_if_cancelled()  # then nobody would wait
        answered = trio.Event()
        with deadline("channel.request", self._deadlines.channel_request):
            until = trio.current_effective_deadline()
            request = self.pending.add(frame, deadline=until, wake=answered.set)
            try:
                if self._level:
                    self._put_own(request)
                await answered.wait()
            finally:
                self._forget(request)
        return request.result()

    def _forget(self, request: PendingRequest) -> None:
        if self.pending.remove(request) and self._level >= 2:
            self._put_own(_Said(RequestCancel(id=request.frame.id)))

    async def report(self, session_id: str, method: str, params: JsonObject) -> None:
        """See :meth:`semibot.wire.plane.PlaneLink.fire_and_forget`."""
        frame = FireAndForget(session_id=session_id, method=method, params=params)
        if method == "snapshot_sync":  # only the newest counts, so it needs no disk
            lane = self.outgoing.lane(session_id)
            if lane is not None:
                self.put_snapshot(lane, frame)
            await trio.lowlevel.checkpoint()
            return
        await self.outbox.add(frame)

    def put_snapshot(self, lane: SessionLane, frame: FireAndForget) -> None:
        """Queue a snapshot; it gets an id here, by which the host acknowledges it."""
        named = frame if frame.id else attrs.evolve(frame, id=self._ports.ids.new_id())
        self.outgoing.put_snapshot(lane, named)
        self.notify()

    # --- waking up ---

    @property
    def outbox(self) -> Outbox:
        """The durable reports."""
        if self._outbox is None:
            raise trio.ClosedResourceError("the channel is not open")
        return self._outbox

    @outbox.setter
    def outbox(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def notify(self) -> None:
        """Wake whoever waits for something to say, or for there to be nothing left."""
        self._news.unpark_all()

    async def wait_news(self) -> None:
        """Wait for :meth:`notify`."""
        await self._news.park()

    def make_room(self) -> None:
        """Wake the sessions that wait for room; those that still have none wait on."""
        self._room.unpark_all()
        self.notify()

    async def wait_room(self, lane: SessionLane) -> None:
        """See :meth:`semibot.wire.plane.Lane.wait_room`."""
        await trio.lowlevel.checkpoint()
        while not self.outgoing.has_room(lane):
            await self._room.park()

    @property
    def is_idle(self) -> bool:
        """Whether the host has everything that it will acknowledge."""
        return self.outgoing.is_idle and not self.outbox.rows

    def row_is_durable(self, row: OutboxRow) -> None:
        """Send a report that entered the outbox, if there is a link."""
        if self._level:
            self.outgoing.put_own(_Report(row, self.outbox, self._level), last=True)
            self.notify()

    def _put_own(self, item: Outbound) -> None:
        self.outgoing.put_own(item)
        self.notify()

    # --- one link after the other ---

    def begin_link(self, level: int) -> Resume:
        """Start from the beginning on a new link, and return what ``resume`` says."""
        sessions = self.outgoing.begin_link(level)
        self._named = self.pending.sent_ids()
        self.make_room()
        return Resume(pending_ids=self._named, sessions=sessions if level >= 2 else None)

    def settle(self, level: int, answer: ResumeResponse | None) -> None:
        """Go on where the host is: steps 8 to 11 of a reconnect, in this order.

        Args:
            level: The level of the link.
            answer: What the host said to ``resume``; None if it was not asked.

        Raises:
            RemoteProtocolError: If it says what does not exist; nothing changes.
        """
        if answer is not None:
            self.pending.settle(self._named, answer.results)
        self._level = self.pending.level = level
        for request in self.pending.unsent():
            self.outgoing.put_own(request, first=True)
        sessions = None if answer is None or level < 2 else answer.sessions or {}
        self._lose(self.outgoing.settle(sessions))
        for row in self.outbox.rows:
            self.row_is_durable(row)
        self.make_room()

    def end_link(self) -> None:
        """Take note that there is no link any more."""
        self._level = 0
        self.notify()

    def close(self) -> None:
        """Answer every request with an error: there will be no link any more."""
        self._is_closed = True
        self.pending.fail_all("REQUEST_FAILED", "the channel to the host was closed")

    # --- what the host says ---

    def active_sessions(self) -> tuple[str, ...]:
        """Return the sessions that are held, for a heartbeat."""
        return () if self._handler is None else tuple(self._handler.active_sessions())

    def configure(self, settings: PlaneSettings) -> None:
        """Take what ``init`` said."""
        self._settings = settings
        if self._handler is not None:
            self._handler.configure(settings)

    def dispatch(self, frame: FromHost) -> None:
        """Do what one frame asks; never waits.

        Raises:
            RemoteProtocolError: If it makes no sense; nothing changes.
        """
        match frame:
            case HostHeartbeat():
                pass
            case HostAck():
                self.outgoing.acknowledge(frame.sessions, frame.ids)
                self.outbox.acknowledge(frame.ids)
                self.make_room()
            case Response():
                if not self.pending.answer(frame):
                    self._drop("response", frame.id)
            case StartSession() | StopSession() | UserMessage() | Cancel() | ConfigUpdate():
                self._command(frame)
            case Token():
                self.renewed_token = frame.token
            case ErrorFrame():
                self._error(frame)
            case Init() | ResumeResponse():  # the connection takes these itself
                raise RemoteProtocolError(f"{frame.type} is out of order", "$.type")

    def refuse(self, error: SemibotError, frame: ErrorFrame) -> None:
        """Tell the host that a frame of its was refused."""
        self.dropped_frames += 1
        log.warning("a frame of the host is refused", error=str(error))
        self._put_own(_Said(frame))

    def _command(self, frame: Command) -> None:
        if self._handler is not None:
            self._carry_out(self._handler, frame)
        elif len(self._commands) < MAX_WAITING_COMMANDS:
            self._commands.append(frame)
        else:
            raise RemoteProtocolError("too many commands that nobody has taken yet")

    def _carry_out(self, handler: CommandHandler, frame: Command) -> None:
        try:
            handler.command(frame)
        except SemibotError as exc:
            answer = ErrorFrame(code=exc.code, message=str(exc), id=frame.command_id)
            self.refuse(exc, answer)

    def _error(self, frame: ErrorFrame) -> None:
        log.warning("the host refuses a frame", code=frame.code, message=frame.message)
        if frame.session_id is not None and frame.code == "SEQ_CONFLICT":
            self._lose_one(frame.session_id)
        elif frame.session_id is not None and frame.code == "SEQ_GAP":
            if frame.expected is None:
                raise RemoteProtocolError("SEQ_GAP says what is expected", "$.expected")
            if not self.outgoing.send_again(frame.session_id, frame.expected):
                self._lose_one(frame.session_id)
            self.notify()
        elif frame.id is not None:
            refused = ErrorDetail(code=frame.code, message=frame.message)
            if not self.pending.refuse(frame.id, refused):
                self.outgoing.acknowledge({}, [frame.id])  # it would be refused for ever
                self.outbox.acknowledge([frame.id])
        else:
            self.dropped_frames += 1

    def _lose_one(self, session_id: str) -> None:
        if self.outgoing.discard(session_id):
            self._lose([session_id])
        self.make_room()

    def _lose(self, session_ids: Iterable[str]) -> None:
        for session_id in session_ids:
            self.lost_sessions += 1
            log.warning("the host took a session away", session_id=session_id)
            if self._handler is not None:
                self._handler.drop_session(session_id)

    def _drop(self, what: str, id: str) -> None:
        self.dropped_frames += 1
        log.debug("a frame of the host is meant for nobody", type=what, id=id)

    @property
    def waiting_commands(self) -> int:
        """Commands that nobody has taken yet."""
        return len(self._commands)


@final
class ExchangeLane:
    """A session's way out; see :class:`semibot.wire.plane.Lane`."""

    def __init__(self, exchange: Exchange, lane: SessionLane) -> None:
        self._exchange = exchange
        self._lane = lane

    def put_event(self, seq: int, run_id: str, data: str) -> None:
        """See :meth:`semibot.wire.plane.Lane.put_event`."""
        self._exchange.outgoing.put_event(self._lane, seq, run_id, data)
        self._exchange.notify()

    async def wait_room(self) -> None:
        """See :meth:`semibot.wire.plane.Lane.wait_room`."""
        await self._exchange.wait_room(self._lane)

    def put_note(self, note: CommandAck | Cancelled) -> None:
        """See :meth:`semibot.wire.plane.Lane.put_note`."""
        self._exchange.outgoing.put_note(self._lane, note)
        self._exchange.notify()

    def put_snapshot(self, frame: FireAndForget) -> None:
        """See :meth:`semibot.wire.plane.Lane.put_snapshot`."""
        self._exchange.put_snapshot(self._lane, frame)
