"""A VM that breaks the rules of WebSockets harms its own link, and nothing else."""

from __future__ import annotations

import json
import logging
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from link_kit import DEADLINES, open_plane
from raw_frames import PING, TEXT, RawPeer, frame
from raw_table import BROKEN, LIVES, SILENT, Case, cases

from semibot.host.server import LAST_WORDS, open_server
from semibot.live import live_ports

ALIVE = {"type": "heartbeat", "active_sessions": [], "sent_at": 1.5}
CASES = cases(is_masked=True, alive=ALIVE)
QUICK = attrs.evolve(DEADLINES, link_auth=3.0, link_dead_after=3.0, channel_close=0.5)

BOUND = QUICK.channel_close + LAST_WORDS + 1.0
"""How long a connection may stand after its close frame; less than the silence, in seconds."""

STATED = {BROKEN: None, SILENT: 4008}
"""The close codes that the words stand for; None is none."""

OF_STRANGERS = {
    LIVES: 4001,  # what is no auth is refused
    4400: 4001,
    "a pong that nobody asked for": 4008,
    "a flood of pings": 4008,
    "a frame that is too big": 4008,  # little is read of a stranger
    "fragments that are too big": 4008,
}
"""What is otherwise if nobody has said who it is, by answer or name."""


def said(**fields: object) -> bytes:
    return frame(TEXT, json.dumps(fields).encode(), is_masked=True)


@asynccontextmanager
async def open_socket(port: int, user: str = "ann", extra: str = ""):
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        peer = RawPeer(stream)
        await peer.send(
            (
                f"GET /ws/vm?user_id={user} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Key: eHh4eHh4eHh4eHh4eHh4eA==\r\n"
                f"Sec-WebSocket-Version: 13\r\n{extra}\r\n"
            ).encode()
        )
        with trio.fail_after(20):
            await peer.read_head()
        yield peer


async def introduce(peer: RawPeer, plane, user: str = "ann", dial: int = 1) -> None:
    await peer.send(
        said(
            type="auth",
            token=plane.token(user),
            protocol={"min": 1, "max": 2},
            boot_id=f"boot-{user}",
            dial=dial,
        )
    )
    await peer.hear("init")
    await peer.send(said(type="resume", pending_ids=[], sessions={}))
    await peer.hear("resume_response")


@asynccontextmanager
async def open_listening(path):
    async with open_plane(path, deadlines=QUICK) as plane:

        async def app(scope, receive, send):
            await plane.links.serve_socket(scope, receive, send)

        async with open_server(app, "127.0.0.1", 0, deadlines=QUICK, ports=live_ports()) as server:
            yield plane, server


async def check_alive(peer: RawPeer) -> None:
    peer.texts.clear()
    assert await peer.send(said(**ALIVE))
    assert (await peer.hear("heartbeat"))["echo"] == 1.5


async def misbehave(peer: RawPeer, case: Case, answer: int | str) -> None:
    """Do it, and see that the answer is the one that is stated."""
    answer = STATED.get(answer, answer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send, case.data)  # the other end need not read it all
        if answer == LIVES:
            await check_alive(peer)
        else:
            code, stood = await peer.wait_over()
            assert code == answer
            assert stood < BOUND
        nursery.cancel_scope.cancel()


def check_quiet(caplog) -> None:
    loud = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert loud == []


async def test_what_a_vm_does_to_its_link_is_answered_and_harms_nobody_else(tmp_path, caplog):
    async with open_listening(tmp_path) as (plane, server):
        await plane.external("bob")
        turns = trio.CapacityLimiter(6)

        async def attempt(case: Case, user: str) -> None:
            async with turns, open_socket(server.port, user) as peer:
                await introduce(peer, plane, user)
                try:
                    await misbehave(peer, case, case.answer)
                except Exception as exc:
                    exc.add_note(case.name)
                    raise

        async with open_socket(server.port, "bob") as other, trio.open_nursery() as bystander:
            await introduce(other, plane, "bob")

            async def stay_alive() -> None:
                while True:
                    await check_alive(other)
                    await trio.sleep(0.5)

            bystander.start_soon(stay_alive)
            async with trio.open_nursery() as nursery:
                for number, case in enumerate(CASES):
                    user = f"user-{number}"
                    await plane.external(user)
                    nursery.start_soon(attempt, case, user)
            bystander.cancel_scope.cancel()
            await check_alive(other)
        check_quiet(caplog)


async def test_what_a_stranger_does_is_answered_too(tmp_path, caplog):
    async with open_listening(tmp_path) as (plane, server):
        async with trio.open_nursery() as nursery:

            async def attempt(case: Case) -> None:
                answer = OF_STRANGERS.get(case.name, OF_STRANGERS.get(case.answer, case.answer))
                async with open_socket(server.port) as peer:
                    try:
                        await misbehave(peer, case, answer)
                    except Exception as exc:
                        exc.add_note(case.name)
                        raise

            for case in CASES:
                nursery.start_soon(attempt, case)
        async with open_socket(server.port) as peer:
            await introduce(peer, plane)
        check_quiet(caplog)
        assert plane.links.strangers == {}


@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate",
        "permessage-deflate; client_max_window_bits",
        "permessage-deflate; server_no_context_takeover, permessage-deflate",
        "x-webkit-deflate-frame",
    ],
)
async def test_an_offer_to_compress_is_not_accepted(tmp_path, offer):
    async with open_listening(tmp_path) as (plane, server):
        extra = f"Sec-WebSocket-Extensions: {offer}\r\n"
        async with open_socket(server.port, extra=extra) as peer:
            assert peer.head.startswith("HTTP/1.1 101")
            assert "extensions" not in peer.head.lower()
            await introduce(peer, plane)
            compressed = frame(TEXT, b"x", is_masked=True, rsv=4)
            await misbehave(peer, Case("compressed", compressed, BROKEN), BROKEN)


async def test_who_pings_and_reads_nothing_is_cut_off(tmp_path, caplog):
    quick = attrs.evolve(QUICK, http_stall_timeout=1.0)
    async with open_plane(tmp_path, deadlines=quick) as plane:
        async with open_server(
            plane.links.serve_socket, "127.0.0.1", 0, deadlines=quick, ports=live_ports()
        ) as server:
            async with open_socket(server.port) as peer:
                await introduce(peer, plane)
                pings = frame(PING, b"x" * 125, is_masked=True) * 500
                with trio.fail_after(30):
                    while await peer.send(pings):
                        pass
            with trio.fail_after(10):
                await server.wait_quiet()
            assert plane.links.of_user("ann") is None
    check_quiet(caplog)
