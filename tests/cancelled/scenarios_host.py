"""The host and its parts, to be cancelled at every step."""

from __future__ import annotations

import signal
from typing import Any, Final

import attrs
import trials
import trio
import trio.testing
from databases import check_database
from memory_network import MemoryListener
from slow_threads import SlowThreads
from small_host import (
    BOUNDS,
    LEAVING,
    HandVm,
    Parts,
    ask,
    open_parts,
    open_request,
    open_small_host,
)
from started_vms import MemoryVmProcess, Starter, TwoAddresses
from trials import Case, Trial

from semibot.channel import open_control_channel
from semibot.config import Deadlines
from semibot.errors import PlaneNotReady
from semibot.host.host import Host
from semibot.host.server import open_server
from semibot.live import live_ports
from semibot.secret import Secret
from semibot.testing import simulated_ports
from semibot.testing.sweep import cut_here

START: Final = "/api/v1/chat/start"


def the_data_is_whole(trial: Trial) -> str | None:
    """Open the database again, and find what was acknowledged."""
    threads = trial.parts.get("threads")
    if isinstance(threads, SlowThreads):
        threads.come_back()
    host: Any = trial.parts.get("host")
    if host is not None:
        left = host.relay.reader_count, len(host.links._open), len(host.scheduler._attempts)
        if any(left):
            return "{} readers, {} links and {} attempts are left".format(*left)
    events: Any = trial.parts.get("events", ())
    return check_database(trial.database, users=trial.kept, events=events)


def keep(trial: Trial, host: Host) -> None:
    trial.parts["host"] = host._core


async def connect(nursery: trio.Nursery, vm: HandVm) -> HandVm:
    nursery.start_soon(vm.serve)
    await vm.come_up()
    return vm


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


# --- VMs that the host starts -------------------------------------------------------------


def vms_have_ended(trial: Trial) -> str | None:
    """Find VM processes that live."""
    starter: Any = trial.parts.get("starter")
    if starter is not None and not all(each.has_ended.is_set() for each in starter.processes):
        return "a VM process is alive"
    return the_data_is_whole(trial)


def new_starter(trial: Trial, **changes: Any) -> Starter:
    starter = trial.parts["starter"] = Starter(**changes)
    return starter


LOCAL: Final = {"jwt_secret": None, "host": "127.0.0.1"}


async def connect_as(
    nursery: trio.Nursery, trial: Trial, parts: Parts, starter: Starter, count: int
) -> tuple[MemoryVmProcess, HandVm]:
    """Be the VM that was started as the *count*-th."""
    process = await starter.wait_started(count)
    vm = HandVm(parts.app, trial, "local", f"boot-{count}", ticket=starter.tickets[-1])
    return process, await connect(nursery, vm)


async def start_a_vm(trial: Trial) -> None:
    """Start the local user's VM, lose it, and start it again for the next message."""
    starter = new_starter(trial)
    async with trio.open_nursery() as nursery, open_parts(trial, starter.ports()) as parts:
        nursery.start_soon(parts.scheduler.ensure_ready, "local")
        process, vm = await connect_as(nursery, trial, parts, starter, 1)
        process.end(1)
        vm.hang_up()
        while parts.scheduler.own_users():  # noqa: ASYNC110 - nobody here is told
            await trio.sleep(1)
        nursery.start_soon(parts.scheduler.ensure_ready, "local")
        process, vm = await connect_as(nursery, trial, parts, starter, 2)
        await parts.scheduler.stop_all()
        assert process.signals[0] == signal.SIGTERM
        vm.hang_up()


async def fail_to_start_a_vm(trial: Trial) -> None:
    """Have a VM's start fail twice, with the pause between two attempts."""
    starter = new_starter(trial, fails=2)
    async with open_parts(trial, starter.ports()) as parts:
        for _ in range(2):
            await refused(parts)
            await trio.sleep(30)
    assert starter.fails == 0


async def refused(parts: Parts) -> None:
    try:
        await parts.scheduler.ensure_ready("local")
    except PlaneNotReady:
        return
    raise AssertionError("it got ready")


async def stop_a_deaf_vm(trial: Trial) -> None:
    """Stop a VM that never connects and ends on nothing but SIGKILL."""
    starter = new_starter(trial, heeds=(signal.SIGKILL,))
    async with open_parts(trial, starter.ports()) as parts, trio.open_nursery() as nursery:
        nursery.start_soon(refused, parts)
        await starter.wait_started(1)
        await trio.sleep(1)
        await parts.scheduler.stop_all()


async def replace_a_vm(trial: Trial) -> None:
    """Start a VM anew on request while the first one is still coming up."""
    starter = new_starter(trial)
    async with trio.open_nursery() as nursery, open_parts(trial, starter.ports()) as parts:
        nursery.start_soon(parts.scheduler.ensure_ready, "local")
        await starter.wait_started(1)
        nursery.start_soon(parts.scheduler.rebootstrap, "local")
        _, vm = await connect_as(nursery, trial, parts, starter, 2)
        assert starter.processes[0].has_ended.is_set()
        vm.hang_up()


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


# --- links --------------------------------------------------------------------------------


async def supersede(trial: Trial) -> None:
    """Have a VM dial again before its old link has ended, with an event on its way."""
    async with trio.open_nursery() as nursery, open_parts(trial) as parts:
        old = await connect(nursery, HandVm(parts.app, trial))
        await parts.post()
        run = await old.begin()
        old.event(*run, "text_chunk", content="one")
        new = await connect(nursery, HandVm(parts.app, trial, dial=2, events=old.events))
        new.end(*run)
        await new.hear("ack", sessions={"s1": 3})
        assert old.close_code == 4009
        new.hang_up()


