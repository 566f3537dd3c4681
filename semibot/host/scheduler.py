"""Start a user's VM when there is something to do, and know how that went.

Theory of operation. A VM row says where a user's VM is; whoever needs the VM calls
:meth:`Scheduler.ensure_ready`, and one task per user, the :class:`Attempt`, starts it, waits
until its link is up, and then stays with it until the process ends. The row moves

    none -> starting -> provisioning (spawned) -> ready (link accepted) -> disconnected,

the last two by the link itself. An attempt that never got ready is followed by a pause, and
after several of them the row is ``failed``: history, with the command's own words in it. A VM
that was up and died starts again at once, if somebody needs it.

Who starts a VM holds the user's turn, so that any number of first messages start one VM.
Only the attempt's own task takes it out of ``_attempts``, after its process is gone; so a
user never has two processes, and whoever stops one waits for that.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, final

import attrs
import trio

from semibot.config import Deadlines
from semibot.config.settings import HostSettings
from semibot.errors import PlaneNotReady, SemibotError
from semibot.lifetimes import grace
from semibot.logs import get_logger
from semibot.ports import Ports
from semibot.secret import Secret
from semibot.security.tickets import hash_secret, new_ticket
from semibot.security.tokens import Tokens
from semibot.store.base import Store, VmRow
from semibot.tools.processes import open_child
from semibot.wire.codec import JsonObject

from .attempt import Attempt
from .bootstrap import prepare_directories, vm_command, vm_environment
from .links import Links

log: Final = get_logger(__name__)

REMOTE_READY: Final = 300.0
"""What a VM of a mode other than ``local`` may take to get ready, in seconds."""

SOON_MS: Final = 1000
"""When to try again if nothing else is known, in milliseconds."""

_HISTORY: Final = frozenset({"failed", "terminated"})


@final
class Scheduler:
    """Starts VMs. Its service is :meth:`serve`.

    Args:
        store: Where the rows are.
        links: Who knows which VM is connected.
        tokens: Makes VM tokens.
        settings: Of the host.
        deadlines: The bounds.
        ports: The seams.
    """

    def __init__(
        self,
        *,
        store: Store,
        links: Links,
        tokens: Tokens,
        settings: HostSettings,
        deadlines: Deadlines,
        ports: Ports,
    ) -> None:
        self._store = store
        self._links = links
        self._tokens = tokens
        self._settings = settings
        self._deadlines = deadlines
        self._ports = ports
        self._attempts: dict[str, Attempt] = {}
        self._turns: dict[str, trio.Lock] = {}
        self._wanted: list[Attempt] = []
        self._tried_at: dict[str, float] = {}
        self._work = trio.lowlevel.ParkingLot()
        self._changed = trio.lowlevel.ParkingLot()
        self._url = ""
        self._announced = trio.Event()
        self._is_stopping = False

    def announce(self, url: str) -> None:
        """Say where VMs are to dial, ``ws://.../ws/vm``, before anything is started.

        VMs that messages have waited for since before the host was started are started then.
        """
        self._url = url
        self._announced.set()

    # --- what others ask --------------------------------------------------------------

    async def ensure_ready(self, user_id: str) -> VmRow:
        """Return the user's VM row once its link is up, starting the VM if need be.

        Waits at most ``vm.ready`` while an attempt is running in mode ``local``, else
        ``vm.start_wait``; twice that if the VM ends just now.

        Raises:
            PlaneNotReady: If it is not up by then; says how it stands and when to try again.
        """
        link = self._links.of_user(user_id)
        if link is None:
            attempt = await self._ensure_attempt(user_id)
            await self._wait_link(user_id, attempt)
            if attempt is not None and attempt.is_ready and attempt.has_ended.is_set():
                # It was up, and ended while we waited: such a VM starts again at once.
                await self._wait_link(user_id, await self._ensure_attempt(user_id))
            link = self._links.of_user(user_id)
        vm = await self._store.newest_vm(user_id)
        if link is None or vm is None:
            raise self._not_ready(vm)
        return vm

    async def status(self, user_id: str) -> JsonObject:
        """Return the data of ``GET /api/v1/vm/status``; times are milliseconds since 1970."""
        vm = await self._store.newest_vm(user_id)
        if vm is None:
            return {"status": "missing"}
        pause = self._pause_ms(vm)
        data: JsonObject = {
            "instanceId": vm.id,
            "status": vm.status,
            "mode": vm.mode,
            "bootstrapAttempts": vm.attempts,
            "lastBootstrapAt": vm.last_bootstrap_at,
            "lastHeartbeatAt": vm.last_heartbeat_at,
            "disconnectedAt": vm.disconnected_at,
            "lastError": vm.last_error,
        }
        liveness = self._links.pulses.describe(user_id, vm.id)
        if liveness is not None:
            data = {**data, "liveness": liveness}
        return {**data, "retryAfterMs": pause} if pause else data

    async def rebootstrap(self, user_id: str) -> JsonObject:
        """Start the user's VM anew, now: no pause, no limit of attempts.

        A VM that this host has started is stopped first, which takes at most ``vm.stop`` +
        ``child.kill_grace``. Of several that ask at once, one starts it. A VM that its user
        starts is left alone.

        Returns:
            ``{ready, status, instanceId}`` as the attempt begins.

        Raises:
            PlaneNotReady: If the user is unknown, or the host is stopping.
        """
        attempt = await self._ensure_attempt(user_id, is_forced=True)
        vm = await self._store.newest_vm(user_id) if attempt is None else attempt.vm
        if vm is None:
            return {"ready": False, "status": "missing", "instanceId": None}
        is_up = attempt is None and self._links.of_user(user_id) is not None
        return {
            "ready": is_up,
            "status": vm.status if attempt is None else "starting",
            "instanceId": vm.id,
        }

    async def is_started_here(self, user_id: str) -> bool:
        """Return whether this host starts the user's VM; else its user does."""
        vm = await self._store.newest_vm(user_id)
        return vm is None or vm.mode != "external"

    # --- what links say ---------------------------------------------------------------

    def link_up(self, vm: VmRow) -> None:
        """Note that a VM's link is up."""
        attempt = self._attempts.get(vm.user_id)
        if attempt is not None and attempt.is_own(vm):
            attempt.link_up(vm)
        elif attempt is not None and vm.mode == "external":
            attempt.scope.cancel("the user has started a VM")
        self._changed.unpark_all()

    def link_down(self, vm: VmRow) -> None:
        """Note that a VM's link is down."""
        attempt = self._attempts.get(vm.user_id)
        if attempt is not None and attempt.is_ready and attempt.is_own(vm):
            attempt.link_down()
        self._changed.unpark_all()

    # --- deciding ---------------------------------------------------------------------

    @asynccontextmanager
    async def _turn(self, user_id: str) -> AsyncGenerator[None]:
        """Hold the user's turn; one that nobody holds or waits for is forgotten."""
        lock = self._turns.setdefault(user_id, trio.Lock())
        try:
            async with lock:
                yield
        finally:
            if not lock.locked():
                self._turns.pop(user_id, None)

    async def _ensure_attempt(
        self, user_id: str, *, is_forced: bool = False, is_automatic: bool = False
    ) -> Attempt | None:
        """Return the running attempt, or begin one; None if there is only to be waited.

        Raises:
            PlaneNotReady: If none may be begun now.
        """
        known = self._attempts.get(user_id)
        async with self._turn(user_id):
            running = self._attempts.get(user_id)
            if running is not None:
                if not is_forced or running is not known:
                    return running
                running.is_replaced = True
                running.scope.cancel("started anew on request")
                # Bounded by the graces of the child that is stopped.
                await running.has_ended.wait()
            if not is_forced and self._links.of_user(user_id) is not None:
                return None
            vm = await self._row_to_start(user_id, is_forced=is_forced)
            if vm.mode == "external" or (not is_forced and self._links.may_return(vm.id)):
                return None
            if self._is_stopping:  # while the row was read
                raise _stopping()
            attempt = Attempt(vm, is_forced=is_forced, is_automatic=is_automatic)
            self._attempts[user_id] = attempt
            self._wanted.append(attempt)
            self._work.unpark_all()
            self._changed.unpark_all()
            return attempt

    async def _row_to_start(self, user_id: str, *, is_forced: bool) -> VmRow:
        """Return the row that an attempt may be made for now."""
        if self._is_stopping:
            raise _stopping()
        user = await self._store.get_user(user_id)
        if user is None:
            raise PlaneNotReady("missing", "the user is unknown", SOON_MS)
        vm = await self._store.newest_vm(user_id)
        if vm is not None and not is_forced and self._pause_ms(vm):
            raise self._not_ready(vm)
        if vm is not None and vm.status not in _HISTORY:
            may_try = vm.attempts < self._settings.vm_bootstrap_max_attempts
            if is_forced or may_try or vm.mode == "external":
                return vm
            await self._fail(vm, vm.last_error or "it never got ready")
            raise self._not_ready(await self._store.newest_vm(user_id))
        return await self._store.ensure_vm(user_id, self._ports.ids.new_id(), user.vm_mode)

    def _pause_ms(self, vm: VmRow) -> int:
        """Return how long the next attempt has to wait; an attempt that got ready needs none."""
        if vm.attempts == 0 or vm.last_bootstrap_at is None or vm.status == "terminated":
            return 0
        if vm.user_id in self._attempts:
            return 0
        tried_at = self._tried_at.get(vm.user_id)
        if tried_at is not None:  # here, so that nobody can set the clock
            since = int((trio.current_time() - tried_at) * 1000)
        else:
            since = self._now_ms() - vm.last_bootstrap_at
            if since < 0:  # the wall clock was set back: better one attempt too early
                return 0
        return max(0, self._settings.vm_bootstrap_cooldown_ms - since)

    def _note_try(self, user_id: str) -> None:
        """Remember when a user's VM was tried, for as long as that matters."""
        now = trio.current_time()
        oldest = now - self._settings.vm_bootstrap_cooldown_ms / 1000
        self._tried_at = {who: at for who, at in self._tried_at.items() if at > oldest}
        self._tried_at[user_id] = now

    def _not_ready(self, vm: VmRow | None) -> PlaneNotReady:
        if vm is None:
            return PlaneNotReady("missing", None, SOON_MS)
        return PlaneNotReady(vm.status, vm.last_error, self._pause_ms(vm) or SOON_MS)

    async def _wait_link(self, user_id: str, attempt: Attempt | None) -> None:
        """Wait until the link is up, the attempt has failed, or it takes too long."""
        is_starting = attempt is not None and attempt.vm.mode == "local" and not attempt.is_ready
        seconds = self._deadlines.vm_ready if is_starting else self._deadlines.vm_start_wait
        with trio.move_on_after(seconds):  # noqa: ASYNC912 - nothing to wait for is fine
            while self._links.of_user(user_id) is None:
                attempt = self._attempts.get(user_id, attempt)
                if attempt is not None and attempt.has_ended.is_set() and not attempt.is_replaced:
                    return
                await self._changed.park()

    def _now_ms(self) -> int:
        return int(self._ports.wall_clock.now().timestamp() * 1000)

    # --- starting ---------------------------------------------------------------------

    async def serve(self) -> None:
        """Run the attempts until cancelled; then stop the VMs that were started here."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._start_all_waiting)
            try:
                while True:
                    self._start_wanted(nursery)
                    # Unbounded on purpose: the next attempt comes when somebody needs a VM.
                    await self._work.park()
            finally:
                self._is_stopping = True
                self._start_wanted(nursery)  # which cancels them, so that they end in order

    def _start_wanted(self, nursery: trio.Nursery) -> None:
        while self._wanted:
            nursery.start_soon(self._run, self._wanted.pop(0))

    def own_users(self) -> tuple[str, ...]:
        """Return the users whose VMs were started here and have not ended."""
        return tuple(self._attempts)

    def stop(self) -> None:
        """Begin no more attempts."""
        self._is_stopping = True

    async def stop_all(self) -> None:
        """Stop every VM that was started here, and wait until each has ended.

        A VM gets ``vm.stop`` to say how its runs ended, and is killed then.
        """
        self._is_stopping = True
        for attempt in tuple(self._attempts.values()):
            attempt.scope.cancel("the host is stopping")
        while self._attempts:
            await self._changed.park()

    async def _run(self, attempt: Attempt) -> None:
        user_id = attempt.vm.user_id
        error: str | None = None
        try:
            with attempt.scope:
                error = await self._live(attempt)
        except (SemibotError, OSError) as exc:
            error = str(exc)
        finally:
            try:
                with grace("store.commit", self._deadlines.store_commit):
                    await self._record_end(attempt, error)
            except SemibotError as exc:
                log.warning("end of a VM not recorded", user_id=user_id, error=str(exc))
            finally:
                self._forget(attempt)
        if not attempt.scope.cancelled_caught:
            await self._start_if_needed(attempt)

    def _forget(self, attempt: Attempt) -> None:
        del self._attempts[attempt.vm.user_id]
        attempt.has_ended.set()
        self._changed.unpark_all()

    async def _live(self, attempt: Attempt) -> str | None:
        """Start a VM and stay with it until its process ends; return what it died of."""
        settings, vm, deadlines = self._settings, attempt.vm, self._deadlines
        is_local = vm.mode == "local"
        if not is_local and settings.vm_bootstrap_cmd is None:
            return f"nothing is configured that starts VMs of mode {vm.mode}: set VM_BOOTSTRAP_CMD"
        ready = deadlines.vm_ready if is_local else REMOTE_READY
        ticket = new_ticket(self._ports.ids)
        attempt.vm = vm = await self._store.begin_attempt(
            vm.id, hash_secret(ticket.reveal()), self._now_ms() + int(ready * 1000)
        )
        self._note_try(vm.user_id)
        if is_local:
            await self._ports.threads.run_sync(
                prepare_directories, settings, vm.user_id, limiter="files"
            )
        environment = vm_environment(
            settings,
            vm,
            url=self._url,
            token=Secret(self._tokens.make_vm_token(vm.user_id, vm.org_id)),
            ticket=ticket,
            is_forced=attempt.is_forced,
        )
        bounds = attrs.evolve(deadlines, child_eof_grace=0.0, child_term_grace=deadlines.vm_stop)
        async with open_child(
            vm_command(settings),
            environment=environment,
            ports=self._ports,
            deadlines=bounds,
            name="vm",
        ) as child:
            await self._store.set_vm_status(vm.id, "provisioning")
            log.info("VM started", user_id=vm.user_id, vm_id=vm.id, attempt=vm.attempt)
            return await attempt.attend(
                child,
                ready=ready,
                lost_after=deadlines.vm_lost_after,
                is_elsewhere=not is_local,
            )

    async def _record_end(self, attempt: Attempt, error: str | None) -> None:
        """Record the end of an attempt."""
        vm = await self._store.newest_vm(attempt.vm.user_id)
        if vm is None or vm.id != attempt.vm.id or vm.status in _HISTORY:
            return
        if error is not None:
            log.warning(
                "VM ended" if attempt.is_ready else "VM did not get ready",
                user_id=vm.user_id,
                vm_id=vm.id,
                error=error,
            )
        if attempt.is_ready:
            # One that was started elsewhere goes on; one that was replaced is not ours to lose.
            if attempt.vm.mode == "local" and not attempt.is_superseded_in(vm):
                await self._lose(vm, error)
        elif vm.mode == "external" or attempt.is_replaced:
            return
        elif attempt.scope.cancelled_caught or self._is_stopping:
            await self._store.set_vm_status(vm.id, "disconnected")
        elif vm.attempts >= self._settings.vm_bootstrap_max_attempts:
            await self._fail(vm, error or "it never got ready")
        else:
            await self._store.set_vm_status(vm.id, "starting", last_error=error)

    async def _lose(self, vm: VmRow, error: str | None) -> None:
        if self._is_stopping:
            code, what = "INTERRUPTED", "the host was stopped"
        else:
            code, what = "EXECUTION_PLANE_DISCONNECTED", "the execution plane ended"
        await self._links.lose_vm(
            vm.id,
            status="disconnected",
            last_error=error,
            code=code,
            message=f"{what} while it was answering; send it again",
        )

    async def _fail(self, vm: VmRow, error: str) -> None:
        log.error("VM failed", user_id=vm.user_id, vm_id=vm.id, attempts=vm.attempts)
        await self._links.lose_vm(
            vm.id,
            status="failed",
            last_error=error,
            code="EXECUTION_PLANE_DISCONNECTED",
            message="the execution plane could not be started",
        )

    # --- messages that wait -----------------------------------------------------------

    async def _start_all_waiting(self) -> None:
        """Start the VMs that messages have waited for since before the host was started."""
        # Unbounded on purpose: the host says it when it can be reached.
        await self._announced.wait()
        try:
            for vm in await self._store.active_vms():
                if vm.mode == "local":
                    await self._start_for_waiting(vm.user_id)
        except SemibotError as exc:
            log.warning("VMs could not be read", error=str(exc))

    async def _start_if_needed(self, attempt: Attempt) -> None:
        """Start a VM again if messages that no VM ever got are waiting for it.

        One that was started for them and died young is given a pause, as is one that did
        not get ready; one that failed is left to the next message.
        """
        user_id = attempt.vm.user_id
        cooldown = self._settings.vm_bootstrap_cooldown_ms / 1000
        try:
            vm = await self._store.newest_vm(user_id)
            if vm is None or vm.mode != "local" or vm.status in _HISTORY:
                return
            pause = self._pause_ms(vm) / 1000
            if attempt.is_automatic and trio.current_time() - attempt.ready_at < cooldown:
                pause = cooldown
            await trio.sleep(pause)
            await self._start_for_waiting(user_id)
        except SemibotError as exc:
            log.warning("VM not started for what waits", user_id=user_id, error=str(exc))

    async def _start_for_waiting(self, user_id: str) -> None:
        if not self._is_stopping and await self._store.sessions_with_work(user_id):
            try:
                await self._ensure_attempt(user_id, is_automatic=True)
            except PlaneNotReady as exc:
                log.warning("messages wait for a VM", user_id=user_id, reason=str(exc))


def _stopping() -> PlaneNotReady:
    return PlaneNotReady("terminated", "the host is stopping", SOON_MS)
