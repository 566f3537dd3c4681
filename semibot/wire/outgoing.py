"""What a VM has to say to its host, in order, until the host has it (protocol section 5).

Theory of operation. Every session has a *lane*. In a lane stand events, which are kept
until the host acknowledges them; notes, which answer commands and are kept until the host
names the command; and the newest snapshot. All three carry a place in the lane's order,
and a lane is sent strictly by place. Sending moves nothing out of a lane: it only moves
the boundary between what was sent on this link and what was not. A new link moves that
boundary back (:meth:`Outgoing.begin_link`), so whatever got lost with the old link is
said again under the same numbers.

Beside the lanes of sessions stands the VM's own lane (:mod:`~semibot.wire.own_lane`).
Lanes take turns, one frame each, so that a session that floods holds nobody up. After a
reconnect there is an order among them, too: requests first, then what sessions say again,
then reports. Heartbeats overtake everything.

Towards a host of level 1 nothing is numbered or acknowledged: events go out without
their numbers and are dropped once they are written, and notes are not sent at all.

Nothing here waits or knows a clock: the channel takes batches and writes them.
"""

from __future__ import annotations

import typing
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Final, final

from semibot.errors import LocalProtocolError, RemoteProtocolError

from .codec import JsonObject, JsonValue, dump_json, load_json
from .frames import (
    MAX_BATCH_BYTES,
    MAX_BATCH_FRAMES,
    MAX_EVENT_BYTES,
    MAX_FRAME_BYTES,
    Cancelled,
    CommandAck,
    FireAndForget,
    HeldSession,
    SessionStatus,
    SseEvent,
    encode_frame,
    encode_sse_event,
)
from .own_lane import Outbound, OwnLane
from .session_lane import LaneEvent, LaneItem, LaneNote, LaneSnapshot, SessionLane

SESSION_LIMIT: Final = 16 * 1024 * 1024
"""Bytes that are kept for one session."""

TOTAL_LIMIT: Final = 128 * 1024 * 1024
"""Bytes that are kept for all sessions together."""

RESERVE: Final = 64 * 1024
"""Bytes of both limits that are left for terminal events and receipts."""

_BATCH_FRAME: Final = len('{"type":"batch","frames":[]}')


