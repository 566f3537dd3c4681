"""Know the live link of every user's VM; let links in, end them, and give VMs up.

Theory of operation. The store decides who may have a link (``accept_link``) and counts the
epoch; here is what this process knows of it. Everything that changes who a user's link is,
letting one in, ending one, losing a VM, holds the user's lock, so that the old link's last
events are committed (under its own epoch) before the new one is accepted, and nothing of the
old link touches anything of the new one afterwards. A link that ends unregisters only itself.

A VM whose link is down keeps its runs for ``vm.lost_after``, counted on this process's clock
and anew from its start; then the VM is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final, Protocol, final

import trio

from semibot.config import Deadlines
from semibot.config.settings import HostSettings
from semibot.errors import DeadlineExceeded, StoreError
from semibot.lifetimes import deadline, grace
from semibot.logs import get_logger
from semibot.observe.standstill import TICK, Standstill
from semibot.ports import Ports
from semibot.security.tokens import Tokens
from semibot.store.base import (
    CancelAnswered,
    LinkClaim,
    LinkRefused,
    SessionLoss,
    Store,
    VmRow,
    VmStatus,
)

from .intake import InputBudget
from .liveness import Pulses
from .metrics import Metrics
from .relay import Relay
from .requests import Requests
from .server import Receive, Scope, Send
from .vm_link import VmLink
from .vm_socket import VmSocket

log: Final = get_logger(__name__)

PLANE_GONE: Final = "EXECUTION_PLANE_DISCONNECTED"
"""Code of the end of a run whose VM is lost."""

RETRY_SECONDS: Final = 5.0
"""Until a VM is given up again after the store could not do it."""


class LinkListener(Protocol):
    """Wants to know when VMs come and go. Nothing here waits."""

    def link_up(self, vm: VmRow) -> None:
        """A VM's link is live: commands may be sent."""
        ...

    def link_down(self, vm: VmRow) -> None:
        """A VM's link has ended, and no other has taken its place."""
        ...


class Desk(LinkListener, Protocol):
    """Who has commands for VMs; the dispatcher. Nothing here waits."""

    def kick(self, session_id: str, user_id: str) -> None:
        """Something has changed for a session."""
        ...

    def runs_ended(self, session_id: str, run_ids: tuple[str, ...]) -> None:
        """Runs have a committed terminal event."""
        ...

    def cancel_answered(self, answer: CancelAnswered) -> None:
        """A receipt is committed."""
        ...