async def be_cut_and_come_again(trial: Trial) -> None:
    """Cut one link off at any step; the VM's next link goes on where that one was."""
    async with trio.open_nursery() as nursery, open_parts(trial) as parts:
        await parts.post()
        first = HandVm(parts.app, trial)
        with cut_here():
            async with trio.open_nursery() as links:
                await connect(links, first)
                run = await first.begin()
                first.event(*run, "text_chunk", content="one")
                await first.hear("ack", sessions={"s1": 2})
                first.hang_up()
        second = await connect(nursery, HandVm(parts.app, trial, dial=2, events=first.events))
        if second.fenced:  # the first had not heard of it yet, so it does not name it
            lost = await parts.store.get_run("r1")
            assert lost is not None
            assert lost.outcome == "interrupted"
        else:
            run = ("s1", "r1") if first.events else await second.begin()
            second.end(*run)
            await second.hear("ack", sessions={"s1": len(second.events["s1"])})
        second.hang_up()


async def lose_a_vm(trial: Trial) -> None:
    """Have a VM go silent in the middle of a run: its link ends, then its run."""
    deadlines = Deadlines(vm_lost_after=40)
    async with trio.open_nursery() as nursery, open_parts(trial, deadlines=deadlines) as parts:
        vm = await connect(nursery, HandVm(parts.app, trial))
        run_id = await parts.post()
        await vm.begin()
        with await parts.relay.open_run_reader("s1", run_id, 0) as reader:
            text = b""
            while (chunk := await reader.next_chunk()) is not None:
                text += chunk
        assert b"EXECUTION_PLANE_DISCONNECTED" in text
        assert vm.close_code is not None


async def cancel_a_run(trial: Trial) -> None:
    """Cancel a run on its VM, with another message waiting; the receipt is the answer."""
    async with trio.open_nursery() as nursery, open_parts(trial) as parts:
        vm = await connect(nursery, HandVm(parts.app, trial))
        run_id = await parts.post()
        await parts.post()
        run = await vm.begin()

        async def obey() -> None:
            command = await vm.hear("cancel")
            vm.end(*run, cancelled=True)
            receipt = {"run_id": run_id, "outcome": "cancelled", "seconds": 0.1}
            answer = {"command_id": command["command_id"], "run_id": run_id, "receipt": receipt}
            vm.say(type="cancelled", session_id="s1", **answer)

        nursery.start_soon(obey)
        asked = await parts.dispatcher.cancel("ann", "s1", run_id, "user_cancelled")
        assert asked.command_id is not None
        receipt = await parts.dispatcher.wait_receipt(run_id, asked.command_id)
        assert receipt["outcome"] == "cancelled"
        await vm.answer()
        await vm.hear("ack", sessions={"s1": 5})
        vm.hang_up()


async def answer_requests(trial: Trial) -> None:
    """Answer what a VM asks, take what it reports, and delete the session meanwhile."""
    async with trio.open_nursery() as nursery, open_parts(trial) as parts:
        vm = await connect(nursery, HandVm(parts.app, trial))
        await parts.post()
        await vm.begin()
        search = {"method": "memory_search", "params": {"query": "x", "top_k": 1}}
        report = {"method": "audit_log", "params": {"event": "x", "details": {}}}
        for name in ("q1", "q2"):
            vm.say(type="request", id=name, session_id="s1", **search)
        vm.say(type="fire_and_forget", id="w1", session_id="s1", **report)
        await vm.hear("response", id="q1")
        await vm.hear("ack", ids=["w1"])
        assert await parts.dispatcher.delete_session("ann", "s1")
        vm.hang_up()


async def refuse_strangers(trial: Trial) -> None:
    """Have one VM say nothing, one lie, and one break off, while a good one comes up."""
    async with trio.open_nursery() as nursery, open_parts(trial) as parts:
        silent, lying, gone = (HandVm(parts.app, trial, dial=n) for n in (1, 2, 3))
        for vm in (silent, lying, gone):
            nursery.start_soon(vm.serve)
        lying.say(type="auth", token="no", protocol={"min": 1, "max": 2}, boot_id="b", dial=1)
        gone.hang_up()
        good = await connect(nursery, HandVm(parts.app, trial, dial=4))
        await trio.sleep(BOUNDS.link_auth + 1)
        assert (silent.close_code, lying.close_code) == (4008, 4001)
        good.hang_up()


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


def no_connection_is_open(trial: Trial) -> str | None:
    server: Any = trial.parts.get("server")
    if server is not None and server.connections:
        return "a connection is open"
    return the_data_is_whole(trial)


HOST_BOUND: Final = "vm.stop + child.kill_grace + channel.close + store.commit"
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
            ("scheduler: start of a VM, its end, and the next", start_a_vm, vms_have_ended),
            ("scheduler: a VM is started anew on request", replace_a_vm, vms_have_ended),
            ("scheduler: a VM does not start", fail_to_start_a_vm, vms_have_ended),
            ("scheduler: a VM is deaf to everything but SIGKILL", stop_a_deaf_vm, vms_have_ended),
            (
                "host: a drain with a run on its own VM is cut off",
                drain_a_run_on_its_own_vm,
                vms_have_ended,
            ),
            ("links: a VM dials again before its old link has ended", supersede, the_data_is_whole),
            (
                "links: one is cut off and the next goes on",
                be_cut_and_come_again,
                the_data_is_whole,
            ),
            ("links: a silent VM is given up", lose_a_vm, the_data_is_whole),
            ("links: strangers are refused", refuse_strangers, the_data_is_whole),
            ("dispatch: a run is cancelled on its VM", cancel_a_run, the_data_is_whole),
            (
                "requests: are answered while the session is deleted",
                answer_requests,
                the_data_is_whole,
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
