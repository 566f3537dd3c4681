"""Open a host: store, relay, links, dispatcher and scheduler, in that order, and its app.

The block owns every task of the host. It listens on nothing: ``open_server``, or any other
ASGI server under Trio, serves :attr:`Host.asgi`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final, final

import trio

from semibot.config.settings import LOCAL_USER, HostSettings
from semibot.errors import DeadlineExceeded, PlaneNotReady, StoreError
from semibot.lifetimes import deadline, grace, open_services
from semibot.live import live_ports
from semibot.logs import get_logger
from semibot.ports import Ports
from semibot.security.tokens import Tokens
from semibot.store.base import Store, VmRow
from semibot.store.sqlite import open_sqlite_store

from .app import make_app
from .core import HostCore, HostStatus, make_core
from .safety import check_safety, has_local_user, signing_key
from .server import App

log: Final = get_logger(__name__)

DATABASE_FILE: Final = "semibot.db"
"""Name of the database in the data directory."""

STOP_SHARE: Final = 12.0
"""Of a drain, how long is kept for stopping what did not end by itself, in seconds."""

COMPARE_INTERVAL: Final = 1.0
"""Between two attempts to compare what readers see with the store, in seconds."""

PRUNE_INTERVAL: Final = 3600.0
"""Between two rounds of forgetting what has expired, in seconds."""


@final
class Host:
    """A host that runs. Made only by :func:`open_host`."""

    def __init__(self, core: HostCore, app: App) -> None:
        self._core = core
        self._app = app

    @property
    def asgi(self) -> App:
        """The ASGI app: HTTP, event streams and the links of VMs."""
        return self._app

    @property
    def status(self) -> HostStatus:
        """Where the host is between start and stop."""
        return self._core.status

    async def announce(self, url: str) -> None:
        """Say where the host can be reached, and begin to answer.

        On a host with one local user the user's VM is started first, so that the first
        message does not wait for it; waits at most ``vm.ready``. A VM that does not come up is
        logged, and tried again with the first message.

        Args:
            url: Such as ``http://127.0.0.1:8080``; VMs dial it.
        """
        core = self._core
        core.scheduler.announce(url.replace("http", "ws", 1).rstrip("/") + "/ws/vm")
        core.status.is_ready = True
        if not has_local_user(core.settings):
            return
        try:
            if await core.scheduler.is_started_here(LOCAL_USER):
                await core.scheduler.ensure_ready(LOCAL_USER)
        except (PlaneNotReady, StoreError, DeadlineExceeded) as exc:
            log.warning("the VM of the local user is not up yet", reason=str(exc))

    async def drain(self) -> None:
        """Stop in order, while the app is still served; call it before the server ends.

        New messages are refused at once. Runs on VMs that this host started may end until
        12 s before ``host.drain``; those that have not are stopped then, and their VMs after
        them. Runs on other VMs are left alone: they go on, and their VMs get 1012 and dial
        the next host. Event streams end last.
        """
        core = self._core
        core.status.is_draining = True
        core.scheduler.stop()
        users = core.scheduler.own_users()
        with trio.move_on_after(max(0.0, core.deadlines.host_drain - STOP_SHARE)):  # noqa: ASYNC912 - no VM of ours is fine
            try:
                for user_id in users:
                    await core.dispatcher.wait_idle(user_id)
            except (StoreError, DeadlineExceeded) as exc:
                log.warning("cannot tell what is under way", error=str(exc))
        await core.scheduler.stop_all()
        await core.links.close_all(1012, "restarting")
        core.relay.close()


@asynccontextmanager
async def open_host(settings: HostSettings, *, ports: Ports | None = None) -> AsyncGenerator[Host]:
    """Run a host while the block lasts.

    On exit, whatever :meth:`Host.drain` has not stopped is: VMs that this host started, links,
    event streams; what was received is committed. Exit
    waits at most ``vm.stop`` + ``child.kill_grace`` + ``channel.close`` + ``store.commit``.

    Args:
        settings: How it is to run.
        ports: The seams; real ones by default.

    Yields:
        The host; call :meth:`Host.announce` when it can be reached.

    Raises:
        ConfigError: If *settings* are not safe, or the data directory cannot be used.
        DataDirectoryInUse: If another host has it open.
        StoreError: If the database fails.
    """
    ports = ports or live_ports()
    deadlines = settings.deadlines
    check_safety(settings)
    async with open_sqlite_store(
        settings.data_dir / DATABASE_FILE, ports=ports, deadlines=deadlines
    ) as store:
        # Inside, where nobody else makes one.
        with deadline("store.commit", deadlines.store_commit):
            key = await ports.threads.run_sync(
                signing_key, settings, ports.ids, ports.disk, limiter="files"
            )
        tokens = Tokens(key, ports.wall_clock, settings.vm_token_ttl)
        await _prepare(store, settings)
        async with run_core(make_core(settings, store, tokens=tokens, ports=ports)) as core:
            yield Host(core, make_app(core))


@asynccontextmanager
async def run_core(core: HostCore) -> AsyncGenerator[HostCore]:
    """Run the parts of a host while the block lasts.

    On exit, VMs that this host started are stopped, and links and event streams are closed;
    it waits at most ``vm.stop`` + ``child.kill_grace`` + ``channel.close``.

    Args:
        core: The parts; they run once.

    Yields:
        The same.
    """
    async with open_services() as services:
        services.start_soon(core.links.serve, name="links")
        services.start_soon(core.dispatcher.serve, name="dispatcher")
        services.start_soon(_prune, core.store, name="pruning")
        services.start_soon(_follow_late_commits, core, name="late commits")
        try:
            # Inside, so that VMs stop while their last words are still taken.
            async with open_services() as starting:
                starting.start_soon(core.scheduler.serve, name="scheduler")
                try:
                    yield core
                finally:
                    core.status.is_draining = True
                    core.scheduler.stop()
        finally:
            with grace("channel.close", core.deadlines.channel_close):
                core.relay.close()
                await core.links.close_all(1012, "restarting")


async def _prepare(store: Store, settings: HostSettings) -> None:
    """Make the local user, and give up the VMs that died with an earlier host."""
    if has_local_user(settings):
        await store.ensure_user(LOCAL_USER, LOCAL_USER, vm_mode="local")
    for vm in await store.active_vms():
        if vm.mode == "local":
            await _give_up(store, vm)


async def _give_up(store: Store, vm: VmRow) -> None:
    await store.lose_vm(
        vm.id,
        status="disconnected",
        last_error=None,
        code="INTERRUPTED",
        message="the host was restarted while it was answering; send it again",
    )


async def _follow_late_commits(core: HostCore) -> None:
    known = 0
    while True:
        late = await core.store.late_commits(known)
        try:
            await core.relay.compare()
        except (StoreError, DeadlineExceeded) as exc:
            log.warning("readers could not be compared with the store", error=str(exc))
            await trio.sleep(COMPARE_INTERVAL)
        else:
            known = late


async def _prune(store: Store) -> None:
    while True:
        try:
            await store.prune()
        except (StoreError, DeadlineExceeded) as exc:
            log.warning("what has expired could not be forgotten", error=str(exc))
        await trio.sleep(PRUNE_INTERVAL)
