"""Run a host until it is told to end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator
from typing import Final, final

import attrs
import trio

from semibot.config.loader import HostFlags, load_host_settings
from semibot.config.settings import HostSettings
from semibot.errors import ConfigError
from semibot.host.host import open_host
from semibot.host.server import open_server
from semibot.lifetimes import StopClock, open_services, open_stop_clock
from semibot.live import live_ports
from semibot.ports import Ports

from . import exits
from .directories import default_data_dir
from .logs import configure_logs, hush_logs

CLEANUP_BOUND: Final = 1.0
"""What all clean-up together may take after a second signal, in seconds."""

HARD_BOUND: Final = 2.0
"""When the process is ended hard, in seconds after a second signal."""


def run_host(flags: HostFlags, *, is_opened: bool, is_verbose: bool) -> int:
    """Run a host and return the exit code.

    Args:
        flags: What the command line says.
        is_opened: Whether to open the page in a browser.
        is_verbose: Whether to log what is merely of interest.

    Raises:
        SemibotError: If it cannot run; nothing listens then.
    """
    configure_logs(is_verbose=is_verbose)
    ports = live_ports()
    settings = load_host_settings(
        ports.environment,
        flags,
        default_data_dir=default_data_dir(),
    )
    return trio.run(_serve, settings, ports, is_opened)


async def _serve(settings: HostSettings, ports: Ports, is_opened: bool) -> int:
    with (
        open_stop_clock() as clock,
        trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals,
    ):
        stopping = _Stopping(clock)
        async with open_services() as services:
            services.start_soon(stopping.serve, signals, name="signals")
            with stopping.body:
                await _run(settings, ports, stopping, is_opened=is_opened)
        stopping.is_gone.set()
    return exits.COMPLETED


async def _run(
    settings: HostSettings, ports: Ports, stopping: _Stopping, *, is_opened: bool
) -> None:
    async with open_host(settings, ports=ports) as host:
        try:
            server = open_server(
                host.asgi,
                settings.host,
                settings.port,
                deadlines=settings.deadlines,
                ports=ports,
            )
            async with server as listening:
                name = f"[{settings.host}]" if ":" in settings.host else settings.host
                url = f"http://{name}:{listening.port}"
                await host.announce(url)
                print(f"semibot listening on {url}", flush=True)
                if is_opened:
                    webbrowser.open(url)
                await stopping.wait_told()
                stopping.clock.stop(settings.deadlines.host_drain)
                await host.drain()
        except OSError as exc:
            raise ConfigError(
                f"cannot listen on {settings.host}:{settings.port}: {exc.strerror or exc}; "
                "use another --port"
            ) from exc


@final
@attrs.define(eq=False)
class _Stopping:
    """What signals mean to a host: the first one drains, the second one ends."""

    clock: StopClock
    body: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    is_gone: threading.Event = attrs.field(factory=threading.Event, init=False)
    _told: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def wait_told(self) -> None:
        """Wait for the first signal."""
        # Unbounded on purpose: a host runs until somebody stops it.
        await self._told.wait()

    async def serve(self, signals: AsyncIterator[int]) -> None:
        """Act on signals until cancelled."""
        async with trio.open_nursery() as nursery:
            async for _ in signals:
                if not self._told.is_set():
                    self._told.set()
                    print("semibot is stopping; once more to stop at once", file=sys.stderr)
                else:
                    nursery.start_soon(self._end_now)

    async def _end_now(self) -> None:
        hush_logs()
        self.clock.stop(CLEANUP_BOUND)
        self.body.cancel("the host was told twice to end")
        # In a thread, so that it happens also if the loop stands still.
        await trio.to_thread.run_sync(
            self._end_hard, limiter=trio.CapacityLimiter(1), abandon_on_cancel=True
        )

    def _end_hard(self) -> None:
        if not self.is_gone.wait(HARD_BOUND):
            os._exit(exits.FAILED)
