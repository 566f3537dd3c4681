"""A host that breaks the rules of WebSockets is left and dialled again; nothing else happens."""

from __future__ import annotations

import base64
import hashlib
import json
import logging

import attrs
import trio
import trio.testing
from raw_frames import TEXT, RawPeer, frame
from raw_table import BROKEN, LIVES, SILENT, Case, cases
from scripted_host import ScriptedHost

ALIVE = {"type": "heartbeat", "echo": 1.5}
CASES = cases(is_masked=False, alive=ALIVE)
STATED = {BROKEN: None, SILENT: None}  # a host that says nothing is not spoken to either
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def said(**fields: object) -> bytes:
    return frame(TEXT, json.dumps(fields).encode(), is_masked=False)


async def accept(stream, extra: str = "") -> RawPeer:
    """Shake hands by hand."""
    peer = RawPeer(stream)
    await peer.read_head()
    key = next(
        line.partition(":")[2].strip()
        for line in peer.head.splitlines()
        if line.lower().startswith("sec-websocket-key")
    )
    proof = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
    await peer.send(
        (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {proof}\r\n{extra}\r\n"
        ).encode()
    )
    return peer


async def introduce(peer: RawPeer) -> None:
    await peer.hear("auth")
    data = {"user_id": "u1", "org_id": "o1", "api_keys": {}, "protocol": 2, "epoch": 7}
    await peer.send(said(type="init", data=data))
    await peer.hear("resume")
    await peer.send(said(type="resume_response", results={}, sessions={}))


@attrs.define
class RawHost:
    """Takes what a VM dials, in memory."""

    scripted: ScriptedHost
    accepted: trio.MemoryReceiveChannel

    async def next(self):
        return await self.accepted.receive()


def raw_host(nursery) -> RawHost:
    scripted = ScriptedHost(nursery)
    put, accepted = trio.open_memory_channel(100)

    async def dial(host, port, *, use_tls):
        await trio.lowlevel.checkpoint()
        vm, ours = trio.testing.memory_stream_pair()
        put.send_nowait(ours)
        return vm

    scripted.ports = attrs.evolve(scripted.ports, dial=dial)
    return RawHost(scripted, accepted)


async def misbehave(peer: RawPeer, case: Case) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(peer.send, case.data)
        if case.answer == LIVES:
            await peer.hear("heartbeat")
            await peer.hear("heartbeat")
        else:
            code, stood = await peer.wait_over()
            assert code == STATED.get(case.answer, case.answer)
            assert stood < 5
        nursery.cancel_scope.cancel()


async def test_what_a_host_does_to_a_link_ends_no_more_than_the_link(autojump_clock, caplog):
    async with trio.open_nursery() as nursery:
        host = raw_host(nursery)
        async with host.scripted.open_channel() as channel:
            for case in CASES:
                peer = await accept(await host.next())
                try:
                    await introduce(peer)
                    await channel.wait_up()
                    await misbehave(peer, case)
                except Exception as exc:
                    exc.add_note(case.name)
                    raise
                await trio.aclose_forcefully(peer.stream)
            peer = await accept(await host.next())
            await introduce(peer)
            await channel.wait_up()
            assert channel.statistics().links == len(CASES) + 1
        nursery.cancel_scope.cancel()
    loud = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert loud == []


async def test_a_host_that_compresses_without_being_asked_is_left(autojump_clock):
    async with trio.open_nursery() as nursery:
        host = raw_host(nursery)
        async with host.scripted.open_channel() as channel:
            stream = await host.next()
            peer = await accept(stream, "Sec-WebSocket-Extensions: permessage-deflate\r\n")
            assert "extensions" not in peer.head.lower()
            with trio.fail_after(60):
                while await peer.take():
                    pass
            status = await channel.wait_status(lambda status: status.last_error)
            assert status.state != "up"
            again = await accept(await host.next())
            await introduce(again)
            await channel.wait_up()
        nursery.cancel_scope.cancel()


async def test_a_handshake_that_is_none_is_left(autojump_clock):
    answers = [
        b"",
        b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
        (
            b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: wrong\r\n\r\n"
        ),
        b"HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\nhel",
        b"\x82\x80\0\0\0\0",
        b"x" * 200_000,
        b"HTTP/1.1 101 x\r\n" + b"a: b\r\n" * 20_000,
    ]
    async with trio.open_nursery() as nursery:
        host = raw_host(nursery)
        async with host.scripted.open_channel() as channel:
            for answer in answers:
                stream = await host.next()
                began = trio.current_time()
                peer = RawPeer(stream)
                await peer.read_head()
                await peer.send(answer)
                while await peer.take():
                    pass
                assert trio.current_time() - began <= 10.1  # channel.dial
            peer = await accept(await host.next())
            await introduce(peer)
            await channel.wait_up()
        nursery.cancel_scope.cancel()
