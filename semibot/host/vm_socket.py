"""Serve one WebSocket of a VM, from its handshake to its end (protocol sections 2 to 5).

Theory of operation. One task reads: it lets the VM in, then dispatches every frame in order
and never waits for a session, only for the store in rare cases. Beside it run the link's
writer, which alone sends, its committer, and a few timers. Whatever ends the link calls
:meth:`VmLink.close` with a code; that cancels them all, the close frame goes out, what was
received is committed, and the link unregisters itself::

    accept -> auth -> admitted -> init -> (level 2: resume -> resume_response) -> live -> end

Bounds: one frame is dispatched at a time; before ``auth`` it has at most 16 KiB and comes
within ``link.auth``, as ``resume`` does after ``init``; afterwards 10 MiB, and 30 s of silence
(``link.dead_after``) without a byte end the link. Silence counts only while this task reads:
not while it dispatches, or waits because too much is uncommitted. And it counts only while this
process runs (:mod:`semibot.observe.standstill`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeVarTuple, final
from urllib.parse import parse_qs

import trio

from semibot.errors import (
    DeadlineExceeded,
    LinkFenced,
    RemoteProtocolError,
    StoreError,
    TokenRefused,
)
from semibot.lifetimes import grace
from semibot.logs import get_logger
from semibot.observe.standstill import TICK
from semibot.security.tickets import hash_secret
from semibot.security.tokens import VmClaims
from semibot.store.base import LinkClaim, LinkRef, LinkRefused, VmRow
from semibot.wire.frames import (
    MAX_AUTH_BYTES,
    MAX_FRAME_BYTES,
    Auth,
    ErrorFrame,
    FromVm,
    RequestStatus,
    Resume,
    ResumeResponse,
    SseEvent,
    Token,
    decode_from_vm,
)
from semibot.wire.link import CloseCode, HostEnd, MalformedCounter, negotiate

from .asgi_socket import AsgiSocket, PeerGone, Refused
from .frame_reader import FrameReader
from .greeting import make_init, settle_sessions
from .intake import Intake
from .legacy import LegacySessions
from .server import Receive, Scope, Send
from .vm_link import VmLink, size_of

if TYPE_CHECKING:
    from .links import Links

log: Final = get_logger(__name__)

Ts = TypeVarTuple("Ts")

MAX_UNAUTHENTICATED: Final = 256
"""Sockets that may be open before ``auth``; beyond that the oldest has to come again (1013)."""


@final
class VmSocket:
    """One socket, for one call of :meth:`serve`.

    Args:
        links: Which links there are.
        receive: Gives the next ASGI message.
        send: Takes one.
    """

    def __init__(self, links: Links, receive: Receive, send: Send) -> None:
        self._links = links
        self._deadlines = links.deadlines
        self._socket = AsgiSocket(receive, send)
        self._order = HostEnd()
        self._malformed = MalformedCounter()
        self._reader: FrameReader

    async def serve(self, scope: Scope) -> None:
        """Serve the socket to its end; see :meth:`Links.serve_socket`."""
        code, reason = int(CloseCode.HOST_FAILED), "internal"
        try:
            await self._socket.accept()
            link, token, claims = await self._let_in(scope)
            ours = scope.get("extensions", {}).get("semibot", {})  # if the server is ours
            link.bytes_heard_at = ours.get("heard_at", link.bytes_heard_at)
            if "let_in" in ours:
                ours["let_in"]()  # our server reads little of a stranger
        except PeerGone:
            return
        except Refused as exc:
            code, reason = exc.code, exc.reason
        except (StoreError, DeadlineExceeded) as exc:
            log.warning("a VM could not be let in", error=str(exc))
            code, reason = CloseCode.INTERNAL, "store failed"
        except Exception:
            log.exception("a VM could not be let in")
        else:
            await self._run(link, token, claims)
            return
        with grace("channel.close", self._deadlines.channel_close):
            await self._socket.close(code, reason)

    # --- letting in -------------------------------------------------------------------

    async def _let_in(self, scope: Scope) -> tuple[VmLink, str, VmClaims]:
        """Wait for ``auth``, and have the link accepted.

        Raises:
            Refused: If it is not.
            PeerGone: If nobody is there any more.
            StoreError: If the store fails.
            DeadlineExceeded: ``store.commit``.
        """
        links = self._links
        auth: Auth | None = None
        waiting = trio.CancelScope()
        if len(links.strangers) >= MAX_UNAUTHENTICATED:
            # A VM says at once who it is: those that have said nothing for longest go.
            oldest = next(iter(links.strangers))
            del links.strangers[oldest]
            oldest.cancel("too many say nothing")
        links.strangers[waiting] = None
        try:
            with waiting:
                auth = await self._read_auth()
        finally:
            links.strangers.pop(waiting, None)
        if auth is None:
            raise Refused(CloseCode.OVERLOADED, "too many connections")
        claim, claims = self._claim_of(auth, *_query_of(scope))
        answer = await links.admit(claim, self._make_link)
        if isinstance(answer, LinkRefused):
            log.warning("link refused", user_id=claim.user_id, why=answer.detail, code=answer.code)
            reason = "refused" if answer.code == 4001 else answer.reason
            raise Refused(answer.code, reason)
        return answer, auth.token, claims

    def _make_link(self, vm: VmRow, claim: LinkClaim) -> VmLink:
        """Return the link of an accepted claim, ready to take and to send."""
        links = self._links
        ref = LinkRef(vm_id=vm.id, user_id=vm.user_id, epoch=vm.epoch, boot_hash=claim.boot_hash)
        link = VmLink(vm=vm, ref=ref, level=claim.level, metrics=links.metrics)
        self._reader = reader = FrameReader(links, link)
        link.intake = Intake(
            store=links.store,
            relay=links.relay,
            link=ref,
            deadlines=self._deadlines,
            budget=links.budget,
            after_commit=reader.after_commit,
            on_failure=lambda error: _end_failed(link, error),
        )
        if link.level == 1:
            link.legacy = LegacySessions(
                relay=links.relay,
                intake=link.intake,
                send=link.send,
                deadlines=self._deadlines,
            )
        return link

    async def _read_auth(self) -> Auth:
        text = None
        with trio.move_on_after(self._deadlines.link_auth):
            text = await self._socket.receive(MAX_AUTH_BYTES)
        if text is None:
            raise Refused(CloseCode.SILENT, "no auth in time")
        try:
            frame = decode_from_vm(text)
        except RemoteProtocolError as exc:
            log.warning("auth is malformed", reason=exc.reason)
            raise Refused(CloseCode.UNAUTHORIZED, "refused") from None
        if not isinstance(frame, Auth):
            raise Refused(CloseCode.UNAUTHORIZED, "refused")
        self._links.metrics.ws_messages_received_total.inc(type=frame.type)
        self._order.received(frame.type)
        return frame

    def _claim_of(self, auth: Auth, user_id: str, ticket: str) -> tuple[LinkClaim, VmClaims]:
        try:
            claims = self._links.tokens.verify_vm_token(auth.token)
            level = negotiate(auth.protocol)
            if claims.user_id != user_id:
                raise TokenRefused("user")
            if level > 1 and (auth.boot_id is None or auth.dial is None):
                raise RemoteProtocolError("level 2 has boot_id and dial")
        except TokenRefused as exc:
            log.warning("token refused", user_id=user_id[:64], reason=exc.reason)
            raise Refused(CloseCode.UNAUTHORIZED, "refused") from None
        except RemoteProtocolError as exc:
            log.warning("auth refused", user_id=user_id[:64], reason=exc.reason)
            raise Refused(CloseCode.MALFORMED, "protocol") from None
        is_new = level > 1 and auth.boot_id is not None
        claim = LinkClaim(
            user_id=user_id,
            boot_hash=hash_secret(auth.boot_id or "") if is_new else None,
            dial=(auth.dial or 0) if is_new else 0,
            level=level,
            ticket_hash=hash_secret(ticket) if ticket else None,
        )
        return claim, claims

    # --- running ----------------------------------------------------------------------

    async def _run(self, link: VmLink, token: str, claims: VmClaims) -> None:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._guard, link, link.intake.serve)
                try:
                    with link.scope:
                        await self._live(link, token, claims)
                    if link.ending is None:
                        link.close(CloseCode.HOST_FAILED, "internal")
                finally:
                    await self._say_goodbye(link)
                    nursery.cancel_scope.cancel("the link has ended")
        finally:
            await self._links.end_link(link)

    async def _live(self, link: VmLink, token: str, claims: VmClaims) -> None:
        """Run everything that the end of the link cancels."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._guard, link, link.outgoing.serve, self._socket.send)
            nursery.start_soon(self._guard, link, self._reader.note_heartbeats)
            if link.legacy is not None:
                nursery.start_soon(self._guard, link, link.legacy.serve)
            else:
                nursery.start_soon(self._guard, link, self._renew_token, link, claims)
            await self._guard(link, self._read, link, token, nursery)

    async def _guard(self, link: VmLink, fn: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
        """Run a part of the link; however it ends, the link ends with it."""
        try:
            await fn(*args)
        except PeerGone:
            link.close(CloseCode.GOING_AWAY, "gone")
        except Refused as exc:
            link.close(exc.code, exc.reason)
        except LinkFenced:
            link.close(CloseCode.SUPERSEDED, "superseded")
        except (StoreError, DeadlineExceeded) as exc:
            log.warning("link ends with the store", user_id=link.user_id, error=str(exc))
            link.close(CloseCode.INTERNAL, "store failed")
        except Exception:
            log.exception("link failed", user_id=link.user_id)
            link.close(CloseCode.HOST_FAILED, "internal")

    async def _say_goodbye(self, link: VmLink) -> None:
        """Send what is still queued, and the close frame."""
        code, reason = link.ending or (CloseCode.RESTARTING, "restarting")
        link.close(code, reason)
        self._order.close()
        log.info("link ends", user_id=link.user_id, code=code, reason=reason)
        with grace("channel.close", self._deadlines.channel_close):
            try:
                if code != CloseCode.OVERLOADED:
                    await link.outgoing.flush(self._socket.send)
            except PeerGone:
                return
            await self._socket.close(code, reason)

    # --- reading ----------------------------------------------------------------------

    async def _read(self, link: VmLink, token: str, nursery: trio.Nursery) -> None:
        links = self._links
        self._order.sent("init", level=link.level)
        link.send(make_init(links, link, token))
        if link.legacy is not None:
            await link.legacy.restore(links.store, link.ref)
            links.link_is_live(link)
        nursery.start_soon(self._guard, link, self._watch_silence, link)
        while True:
            link.listens_since = trio.current_time()
            text = await self._socket.receive(MAX_FRAME_BYTES)
            link.listens_since = None
            await link.wait_may_read()
            await self._take(text, link, nursery)

    async def _watch_silence(self, link: VmLink) -> None:
        """Wait until the VM is silent for too long, or does not say ``resume`` in time."""
        standstill = self._links.standstill
        began = trio.current_time()
        while True:
            now = trio.current_time()
            standstill.look(now)
            silent_at = self._silent_at(link, began, now)
            if now >= silent_at:
                await trio.lowlevel.checkpoint()  # what has come until now is read first
                silent_at = self._silent_at(link, began, now)
            if now >= silent_at:
                raise Refused(CloseCode.SILENT, "silence")
            if self._order.state == "introduced":  # once it has resumed, less may be too long
                silent_at = min(silent_at, now + TICK)
            await trio.sleep_until(silent_at)

    def _silent_at(self, link: VmLink, began: float, now: float) -> float:
        standstill = self._links.standstill
        if self._order.state == "introduced" and link.listens_since is not None:
            return standstill.silent_at(began, self._deadlines.link_auth)
        if self._order.state == "introduced":
            return now + self._deadlines.link_auth
        return standstill.silent_at(link.heard(now), self._deadlines.link_dead_after)

    async def _take(self, text: str, link: VmLink, nursery: trio.Nursery) -> None:
        """Dispatch the frames of one message."""
        try:
            frames = decode_from_vm(text)
            if isinstance(frames, tuple):
                self._order.received("batch")
            else:
                frames = (frames,)
        except RemoteProtocolError as exc:
            self._answer_malformed(link, exc, None)
            return
        self._reader.count(frames)
        share = size_of(text) // len(frames)
        follows_event = False
        for frame in frames:
            try:
                is_event = isinstance(frame, SseEvent)
                if not (is_event and follows_event):  # an event changes no state
                    self._order.received(frame.type)
                follows_event = is_event
                if isinstance(frame, SseEvent) and self._reader.take_plain(frame):
                    continue
                if isinstance(frame, Resume):
                    await self._resume(frame, link, nursery)
                else:
                    await self._reader.dispatch(frame, share)
            except RemoteProtocolError as exc:
                self._answer_malformed(link, exc, frame)
        # A VM that never stops talking must not keep the others waiting.
        await trio.lowlevel.checkpoint()

    def _answer_malformed(
        self, link: VmLink, error: RemoteProtocolError, frame: FromVm | None
    ) -> None:
        frame_id = getattr(frame, "id", None)
        log.warning("frame refused", user_id=link.user_id, reason=str(error))
        link.send(
            ErrorFrame(
                code="BAD_FRAME",
                message=str(error),
                id=frame_id if isinstance(frame_id, str) else None,
                session_id=getattr(frame, "session_id", None),
            )
        )
        if self._malformed.count(trio.current_time()):
            raise Refused(CloseCode.MALFORMED, "malformed frames")

    # --- resuming ---------------------------------------------------------------------

    async def _resume(self, frame: Resume, link: VmLink, nursery: trio.Nursery) -> None:
        links = self._links
        if link.legacy is not None:
            nursery.start_soon(self._guard, link, self._resume_legacy, frame.pending_ids, link)
            return
        sessions = await settle_sessions(links, link, frame.sessions or {})
        results = links.requests.resume(link, frame.pending_ids)
        self._order.sent(ResumeResponse.type)
        if not link.send(ResumeResponse(results=results, sessions=sessions)):
            # The answers are too many for one frame: each follows in its own.
            later = {name: _without_data(status) for name, status in results.items()}
            link.send(ResumeResponse(results=later, sessions=sessions))
            links.requests.send_again(link, frame.pending_ids)
        links.link_is_live(link)

    async def _resume_legacy(self, pending_ids: Sequence[str], link: VmLink) -> None:
        """Answer a level 1 ``resume`` when the requests under way have their answers."""
        links = self._links
        await links.requests.wait_answered(link.user_id, pending_ids)
        results = links.requests.resume(link, pending_ids)
        known = {  # level 1 does not know ``pending``
            name: RequestStatus(status="lost") if status.status == "pending" else status
            for name, status in results.items()
        }
        self._order.sent(ResumeResponse.type)
        link.send(ResumeResponse(results=known))

    async def _renew_token(self, link: VmLink, claims: VmClaims) -> None:
        """Send a new VM token at half-life of the newest, again and again.

        A link that began with a token past its half-life gets one at once.
        """
        tokens = self._links.tokens
        while True:
            half = (claims.issued_at + claims.expires_at) / 2
            await trio.sleep(max(0.0, half - self._links.ports.wall_clock.now().timestamp()))
            token = tokens.make_vm_token(link.user_id, link.org_id)
            claims = tokens.verify_vm_token(token)
            link.send(Token(token=token))


def _end_failed(link: VmLink, error: StoreError) -> None:
    if isinstance(error, LinkFenced):
        link.close(CloseCode.SUPERSEDED, "superseded")
    else:
        link.close(CloseCode.INTERNAL, "store failed")


def _without_data(status: RequestStatus) -> RequestStatus:
    return RequestStatus(status="pending") if status.status == "completed" else status


def _query_of(scope: Scope) -> tuple[str, str]:
    """Return the user id and the ticket of the address; empty if they are not there."""
    raw = scope.get("query_string")
    text = raw.decode("ascii", "replace") if isinstance(raw, bytes) else ""
    query = parse_qs(text, max_num_fields=16)
    return query.get("user_id", [""])[0], query.get("ticket", [""])[0]
