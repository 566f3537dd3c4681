"""Start a user's VM when there is something to do, and know how that went.

Theory of operation. A VM row says where a user's VM is; whoever needs the VM calls
:meth:`Scheduler.ensure_ready`, and one task per user, the *attempt*, starts it, waits until
its link is up, and then stays with it until the process ends. The row moves

    none -> starting -> provisioning (spawned) -> ready (link accepted) -> disconnected,

the last two by the link itself. An attempt that never got ready is followed by a pause, and
after several of them the row is ``failed``: history, with the command's own words in it. A VM
that was up and died starts again at once.
"""

from __future__ import annotations

from typing import Final, final

import attrs
import trio

from semibot.config import Deadlines
from semibot.config.settings import HostSettings
from semibot.errors import PlaneNotReady, SemibotError
from semibot.logs import get_logger
from semibot.ports import Ports
from semibot.secret import Secret
from semibot.security.tickets import hash_secret, new_ticket
from semibot.security.tokens import Tokens
from semibot.store.base import Store, VmRow
from semibot.tools.processes import Child, open_child
from semibot.wire.codec import JsonObject

from .bootstrap import prepare_directories, vm_command, vm_environment
from .links import Links

log: Final = get_logger(__name__)

REMOTE_READY: Final = 300.0
"""What a VM of a mode other than ``local`` may take to get ready, in seconds."""

MAX_ERROR_LENGTH: Final = 2000
"""Most characters of a command's stderr that are kept in the row."""

_HISTORY: Final = frozenset({"failed", "terminated"})


