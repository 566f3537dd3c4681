"""Readers of event streams, from the tail to the socket, to be cancelled at every step."""

from __future__ import annotations

from typing import Any, Final

import attrs
import trials
import trio
import trio.testing
from http_kit import ANN, Host
from http_kit import event as said
from memory_network import MemoryListener
from relay_kit import Client, Kit, event, failing
from trials import Case, Trial

from semibot.config import Deadlines
from semibot.host.server import open_server
from semibot.testing import simulated_ports

START: Final = "/api/v1/chat/start"
STREAM: Final = "/api/v1/sessions/s1/stream"


# --- a relay and its readers --------------------------------------------------------------


def new_kit(trial: Trial, *committed: int) -> Kit:
    kit = trial.parts["kit"] = Kit()
    kit.store.add(*(event(seq) for seq in committed))
    return kit


async def open_client(trial: Trial, kit: Kit, after: str | None) -> Client:
    client = await kit.reader(after)
    trial.parts.setdefault("clients", []).append((client, after))  # type: ignore[union-attr]
    return client


async def read_up_to(client: Client, event_id: str) -> None:
    with client.reader:
        while event_id not in client.ids:
            assert await client.step() is not None


def readers_are_gone_and_saw_all(trial: Trial) -> str | None:
    """Find readers that are still attached, and gaps in what the others saw."""
    kit: Any = trial.parts.get("kit")
    if kit is None:
        return None
    if kit.relay.reader_count:
        return f"{kit.relay.reader_count} readers are attached"
    if kit.relay._keepalive._idle:
        return "a reader still waits for a keepalive"
    clients: Any = trial.parts.get("clients", ())
    for client, after in clients:
        expected = None if after is None else int(after.partition("-")[2]) + 1
        for message in client.messages:
            seq = int(message.id.partition("-")[2])
            if b'"resync"' not in message.data and seq != expected:
                return f"{after} was followed by {client.ids}"
            expected = seq + 1
    return None


async def resume_while_events_come(trial: Trial) -> None:
    """Go on from an id in the store, over what is committed, to what comes meanwhile."""
    kit = new_kit(trial, 1, 2, 3, 4)

    async def speak() -> None:
        for seq in range(5, 9):
            await kit.receive(event(seq), waits=seq % 2 == 0)
            await kit.commit(event(seq))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(speak)
        for after in ("1-2", "1-4"):
            nursery.start_soon(read_up_to, await open_client(trial, kit, after), "1-8")


async def lose_what_was_shown(trial: Trial) -> None:
    """Lose a VM whose uncommitted event one reader has shown and one has not."""
    kit = new_kit(trial, 1, 2)
    ahead, behind = await open_client(trial, kit, "1-2"), await open_client(trial, kit, "1-1")
    with ahead.reader, behind.reader:
        await kit.receive(event(3))
        await ahead.read_some(2)
        await kit.lose(event(3, term=2, type="execution_error"))
        async with trio.open_nursery() as nursery:
            for client in (ahead, behind):
                nursery.start_soon(read_up_to, client, "2-3")
    assert [name.partition(" ")[0] for name in ahead.got][-1] == "resync"


async def load_a_tail_together(trial: Trial) -> None:
    """Give up loading a tail that others wait for; one of them takes it over."""
    kit = new_kit(trial, 1, 2)
    kit.store.gate = trio.Event()
    first = trio.CancelScope()

    async def read(scope: trio.CancelScope) -> None:
        with scope:
            await read_up_to(await open_client(trial, kit, None), "1-2")

    async with trio.open_nursery() as nursery:
        for scope in (first, trio.CancelScope(), trio.CancelScope()):
            nursery.start_soon(read, scope)
            await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
        kit.store.gate.set()


async def fail_underneath(trial: Trial) -> None:
    """Have the store fail while readers need it, and readers broken off."""
    kit = new_kit(trial, 1, 2, 3)
    at_start, at_end = await open_client(trial, kit, "1-0"), await open_client(trial, kit, "1-3")
    kit.store.failure = failing()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(at_start.read_on)
        nursery.start_soon(at_end.read_on)
        await trio.testing.wait_all_tasks_blocked()
        kit.relay.break_off(["s1"])
    assert (at_start.has_ended, at_end.has_ended) == (True, True)
    kit.store.failure = None
    await read_up_to(await open_client(trial, kit, "1-1"), "1-3")


async def wait_for_an_id(trial: Trial) -> None:
    """Hold an id that nobody knows yet: one is confirmed, one is given up after 10 s."""
    kit = new_kit(trial, 1, 2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_up_to, await open_client(trial, kit, "1-4"), "1-5")
        await trio.sleep(3)
        for seq in (3, 4, 5):
            await kit.receive(event(seq))
            await kit.commit(event(seq))
        too_far = await open_client(trial, kit, "1-9")
        nursery.start_soon(read_up_to, too_far, "1-5")
    assert trio.current_time() >= 10


# --- over HTTP ----------------------------------------------------------------------------


def new_host(trial: Trial) -> Host:
    host = trial.parts["host"] = Host()
    return host


