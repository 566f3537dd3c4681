from __future__ import annotations

import json
from contextlib import asynccontextmanager

import attrs
import pytest
import trio
from trio.testing import memory_stream_pair

from semibot.config import Deadlines
from semibot.host.server import open_server
from semibot.live import live_ports
from semibot.testing.ports import simulated_ports

DEADLINES = Deadlines(http_stall_timeout=4, http_request_head=3, channel_close=1)
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
)


class MemoryListener:
    """A listener whose connections are streams in memory."""

    def __init__(self) -> None:
        self._sender, self._receiver = trio.open_memory_channel[trio.abc.Stream](100)
        self.failures = 0
        self.port = 1

    async def connect(self):
        ours, theirs = memory_stream_pair()
        await self._sender.send(theirs)
        return ours

    async def accept(self):
        if self.failures:
            self.failures -= 1
            raise OSError(24, "Too many open files")
        try:
            return await self._receiver.receive()
        except trio.EndOfChannel:
            raise trio.ClosedResourceError from None

    async def aclose(self):
        self._sender.close()
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def serving(app):
    listener = MemoryListener()

    async def listen(host, port):
        return listener

    ports = attrs.evolve(simulated_ports(), listen=listen)
    async with open_server(app, "127.0.0.1", 0, deadlines=DEADLINES, ports=ports) as server:
        yield server, listener


async def hello(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})


async def read_to_end(stream) -> bytes:
    data = b""
    while piece := await stream.receive_some():
        data += piece
    return data


async def read_chunked(stream) -> bytes:
    data = b""
    while not data.endswith(b"0\r\n\r\n"):
        piece = await stream.receive_some()
        assert piece, data
        data += piece
    return data


def body_of(answer: bytes):
    return json.loads(answer.partition(b"\r\n\r\n")[2])


async def test_requests_are_answered_one_after_the_other(autojump_clock):
    async with serving(hello) as (_, listener):
        peer = await listener.connect()
        await peer.send_all(GET + GET)
        answer = await read_to_end(peer)  # the idle connection is closed
        assert answer.count(b"HTTP/1.1 200") == 2
        assert b"server:" not in answer.lower()


