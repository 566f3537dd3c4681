"""The host as a whole and its server, to be cancelled at every step."""

from __future__ import annotations

import signal
from typing import Any, Final

import attrs
import trials
import trio
import trio.testing
from host_looks import no_connection_is_open, the_data_is_whole, vms_have_ended
from memory_network import MemoryListener
from slow_threads import SlowThreads
from small_host import (
    BOUNDS,
    HOST_BOUND,
    LEAVING,
    HandVm,
    ask,
    connect,
    open_request,
    open_small_host,
)
from started_vms import TwoAddresses, new_starter
from trials import Case, Trial

from semibot.channel import open_control_channel
from semibot.host.host import Host
from semibot.host.server import open_server
from semibot.live import live_ports
from semibot.secret import Secret
from semibot.testing import simulated_ports
from semibot.testing.sweep import cut_here

START: Final = "/api/v1/chat/start"


def keep(trial: Trial, host: Host) -> None:
    trial.parts["host"] = host._core


# --- the host as a whole ------------------------------------------------------------------


async def open_and_drain(trial: Trial) -> None:
    """Open a host on a disk that takes its time, announce it, drain it, close it."""
    threads = trial.parts["threads"] = SlowThreads()
    ports = attrs.evolve(simulated_ports(), threads=threads)
    async with open_small_host(trial, ports) as host:
        trial.kept.append("ann")
        keep(trial, host)
        await host.drain()


async def start_while_a_vm_dials(trial: Trial) -> None:
    """Cut a host off while a VM dials it; the next host has that VM within a minute."""
    listener = MemoryListener()
    vm_ports = attrs.evolve(simulated_ports(7), dial=listener.dial)
    token = Secret(HandVm(never, trial).token())

    async def run_host(until_up: trio.Event) -> None:
        ports = attrs.evolve(simulated_ports(), listen=listener.listen)
        async with (
            open_small_host(trial, ports) as host,
            open_server(host.asgi, "host", 80, deadlines=BOUNDS, ports=ports),
        ):
            keep(trial, host)
            await until_up.wait()
            await host.drain()

    async with open_control_channel(
        "ws://host:80/ws/vm", user_id="ann", token=token, ports=vm_ports
    ) as channel:
        first = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.wait_up)
            with cut_here():
                async with trio.open_nursery() as hosts:
                    hosts.start_soon(run_host, first)
                    await channel.wait_up()
                    first.set()
            nursery.cancel_scope.cancel()
        second = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_host, second)
            with trio.fail_after(60):
                await channel.wait_status(lambda status: status.state == "down")
                await channel.wait_up()
            second.set()


async def never(*_: object) -> None:
    raise AssertionError


async def converse(trial: Trial) -> None:
    """Take a message, have a VM answer it, follow it, and ask for what was said."""
    async with open_small_host(trial) as host, trio.open_nursery() as nursery:
        keep(trial, host)
        vm = await connect(nursery, HandVm(host.asgi, trial))
        async with open_request(host.asgi, "POST", START, {"message": "hi"}) as exchange:
            nursery.start_soon(vm.answer)
            await exchange.wait_returned()
        assert b"execution_complete" in exchange.body
        session_id = exchange.headers["x-session-id"]
        said = await ask(host.asgi, "GET", f"/api/v1/sessions/{session_id}/messages")
        assert b"done" in said.body or b"one" in said.body
        vm.hang_up()


async def drain_two_runs(trial: Trial) -> None:
    """Drain with two runs on a VM that a user brought: it goes on, and is told to come again."""
    async with open_small_host(trial) as host, trio.open_nursery() as nursery:
        keep(trial, host)
        vm = await connect(nursery, HandVm(host.asgi, trial))
        async with (
            open_request(host.asgi, "POST", START, {"message": "hi"}) as one,
            open_request(host.asgi, "POST", START, {"message": "ho"}) as two,
        ):
            for _ in range(2):
                await vm.begin()
            for exchange in (one, two):
                await exchange.wait_for(lambda exchange=exchange: b"run_started" in exchange.body)
            await host.drain()
            for exchange in (one, two):
                await exchange.wait_returned()
        assert vm.close_code == 1012


