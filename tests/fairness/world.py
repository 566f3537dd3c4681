"""A real host and a real VM in one process, on simulated wires and Trio's clock."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio
from wires import Wires

from semibot.channel import ControlChannel, open_control_channel
from semibot.config import Deadlines
from semibot.config.settings import HostSettings
from semibot.host.host import open_host
from semibot.host.server import App, open_server
from semibot.ports import ByteStream
from semibot.secret import Secret
from semibot.security.tokens import Tokens
from semibot.session import ActiveRun, open_session_manager
from semibot.store.sqlite import open_sqlite_store
from semibot.testing import adapter_from, simulated_ports
from semibot.testing.ports import SimulatedWallClock
from semibot.testing.simulation.browsers import Exchange
from semibot.testing.simulation.pipes import End

KEY = Secret("correct-length-and-quite-random-8f2a61c0")
USER = "ann"
ORG = "org"


@attrs.define(eq=False)
class SmallWorld:
    """A host and the VM of its one user."""

    wires: Wires
    channel: ControlChannel
    link: End
    """The VM's end of its first connection."""
    token: str

    @asynccontextmanager
    async def ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        speed: float = float("inf"),
        **headers: str,
    ) -> AsyncGenerator[Exchange]:
        """Send a request on a connection of its own; yields when the answer's head has come."""
        stream = self.wires.connect(speed)
        try:
            data = b"" if body is None else json.dumps(body).encode()
            fields = {
                "Host": "host:8080",
                "Authorization": f"Bearer {self.token}",
                **{name.replace("_", "-"): value for name, value in headers.items()},
            }
            if body is not None:
                fields |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
            head = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items()), "", ""]
            await stream.send_all("\r\n".join(head).encode() + data)
            exchange = Exchange(stream)
            await exchange.read_head()
            yield exchange
        finally:
            stream.close_now()


@asynccontextmanager
async def open_world(
    directory: Path,
    handle: Callable[[ActiveRun], Awaitable[None]],
    *,
    speed: float,
    latency: float,
    deadlines: Deadlines,
    dress: Callable[[App], App] = lambda app: app,
) -> AsyncGenerator[SmallWorld]:
    """Run a host and a VM until the block is left.

    Args:
        directory: For the files of both; empty.
        handle: What drives every run on the VM.
        speed: Of the VM's link, in bytes a second each way.
        latency: One way, in seconds, of every connection.
        deadlines: The host's.
        dress: Puts something around the host's app.
    """
    settings = HostSettings(
        data_dir=directory / "data",
        host="192.0.2.1",
        run_mode="production",
        jwt_secret=KEY,
        deadlines=deadlines,
    )
    (directory / "work").mkdir()
    wires = Wires(latency)
    links: list[End] = []

    async def dial(host: str, port: int, *, use_tls: bool) -> ByteStream:
        await trio.sleep(2 * latency)
        links.append(wires.connect(speed))
        return links[-1]

    host_ports = attrs.evolve(simulated_ports(1), listen=wires.listen)
    vm_ports = attrs.evolve(simulated_ports(2), dial=dial)
    tokens = Tokens(KEY, SimulatedWallClock(), 12 * 3600.0)
    async with open_sqlite_store(
        settings.data_dir / "semibot.db", ports=host_ports, deadlines=deadlines
    ) as store:
        await store.ensure_user(USER, ORG, vm_mode="external")
        await store.ensure_vm(USER, "vm-of-ann", "external")
    async with (
        open_host(settings, ports=host_ports) as host,
        open_server(dress(host.asgi), "host", 8080, deadlines=deadlines, ports=host_ports),
        open_control_channel(
            "ws://host:8080/ws/vm",
            user_id=USER,
            token=tokens.make_vm_token(USER, ORG),
            ports=vm_ports,
        ) as channel,
        open_session_manager(
            channel,
            adapters={"graph": adapter_from(handle)},
            workspace=directory / "work",
            ports=vm_ports,
        ),
    ):
        await host.announce("http://host:8080")
        await channel.wait_up()
        yield SmallWorld(wires, channel, links[0], tokens.make_user_token(USER, ORG))
