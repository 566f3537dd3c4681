"""The servers that are compared: how each is started, linked to and read from."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Protocol

import attrs
import trio
from bench_wire import Line, Link, Reader, open_link, open_reader

from semibot.live import live_ports
from semibot.secret import Secret
from semibot.security.tokens import Tokens

SERVERS = Path(__file__).parent / "servers"
SECRET = "of-no-worth-outside-of-this-benchmark-5d1c"
START_SECONDS = 60.0
ORG = "bench"

# --- processes ------------------------------------------------------------------------


@attrs.frozen
class ServerProcess:
    """A server that runs."""

    process: subprocess.Popen
    port: int

    def cpu_seconds(self) -> float:
        """Return what all its threads have used, user and system, also those that ended."""
        # What `clock_getcpuclockid` returns on Linux: exact, where /proc counts in 10 ms.
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def rss_bytes(self) -> int:
        """Return what it has in memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@asynccontextmanager
async def open_process(program: str, *arguments: str) -> AsyncGenerator[ServerProcess]:
    """Run one of the programs in ``servers`` until the block is left."""
    command = [sys.executable, str(SERVERS / program), *arguments]
    process = subprocess.Popen(  # noqa: ASYNC220 - it takes no time worth a thread
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "BENCH_SECRET": SECRET},
    )
    try:
        with trio.fail_after(START_SECONDS):
            words = (await trio.to_thread.run_sync(process.stdout.readline)).split()
        assert words, f"{program} did not start"
        yield ServerProcess(process, int(words[-1]))
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@contextmanager
def closing_all(streams: list[trio.SocketStream]) -> Generator[None]:
    """Close connections when the block is left, before their server is killed."""
    try:
        yield
    finally:
        for stream in streams:
            stream.socket.close()


# --- what a measurement sees ----------------------------------------------------------


class Plane(Protocol):
    """A running server with at most one VM that carries sessions."""

    server: ServerProcess
    streams: list[trio.SocketStream]
    """Its connections, closed with it."""

    async def open_sessions(self, count: int) -> tuple[Link, list[Line], list[Reader]]:
        """Link a VM that holds *count* sessions, each with one reader."""

    async def drain(self, link: Link, lines: list[Line]) -> None:
        """Wait until everything before ``next_seq`` of *lines* is as safe as it will be."""

    async def open_idle_link(self, number: int) -> Link:
        """Link one more VM that has nothing to say."""


class Peer(Protocol):
    """Something to compare."""

    name: str

    @property
    def is_installed(self) -> bool:
        """Whether it can be run here."""

    def open(self, users: int) -> AsyncGenerator[Plane]:
        """Run it; *users* is how many VMs it will be asked to link."""


# --- semibot --------------------------------------------------------------------------


