"""A host in memory that says what a test tells it to."""

from __future__ import annotations

import contextlib
import json
import math
from contextlib import asynccontextmanager

import attrs
import trio
import trio.testing
import trio_websocket

from semibot.channel import open_control_channel
from semibot.testing import simulated_ports

URL = "ws://host.test:8080/ws/vm"


class HostLink:
    """The host's end of one link."""

    def __init__(self, socket, path, stream):
        self.socket = socket
        self.path = path
        self.stream = stream
        self.messages = []  # every message as it came
        self._queue = []

    async def receive_message(self):
        message = await self.socket.get_message()
        self.messages.append(message)
        return message

    async def receive(self, *, heartbeats=False):
        """Return the next frame, those of a batch one by one."""
        while True:
            while not self._queue:
                value = json.loads(await self.receive_message())
                self._queue += value["frames"] if value["type"] == "batch" else [value]
            frame = self._queue.pop(0)
            if heartbeats or frame["type"] != "heartbeat":
                return frame

    async def receive_many(self, count):
        return [await self.receive() for _ in range(count)]

    async def collect(self, seconds):
        """Return every frame but heartbeats that comes within *seconds*."""
        frames = []
        with trio.move_on_after(seconds):
            while True:
                frames.append(await self.receive())
        return frames

    async def send(self, *frames):
        for frame in frames:
            await self.socket.send_message(json.dumps(frame))

    async def send_init(self, level=2, **data):
        fields = {"user_id": "u1", "org_id": "o1", "api_keys": {}}
        if level >= 2:
            fields |= {"protocol": level, "epoch": 7}
        await self.send({"type": "init", "data": {**fields, **data}})

    async def introduce(self, level=2, **data):
        """Take ``auth``, say ``init``."""
        auth = await self.receive()
        await self.send_init(level, **data)
        return auth

    async def settle(self, sessions=None, results=None):
        """Take ``resume`` and answer it; by default everything named goes on from where it is."""
        resume = await self.receive()
        assert resume["type"] == "resume"
        answer = {"type": "resume_response", "results": results or {}}
        if "sessions" in resume:
            named = {
                name: {"acked_seq": held["first_seq"] - 1}
                for name, held in resume["sessions"].items()
            }
            answer["sessions"] = {**named, **(sessions or {})}
        await self.send(answer)
        return resume

    async def bring_up(self, **data):
        auth = await self.introduce(**data)
        return auth, await self.settle()

    async def idle(self, seconds):
        """Stay alive for a while, and read nothing but to throw it away."""
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read_for_ever)
                while True:
                    await self.send({"type": "heartbeat"})
                    await trio.sleep(10)

    async def _read_for_ever(self):
        while True:
            await self.receive_message()

    async def wait_closed(self):
        """Return the close code that the VM sent."""
        try:
            while True:
                await self.receive_message()
        except trio_websocket.ConnectionClosed as exc:
            return exc.reason.code

    async def close(self, code, reason=""):
        await self.socket.aclose(code, reason)

    async def drop(self):
        """Lose the connection without a word."""
        await trio.aclose_forcefully(self.stream)


class ScriptedHost:
    def __init__(self, nursery, seed=0):
        self._nursery = nursery
        self.dialled = []
        self.refuses = False
        self.is_deaf = False  # takes connections and says nothing
        self.stream_pair = trio.testing.memory_stream_pair
        self.ports = attrs.evolve(simulated_ports(seed), dial=self.dial)
        self._put, self._links = trio.open_memory_channel(math.inf)

    async def dial(self, host, port, *, use_tls):
        await trio.lowlevel.checkpoint()
        self.dialled.append((trio.current_time(), host, port, use_tls))
        if self.refuses:
            raise ConnectionRefusedError("nobody is there")
        vm, ours = self.stream_pair()
        if self.is_deaf:
            self.kept = ours
        else:
            self._nursery.start_soon(self._serve, ours)
        return vm

    async def _serve(self, stream):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_with, stream, nursery)
            with contextlib.suppress(trio_websocket.ConnectionClosed):
                request = await trio_websocket.wrap_server_stream(
                    nursery, stream, max_message_size=2**24
                )
                socket = await request.accept()
                await self._put.send(HostLink(socket, request.path, stream))

    async def _close_with(self, stream, nursery):
        try:
            await trio.sleep_forever()
        finally:
            await trio.aclose_forcefully(stream)

    async def accept(self):
        return await self._links.receive()

    async def link(self, **data):
        """Bring the next link up."""
        link = await self.accept()
        await link.bring_up(**data)
        return link

    def open_channel(self, **options):
        settings = {"user_id": "u1", "token": "t1", "ports": self.ports, **options}
        return open_control_channel(URL, **settings)


@asynccontextmanager
async def open_host(seed=0):
    async with trio.open_nursery() as nursery:
        yield ScriptedHost(nursery, seed)
        nursery.cancel_scope.cancel()


class Handler:
    """Takes note of everything."""

    def __init__(self):
        self.settings = []
        self.commands = []
        self.dropped = []
        self.active = ()
        self.error = None

    def configure(self, settings):
        self.settings.append(settings)

    def command(self, frame):
        if self.error is not None:
            raise self.error
        self.commands.append(frame)

    def drop_session(self, session_id):
        self.dropped.append(session_id)

    def active_sessions(self):
        return self.active


def event(number, run_id="r1"):
    """Return what ``put_event`` takes."""
    return number, run_id, json.dumps({"type": "text_chunk", "content": f"word {number}"})