def utf8_size(text: str) -> int:
    """Return how many bytes *text* has in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


@final
class Outgoing:
    """Everything that a VM has yet to say, or to see acknowledged.

    Args:
        session_limit: Bytes kept for one session before it must wait for room.
        total_limit: Bytes kept for all sessions before they must.
        reserve: Bytes of both limits that only what never waits may use.
    """

    def __init__(
        self,
        *,
        session_limit: int = SESSION_LIMIT,
        total_limit: int = TOTAL_LIMIT,
        reserve: int = RESERVE,
    ) -> None:
        self._session_limit = session_limit - reserve
        self._total_limit = total_limit - reserve
        self._level = 2
        self._lanes: dict[str, SessionLane] = {}
        self._turns: deque[SessionLane | OwnLane] = deque()
        self._heartbeat: str | None = None
        self._own = OwnLane()
        self._is_settled = True
        self._saying_again: dict[SessionLane, int] = {}  # up to which place
        self.kept_bytes: int = 0
        """Bytes of events and notes that the host has not acknowledged, in all."""

    # --- what is to be said ---

    def open(self, session_id: str, term: int, next_seq: int) -> SessionLane:
        """Begin a session's lane; one of the session that was closed goes on in it.

        Args:
            session_id: The session.
            term: Fencing counter of its events; never lower than before.
            next_seq: Number of its next event.

        Raises:
            LocalProtocolError: If a number would be used for two events.
        """
        lane = SessionLane(session_id, term, next_seq)
        lane.is_held = not self._is_settled
        earlier = self._lanes.get(session_id)
        if earlier is not None:
            if term < earlier.term or (term == earlier.term and next_seq != earlier.last_seq + 1):
                raise LocalProtocolError("a session cannot go back, or leave out events")
            lane.take_over(earlier)
            lane.is_held = earlier.is_held
            self._count(earlier, -earlier.kept_bytes)
            earlier.is_live = False
            self._said_again(earlier)
            self.kept_bytes += lane.kept_bytes
        self._lanes[session_id] = lane
        self._wait_turn(lane)
        return lane

    def put_event(self, lane: SessionLane, seq: int, run_id: str, data: str) -> None:
        """Queue an event; ignored if the lane was discarded.

        Args:
            lane: The session's lane.
            seq: Its number.
            run_id: The run that says it.
            data: The event as JSON text, at most :data:`~.frames.MAX_EVENT_BYTES` long.

        Raises:
            LocalProtocolError: If it is not the next number, too large or no text.
        """
        if not lane.is_live:
            return
        if seq != lane.last_seq + 1:
            raise LocalProtocolError(f"event {seq} is not the one after {lane.last_seq}")
        text = encode_sse_event(
            SseEvent(session_id=lane.session_id, data=data, term=lane.term, seq=seq, run_id=run_id)
        )
        if utf8_size(data) > MAX_EVENT_BYTES:
            raise LocalProtocolError(f"an event is at most {MAX_EVENT_BYTES} bytes long")
        event = LaneEvent(lane.next_place(), seq, text, utf8_size(text))
        lane.last_seq = seq
        lane.unsent.append(event)
        self._count(lane, event.size)
        self._wait_turn(lane)

    def put_note(self, lane: SessionLane, frame: CommandAck | Cancelled) -> None:
        """Queue the answer to a command, instead of an earlier one to the same command.

        Raises:
            LocalProtocolError: If it is larger than a frame may be.
        """
        if not lane.is_live:
            return
        named = {frame.command_id} if isinstance(frame, Cancelled) else set(frame.commands)
        text = _encode(frame)
        self._forget_commands(lane, named)
        note = LaneNote(lane.next_place(), named, text, utf8_size(text))
        lane.unsent_notes.append(note)
        self._count(lane, note.size)
        self._wait_turn(lane)

    def put_snapshot(self, lane: SessionLane, frame: FireAndForget) -> None:
        """Queue a snapshot behind what is queued, instead of an earlier one.

        Raises:
            LocalProtocolError: If it is larger than a frame may be.
        """
        if not lane.is_live:
            return
        text = _encode(frame)
        lane.sent_snapshot = None
        lane.unsent_snapshot = LaneSnapshot(
            lane.next_place(), frame.id or "", text, utf8_size(text)
        )
        self._wait_turn(lane)

    def put_heartbeat(self, text: str) -> None:
        """Queue a heartbeat, which overtakes everything, and replaces one that is queued."""
        self._heartbeat = text

    def put_own(self, item: Outbound, *, first: bool = False, last: bool = False) -> None:
        """Queue something of the VM itself, for this link only.

        Args:
            item: What to say.
            first: Before everything that sessions say.
            last: After what they say again because of a reconnect.
        """
        self._own.put(item, first=first, last=last and bool(self._saying_again))
        if first and self._own.is_waiting:
            self._turns.remove(self._own)
            self._turns.appendleft(self._own)
        elif not self._own.is_waiting:
            self._own.is_waiting = True
            (self._turns.appendleft if first else self._turns.append)(self._own)

    def close(self, session_id: str) -> None:
        """End a session's lane; it goes when the host has everything in it."""
        lane = self._lanes.get(session_id)
        if lane is not None:
            lane.is_open = False
            self._tidy(lane)

    def discard(self, session_id: str) -> bool:
        """Forget a session's lane and everything in it.

        Returns:
            Whether it was there and open.
        """
        lane = self._lanes.pop(session_id, None)
        if lane is None:
            return False
        lane.is_live = False
        self._said_again(lane)
        self._count(lane, -lane.kept_bytes)
        lane.rewind()
        lane.unsent.clear()
        lane.unsent_notes.clear()
        lane.unsent_snapshot = None
        return lane.is_open

    def lane(self, session_id: str) -> SessionLane | None:
        """Return a session's lane, if it has one."""
        return self._lanes.get(session_id)

    def has_room(self, lane: SessionLane) -> bool:
        """Return whether the session may say more; one that was discarded always may.

        The event that is let in may still be larger than what is left. So the limits are
        exceeded by one event at most.
        """
        return not lane.is_live or (
            lane.kept_bytes < self._session_limit and self.kept_bytes < self._total_limit
        )

    @property
    def is_idle(self) -> bool:
        """Whether the host has everything; what is kept for ever is not looked at."""
        return self._own.is_empty and all(lane.is_empty for lane in self._lanes.values())

    # --- what the host says ---

    def begin_link(self, level: int) -> Mapping[str, HeldSession]:
        """Start from the beginning on a new link.

        Args:
            level: The level that it speaks.

        Returns:
            What ``resume`` says of the sessions; nothing of them is sent until
            :meth:`settle`.
        """
        self._level = level
        self._is_settled = False
        self._heartbeat = None
        self._own.clear()
        self._turns.clear()
        self._saying_again.clear()
        for lane in tuple(self._lanes.values()):
            lane.rewind()
            lane.is_waiting = False
            lane.is_held = True
            if level < 2:
                self._drop_notes(lane)
        return {
            lane.session_id: HeldSession(
                term=lane.term, first_seq=lane.first_seq, last_seq=lane.last_seq
            )
            for lane in self._lanes.values()
        }

    def settle(self, sessions: Mapping[str, SessionStatus] | None) -> tuple[str, ...]:
        """Take what ``resume_response`` says of the sessions that ``resume`` named.

        A session that it leaves out is lost: nothing could ever be said for it.

        Args:
            sessions: By session; None if the host knows nothing of numbers (level 1), so
                that every session goes on.

        Returns:
            Sessions that are lost and must end silently; also those that were stopped, as
            what they have answered is lost as well, and the host will ask again.
        """
        self._is_settled = True
        lost: list[str] = []
        for lane in tuple(self._lanes.values()):
            if not lane.is_held:
                continue
            acked = lane.first_seq - 1
            if sessions is not None:
                status = sessions.get(lane.session_id) or SessionStatus(gone=True)
                is_lost = status.fenced or status.gone or status.acked_seq is None
                acked = -1 if is_lost else status.acked_seq or 0
            if not lane.first_seq - 1 <= acked <= lane.last_seq:
                self.discard(lane.session_id)
                lost.append(lane.session_id)
                continue
            lane.is_held = False
            self._acknowledge(lane, acked)
            if lane.head() is not None:
                self._saying_again[lane] = lane.places
            self._wait_turn(lane)
        return tuple(lost)

    def acknowledge(self, sessions: Mapping[str, int], ids: Iterable[str]) -> None:
        """Forget what the host's store has.

        Args:
            sessions: By session the newest committed event; unknown sessions are late.
            ids: Commands whose answer is committed, and snapshots.

        Raises:
            RemoteProtocolError: If it names an event that was never made; nothing changes.
        """
        for session_id, seq in sessions.items():
            lane = self._lanes.get(session_id)
            if lane is not None and seq > lane.last_seq:
                raise RemoteProtocolError("an event that does not exist", "$.sessions")
        for session_id, seq in sessions.items():
            lane = self._lanes.get(session_id)
            if lane is not None:
                self._acknowledge(lane, seq)
        named = set(ids)
        if named:
            for lane in tuple(self._lanes.values()):
                self._forget_commands(lane, named)
                if lane.sent_snapshot is not None and lane.sent_snapshot.id in named:
                    lane.sent_snapshot = None
                self._tidy(lane)

    def send_again(self, session_id: str, expected: int) -> bool:
        """Go back to event *expected* (``SEQ_GAP``).

        Returns:
            False if that event is not kept any more, so that the session is lost.
        """
        lane = self._lanes.get(session_id)
        if lane is None:
            return True
        if not lane.first_seq <= expected <= lane.last_seq + 1:
            return False
        while lane.sent and lane.sent[-1].seq >= expected:
            lane.unsent.appendleft(lane.sent.pop())
        self._wait_turn(lane)
        return True

    # --- writing ---

    def take(self) -> tuple[str, ...]:
        """Return the frames to be written next, at most 64 KiB and 512 as one batch.

        One larger frame stands alone, as does everything towards level 1. Call
        :meth:`written` when they are; empty means that there is nothing to say now.
        """
        if self._heartbeat is not None:
            text, self._heartbeat = self._heartbeat, None
            return (text,)
        most = MAX_BATCH_FRAMES if self._level >= 2 else 1
        texts: list[str] = []
        room = MAX_BATCH_BYTES - _BATCH_FRAME
        while self._turns and len(texts) < most and room > 0:
            source = self._turns[0]
            head = source.head() if isinstance(source, OwnLane) else self._head(source)
            if head is None:
                self._turns.popleft().is_waiting = False
                continue
            text = head if isinstance(head, str) else self._text(head)
            size = utf8_size(text) + 1  # the comma
            if texts and size > room:
                break
            if isinstance(source, OwnLane):
                source.advance()
            elif not isinstance(head, str):
                source.advance(head)
            texts.append(text)
            room -= size
            if not (isinstance(source, OwnLane) and source.goes_first):
                self._turns.rotate(-1)
        return tuple(texts)

    def written(self) -> None:
        """Take note that what :meth:`take` returned last was written."""
        self._own.written(self._level)
        if self._level < 2:
            for lane in tuple(self._lanes.values()):
                self._count(lane, -sum(event.size for event in lane.sent))
                lane.sent.clear()
                lane.sent_snapshot = None
                self._tidy(lane)

    def _head(self, lane: SessionLane) -> LaneItem | None:
        if lane.is_held or not lane.is_live:
            return None
        if self._level < 2:
            self._drop_notes(lane)
        head = lane.head()
        if head is None or head.place > self._saying_again.get(lane, head.place):
            self._said_again(lane)
        return head

    def _text(self, item: LaneItem) -> str:
        return item.text if self._level >= 2 else _as_level_1(item.text)

    def _said_again(self, lane: SessionLane) -> None:
        """Let reports go once no session has anything to say again."""
        if self._saying_again.pop(lane, None) is not None and not self._saying_again:
            self._own.release()
            if not self._own.is_waiting:
                self._own.is_waiting = True
                self._turns.append(self._own)

    def _wait_turn(self, lane: SessionLane) -> None:
        if not lane.is_waiting and not lane.is_held and lane.head() is not None:
            lane.is_waiting = True
            self._turns.append(lane)

    def _acknowledge(self, lane: SessionLane, seq: int) -> None:
        for events in (lane.sent, lane.unsent):
            while events and events[0].seq <= seq:
                self._count(lane, -events.popleft().size)
        self._tidy(lane)

    def _forget_commands(self, lane: SessionLane, named: set[str]) -> None:
        for notes in (lane.sent_notes, lane.unsent_notes):
            for note in tuple(notes):
                note.commands -= named
                if not note.commands:
                    notes.remove(note)
                    self._count(lane, -note.size)

    def _drop_notes(self, lane: SessionLane) -> None:
        for notes in (lane.sent_notes, lane.unsent_notes):
            self._count(lane, -sum(note.size for note in notes))
            notes.clear()
        self._tidy(lane)

    def _count(self, lane: SessionLane, size: int) -> None:
        lane.kept_bytes += size
        self.kept_bytes += size

    def _tidy(self, lane: SessionLane) -> None:
        if not lane.is_open and lane.is_empty and lane.is_live:
            self.discard(lane.session_id)


def _encode(frame: CommandAck | Cancelled | FireAndForget) -> str:
    text = encode_frame(frame)
    if utf8_size(text) > MAX_FRAME_BYTES:
        raise LocalProtocolError(f"a frame is at most {MAX_FRAME_BYTES} bytes long")
    return text


def _as_level_1(text: str) -> str:
    """Return an event or a snapshot of ours without what level 1 does not know."""
    try:
        value = typing.cast("dict[str, JsonValue]", load_json(text))
    except RemoteProtocolError:  # nested too deeply; the host may be able to read it
        return text
    if value["type"] == "sse_event":
        return encode_sse_event(
            SseEvent(session_id=str(value["session_id"]), data=str(value["data"]))
        )
    params = typing.cast("JsonObject", value["params"])
    value["params"] = {
        name: item for name, item in params.items() if name not in {"term", "covers_seq"}
    }
    value.pop("id", None)
    return dump_json(value)