LOCAL: Final = {"jwt_secret": None, "host": "127.0.0.1"}


async def drain_a_run_on_its_own_vm(trial: Trial) -> None:
    """Cut a drain off, as a second signal does: the VM is stopped all the same."""
    starter = new_starter(trial)
    async with (
        trio.open_nursery() as nursery,
        open_small_host(trial, starter.ports(), announces=False, **LOCAL) as host,
    ):
        keep(trial, host)

        async def be_a_vm() -> None:
            process = await starter.wait_started(1)
            process.heeds = (signal.SIGKILL,)
            tokens = host._core.links.tokens
            ticket = starter.tickets[-1]
            vm = HandVm(host.asgi, trial, "local", ticket=ticket, tokens=tokens)
            await connect(nursery, vm)
            run = await vm.begin()
            await process.was_asked.wait()
            vm.end(*run, cancelled=True)
            await vm.hear("ack", sessions={run[0]: 2})
            process.end(0)

        nursery.start_soon(be_a_vm)
        await host.announce("http://127.0.0.1:8080")
        async with open_request(host.asgi, "POST", START, {"message": "hi"}) as exchange:
            await exchange.wait_for(lambda: b"run_started" in exchange.body)
            with cut_here():
                await host.drain()


# --- the server ---------------------------------------------------------------------------

GET: Final = b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


async def serve_in_memory(trial: Trial) -> None:
    """Answer two requests on a connection, one half a head, and end an idle one."""
    listener = MemoryListener()
    ports = attrs.evolve(simulated_ports(), listen=listener.listen)
    hasty = attrs.evolve(BOUNDS, http_request_head=3)
    async with (
        open_small_host(trial, ports) as host,
        open_server(host.asgi, "host", 80, deadlines=hasty, ports=ports) as server,
    ):
        keep(trial, host)
        trial.parts["server"] = server
        peer, slow = await listener.connect(), await listener.connect()
        await slow.send_all(GET[:20])
        await peer.send_all(GET + GET)
        data = b""
        while data.count(b"HTTP/1.1 200") < 2:
            piece = await peer.receive_some()
            assert piece, data
            data += piece
        refused = b""
        while piece := await slow.receive_some():
            refused += piece
        assert b" 408 " in refused


async def serve_on_sockets(trial: Trial) -> None:
    """Listen on a name with two addresses, and answer over real sockets."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})

    ports = live_ports()
    trio.socket.set_custom_hostname_resolver(TwoAddresses())
    async with open_server(app, "localhost", 0, deadlines=BOUNDS, ports=ports) as server:
        stream = await ports.dial("127.0.0.1", server.port, use_tls=False)
        try:
            await stream.send_all(GET)
            data = b""
            while b"hello" not in data:
                data += await stream.receive_some()
        finally:
            await trio.aclose_forcefully(stream)


SERVER_BOUND: Final = f"{HOST_BOUND}, and channel.close of the server"

CASES: Final = (
    *(
        Case(
            name=name,
            act=act,
            look=look,
            within=LEAVING,
            because=HOST_BOUND,
            has_database=True,
        )
        for name, act, look in (
            ("host: is opened and drained on a slow disk", open_and_drain, the_data_is_whole),
            ("host: a message is answered", converse, the_data_is_whole),
            ("host: drains with two runs", drain_two_runs, the_data_is_whole),
            (
                "host: a drain with a run on its own VM is cut off",
                drain_a_run_on_its_own_vm,
                vms_have_ended,
            ),
        )
    ),
    Case(
        name="host: starts while a VM dials in",
        act=start_while_a_vm_dials,
        look=the_data_is_whole,
        within=LEAVING + BOUNDS.channel_close,
        because=SERVER_BOUND,
        has_database=True,
    ),
    Case(
        name="server: requests over connections in memory",
        act=serve_in_memory,
        look=no_connection_is_open,
        within=LEAVING + BOUNDS.channel_close,
        because=SERVER_BOUND,
        has_database=True,
    ),
    Case(
        name="server: a request over real sockets",
        act=serve_on_sockets,
        within=2 * BOUNDS.channel_close,
        because="channel.close, for the last words and again to close",
        is_real=True,
    ),
)

__all__ = ["CASES", "trials"]
