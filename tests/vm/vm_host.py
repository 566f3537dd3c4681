"""A host for whole VMs: over memory streams, or on a real port of this machine."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio
import trio.testing
import trio_websocket

from semibot.ports import Ports
from semibot.testing import simulated_ports

Frame = dict[str, object]


class HostLink:
    """The host's end of one link."""

    def __init__(self, socket: trio_websocket.WebSocketConnection, path: str) -> None:
        self.socket = socket
        self.path = path
        self._queue: list[Frame] = []

    async def send(self, *frames: Frame) -> None:
        for frame in frames:
            await self.socket.send_message(json.dumps(frame))

    async def receive(self) -> Frame:
        """Return the next frame but heartbeats, those of a batch one by one."""
        while True:
            while not self._queue:
                value = json.loads(await self.socket.get_message())
                self._queue += value["frames"] if value["type"] == "batch" else [value]
            frame = self._queue.pop(0)
            if frame["type"] != "heartbeat":
                return frame

    async def receive_until(self, kind: str) -> list[Frame]:
        """Return frames up to the first of a kind: a frame's type, or an event's."""
        frames: list[Frame] = []
        while True:
            frames.append(await self.receive())
            said = frames[-1].get("data")
            inner = json.loads(said) if isinstance(said, str) else {}
            if kind in {frames[-1]["type"], inner.get("type")}:
                return frames

    async def bring_up(self, **data: object) -> Frame:
        """Take ``auth``, say ``init``, take ``resume`` and answer it."""
        auth = await self.receive()
        known: Frame = {"user_id": "u1", "org_id": "o1", "api_keys": {}, "protocol": 2, "epoch": 1}
        await self.send({"type": "init", "data": {**known, **data}})
        resume = await self.receive()
        assert resume["type"] == "resume"
        await self.send({"type": "resume_response", "results": {}, "sessions": {}})
        return auth

    async def start(self, text: str, *, term: int = 1, **data: object) -> None:
        """Start session ``s1`` and say a message in it."""
        await self.send(
            {
                "type": "start_session",
                "data": {"session_id": "s1", **data},
                "command_id": f"start {text}",
                "term": term,
                "next_seq": 1,
            },
            {
                "type": "user_message",
                "session_id": "s1",
                "data": {"message": text},
                "command_id": f"message {text}",
                "run_id": f"run {text}",
            },
        )

    async def wait_closed(self) -> tuple[list[Frame], int]:
        """Read to the end; return what came and the close code of the VM."""
        frames: list[Frame] = []
        try:
            while True:
                frames.append(await self.receive())
        except trio_websocket.ConnectionClosed as exc:
            return frames, exc.reason.code if exc.reason else 0


class VmHost:
    """Takes links."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._put, self._links = trio.open_memory_channel[HostLink](10)
        self.port = 0

    async def accept(self) -> HostLink:
        return await self._links.receive()

    def ports(self, **environment: str) -> Ports:
        """Return simulated seams whose network leads here."""
        return attrs.evolve(simulated_ports(environment=environment), dial=self._dial)

    async def _dial(self, host: str, port: int, *, use_tls: bool) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        vm, ours = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self._serve_stream, ours)
        return vm

    async def _serve_stream(self, stream: trio.abc.Stream) -> None:
        async with trio.open_nursery() as nursery:
            request = await trio_websocket.wrap_server_stream(nursery, stream)
            await self._put.send(HostLink(await request.accept(), request.path))

    async def serve_request(self, request: trio_websocket.WebSocketRequest) -> None:
        """Serve one real connection."""
        socket = await request.accept()
        await self._put.send(HostLink(socket, request.path))
        await trio.sleep_forever()


@asynccontextmanager
async def open_vm_host() -> AsyncGenerator[VmHost]:
    """Be a host in memory."""
    async with trio.open_nursery() as nursery:
        yield VmHost(nursery)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_real_host() -> AsyncGenerator[VmHost]:
    """Be a host on a free port of this machine."""
    async with trio.open_nursery() as nursery:
        host = VmHost(nursery)
        serve = partial(
            trio_websocket.serve_websocket, host.serve_request, "127.0.0.1", 0, ssl_context=None
        )
        server = await nursery.start(serve)
        host.port = server.port
        yield host
        nursery.cancel_scope.cancel()
