"""One link, from the dial to its end: handshake, reader, writer, heartbeat, silence.

Theory of operation. The reader is the body; writer, heartbeat and the watch on silence
are services around it. Whichever of them ends first ends the link with
:exc:`~.web_socket.LinkEnded`, and nothing of the link is left then; the channel dials
again. Only the writer sends, after ``auth`` and ``resume`` have gone out. The reader does
what a frame asks at once and never waits for a session.

Silence is judged by bytes, not by frames or pongs, and only while our own loop ran; see
:mod:`semibot.observe.standstill`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn, final

import attrs
import trio

from semibot.config import Deadlines
from semibot.errors import DeadlineExceeded, RemoteProtocolError
from semibot.lifetimes import deadline, open_services
from semibot.logs import get_logger
from semibot.observe.standstill import TICK, Standstill
from semibot.ports import ByteStream, Ports
from semibot.secret import Secret
from semibot.security.envelope import open_keys
from semibot.wire.frames import (
    Auth,
    ErrorFrame,
    FromHost,
    Init,
    InitData,
    ProtocolRange,
    ResumeResponse,
    decode_from_host,
    encode_batch,
    encode_frame,
)
from semibot.wire.link import (
    HIGHEST_LEVEL,
    LOWEST_LEVEL,
    CloseCode,
    MalformedCounter,
    VmEnd,
)
from semibot.wire.plane import PlaneSettings

from .address import PlaneAddress
from .exchange import Exchange
from .vitals import Vitals
from .web_socket import ABNORMAL, LinkEnded, WebSocket, open_web_socket

log: Final = get_logger(__name__)


@attrs.frozen(kw_only=True)
class Hello:
    """What a VM says of itself on one link."""

    address: PlaneAddress
    """Where the host listens."""
    user_id: str
    """The user whose VM this is."""
    token: Secret
    """The VM token; ``init`` is read with this one."""
    ticket: Secret | None
    """The one-time ticket, as long as no ``init`` has been received."""
    boot_id: Secret
    """Which process this is."""
    dial: int
    """Which attempt of the process."""
    is_reconnect: bool
    """Whether an earlier link of this process had its ``init``."""


@attrs.define
class LinkCounters:
    """What has gone over all links."""

    links: int = 0
    frames_sent: int = 0
    messages_sent: int = 0
    frames_received: int = 0


@final
class Connection:
    """One link. :meth:`run` is its life.

    Args:
        hello: What the VM says of itself.
        exchange: What is to be said, and who does what the host asks.
        vitals: What heartbeats say.
        counters: What is counted.
        ports: The seams.
        deadlines: ``channel.dial``, ``channel.resume``, ``channel.close``; what the host
            does not say of ``link.heartbeat`` and ``link.dead_after``.
        on_init: Told when the host has accepted the link.
        on_up: Told when the link is live.
    """

    def __init__(
        self,
        *,
        hello: Hello,
        exchange: Exchange,
        vitals: Vitals,
        counters: LinkCounters,
        ports: Ports,
        deadlines: Deadlines,
        on_init: Callable[[InitData], None],
        on_up: Callable[[], None],
    ) -> None:
        self._hello = hello
        self._exchange = exchange
        self._vitals = vitals
        self._counters = counters
        self._ports = ports
        self._deadlines = deadlines
        self._on_init = on_init
        self._on_up = on_up
        self._level = 1
        self._is_resuming = False
        self._end = VmEnd()
        self._malformed = MalformedCounter()
        self._socket: WebSocket | None = None

    async def run(self) -> NoReturn:
        """Connect and keep the link until it ends.

        Raises:
            LinkEnded: In any case, with the reason.
        """
        until = trio.current_time() + self._deadlines.channel_dial
        stream = await self._dial()
        address = self._hello.address
        try:
            async with open_web_socket(
                stream,
                host=address.host_header,
                resource=address.resource(self._hello.user_id, self._hello.ticket),
                handshake=until,
                close_grace=self._deadlines.channel_close,
            ) as socket:
                self._socket = socket
                await self._live_on(socket)
        finally:
            self._socket = None
            self._exchange.end_link()

    async def say_goodbye(self) -> None:
        """Close the link because the channel ends, within ``channel.close``."""
        if self._socket is not None:
            await self._socket.aclose(1000, "")

    async def _dial(self) -> ByteStream:
        address = self._hello.address
        try:
            with deadline("channel.dial", self._deadlines.channel_dial):
                return await self._ports.dial(address.host, address.port, use_tls=address.use_tls)
        except (OSError, trio.BrokenResourceError, DeadlineExceeded) as exc:
            raise LinkEnded(ABNORMAL, f"cannot connect: {exc}") from exc

    async def _live_on(self, socket: WebSocket) -> NoReturn:
        try:
            with deadline("channel.resume", self._deadlines.channel_resume):
                self._end.sent(Auth.type)
                await socket.send(encode_frame(self._auth()))
                init = await self._receive_init(socket)
        except DeadlineExceeded as exc:
            raise LinkEnded(ABNORMAL, f"the host did not answer auth: {exc}") from exc
        self._accept(init.data)
        resume = self._exchange.begin_link(self._level)
        async with open_services() as services:
            if self._level >= 2 or self._hello.is_reconnect:
                self._is_resuming = True
                self._end.sent(resume.type)
                await self._resume(socket, encode_frame(resume))
            else:
                self._exchange.settle(self._level, None)
            interval = _seconds(init.data.heartbeat_interval_s, self._deadlines.link_heartbeat)
            dead_after = _seconds(init.data.dead_after_s, self._deadlines.link_dead_after)
            services.start_soon(self._write, socket, name="link writer")
            services.start_soon(self._beat, interval, name="link heartbeat")
            services.start_soon(self._watch_silence, socket, dead_after, name="link silence")
            if self._level < 2:
                services.start_soon(self._ping, socket, interval, dead_after, name="link ping")
            await self._read_until_live(socket)
            self._counters.links += 1
            self._on_up()
            while True:
                await self._read(socket)

    # --- handshake ---

    def _auth(self) -> Auth:
        return Auth(
            token=self._hello.token.reveal(),
            protocol=ProtocolRange(min=LOWEST_LEVEL, max=HIGHEST_LEVEL),
            boot_id=self._hello.boot_id.reveal(),
            dial=self._hello.dial,
        )

    async def _receive_init(self, socket: WebSocket) -> Init:
        """Return the host's ``init``; a host that begins otherwise is not worth keeping."""
        try:
            while True:
                for frame in self._decode(await socket.receive()):
                    level = frame.data.protocol if isinstance(frame, Init) else None
                    self._end.received(frame.type, level=level)
                    if isinstance(frame, Init):
                        return frame
                    if isinstance(frame, ErrorFrame):
                        log.warning("the host answers", code=frame.code, message=frame.message)
        except RemoteProtocolError as exc:
            await socket.aclose(CloseCode.MALFORMED, "init expected")
            raise LinkEnded(CloseCode.MALFORMED, f"the host did not say init: {exc}") from exc

    def _accept(self, data: InitData) -> None:
        if data.user_id != self._hello.user_id:
            raise LinkEnded(ABNORMAL, "the host takes this VM for another user's")
        self._level = data.protocol or LOWEST_LEVEL
        self._on_init(data)
        self._exchange.configure(
            PlaneSettings(
                user_id=data.user_id,
                org_id=data.org_id,
                api_keys=open_keys(data.api_keys, self._hello.token.reveal()),
                providers=data.providers or {},
                level=self._level,
            )
        )

    async def _resume(self, socket: WebSocket, text: str) -> None:
        try:
            with deadline("channel.resume", self._deadlines.channel_resume):
                await socket.send(text)
        except DeadlineExceeded as exc:
            raise LinkEnded(ABNORMAL, f"the host does not read: {exc}") from exc

    async def _read_until_live(self, socket: WebSocket) -> None:
        try:
            with deadline("channel.resume", self._deadlines.channel_resume):
                while self._is_resuming:
                    await self._read(socket)
        except DeadlineExceeded as exc:
            raise LinkEnded(ABNORMAL, f"the host did not answer resume: {exc}") from exc

    # --- reader ---

    async def _read(self, socket: WebSocket) -> None:
        """Do what the next message asks."""
        try:
            frames = self._decode(await socket.receive())
        except RemoteProtocolError as exc:
            await self._refuse(socket, exc)
            return
        for frame in frames:
            try:
                self._take(frame)
            except RemoteProtocolError as exc:
                await self._refuse(socket, exc)

    def _decode(self, text: str) -> tuple[FromHost, ...]:
        decoded = decode_from_host(text)
        if isinstance(decoded, tuple):
            self._end.received("batch")
        frames = decoded if isinstance(decoded, tuple) else (decoded,)
        self._counters.frames_received += len(frames)
        return frames

    def _take(self, frame: FromHost) -> None:
        self._end.received(frame.type)
        if isinstance(frame, ResumeResponse):
            self._exchange.settle(self._level, frame)
            self._is_resuming = False
        else:
            self._exchange.dispatch(frame)

    async def _refuse(self, socket: WebSocket, error: RemoteProtocolError) -> None:
        """Answer a malformed frame; give the link up if there are too many."""
        self._exchange.refuse(error, ErrorFrame(code=error.code, message=str(error)))
        if self._malformed.count(trio.current_time()):
            await socket.aclose(CloseCode.MALFORMED, "too many malformed frames")
            raise LinkEnded(CloseCode.MALFORMED, "the host sent too many malformed frames")

    # --- services ---

    async def _write(self, socket: WebSocket) -> NoReturn:
        """Send what there is, in as few messages as may be; a send is bounded by silence."""
        outgoing = self._exchange.outgoing
        while True:
            texts = outgoing.take()
            if not texts:
                await self._exchange.wait_news()
                continue
            await socket.send(encode_batch(texts))
            outgoing.written()
            self._counters.frames_sent += len(texts)
            self._counters.messages_sent += 1
            if self._level < 2:
                self._exchange.make_room()
            else:
                self._exchange.notify()

    async def _beat(self, interval: float) -> NoReturn:
        while True:
            frame = self._vitals.heartbeat(self._exchange.active_sessions(), self._level)
            self._exchange.outgoing.put_heartbeat(encode_frame(frame))
            self._exchange.notify()
            await trio.sleep(interval)

    async def _ping(self, socket: WebSocket, interval: float, dead_after: float) -> NoReturn:
        """Make a host of level 1 say something; it does not answer heartbeats."""
        while True:
            with trio.move_on_after(dead_after):  # by then the silence is judged
                await socket.ping()
            await trio.sleep(interval)

    async def _watch_silence(self, socket: WebSocket, dead_after: float) -> NoReturn:
        standstill = Standstill()
        standstill.look(trio.current_time())
        while True:
            due = trio.current_time() + TICK
            await trio.sleep_until(due)
            now = trio.current_time()
            self._vitals.note_lag(now - due)
            stood_still = standstill.look(now)
            if stood_still:
                log.warning("this process stood still", seconds=round(stood_still, 1))
            if standstill.is_silent(socket.heard_at, dead_after, now):
                await trio.lowlevel.checkpoint()  # what has come until now is read first
            if standstill.is_silent(socket.heard_at, dead_after, now):
                raise LinkEnded(CloseCode.SILENT, f"the host was silent for {dead_after:g} s")


def _seconds(said: float | None, default: float) -> float:
    """Return what the host says, unless it makes no sense."""
    return said if said is not None and said > 0 else default
