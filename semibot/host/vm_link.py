"""One live link of a VM: who is at its other end, what it carries, and what is sent on it.

A link is used by the task that reads its socket, by its writer and its committer, and by the
dispatcher. All of them only append here; nobody but the writer sends.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Literal, TypeAlias, final

import attrs
import trio

from semibot.logs import get_logger
from semibot.store.base import LinkRef, VmRow
from semibot.wire.frames import (
    MAX_BATCH_BYTES,
    MAX_BATCH_FRAMES,
    MAX_FRAME_BYTES,
    FromHost,
    encode_batch,
    encode_frame,
)
from semibot.wire.incoming import Incoming

from .intake import Intake
from .legacy import LegacySessions
from .metrics import Metrics
from .tail import Tail

log: Final = get_logger(__name__)

MAX_QUEUED_BYTES: Final = 64 * 1024 * 1024
"""Bytes that may wait to be sent on one link; a slower VM gets 1013 and dials again."""

MAX_STRANGERS: Final = 1024
"""Sessions that are not the link's and whose fate is remembered; the oldest are looked up
again."""

_BATCH_FRAME_BYTES: Final = len('{"type":"batch","frames":[]}')

Fate: TypeAlias = Literal["gone", "fenced", "foreign"]
"""Why events of a session are not taken."""


def _never() -> float:
    return -math.inf


SendText: TypeAlias = Callable[[str], Awaitable[None]]
"""Writes one text message."""


def size_of(text: str) -> int:
    """Return the bytes of *text* in UTF-8; quick for ASCII."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


@final
class Outgoing:
    """What is to be sent, in order; frames that wait together go out together.

    Args:
        batches: Whether the other side takes ``batch`` frames (level 2).
        on_overflow: Called when more than :data:`MAX_QUEUED_BYTES` wait.
    """

    def __init__(self, *, batches: bool, on_overflow: Callable[[], None]) -> None:
        self._batches = batches
        self._on_overflow = on_overflow
        self._texts: deque[tuple[str, int]] = deque()
        self._bytes = 0
        self._work = trio.lowlevel.ParkingLot()

    def put(self, text: str) -> None:
        """Queue one encoded frame; never waits."""
        size = size_of(text)
        self._texts.append((text, size))
        self._bytes += size
        self._work.unpark_all()
        if self._bytes > MAX_QUEUED_BYTES:
            self._on_overflow()

    async def serve(self, send: SendText) -> None:
        """Send what is queued, until cancelled."""
        while True:
            await self.flush(send)
            while not self._texts:
                # Unbounded on purpose: there may be nothing to say for hours.
                await self._work.park()

    async def flush(self, send: SendText) -> None:
        """Send everything that is queued now. A message that is cancelled is not sent again."""
        while self._texts:
            await send(self._take())

    def _take(self) -> str:
        text, size = self._texts.popleft()
        self._bytes -= size
        if not self._batches:
            return text
        taken, room = [text], MAX_BATCH_BYTES - _BATCH_FRAME_BYTES - size
        while self._texts and len(taken) < MAX_BATCH_FRAMES:
            text, size = self._texts[0]
            if size + 1 > room:
                break
            self._texts.popleft()
            self._bytes -= size
            room -= size + 1
            taken.append(text)
        return encode_batch(taken)


@final
@attrs.define(eq=False)
class HeldHere:
    """A session that the link's process holds."""

    incoming: Incoming
    """The numbers of its events."""
    tail: Tail
    """Kept here, so that it stays in memory while the session is held."""
    settles_at: int
    """Number up to which the VM said that it has events; received: the resume has settled."""