@attrs.define(eq=False)
class SemibotPlane:
    """The real host. All sessions of a run belong to one user, so to one VM link."""

    server: ServerProcess
    _tokens: Tokens
    streams: list[trio.SocketStream] = attrs.field(factory=list)
    _acked: dict[str, int] = attrs.field(factory=dict[str, int])

    async def open_idle_link(self, number: int) -> Link:
        user = f"user-{number}"
        link = await open_link(self.server.port, f"/ws/vm?user_id={user}")
        self.streams.append(link.stream)
        await link.send(
            type="auth",
            token=self._tokens.make_vm_token(user, ORG),
            protocol={"min": 1, "max": 2},
            boot_id=f"boot-of-{user}",
            dial=1,
            features=[],
        )
        assert (await link.receive())[0]["type"] == "init"
        await link.send(type="resume", pending_ids=[], sessions={})
        await link.send(type="heartbeat", active_sessions=[])
        heard: set[object] = set()
        while not heard >= {"resume_response", "heartbeat"}:
            heard.update(frame["type"] for frame in await link.receive())
        return link

    async def open_sessions(self, count: int) -> tuple[Link, list[Line], list[Reader]]:
        link = await self.open_idle_link(0)
        token = self._tokens.make_user_token("user-0", ORG)
        readers: list[Reader] = []

        async def start_one() -> None:
            body = {"message": "go on", "on_disconnect": "continue"}
            path = "/api/v1/chat/start"
            readers.append(await open_reader(self.server.port, "POST", path, body, token))
            self.streams.append(readers[-1].stream)

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(start_one)
            lines = await self._start_runs(link, count)
        return link, [lines[reader.session_id] for reader in readers], readers

    async def _start_runs(self, link: Link, count: int) -> dict[str, Line]:
        """Do what a VM does with commands, until *count* runs are open."""
        numbers: dict[str, tuple[int, int]] = {}
        lines: dict[str, Line] = {}
        while len(lines) < count:
            for frame in await link.receive():
                data = frame.get("data")
                if frame["type"] == "start_session":
                    numbers[data["session_id"]] = (frame["term"], frame["next_seq"])
                    await link.send(type="ack", commands=[frame["command_id"]])
                elif frame["type"] == "user_message":
                    session_id, run_id = frame["session_id"], frame["run_id"]
                    term, seq = numbers[session_id]
                    await link.send(
                        type="sse_event",
                        session_id=session_id,
                        term=term,
                        seq=seq,
                        run_id=run_id,
                        data=f'{{"type":"run_started","run_id":"{run_id}","message_id":"m",'
                        '"message":"go on"}',
                    )
                    await link.send(type="ack", commands=[frame["command_id"]])
                    lines[session_id] = Line(session_id, run_id, term, seq + 1)
                else:
                    self._note(frame)
        return lines

    def _note(self, frame: dict[str, object]) -> None:
        assert frame["type"] in {"ack", "heartbeat"}, frame
        self._acked.update(frame.get("sessions") or {})

    async def drain(self, link: Link, lines: list[Line]) -> None:
        while any(self._acked.get(line.session_id, 0) < line.next_seq - 1 for line in lines):
            for frame in await link.receive():
                self._note(frame)


class SemibotPeer:
    """This project."""

    name = "semibot"
    is_installed = True

    @asynccontextmanager
    async def open(self, users: int) -> AsyncGenerator[Plane]:
        ports = live_ports()
        tokens = Tokens(Secret(SECRET), ports.wall_clock, 3600.0)
        with tempfile.TemporaryDirectory(prefix="semibot-bench-") as directory:
            async with open_process("semibot_host.py", directory, str(users)) as server:
                plane = SemibotPlane(server, tokens)
                with closing_all(plane.streams):
                    yield plane


# --- plain relays ---------------------------------------------------------------------


@attrs.define(eq=False)
class RelayPlane:
    """A relay that knows no runs, tokens or disks."""

    server: ServerProcess
    streams: list[trio.SocketStream] = attrs.field(factory=list)

    async def open_idle_link(self, number: int) -> Link:
        link = await open_link(self.server.port, f"/ws/vm?user_id=user-{number}")
        self.streams.append(link.stream)
        await link.send(type="heartbeat", session_id="")
        return link

    async def open_sessions(self, count: int) -> tuple[Link, list[Line], list[Reader]]:
        link = await self.open_idle_link(0)
        # Names as long as semibot's, so that frames are.
        lines = [Line(f"session-{n:024}", f"run-{n:028}", 1, 1) for n in range(count)]
        readers = [
            await open_reader(self.server.port, "GET", f"/stream/{line.session_id}")
            for line in lines
        ]
        self.streams += [reader.stream for reader in readers]
        return link, lines, readers

    async def drain(self, link: Link, lines: list[Line]) -> None:
        """Return at once: what readers have is all that there ever will be."""


@attrs.frozen
class RelayPeer:
    """One of the relays in ``servers``."""

    name: str
    program: str
    needs: tuple[str, ...]

    @property
    def is_installed(self) -> bool:
        return all(importlib.util.find_spec(name) for name in self.needs)

    @asynccontextmanager
    async def open(self, users: int) -> AsyncGenerator[Plane]:
        async with open_process(self.program) as server:
            plane = RelayPlane(server)
            with closing_all(plane.streams):
                yield plane


PEERS: tuple[Peer, ...] = (
    SemibotPeer(),
    RelayPeer("quart-trio", "quart_trio_relay.py", ("quart_trio",)),
    RelayPeer("starlette", "starlette_relay.py", ("starlette", "uvicorn")),
)
"""In the order in which they are run in every round."""