@final
class Links:
    """The live links of one host. Its service is :meth:`serve`.

    Args:
        store: What the host remembers.
        relay: Publishes events.
        tokens: Checks and makes VM tokens.
        settings: Of the host.
        metrics: Counts links and frames.
        ports: The seams.
        deadlines: The bounds.
    """

    def __init__(
        self,
        *,
        store: Store,
        relay: Relay,
        tokens: Tokens,
        settings: HostSettings,
        metrics: Metrics,
        ports: Ports,
        deadlines: Deadlines,
    ) -> None:
        self.store: Final = store
        """What the host remembers."""
        self.relay: Final = relay
        """Publishes events."""
        self.tokens: Final = tokens
        """Checks and makes VM tokens."""
        self.settings: Final = settings
        """Of the host."""
        self.metrics: Final = metrics
        """Counts links and frames."""
        self.ports: Final = ports
        """The seams."""
        self.deadlines: Final = deadlines
        """The bounds."""
        self.budget: Final = InputBudget()
        """Bounds what links have brought and is not committed."""
        self.requests: Final = Requests(
            store=store, settings=settings, ports=ports, deadlines=deadlines, metrics=metrics
        )
        """Answers what VMs ask."""
        self.standstill: Final = Standstill()
        """When this host stood still, which is nobody else's silence."""
        self.pulses: Final = Pulses(self.standstill, deadlines, metrics)
        """How the VMs do."""
        self.strangers: dict[trio.CancelScope, None] = {}
        """Sockets that have not said who they are, the oldest first."""
        self._links: dict[str, VmLink] = {}
        self._open: set[VmLink] = set()
        self._locks: dict[str, trio.Lock] = {}
        self._listeners: list[LinkListener] = []
        self._desk: Desk | None = None
        self._down: dict[str, tuple[str, float]] = {}
        self._down_changed = trio.Event()
        self._refusal: tuple[int, str] | None = None

    # --- who is connected -------------------------------------------------------------

    def of_user(self, user_id: str) -> VmLink | None:
        """Return the live link of a user's VM, to which commands may be sent."""
        link = self._links.get(user_id)
        return link if link is not None and link.is_live else None

    def may_return(self, vm_id: str) -> bool:
        """Return whether a VM's link is down, but not for so long that the VM is lost."""
        return vm_id in self._down

    def observe(self, listener: LinkListener) -> None:
        """Tell *listener* when VMs come and go, from now on."""
        self._listeners.append(listener)

    def report_to(self, desk: Desk) -> None:
        """Tell *desk*, the only one, what it needs to dispatch commands."""
        self._desk = desk
        self.observe(desk)

    async def serve_socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one WebSocket of ``/ws/vm`` from its handshake to its end: an ASGI app.

        Never raises but a cancellation. Closes with the code of protocol section 2 and
        returns at once after that, as the server ends the connection only then. A
        cancellation ends the link as 1012, within ``channel.close`` + ``store.commit``.

        Args:
            scope: Of type ``websocket``.
            receive: Gives the next ASGI message.
            send: Takes one; the server bounds how long it may take.
        """
        await VmSocket(self, receive, send).serve(scope)

    async def serve(self) -> None:
        """Answer requests, and give up VMs that are silent for too long, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.requests.serve)
            nursery.start_soon(self._watch_itself)
            await self._watch_silence()

    # --- letting a link in ------------------------------------------------------------

    async def admit(
        self, claim: LinkClaim, make_link: Callable[[VmRow, LinkClaim], VmLink]
    ) -> VmLink | LinkRefused:
        """Decide about a link whose token is good, and make it the user's link.

        The old link takes nothing more; it is closed with 4009.

        Args:
            claim: What the VM says.
            make_link: Makes the link once it is accepted.

        Raises:
            StoreError: If the store fails.
            DeadlineExceeded: ``store.commit``; whether it was accepted is not known.
        """
        async with self._lock(claim.user_id):
            with self._quiet(claim.user_id) as old:
                if old is not None:
                    await old.intake.commit()
                with deadline("store.commit", self.deadlines.store_commit):
                    answer = await self.store.accept_link(claim)
                if isinstance(answer, LinkRefused):
                    return answer
                vm = answer.vm
                link = make_link(vm, claim)
                self._links[vm.user_id] = link
                self._open.add(link)
                self.pulses.link_up(link)
                self._down.pop(vm.id, None)
                if old is not None:
                    old.intake.abandon()
                    is_other = old.ref.boot_hash != claim.boot_hash
                    old.close(4009, "other_instance" if is_other else "superseded")
                if answer.is_same_process:
                    self.metrics.ws_reconnections_total.inc()
                self.metrics.ws_connections_active.set(len(self._links))
                for loss in answer.losses:
                    self.publish_loss(loss)
                if self._refusal is not None:
                    link.close(*self._refusal)
                return link

    def link_is_live(self, link: VmLink) -> None:
        """Let commands be sent on *link*, and tell everybody who waits for that."""
        if link.ending is None and self._links.get(link.user_id) is link:
            link.is_live = True
            log.info("VM connected", user_id=link.user_id, vm_id=link.vm.id, level=link.level)
            for listener in self._listeners:
                listener.link_up(link.vm)

    async def end_link(self, link: VmLink) -> None:
        """Commit what *link* brought, and unregister it, if it still is the user's link.

        Called once by the link's own task, when the socket has been closed. Takes at most
        ``store.commit`` for what is not committed, and again for the row.
        """
        link.is_live = False
        try:
            with grace("store.commit", self.deadlines.store_commit):
                async with self._lock(link.user_id):
                    await link.intake.close()
                    if self._links.get(link.user_id) is link:
                        await self._note_down(link)
        finally:
            link.intake.abandon()
            self._open.discard(link)
            self.pulses.link_down(link)
            if self._links.get(link.user_id) is link:
                del self._links[link.user_id]
                if not link.is_lost:
                    self._down[link.vm.id] = (link.user_id, trio.current_time())
                    self._down_changed.set()
                for listener in self._listeners:
                    listener.link_down(link.vm)
            self.metrics.ws_connections_active.set(len(self._links))
            if link.user_id not in self._links:
                self.metrics.ws_sessions_per_connection.remove(user_id=link.user_id)
            link.has_ended.set()

    async def _note_down(self, link: VmLink) -> None:
        try:
            await self.store.link_closed(link.ref)
        except StoreError as exc:
            log.warning("end of a link could not be noted", vm_id=link.vm.id, error=str(exc))

    async def close_all(self, code: int, reason: str) -> None:
        """Close every link, and those to come, and wait until they have ended.

        The caller bounds it; each link takes at most ``channel.close`` + ``store.commit``.

        Args:
            code: Close code, such as 1012.
            reason: For the close frame.
        """
        self._refusal = (code, reason)
        links = tuple(self._open)
        for link in links:
            link.close(code, reason)
        for link in links:
            # Bounded by the graces of the link's own clean-up.
            await link.has_ended.wait()

    # --- losing -----------------------------------------------------------------------

    async def lose_vm(
        self, vm_id: str, *, status: VmStatus, last_error: str | None, code: str, message: str
    ) -> None:
        """Give a VM up: the one way in which one is lost (protocol section 4).

        Commits what was received, ends the written runs of its sessions, closes its link.

        Args:
            vm_id: The row.
            status: What the row becomes.
            last_error: Kept in the row, if not None.
            code: Of the ``execution_error`` events.
            message: Their text.

        Raises:
            StoreError: If the store fails; the VM is not lost then.
            DeadlineExceeded: ``store.commit``; whether it is lost is not known.
        """
        user_id = await self._owner_of(vm_id)
        if user_id is None:
            return  # history already
        async with self._lock(user_id):
            await self._lose(
                vm_id, user_id, status=status, last_error=last_error, code=code, message=message
            )

    async def _lose(
        self,
        vm_id: str,
        user_id: str,
        *,
        status: VmStatus,
        last_error: str | None,
        code: str,
        message: str,
    ) -> None:
        with self._quiet(user_id) as current:
            link = current if current is not None and current.vm.id == vm_id else None
            if link is not None:
                await link.intake.commit()
            with deadline("store.commit", self.deadlines.store_commit):
                losses = await self.store.lose_vm(
                    vm_id, status=status, last_error=last_error, code=code, message=message
                )
            if link is not None:
                link.intake.abandon()
                link.is_lost = True
                is_over = status in {"failed", "terminated"}
                link.close(*((4003, "no_vm") if is_over else (4008, "lost")))
            self._down.pop(vm_id, None)
        self.pulses.lost(vm_id, user_id)
        report = log.warning if any(loss.ended_runs for loss in losses) else log.info
        report("VM lost", user_id=user_id, vm_id=vm_id, sessions=len(losses))
        for loss in losses:
            self.publish_loss(loss)

    async def lose_session(self, link: VmLink, session_id: str, *, message: str) -> None:
        """Give one session up, and leave the VM its others.

        Raises:
            StoreError: If the store fails.
            DeadlineExceeded: ``store.commit``.
        """
        link.release(session_id, "fenced")
        link.intake.drop_events(session_id)
        with deadline("store.commit", self.deadlines.store_commit):
            loss = await self.store.lose_session(session_id, code="INTERRUPTED", message=message)
        if loss is not None:
            log.warning("session lost", session_id=session_id, user_id=link.user_id)
            self.publish_loss(loss)

    def publish_loss(self, loss: SessionLoss) -> None:
        """Tell readers, and whoever waits for a receipt, what the store said for a VM."""
        self.relay.publish_loss(loss)
        if self._desk is not None:
            self._desk.runs_ended(loss.session_id, loss.ended_runs)
            self._desk.kick(loss.session_id, loss.user_id)

    # --- what links tell the desk -----------------------------------------------------

    def kick(self, session_id: str, user_id: str) -> None:
        """Note that something has changed for a session."""
        if self._desk is not None:
            self._desk.kick(session_id, user_id)

    def runs_ended(self, session_id: str, user_id: str, run_id: str) -> None:
        """Note that a run's terminal event is committed."""
        if self._desk is not None:
            self._desk.runs_ended(session_id, (run_id,))
            self._desk.kick(session_id, user_id)

    def cancel_answered(self, answer: CancelAnswered) -> None:
        """Note that a receipt is committed."""
        if self._desk is not None:
            self._desk.cancel_answered(answer)

    # --- inside -----------------------------------------------------------------------

    def _lock(self, user_id: str) -> trio.Lock:
        """Return the lock of a user; one a user that ever had a VM, so they are kept."""
        return self._locks.setdefault(user_id, trio.Lock())

    @contextmanager
    def _quiet(self, user_id: str) -> Generator[VmLink | None]:
        """Let the user's present link, if any, dispatch nothing while the block lasts."""
        link = self._links.get(user_id)
        if link is None:
            yield None
            return
        link.hold_reading()
        try:
            yield link
        finally:
            link.release_reading()

    async def _owner_of(self, vm_id: str) -> str | None:
        for link in self._links.values():
            if link.vm.id == vm_id:
                return link.user_id
        with deadline("store.commit", self.deadlines.store_commit):
            rows = await self.store.active_vms()
        return next((row.user_id for row in rows if row.id == vm_id), None)

    async def _watch_itself(self) -> None:
        while True:
            stood_still = self.standstill.look(trio.current_time())
            if stood_still:
                log.warning("this host stood still", seconds=round(stood_still, 1))
            await trio.sleep(TICK)

    async def _watch_silence(self) -> None:
        """Lose VMs that had a link once and have none for ``vm.lost_after``."""
        started_at = trio.current_time()
        for vm in await self._active_vms():
            # Those of mode ``local`` died with the host that had started them, and are lost.
            if vm.epoch > 0 and vm.mode != "local" and vm.user_id not in self._links:
                self._down.setdefault(vm.id, (vm.user_id, started_at))
                self.pulses.expect(vm.user_id, vm.id)
        while True:
            self._down_changed = trio.Event()
            lost_after = self.deadlines.vm_lost_after
            now = trio.current_time()
            self.standstill.look(now)
            missed = self.standstill.missed  # a host that does not run cannot be dialled
            for vm_id, (user_id, since) in tuple(self._down.items()):
                if now >= since + lost_after + missed(since):
                    await self._give_up(vm_id, user_id, since)
            due = [since + lost_after + missed(since) for _, since in self._down.values()]
            # Unbounded on purpose while no VM is down.
            with trio.CancelScope(deadline=min(due, default=math.inf)):
                await self._down_changed.wait()

    async def _active_vms(self) -> tuple[VmRow, ...]:
        while True:
            try:
                with deadline("store.commit", self.deadlines.store_commit):
                    return await self.store.active_vms()
            except (StoreError, DeadlineExceeded) as exc:
                log.warning("VMs could not be read", error=str(exc))
            await trio.sleep(RETRY_SECONDS)

    async def _give_up(self, vm_id: str, user_id: str, since: float) -> None:
        try:
            async with self._lock(user_id):
                # It may have come, and gone again, while others were given up.
                if self._down.get(vm_id) == (user_id, since):
                    await self._lose_silent(vm_id, user_id)
        except (StoreError, DeadlineExceeded) as exc:
            log.warning("VM could not be given up", vm_id=vm_id, error=str(exc))
            if self._down.get(vm_id) == (user_id, since):  # try again soon
                again = trio.current_time() - self.deadlines.vm_lost_after + RETRY_SECONDS
                self._down[vm_id] = (user_id, again)

    async def _lose_silent(self, vm_id: str, user_id: str) -> None:
        with deadline("store.commit", self.deadlines.store_commit):
            rows = await self.store.active_vms()
        row = next((row for row in rows if row.id == vm_id), None)
        if row is None:  # history
            self._down.pop(vm_id, None)
            return
        is_starting = row.status in {"starting", "provisioning"}  # a new process of the row
        await self._lose(
            vm_id,
            user_id,
            status=row.status if is_starting else "disconnected",
            last_error=None if is_starting else "no link for too long",
            code=PLANE_GONE,
            message="the execution plane is gone; send the message again",
        )
