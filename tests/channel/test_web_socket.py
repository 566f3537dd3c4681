from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
import wsproto
from wsproto.events import AcceptConnection, CloseConnection, Request, TextMessage

from semibot.channel.web_socket import LinkEnded, open_web_socket
from semibot.lifetimes import open_services
from semibot.testing.logs import capture_logs


@asynccontextmanager
async def open_pair(pair=trio.testing.memory_stream_pair, *, close_grace=2.0):
    """Open a WebSocket; yield it, the stream behind it, and a server without I/O."""
    ours, theirs = pair()
    server = wsproto.WSConnection(wsproto.ConnectionType.SERVER)

    async def shake_hands():
        server.receive_data(await theirs.receive_some())
        assert isinstance(next(server.events()), Request)
        await theirs.send_all(server.send(AcceptConnection()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(shake_hands)
        async with open_web_socket(
            ours,
            host="h",
            resource="/",
            handshake=trio.current_time() + 10,
            close_grace=close_grace,
        ) as socket:
            yield socket, theirs, server


async def test_no_extension_is_offered(autojump_clock):
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_and_fail, ours)
        head = await theirs.receive_some()
        assert head.startswith(b"GET /x HTTP/1.1\r\nHost: h:1\r\n")
        assert b"extensions" not in head.lower()


async def open_and_fail(stream):
    until = trio.current_time() + 1
    with pytest.raises(LinkEnded, match="did not answer the WebSocket handshake in time"):
        async with open_web_socket(
            stream, host="h:1", resource="/x", handshake=until, close_grace=1
        ):
            pass


async def test_bytes_that_are_no_web_socket_end_the_link(autojump_clock):
    async with open_pair() as (socket, theirs, _):
        await theirs.send_all(b"\xff\xff\xff\xff")
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(LinkEnded):
            await socket.send("too late")
        with pytest.raises(LinkEnded):
            await socket.ping()
        with pytest.raises(LinkEnded):
            await socket.receive()
        await socket.aclose(1000, "")


async def test_what_the_host_said_last_is_read_although_sending_fails(autojump_clock):
    async with open_pair() as (socket, theirs, server):
        goodbye = server.send(CloseConnection(code=4009, reason="other_instance"))
        theirs.receive_stream.close()  # it does not read any more
        async with trio.open_nursery() as nursery:

            async def send():
                with pytest.raises(LinkEnded) as caught:
                    await socket.send("x")
                assert (caught.value.code, caught.value.reason) == (4009, "other_instance")
                assert caught.value.is_from_host

            nursery.start_soon(send)
            await trio.testing.wait_all_tasks_blocked()
            await theirs.send_all(goodbye)
        assert trio.current_time() == pytest.approx(1)


async def test_nothing_follows_half_a_frame(autojump_clock):
    async with open_pair(trio.testing.lockstep_stream_pair) as (socket, theirs, _):
        with trio.move_on_after(1):
            await socket.send("x" * 1000)
        with pytest.raises(LinkEnded):
            await socket.send("y")
        received = b""
        while chunk := await theirs.receive_some():
            received += chunk
        assert len(received) == 1008  # the first frame, which happened to fit


async def test_a_host_that_does_not_answer_a_goodbye_is_not_waited_for(autojump_clock):
    async with open_pair() as (socket, _, _):
        with capture_logs() as logs:
            await socket.aclose(1000, "")
        assert trio.current_time() == 2
        assert [entry["event"] for entry in logs] == ["grace ran out"]
        with pytest.raises(LinkEnded):
            await socket.receive()


async def test_what_came_before_a_goodbye_is_still_received(autojump_clock):
    async with open_pair() as (socket, theirs, server):
        data = server.send(TextMessage(data="last words"))
        await theirs.send_all(data + server.send(CloseConnection(code=1012, reason="")))
        assert await socket.receive() == "last words"
        with pytest.raises(LinkEnded) as caught:
            await socket.receive()
        assert str(caught.value) == "the host closed the link (close code 1012)"


async def test_who_is_stopped_with_the_connection_has_not_failed(autojump_clock):
    async def write(socket):
        while True:
            await socket.send("x")

    with capture_logs() as logs:
        for _ in range(10):  # who of two tasks finds the end first is up to chance
            async with open_pair(trio.testing.lockstep_stream_pair) as (socket, theirs, _):
                with pytest.raises(LinkEnded):
                    async with open_services() as services:
                        services.start_soon(write, socket)
                        await trio.testing.wait_all_tasks_blocked()
                        theirs.send_stream.close()
                        theirs.receive_stream.close()
                        await socket.receive()
    assert logs == []
