"""Run a host until it is told to end."""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from typing import final

import attrs
import click
import trio

from semibot.config.loader import HostFlags, load_host_settings
from semibot.config.settings import HostSettings
from semibot.errors import ConfigError
from semibot.host.host import Host, open_host
from semibot.host.server import MAX_CONNECTIONS, Server, open_server
from semibot.lifetimes import StopClock, open_services, open_stop_clock
from semibot.live import live_ports
from semibot.ports import Ports

from . import exits
from .directories import default_data_dir
from .failures import OutputClosed
from .interrupts import CLEANUP_BOUND, HARD_BOUND
from .logs import configure_logs, hush_logs
from .output import Output


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
    allow_many_connections()
    return trio.run(_serve, settings, ports, is_opened)


async def _serve(settings: HostSettings, ports: Ports, is_opened: bool) -> int:
    with (
        open_stop_clock() as clock,
        trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals,
    ):
        stopping = _Stopping(clock)
        try:
            async with open_services() as services:
                services.start_soon(stopping.serve, signals, name="signals")
                with stopping.body:
                    await _run(settings, ports, stopping, is_opened=is_opened)
        finally:
            stopping.is_gone.set()
    return stopping.exit_code


def allow_many_connections() -> None:
    """Let this process have as many open files as it may: every connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = 2 * MAX_CONNECTIONS
    wanted = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _run(
    settings: HostSettings, ports: Ports, stopping: _Stopping, *, is_opened: bool
) -> None:
    async with AsyncExitStack() as stack:
        host = await stack.enter_async_context(open_host(settings, ports=ports))
        url = await _listen(stack, host, settings, ports)
        with stopping.start:  # whoever stops us need not wait until a VM is up
            await host.announce(url)
            await _say(f"semibot listening on {url}\n")
            async with trio.open_nursery() as nursery:
                if is_opened:
                    nursery.start_soon(_open_page, url)
                # Unbounded on purpose: a host runs until somebody stops it.
                await trio.sleep_forever()
        stopping.clock.stop(settings.deadlines.host_drain)
        await host.drain()


async def _listen(stack: AsyncExitStack, host: Host, settings: HostSettings, ports: Ports) -> str:
    """Listen until *stack* is closed, and return the address."""
    server = open_server(
        host.asgi, settings.host, settings.port, deadlines=settings.deadlines, ports=ports
    )
    try:
        listening: Server = await stack.enter_async_context(server)
    except OSError as exc:
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port}: {exc.strerror or exc}; "
            "use another --port or --host"
        ) from exc
    name = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{name}:{listening.port}"


async def _say(text: str) -> None:
    # Whoever started us may read no further, or not at all.
    with suppress(OutputClosed), trio.move_on_after(CLEANUP_BOUND):
        await Output(sys.stdout).write(text)


async def _open_page(url: str) -> None:
    # In a thread, because some browsers are programs that we would wait for.
    await trio.to_thread.run_sync(
        webbrowser.open, url, limiter=trio.CapacityLimiter(1), abandon_on_cancel=True
    )


@final
@attrs.define(eq=False)
class _Stopping:
    """What signals mean to a host: the first one drains, the second one ends."""

    clock: StopClock
    exit_code: int = attrs.field(default=exits.COMPLETED, init=False)
    start: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    body: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    is_gone: threading.Event = attrs.field(factory=threading.Event, init=False)

    async def serve(self, signals: AsyncIterator[int]) -> None:
        """Act on signals until cancelled."""
        async with trio.open_nursery() as nursery:
            async for number in signals:
                if not self.start.cancel_called:
                    self.start.cancel("the host was told to end")
                    with suppress(OSError):  # nobody has to read it
                        click.echo("semibot is stopping; once more to stop at once", err=True)
                else:
                    self.exit_code = 128 + number
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
            os._exit(self.exit_code)