async def test_a_stream_on_a_connection_that_had_an_answer_before_is_not_cut_off(autojump_clock):
    async def app(scope, receive, send):
        if scope.get("path") != "/stream":
            await hello(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(10):
            await trio.sleep(5)
            await send({"type": "http.response.body", "body": b"still here", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async with serving(app) as (_, listener):
        peer = await listener.connect()
        await peer.send_all(GET)
        assert b"hello" in await read_chunked(peer)
        await peer.send_all(GET.replace(b"/ ", b"/stream "))
        answer = await read_to_end(peer)
    assert answer.count(b"still here") == 10
    assert answer.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (b"Content-Length: 2\r\nTransfer-Encoding: chunked", 400),
        (b"A: " + b"x" * 100_000, 431),
    ],
)
async def test_a_refused_head_is_answered_in_our_own_words(autojump_clock, lines, status):
    async with serving(hello) as (_, listener):
        peer = await listener.connect()
        await peer.send_all(b"POST / HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n\r\n")
        answer = await read_to_end(peer)
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        assert body_of(answer)["error"]["code"] == f"HTTP_{status}"


async def test_who_drips_a_head_is_cut_off_in_time(autojump_clock):
    async with serving(hello) as (_, listener):
        peer = await listener.connect()
        began = trio.current_time()

        async def drip():
            for byte in GET[:-4]:
                try:
                    await peer.send_all(bytes([byte]))
                except trio.BrokenResourceError:
                    return
                await trio.sleep(1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(drip)
            answer = await read_to_end(peer)
            nursery.cancel_scope.cancel()
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert trio.current_time() - began == pytest.approx(3, abs=1)


async def test_a_second_request_that_is_refused_just_ends_the_connection(autojump_clock):
    async with serving(hello) as (_, listener):
        peer = await listener.connect()
        await peer.send_all(GET)
        await peer.receive_some()
        await peer.send_all(b"PRI * HTTP/2.0\r\n\r\n")
        answer = await read_to_end(peer)
        assert b"400" not in answer


async def test_a_websocket_has_no_compression_and_ends_after_our_close(autojump_clock):
    async def app(scope, receive, send):
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            await receive()
            await send({"type": "websocket.close", "code": 4001})

    async with serving(app) as (_, listener):
        peer = await listener.connect()
        await peer.send_all(UPGRADE)
        head = await peer.receive_some()
        assert head.startswith(b"HTTP/1.1 101")
        assert b"extensions" not in head.lower()
        await peer.send_all(bytes([0x81, 0x81, 0, 0, 0, 0, 65]))
        rest = await read_to_end(peer)  # though the peer never answers the close
        assert rest == b"\x88\x02\x0f\xa1"


async def test_a_connection_in_use_goes_on_however_the_app_ends(autojump_clock):
    async def app(scope, receive, send):
        async with trio.open_nursery() as nursery:

            async def watch():
                while (await receive())["type"] != "http.disconnect":
                    pass
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            await hello(scope, receive, send)

    async with serving(app) as (_, listener):
        peer = await listener.connect()
        for _ in range(20):
            await peer.send_all(GET)
            assert b"hello" in await read_chunked(peer)
            await trio.sleep(1)


@pytest.mark.parametrize("path", [b"/", b"/late"])
async def test_a_body_that_nobody_reads_keeps_no_connection(autojump_clock, path):
    async def app(scope, receive, send):
        if scope["path"] == "/late":
            await trio.sleep(1)
        await hello(scope, receive, send)

    async with serving(app) as (server, listener):
        peer = await listener.connect()
        head = b"POST " + path + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        await peer.send_all(head + b"1\r\na\r\n" * 3000)
        assert b"hello" in await read_to_end(peer)
        await peer.aclose()
        await trio.sleep(10)
        assert server.connections == 0


async def test_messages_after_our_close_keep_no_connection(autojump_clock):
    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        await trio.sleep(1)
        await send({"type": "websocket.close", "code": 4001, "reason": "refused"})

    async with serving(app) as (server, listener):
        peer = await listener.connect()
        await peer.send_all(UPGRADE)
        assert b"HTTP/1.1 101" in await peer.receive_some()
        await peer.send_all(b"\x81\x81\x00\x00\x00\x00x" * 1000)
        await trio.sleep(10)
        assert server.connections == 0


async def test_little_is_read_of_a_stranger_and_the_rest_once_it_is_let_in(autojump_clock):
    size = 1024 * 1024
    frame = b"\x81\xff" + size.to_bytes(8, "big") + bytes(4) + b"x" * size
    seen = []

    async def app(scope, receive, send):
        await receive()
        await send({"type": "websocket.accept"})
        with trio.move_on_after(5):
            await receive()
            seen.append("too early")
        scope["extensions"]["semibot"]["let_in"]()
        seen.append(len((await receive())["text"]))

    async with serving(app) as (_, listener):
        peer = await listener.connect()
        await peer.send_all(UPGRADE)
        await peer.receive_some()
        await peer.send_all(frame)
        await trio.sleep(10)
        assert seen == [size]


async def test_a_handler_that_fails_fails_alone(autojump_clock):
    async def app(scope, receive, send):
        if scope.get("path") == "/bad":
            raise ValueError("bug")
        await hello(scope, receive, send)

    async with serving(app) as (_, listener):
        bad, good = await listener.connect(), await listener.connect()
        await bad.send_all(b"GET /bad HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await bad.receive_some()).startswith(b"HTTP/1.1 500")
        await good.send_all(GET)
        assert b"hello" in await read_to_end(good)


async def test_too_many_open_files_is_no_end(autojump_clock):
    async with serving(hello) as (_, listener):
        listener.failures = 3
        peer = await listener.connect()
        await peer.send_all(GET)
        assert b"200" in await peer.receive_some()


@asynccontextmanager
async def serving_sockets(app, **bounds):
    deadlines = attrs.evolve(DEADLINES, **bounds)
    async with open_server(app, "127.0.0.1", 0, deadlines=deadlines, ports=live_ports()) as server:
        yield server


async def pour(scope, receive, send):
    """Send far more than any socket buffer takes."""
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    size = 50_000_000 if scope["path"] == "/pour" else 5
    await send({"type": "http.response.body", "body": b"x" * size})


async def test_who_reads_nothing_is_cut_off_and_the_app_is_told():
    told: list[bool] = []
    ended = trio.Event()

    async def app(scope, receive, send):
        await pour(scope, receive, send)
        if scope.get("path") == "/pour":
            told.append(scope["extensions"]["semibot"]["stalled"]())
            ended.set()

    async with serving_sockets(app, http_stall_timeout=0.3) as server:
        stalled = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with stalled:
            await stalled.send_all(b"GET /pour HTTP/1.1\r\nHost: x\r\n\r\n")
            async with await trio.open_tcp_stream("127.0.0.1", server.port) as other:
                await other.send_all(GET)  # others are served meanwhile
                assert b"200" in await other.receive_some()
            with trio.fail_after(5):
                await ended.wait()
    assert told == [True]


async def test_leaving_does_not_wait_for_who_reads_nothing():
    async with serving_sockets(pour, http_stall_timeout=60) as server:
        stalled = await trio.open_tcp_stream("127.0.0.1", server.port)
        await stalled.send_all(b"GET /pour HTTP/1.1\r\nHost: x\r\n\r\n")
        await stalled.receive_some()
        began = trio.current_time()
    assert trio.current_time() - began < 3
    await stalled.aclose()


async def test_an_address_that_is_taken_says_so():
    async with serving_sockets(hello) as server:
        with pytest.raises(OSError, match="in use"):
            async with open_server(
                hello, "127.0.0.1", server.port, deadlines=DEADLINES, ports=live_ports()
            ):
                raise AssertionError("two servers listen on one port")