@final
@attrs.define(eq=False)
class _Attempt:
    """One start of one VM, from the ticket to the end of the process."""

    vm: VmRow
    is_forced: bool
    is_ready: bool = False
    """Whether its link was up at some time."""
    has_changed: trio.Event = attrs.field(factory=trio.Event, init=False)
    """Set when it got ready, and when it ended."""
    has_ended: trio.Event = attrs.field(factory=trio.Event, init=False)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)


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
        self._attempts: dict[str, _Attempt] = {}
        self._deciding: dict[str, trio.Lock] = {}
        self._wanted: list[_Attempt] = []
        self._work = trio.lowlevel.ParkingLot()
        self._links_changed = trio.lowlevel.ParkingLot()
        self._url = ""
        self._is_stopping = False

    def announce(self, url: str) -> None:
        """Say where VMs are to dial: ``ws://.../ws/vm``; before anything is started."""
        self._url = url

    # --- what others ask --------------------------------------------------------------

    async def ensure_ready(self, user_id: str) -> VmRow:
        """Return the user's VM row once its link is up, starting the VM if need be.

        Waits at most ``vm.ready`` while an attempt is running in mode ``local``, else
        ``vm.start_wait``.

        Raises:
            PlaneNotReady: If it is not up by then; says how it stands and when to try again.
        """
        link = self._links.of_user(user_id)
        if link is None:
            attempt = await self._ensure_attempt(user_id, is_forced=False)
            await self._wait_link(user_id, attempt)
            link = self._links.of_user(user_id)
        vm = await self._store.newest_vm(user_id)
        if link is None or vm is None:
            raise self._not_ready(vm)
        return vm

    async def status(self, user_id: str) -> JsonObject:
        """Return the data of ``GET /api/v1/vm/status``."""
        vm = await self._store.newest_vm(user_id)
        if vm is None:
            return {"status": "missing"}
        data: dict[str, object] = {
            "instanceId": vm.id,
            "status": vm.status,
            "mode": vm.mode,
            "bootstrapAttempts": vm.attempts,
            "lastBootstrapAt": vm.last_bootstrap_at,
            "lastHeartbeatAt": vm.last_heartbeat_at,
            "disconnectedAt": vm.disconnected_at,
            "lastError": vm.last_error,
        }
        pause = self._pause_ms(vm)
        if pause:
            data["retryAfterMs"] = pause
        return data  # type: ignore[return-value]  # every value is JSON

    async def rebootstrap(self, user_id: str) -> JsonObject:
        """Start the user's VM anew, now: no pause, no limit of attempts.

        Returns:
            ``{ready, status, instanceId}`` as the attempt begins.
        """
        attempt = await self._ensure_attempt(user_id, is_forced=True)
        vm = await self._store.newest_vm(user_id) if attempt is None else attempt.vm
        if vm is None:
            return {"ready": False, "status": "missing", "instanceId": None}
        is_up = self._links.of_user(user_id) is not None
        return {"ready": is_up, "status": vm.status, "instanceId": vm.id}

    # --- what links say ---------------------------------------------------------------

    def link_up(self, vm: VmRow) -> None:
        """Note that a VM's link is up."""
        attempt = self._attempts.get(vm.user_id)
        if attempt is not None and vm.mode == "external":
            attempt.scope.cancel("the user has started a VM")
        elif attempt is not None and attempt.vm.id == vm.id:
            attempt.is_ready = True
            attempt.has_changed.set()
        self._links_changed.unpark_all()

    def link_down(self, vm: VmRow) -> None:
        """Note that a VM's link is down."""
        self._links_changed.unpark_all()

    # --- deciding ---------------------------------------------------------------------

    async def _ensure_attempt(self, user_id: str, *, is_forced: bool) -> _Attempt | None:
        """Return the running attempt, or begin one; None if nobody here starts this VM.

        Raises:
            PlaneNotReady: If none may be begun now.
        """
        lock = self._deciding.setdefault(user_id, trio.Lock())
        async with lock:
            running = self._attempts.get(user_id)
            if running is not None:
                if not is_forced:
                    return running
                running.scope.cancel("started anew on request")
                # Bounded by the graces of the child that is stopped.
                await running.has_ended.wait()
            if not is_forced and self._links.of_user(user_id) is not None:
                return None
            vm = await self._row_to_start(user_id, is_forced=is_forced)
            if vm.mode == "external":
                return None
            attempt = _Attempt(vm, is_forced)
            self._attempts[user_id] = attempt
            self._wanted.append(attempt)
            self._work.unpark_all()
            return attempt

    async def _row_to_start(self, user_id: str, *, is_forced: bool) -> VmRow:
        """Return the row that an attempt may be made for now."""
        if self._is_stopping:
            raise PlaneNotReady("terminated", "the host is stopping", 1000)
        user = await self._store.get_user(user_id)
        if user is None:
            raise PlaneNotReady("missing", "the user is unknown", 1000)
        vm = await self._store.newest_vm(user_id)
        if vm is not None and not is_forced and self._pause_ms(vm):
            raise self._not_ready(vm)
        if vm is not None and vm.status not in _HISTORY:
            if is_forced or vm.attempts < self._settings.vm_bootstrap_max_attempts:
                return vm
            await self._fail(vm, vm.last_error or "it never got ready")
            raise self._not_ready(await self._store.newest_vm(user_id))
        return await self._store.ensure_vm(user_id, self._ports.ids.new_id(), user.vm_mode)

    def _pause_ms(self, vm: VmRow) -> int:
        """Return how long the next attempt has to wait; an attempt that got ready needs none."""
        if vm.attempts == 0 or vm.last_bootstrap_at is None or vm.mode == "external":
            return 0
        if self._attempts.get(vm.user_id) is not None:
            return 0
        since = self._now_ms() - vm.last_bootstrap_at
        # A wall clock that was set back must not make the pause longer than it is.
        return max(0, self._settings.vm_bootstrap_cooldown_ms - max(0, since))

    def _not_ready(self, vm: VmRow | None) -> PlaneNotReady:
        if vm is None:
            return PlaneNotReady("missing", None, 1000)
        return PlaneNotReady(vm.status, vm.last_error, self._pause_ms(vm) or 1000)

    async def _wait_link(self, user_id: str, attempt: _Attempt | None) -> None:
        """Wait until the link is up, the attempt has failed, or it takes too long."""
        is_starting = attempt is not None and attempt.vm.mode == "local" and not attempt.is_ready
        seconds = self._deadlines.vm_ready if is_starting else self._deadlines.vm_start_wait
        with trio.move_on_after(seconds):
            while self._links.of_user(user_id) is None:
                if attempt is not None and attempt.has_ended.is_set():
                    return
                await self._links_changed.park()

    def _now_ms(self) -> int:
        return int(self._ports.wall_clock.now().timestamp() * 1000)

    # --- starting ---------------------------------------------------------------------

    async def serve(self) -> None:
        """Run the attempts until cancelled; then stop the VMs that were started here."""
        async with trio.open_nursery() as nursery:
            while True:
                while self._wanted:
                    nursery.start_soon(self._run, self._wanted.pop(0))
                # Unbounded on purpose: the next attempt comes when somebody needs a VM.
                await self._work.park()

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
            await self._links_changed.park()

    async def _run(self, attempt: _Attempt) -> None:
        user_id = attempt.vm.user_id
        error: str | None = None
        try:
            with attempt.scope:
                error = await self._live(attempt)
        except (SemibotError, OSError) as exc:
            error = str(exc)
            log.warning("VM could not be started", user_id=user_id, error=error)
        try:
            await self._record_end(attempt, error)
        except SemibotError as exc:
            log.warning("the end of a VM could not be recorded", user_id=user_id, error=str(exc))
        finally:
            self._attempts.pop(user_id, None)
            attempt.has_ended.set()
            attempt.has_changed.set()
            self._links_changed.unpark_all()
        if attempt.is_ready and attempt.vm.mode == "local":
            await self._start_for_waiting(user_id)

    async def _live(self, attempt: _Attempt) -> str | None:
        """Start a VM and stay with it until its process ends; return what it died of."""
        settings, vm = self._settings, attempt.vm
        command = vm_command(settings)
        if vm.mode != "local" and settings.vm_bootstrap_cmd is None:
            return f"nothing is configured that starts VMs of mode {vm.mode}: set VM_BOOTSTRAP_CMD"
        is_local = vm.mode == "local"
        ready = self._deadlines.vm_ready if is_local else REMOTE_READY
        ticket = new_ticket(self._ports.ids)
        attempt.vm = vm = await self._store.begin_attempt(
            vm.id, hash_secret(ticket.reveal()), self._now_ms() + int(ready * 1000)
        )
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
        bounds = attrs.evolve(
            self._deadlines, child_eof_grace=0.0, child_term_grace=self._deadlines.vm_stop
        )
        async with open_child(
            command, environment=environment, ports=self._ports, deadlines=bounds, name="vm"
        ) as child:
            vm = await self._store.set_vm_status(vm.id, "provisioning") or vm
            log.info("VM started", user_id=vm.user_id, vm_id=vm.id, attempt=vm.attempt)
            return await self._attend(attempt, child, ready, is_local=is_local)

    async def _attend(
        self, attempt: _Attempt, child: Child, ready: float, *, is_local: bool
    ) -> str | None:
        """Wait for a VM to get ready and then to end; return what it died of."""
        ended = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_empty, child)
            nursery.start_soon(_watch, child, ended, attempt)
            with trio.move_on_after(ready) as waiting:
                await attempt.has_changed.wait()
                if ended.is_set() and not attempt.is_ready and not is_local and _is_success(child):
                    # Elsewhere the command only starts the VM.
                    attempt.has_changed = trio.Event()
                    await attempt.has_changed.wait()
            if attempt.is_ready:
                if is_local:
                    # Unbounded on purpose: a VM lives as long as it is needed.
                    await ended.wait()
                nursery.cancel_scope.cancel("the VM has ended")
                return _last_words(child) if is_local else None
            nursery.cancel_scope.cancel("the VM did not get ready")
        why = _last_words(child)
        if waiting.cancelled_caught:
            why = f"no link within {ready:g} s" + (f"; {why}" if why else "")
        return why or "it ended without a link"

    async def _record_end(self, attempt: _Attempt, error: str | None) -> None:
        """Record the end of an attempt."""
        vm = attempt.vm
        newest = await self._store.newest_vm(vm.user_id)
        if newest is not None and newest.mode == "external":
            return  # its user has taken over: the row is theirs now
        if attempt.is_ready:
            if vm.mode == "local":
                is_stopping = self._is_stopping
                await self._links.lose_vm(
                    vm.id,
                    status="disconnected",
                    last_error=error,
                    code="INTERRUPTED" if is_stopping else "EXECUTION_PLANE_DISCONNECTED",
                    message="the host was stopped while it was answering; send it again"
                    if is_stopping
                    else "the execution plane ended while it was answering; send it again",
                )
        elif attempt.scope.cancelled_caught or self._is_stopping:
            await self._store.set_vm_status(vm.id, "disconnected", last_error=error)
        elif vm.attempts >= self._settings.vm_bootstrap_max_attempts:
            await self._fail(vm, error or "it never got ready")
        else:
            await self._store.set_vm_status(vm.id, "starting", last_error=error)

    async def _fail(self, vm: VmRow, error: str) -> None:
        log.error("VM failed", user_id=vm.user_id, vm_id=vm.id, attempts=vm.attempts)
        await self._links.lose_vm(
            vm.id,
            status="failed",
            last_error=error,
            code="EXECUTION_PLANE_DISCONNECTED",
            message="the execution plane could not be started",
        )

    async def _start_for_waiting(self, user_id: str) -> None:
        """Start a VM again if messages that no VM ever got are waiting for it."""
        try:
            if not self._is_stopping and await self._store.sessions_with_work(user_id):
                await self._ensure_attempt(user_id, is_forced=False)
        except SemibotError as exc:
            log.warning("messages wait for a VM", user_id=user_id, error=str(exc))


async def _empty(child: Child) -> None:
    """Read what a VM says to nobody, so that it never waits for a reader."""
    while await child.receive_some():
        pass


async def _watch(child: Child, ended: trio.Event, attempt: _Attempt) -> None:
    await child.wait()
    ended.set()
    attempt.has_changed.set()


def _is_success(child: Child) -> bool:
    status = child.exit_status
    return status is not None and status.code == 0


def _last_words(child: Child) -> str | None:
    """Return the end of what a VM wrote to stderr, or how it ended; None if all was well."""
    status = child.exit_status
    if status is not None and status.code == 0:
        return None
    text = child.stderr_tail.decode("utf-8", "replace").strip()[-MAX_ERROR_LENGTH:]
    return text or (None if status is None else str(status))
