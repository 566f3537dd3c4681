"""What runs in the processes of a simulation: semibot itself, with simulated ports.

Nothing of semibot is replaced here, wrapped or looked into; the tests of the simulation make
sure of that.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from semibot.channel import open_control_channel
from semibot.config import Deadlines
from semibot.config.settings import HostSettings
from semibot.host.host import open_host
from semibot.host.server import open_server
from semibot.secret import Secret
from semibot.session import ActiveRun, Adapter, AdapterContext, AdapterFactory, open_session_manager
from semibot.store.sqlite import open_sqlite_store
from semibot.testing.ports import simulated_ports
from semibot.wire.codec import JsonObject

from .happenings import RunBegins, RunRests
from .lives import Life

if TYPE_CHECKING:
    from .world import World

KEY: Final = Secret("correct-length-and-quite-random-8f2a61c0")
"""Signs the tokens of a simulation."""

GUESTS: Final = "guests"
"""The organization of users whose VMs the host starts."""

URL: Final = "ws://host:8080/ws/vm"
"""Where VMs dial."""


def host_settings(directory: Path, lost_after: float) -> HostSettings:
    """Return how the host of a simulation is to run."""
    return HostSettings(
        data_dir=directory / "data",
        host="192.0.2.1",
        run_mode="production",
        jwt_secret=KEY,
        deadlines=Deadlines(vm_lost_after=lost_after),
    )


async def prepare_host(settings: HostSettings, users: tuple[str, ...]) -> None:
    """Make the users of a host, each with a VM that the host does not start."""
    async with open_sqlite_store(
        settings.data_dir / "semibot.db", ports=simulated_ports(0), deadlines=settings.deadlines
    ) as store:
        for user in users:
            await store.ensure_user(user, "org", vm_mode="external")
            await store.ensure_vm(user, f"vm-of-{user}", "external")
        # The host starts the VMs of whoever else comes to this organization.
        await store.ensure_user("host", GUESTS, vm_mode="local")


async def run_host(life: Life) -> None:
    """Be a host until asked to stop."""
    ports = life.ports()
    settings = life.world.host_settings(life)
    async with (
        open_host(settings, ports=ports) as host,
        open_server(host.asgi, "host", 8080, deadlines=settings.deadlines, ports=ports) as server,
    ):
        await host.announce(f"http://host:{server.port}")
        life.is_up.set()
        await life.ask_to_stop.wait()
        await host.drain()


async def run_vm(life: Life) -> None:
    """Be a VM until asked to stop."""
    world = life.world
    ports = life.ports()
    workspace = life.directory / "work"
    workspace.mkdir(exist_ok=True, parents=True)
    async with open_control_channel(
        URL,
        user_id=life.user,
        token=world.vm_token(life),
        ticket=world.vm_ticket(life),
        state_dir=life.directory / "state",
        ports=ports,
    ) as channel:
        life.is_link_up = lambda: channel.status.state == "up"
        async with open_session_manager(
            channel,
            adapters=_watched_all(world, life),
            workspace=workspace,
            state_dir=life.directory / "state",
            max_open=world.max_open,
            ports=ports,
        ):
            life.is_up.set()
            await life.ask_to_stop.wait()


# --- adapters -------------------------------------------------------------------------


def _watched_all(world: World, life: Life) -> Mapping[str, AdapterFactory]:
    return {name: _watched(make(life), life) for name, make in world.adapters.items()}


def _watched(factory: AdapterFactory, life: Life) -> AdapterFactory:
    @asynccontextmanager
    async def open_adapter(context: AdapterContext) -> AsyncGenerator[Adapter]:
        async with factory(context) as adapter:
            yield _WatchedAdapter(adapter, life)

    return open_adapter


@final
class _WatchedAdapter(Adapter):
    """Says when an adapter begins with a run, and when it has left it."""

    def __init__(self, adapter: Adapter, life: Life) -> None:
        self._adapter = adapter
        self._life = life

    async def handle(self, run: ActiveRun) -> None:
        life = self._life
        if life.is_alive:
            life.world.tell(RunBegins(run_id=run.id, life=life))
        try:
            await self._adapter.handle(run)
        finally:
            life.world.tell(RunRests(run_id=run.id, life=life))

    async def update_config(self, patch: JsonObject) -> None:
        await self._adapter.update_config(patch)

    async def get_snapshot(self) -> JsonObject | None:
        return await self._adapter.get_snapshot()
