"""The VM's end of the link to its host, kept up for ever (protocol section 2)."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Final, NoReturn, final

import attrs
import trio

from semibot.config import Deadlines
from semibot.errors import LinkRefused
from semibot.lifetimes import grace, open_services
from semibot.live import live_ports
from semibot.logs import get_logger
from semibot.observe.watchdog import Watchdog
from semibot.ports import Ports
from semibot.secret import Secret
from semibot.wire.codec import JsonObject, JsonValue
from semibot.wire.frames import InitData
from semibot.wire.link import reaction_to
from semibot.wire.plane import CommandHandler, Lane

from .address import PlaneAddress, parse_plane_url
from .backoff import STABLE_AFTER, Backoff
from .connection import Connection, Hello, LinkCounters
from .exchange import Exchange
from .outbox import open_outbox
from .status import ChannelStatistics, LinkState, LinkStatus
from .vitals import Vitals
from .web_socket import LinkEnded

log: Final = get_logger(__name__)

FLUSH_SHARE: Final = 0.75
"""Share of ``channel.close`` for what is queued; the rest is for the closing handshake."""


@final
class ControlChannel:
    """The way of a VM to its host. Made by :func:`open_control_channel`.

    It is there all the time, whether a link is up or not: what is said meanwhile is kept
    and said later. It is a :class:`~semibot.wire.plane.PlaneLink`.
    """

    def __init__(
        self,
        *,
        address: PlaneAddress,
        user_id: str,
        token: Secret,
        ticket: Secret | None,
        exchange: Exchange,
        vitals: Vitals,
        ports: Ports,
        deadlines: Deadlines,
    ) -> None:
        self._address = address
        self._user_id = user_id
        self._token = token
        self._ticket = ticket
        self._exchange = exchange
        self._vitals = vitals
        self._ports = ports
        self._deadlines = deadlines
        self._boot_id = Secret(ports.ids.new_id())
        self._dials = 0
        self._has_met_host = False
        self._is_closing = False
        self._is_closed = False
        self._up_at: float | None = None
        self._counters = LinkCounters()
        self._connection: Connection | None = None
        self._changes = trio.lowlevel.ParkingLot()
        self._status = LinkStatus(state="connecting", since=ports.wall_clock.now(), attempts=0)

    # --- how it stands ---

    @property
    def status(self) -> LinkStatus:
        """How the link stands right now."""
        return self._status

    async def wait_status(self, predicate: Callable[[LinkStatus], bool]) -> LinkStatus:
        """Wait until the link stands as wanted; cancel to give up.

        Args:
            predicate: Called with the status now and after every change.

        Returns:
            The first status that *predicate* agrees to.

        Raises:
            trio.ClosedResourceError: If the channel was closed.
        """
        await trio.lowlevel.checkpoint()
        while not predicate(self._status):
            if self._is_closed:
                raise trio.ClosedResourceError("the channel to the host is closed")
            await self._changes.park()
        return self._status

    async def wait_up(self) -> LinkStatus:
        """Wait until the link is up; see :meth:`wait_status`."""
        return await self.wait_status(lambda status: status.state == "up")

    def statistics(self) -> ChannelStatistics:
        """Return what has gone over the channel, and what waits in it."""
        exchange, counters = self._exchange, self._counters
        return ChannelStatistics(
            links=counters.links,
            frames_sent=counters.frames_sent,
            messages_sent=counters.messages_sent,
            frames_received=counters.frames_received,
            unacknowledged_bytes=exchange.outgoing.kept_bytes,
            pending_requests=len(exchange.pending),
            outbox_rows=len(exchange.outbox.rows),
            outbox_bytes=exchange.outbox.bytes,
            waiting_commands=exchange.waiting_commands,
            dropped_frames=exchange.dropped_frames,
            lost_sessions=exchange.lost_sessions,
        )

    # --- for the session manager, and for whoever else asks the host ---

    def attach(self, handler: CommandHandler) -> AbstractContextManager[None]:
        """Let *handler* get commands while the block lasts; earlier ones were kept.

        Args:
            handler: Carries commands out; none of its methods may wait.

        Raises:
            trio.BusyResourceError: If there is one already.
        """
        return self._exchange.attach(handler)

    def open_lane(self, session_id: str, term: int, next_seq: int) -> Lane:
        """Begin a session's way out; replaces one that was closed.

        What the earlier one has not delivered goes first: answers to commands, and events
        if the term is the same.

        Args:
            session_id: The session.
            term: Fencing counter of its events; never lower than before.
            next_seq: Number of its next event, 1 or more.

        Raises:
            LocalProtocolError: If the numbers go back, or leave out one in the same term.
        """
        return self._exchange.open_lane(session_id, term, next_seq)

    def close_lane(self, session_id: str) -> None:
        """End a session's way out; what is unacknowledged is still delivered.

        Args:
            session_id: The session; unknown ones are ignored.
        """
        self._exchange.close_lane(session_id)

    def discard_lane(self, session_id: str) -> None:
        """End a session's way out and forget everything in it (``fenced``, ``gone``).

        Args:
            session_id: The session; unknown ones are ignored.
        """
        self._exchange.discard_lane(session_id)

    async def request(self, session_id: str, method: str, params: JsonObject) -> JsonValue:
        """Ask the host, and wait for the answer over reconnects.

        It waits at most ``channel.request``, or as long as the caller's own scope lets it;
        the host is told how long that is, and to stop once nobody waits.

        Args:
            session_id: The session, or ``__memory__`` for the VM itself.
            method: What is asked (protocol section 4, "Requests").
            params: The details.

        Raises:
            RequestFailed: With the host's code, or ``OUTCOME_UNKNOWN`` if the link broke
                and ``mcp_call`` may have been carried out.
            LocalProtocolError: If JSON cannot say *params*, or in less than 10 MiB.
            DeadlineExceeded: ``channel.request``.
        """
        return await self._exchange.request(session_id, method, params)

    async def fire_and_forget(self, session_id: str, method: str, params: JsonObject) -> None:
        """Report to the host, durably: it arrives at least once, and counts once.

        Returns when the report would survive a crash, or with ``snapshot_sync`` at once.
        A caller that is cancelled may have reported all the same.

        Args:
            session_id: The session, or ``__memory__`` for the VM itself.
            method: What is reported (protocol section 4, "fire_and_forget").
            params: The details.

        Raises:
            LocalProtocolError: If JSON cannot say *params*, or in less than 10 MiB.
            StoreError: If the outbox cannot be written, or is full.
        """
        await self._exchange.report(session_id, method, params)

    # --- keeping the link ---

    async def keep_link(self) -> NoReturn:
        """Connect again and again; a service.

        Raises:
            LinkRefused: If the host refuses this VM for good.
        """
        backoff = Backoff(self._ports.random)
        while True:
            began = trio.current_time()
            ended = await self._run_link()
            if ended.is_from_host and reaction_to(ended.code, ended.reason) == "final":
                self._change("down", last_error=str(ended))
                raise LinkRefused(ended.code, ended.reason)
            now = trio.current_time()
            if self._up_at is not None and now - self._up_at >= STABLE_AFTER:
                backoff.reset()
            self._change("down", last_error=str(ended))
            if self._is_closing:
                await trio.sleep_forever()
            delay = backoff.next_delay(now - began if self._up_at is None else 0.0)
            log.info("link ended", reason=str(ended), redial_in=round(delay, 2))
            await trio.sleep(delay)

    async def _run_link(self) -> LinkEnded:
        self._dials += 1
        self._up_at = None
        self._change("connecting")
        if self._exchange.renewed_token is not None:
            self._token = Secret(self._exchange.renewed_token)
        self._connection = Connection(
            hello=Hello(
                address=self._address,
                user_id=self._user_id,
                token=self._token,
                ticket=None if self._has_met_host else self._ticket,
                boot_id=self._boot_id,
                dial=self._dials,
                is_reconnect=self._has_met_host,
            ),
            exchange=self._exchange,
            vitals=self._vitals,
            counters=self._counters,
            ports=self._ports,
            deadlines=self._deadlines,
            on_init=self._met_host,
            on_up=self._link_is_up,
        )
        try:
            await self._connection.run()
        except LinkEnded as ended:
            return ended
        finally:
            self._connection = None

    def _met_host(self, data: InitData) -> None:
        self._has_met_host = True
        self._status = attrs.evolve(self._status, epoch=data.epoch, level=data.protocol or 1)

    def _link_is_up(self) -> None:
        self._up_at = trio.current_time()
        self._change("up")
        log.info("link is up", level=self._status.level, epoch=self._status.epoch)

    def _change(self, state: LinkState, *, last_error: str | None = None) -> None:
        before = self._status
        is_turn = (state == "up") != (before.state == "up")
        attempts = before.attempts + 1 if state == "connecting" else before.attempts
        self._status = attrs.evolve(
            before,
            state=state,
            since=self._ports.wall_clock.now() if is_turn else before.since,
            attempts=0 if state == "up" else attempts,
            last_error=last_error or before.last_error,
        )
        self._changes.unpark_all()
        self._exchange.notify()

    # --- the end ---

    async def finish(self, seconds: float) -> None:
        """Let what is queued reach the host, then say goodbye.

        Args:
            seconds: What the former may take.
        """
        self._is_closing = True
        with trio.move_on_after(seconds):
            await trio.lowlevel.checkpoint()
            while self._status.state != "down" and not self._exchange.is_idle:
                await self._exchange.wait_news()
        if self._connection is not None:
            await self._connection.say_goodbye()

    def close(self) -> None:
        """Let nobody wait for this channel any more."""
        self._is_closed = True
        self._exchange.close()
        self._changes.unpark_all()


@asynccontextmanager
async def open_control_channel(
    url: str,
    *,
    user_id: str,
    token: Secret | str,
    ticket: Secret | str | None = None,
    state_dir: Path | None = None,
    deadlines: Deadlines | None = None,
    ports: Ports | None = None,
    watchdog: Watchdog | None = None,
) -> AsyncGenerator[ControlChannel]:
    """Open a VM's way to its host, and keep it up while the body runs.

    The block is entered at once, before there is a link; see
    :meth:`ControlChannel.wait_up`. A link that is lost is dialled again for ever, with full
    jitter over ``min(30 s, 1 s * 2**n)``. Exit lets what is queued be sent and acknowledged
    and closes the link, both together within ``channel.close``; then it writes the outbox,
    within twice ``session.save``. Nothing of it is left afterwards.

    Args:
        url: Where the host listens, such as ``wss://host.example/ws/vm``.
        user_id: The user whose VM this is.
        token: The VM token, a JWT; the host may renew it.
        ticket: The one-time ticket of whoever started this VM; sent until the host has
            accepted a link.
        state_dir: Where reports are kept until the host has them, under an exclusive lock;
            None keeps them in memory.
        deadlines: The bounds; the defaults if None.
        ports: The seams; the real ones if None.
        watchdog: Who knows when the event loop stood still, for heartbeats.

    Yields:
        The channel.

    Raises:
        ConfigError: If *url* is none.
        LinkRefused: If the host refuses this VM for good (close codes 4001, 4003, 4004, and
            4009 for another instance); the body is cancelled then.
        StoreError: If another process has *state_dir*, or the disk refuses.
    """
    ports = live_ports() if ports is None else ports
    deadlines = Deadlines() if deadlines is None else deadlines
    exchange = Exchange(ports, deadlines)
    channel = ControlChannel(
        address=parse_plane_url(url),
        user_id=user_id,
        token=_as_secret(token),
        ticket=None if ticket is None else _as_secret(ticket),
        exchange=exchange,
        vitals=Vitals(watchdog, is_simulated=ports.is_simulated),
        ports=ports,
        deadlines=deadlines,
    )
    async with open_outbox(
        state_dir, ports=ports, deadlines=deadlines, on_durable=exchange.row_is_durable
    ) as outbox:
        exchange.outbox = outbox
        async with open_services() as services:
            services.start_soon(channel.keep_link, name="link")
            try:
                yield channel
            finally:
                with grace("channel.close", deadlines.channel_close):
                    await channel.finish(deadlines.channel_close * FLUSH_SHARE)
                channel.close()


def _as_secret(value: Secret | str) -> Secret:
    return value if isinstance(value, Secret) else Secret(value)