def requests_have_ended(trial: Trial) -> str | None:
    """Find readers that are attached, messages that nobody dispatches, cancels nobody asked for."""
    host: Any = trial.parts.get("host")
    if host is None:
        return None
    if host.relay.reader_count:
        return f"{host.relay.reader_count} readers are attached"
    stored = [message.session_id for message in host.store.accepted]
    if host.dispatcher.kicked != stored:
        return f"{stored} were stored, {host.dispatcher.kicked} dispatched"
    most = 1 if trial.parts.get("leaves") else 0
    if len(host.dispatcher.cancelled) > most:
        return f"cancelled: {host.dispatcher.cancelled}"
    return None


async def post_to_the_end(trial: Trial) -> None:
    """Begin a session with a message and follow its run to the end."""
    host = new_host(trial)
    async with host.open("POST", START, {"message": "hello"}) as exchange:
        await exchange.wait_for(lambda: exchange.status is not None)
        run_id = exchange.headers["x-run-id"]
        for seq, kind in ((1, "run_started"), (2, "text_chunk"), (3, "execution_complete")):
            await host.say(exchange.headers["x-session-id"], said(seq, kind, run_id=run_id))
            await trio.sleep(1)
        await exchange.wait_returned()
    assert b"id: 1-3" in exchange.body


async def post_and_leave(trial: Trial) -> None:
    """Close the stream of one's own run, which takes the run along."""
    host = new_host(trial)
    trial.parts["leaves"] = True
    host.dispatcher.seconds = 2
    async with host.open("POST", START, {"message": "hello"}) as exchange:
        await exchange.wait_for(lambda: exchange.body)
        session_id, run_id = exchange.headers["x-session-id"], exchange.headers["x-run-id"]
        await host.say(session_id, said(1, "run_started", run_id=run_id))
        exchange.disconnect()
        await exchange.wait_returned()
    assert len(host.dispatcher.cancelled) == 1


async def get_until_the_host_closes(trial: Trial) -> None:
    """Follow a session over keepalives until the host stops."""
    host = new_host(trial)
    host.store.add_session("s1")
    async with host.open("GET", STREAM) as exchange:
        await exchange.wait_for(lambda: b"keepalive" in exchange.body)
        await host.say("s1", said(1, run_id="r1"), said(2, run_id="r1"))
        await exchange.wait_for(lambda: b"id: 1-2" in exchange.body)
        host.status.is_draining = True
        host.relay.close()
        await exchange.wait_returned()
    assert exchange.is_complete


async def get_and_leave(trial: Trial) -> None:
    """Follow a session from an id, and go away while events come."""
    host = new_host(trial)
    host.store.add_session("s1")
    await host.say("s1", said(1, run_id="r1"), said(2, run_id="r1"))
    headers = {**ANN, "last-event-id": "1-1"}
    async with host.open("GET", STREAM, headers=headers) as exchange:
        await exchange.wait_for(lambda: b"id: 1-2" in exchange.body)
        exchange.disconnect()
        await host.say("s1", said(3, run_id="r1"))
        await exchange.wait_returned()


# --- over a connection --------------------------------------------------------------------

SERVER: Final = Deadlines(http_stall_timeout=2, http_request_head=3, channel_close=1)
REQUEST: Final = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def stall(trial: Trial) -> None:
    """Have one peer read its stream, and one accept nothing of it."""
    listener = MemoryListener()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(4):
            await trio.sleep(1)
            await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
            if scope["extensions"]["semibot"]["stalled"]():
                trial.parts["has_stalled"] = True
                return
        await send({"type": "http.response.body", "body": b""})

    ports = attrs.evolve(simulated_ports(), listen=listener.listen)
    async with open_server(app, "127.0.0.1", 0, deadlines=SERVER, ports=ports) as server:
        trial.parts["server"] = server
        reads = await listener.connect()
        stalls = await listener.connect(trio.testing.lockstep_stream_pair)
        for peer in (reads, stalls):
            await peer.send_all(REQUEST)
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            data += await reads.receive_some()
        await trio.sleep(4)  # the other is cut off, and the idle one not yet
        assert server.connections == 1
        assert trial.parts["has_stalled"]


def connections_are_closed(trial: Trial) -> str | None:
    """Find connections that are open."""
    server: Any = trial.parts.get("server")
    return None if server is None or not server.connections else "a connection is open"


NOTHING: Final = "nothing to wait for"

CASES: Final = (
    *(
        Case(
            name=f"SSE reader: {name}",
            act=act,
            look=readers_are_gone_and_saw_all,
            within=0,
            because=NOTHING,
        )
        for name, act in (
            ("resumes from an id while events come", resume_while_events_come),
            ("shows what is lost, and begins anew", lose_what_was_shown),
            ("takes over the loading of a tail", load_a_tail_together),
            ("ends with the store, and comes again", fail_underneath),
            ("waits for an id that is not known yet", wait_for_an_id),
        )
    ),
    *(
        Case(name=f"SSE: {name}", act=act, look=requests_have_ended, within=within, because=because)
        for name, act, within, because in (
            ("a POST is followed to the end of its run", post_to_the_end, 10, "store.commit"),
            ("a POST whose client leaves", post_and_leave, 10, "store.commit"),
            ("a GET until the host closes it", get_until_the_host_closes, 0, NOTHING),
            ("a GET whose client leaves", get_and_leave, 0, NOTHING),
        )
    ),
    Case(
        name="SSE: one peer stalls and one reads",
        act=stall,
        look=connections_are_closed,
        within=2 * SERVER.channel_close,
        because="channel.close, for the last words and again to close",
    ),
)

__all__ = ["CASES", "trials"]