@final
@attrs.define(eq=False, kw_only=True)
class VmLink:
    """One accepted link. Made by :mod:`~semibot.host.vm_socket`, known to ``Links``."""

    vm: VmRow
    """The row, as it was when the link was accepted."""
    ref: LinkRef
    """Which link writes, for the store."""
    level: int
    """The protocol level that both ends speak."""
    metrics: Metrics
    """Counts frames."""
    outgoing: Outgoing = attrs.field(init=False)
    """What is to be sent."""
    intake: Intake = attrs.field(init=False)
    """What has come and is not committed."""
    legacy: LegacySessions | None = attrs.field(default=None, init=False)
    """The sessions, if the VM speaks level 1."""
    sessions: dict[str, HeldHere] = attrs.field(factory=dict[str, HeldHere], init=False)
    """The sessions that the process holds, if it speaks level 2."""
    sent: set[str] = attrs.field(factory=set[str], init=False)
    """Commands that were sent on this link and are not done."""
    stops: dict[str, str] = attrs.field(factory=dict[str, str], init=False)
    """Sessions by the ``stop_session`` commands that were sent for them."""
    is_live: bool = attrs.field(default=False, init=False)
    """Whether commands may be sent: ``resume`` is answered (level 2), ``init`` is sent
    (level 1)."""
    is_lost: bool = attrs.field(default=False, init=False)
    """Whether the VM was lost, so that its silence means nothing more."""
    ending: tuple[int, str] | None = attrs.field(default=None, init=False)
    """Close code and reason, once the link is to end."""
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    """Cancelled when the link is to end; its clean-up is outside."""
    has_ended: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when nothing of the link is left."""
    listens_since: float | None = attrs.field(default=None, init=False)
    """Since when the host waits for the next frame; None while it does something else."""
    bytes_heard_at: Callable[[], float] = attrs.field(default=_never, init=False)
    """When the last byte came, whether or not it was the end of a frame."""
    _strangers: dict[str, Fate] = attrs.field(factory=dict[str, Fate], init=False)
    _gate: trio.Event | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        self.outgoing = Outgoing(
            batches=self.level > 1, on_overflow=lambda: self.close(1013, "slow reader")
        )

    @property
    def user_id(self) -> str:
        """Whose VM it is."""
        return self.vm.user_id

    @property
    def org_id(self) -> str:
        """The user's organization."""
        return self.vm.org_id

    @property
    def boot(self) -> str:
        """What ``holder_boot`` and ``boot_hash`` say where this process is meant."""
        return self.ref.boot_hash or "level1"

    def send(self, frame: FromHost) -> bool:
        """Queue a frame; never waits. After the end it goes nowhere.

        Returns:
            Whether it was queued; a frame over :data:`MAX_FRAME_BYTES` is not.
        """
        text = encode_frame(frame)
        if len(text) > MAX_FRAME_BYTES // 4 and size_of(text) > MAX_FRAME_BYTES:
            log.warning("frame is too big to be sent", user_id=self.user_id, type=frame.type)
            return False
        if self.ending is None:
            self.metrics.ws_messages_sent_total.inc(type=frame.type)
            self.outgoing.put(text)
        return True

    def close(self, code: int, reason: str) -> None:
        """End the link; only the first call counts.

        Args:
            code: Close code (protocol section 2).
            reason: A constant word or two for the close frame; details belong in the log.
        """
        if self.ending is None:
            self.ending = (code, reason)
            self.is_live = False
            self.scope.cancel(f"closed with {code}: {reason}")

    def heard(self, now: float) -> float:
        """Return when the VM was heard last; now, while the host does not listen to it."""
        if self.listens_since is None:
            return now
        return max(self.listens_since, self.bytes_heard_at())

    # --- sessions ---------------------------------------------------------------------

    def hold(self, session_id: str, held: HeldHere) -> None:
        """Take events of a session from here on."""
        self._strangers.pop(session_id, None)
        self.sessions[session_id] = held
        self._count_sessions()

    def release(self, session_id: str, fate: Fate) -> None:
        """Take no more events of a session.

        Args:
            session_id: The session.
            fate: ``gone``: late ones are acknowledged and dropped; else they are refused.
        """
        if self.sessions.pop(session_id, None) is not None:
            self._count_sessions()
        if self.legacy is not None:
            self.legacy.drop(session_id)
        self._strangers.pop(session_id, None)
        while len(self._strangers) >= MAX_STRANGERS:
            del self._strangers[next(iter(self._strangers))]
        self._strangers[session_id] = fate

    def fate_of(self, session_id: str) -> Fate | None:
        """Return why events of a session are not taken, if that is known."""
        return self._strangers.get(session_id)

    def _count_sessions(self) -> None:
        self.metrics.ws_sessions_per_connection.set(len(self.sessions), user_id=self.user_id)

    # --- while another link wants to take over ----------------------------------------

    def hold_reading(self) -> None:
        """Dispatch nothing more for now; what comes waits in the socket."""
        if self._gate is None:
            self._gate = trio.Event()

    def release_reading(self) -> None:
        """Go on dispatching."""
        if self._gate is not None:
            self._gate.set()
            self._gate = None

    async def wait_may_read(self) -> None:
        """Wait until the next frame may be dispatched: the gate is open, and there is room."""
        while self._gate is not None:
            await self._gate.wait()
        await self.intake.wait_room()
