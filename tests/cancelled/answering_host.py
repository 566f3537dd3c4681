"""A host in memory that answers as hosts do, link after link, and notes what it was told."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import trio
import trio.testing
import trio_websocket
from scripted_host import HostLink

from semibot.channel import ControlChannel, open_control_channel
from semibot.testing import faulty_ports, simulated_ports

URL = "ws://host.test:8080/ws/vm"

GONE = (
    trio_websocket.ConnectionClosed,
    trio_websocket.HandshakeError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)
"""What a host sees of a VM that went away."""

Behaviour = Callable[["AnsweringHost", HostLink], Awaitable[object]]
"""What the host does on one link; the link is cut when it returns."""


class AnsweringHost:
    """Takes links outside of the block that is cancelled, and behaves on each as it is told."""

    def __init__(self, behaviours: Sequence[Behaviour], level: int, make_pair: Any) -> None:
        self._behaviours = list(behaviours)
        self._level = level
        self._make_pair = make_pair
        self._put, self._dialled = trio.open_memory_channel[Any](math.inf)
        self.refusals = 0
        """How many dials are still refused."""
        self.dials = 0
        """How many dials were taken."""
        self.links = 0
        self.seen: dict[str, int] = defaultdict(int)
        """Newest event of each session; they came without a gap."""
        self.reports: list[str] = []
        """Ids of reports, repeats too."""
        self.notes: list[dict[str, Any]] = []
        """Answers to commands."""
        self.problems: list[str] = []
        self.ports = faulty_ports(attrs.evolve(simulated_ports(), dial=self._dial))

    def open_channel(self, **options: Any) -> AbstractAsyncContextManager[ControlChannel]:
        settings: dict[str, Any] = {"user_id": "u1", "token": "t1", "ports": self.ports}
        return open_control_channel(URL, **{**settings, **options})

    async def _dial(self, host: str, port: int, *, use_tls: bool) -> Any:
        await trio.lowlevel.checkpoint()
        if self.refusals:
            self.refusals -= 1
            raise ConnectionRefusedError("nobody is there")
        self.dials += 1
        vm, ours = self._make_pair()
        self._put.send_nowait(ours)
        return vm

    # --- on its side ------------------------------------------------------------------

    async def serve(self) -> None:
        async with trio.open_nursery() as nursery:
            async for stream in self._dialled:
                nursery.start_soon(self._take, stream)

    async def _take(self, stream: Any) -> None:
        behaviour = self._behaviours.pop(0) if len(self._behaviours) > 1 else self._behaviours[0]
        try:
            async with trio.open_nursery() as nursery:
                request = await trio_websocket.wrap_server_stream(nursery, stream)
                link = HostLink(await request.accept(), request.path, stream)
                self.links += 1
                await behaviour(self, link)
                nursery.cancel_scope.cancel()
        except* GONE:
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def bring_up(self, link: HostLink) -> None:
        """Take ``auth``, say ``init``; take ``resume``, and say where each session stands."""
        await link.introduce(self._level)
        if self._level >= 2:
            known = {name: {"acked_seq": seq} for name, seq in self.seen.items()}
            await link.settle(sessions=known)

    async def answer(self, link: HostLink, count: float = math.inf) -> None:
        """Answer *count* frames that are no heartbeats, or all."""
        while count > 0:
            frame = await link.receive(heartbeats=True)
            count -= frame["type"] != "heartbeat"
            await self._answer(link, frame)

    async def _answer(self, link: HostLink, frame: dict[str, Any]) -> None:
        match frame:
            case {"type": "heartbeat"}:
                await link.send({"type": "heartbeat", "echo": frame.get("sent_at")})
            case {"type": "resume"}:  # of level 1, which comes with reconnects only
                await link.send({"type": "resume_response", "results": {}})
            case {"type": "request", "id": id}:
                await link.send({"type": "response", "id": id, "result": {}, "error": None})
            case {"type": "sse_event", "session_id": session_id, "seq": seq}:
                if seq > self.seen[session_id] + 1:
                    self.problems.append(f"event {seq} came after {self.seen[session_id]}")
                self.seen[session_id] = max(seq, self.seen[session_id])
                await link.send({"type": "ack", "sessions": {session_id: seq}, "ids": []})
            case {"type": "fire_and_forget", "id": id}:
                self.reports.append(id)
                await link.send({"type": "ack", "sessions": {}, "ids": [id]})
            case {"type": "ack" | "cancelled"}:
                self.notes.append(frame)
                ids = frame.get("commands") or [frame.get("command_id")]
                await link.send({"type": "ack", "sessions": {}, "ids": ids})


# --- behaviours -----------------------------------------------------------------------


async def be_helpful(host: AnsweringHost, link: HostLink) -> None:
    await host.bring_up(link)
    await host.answer(link)


def cut_after(count: int) -> Behaviour:
    """Answer so many frames, and then cut the link without a word."""

    async def behave(host: AnsweringHost, link: HostLink) -> None:
        await host.bring_up(link)
        await host.answer(link, count)
        await link.drop()

    return behave


def say(*frames: dict[str, Any]) -> Behaviour:
    """Say something once the link is up, and be helpful."""

    async def behave(host: AnsweringHost, link: HostLink) -> None:
        await host.bring_up(link)
        await link.send(*frames)
        await host.answer(link)

    return behave


async def be_deaf(host: AnsweringHost, link: HostLink) -> None:
    """Bring the link up and read nothing from then on."""
    await host.bring_up(link)
    await trio.sleep_forever()


async def refuse(host: AnsweringHost, link: HostLink) -> None:
    """Refuse the VM for good."""
    await link.receive()
    await link.close(4001)


@asynccontextmanager
async def open_answering_host(
    *behaviours: Behaviour,
    level: int = 2,
    make_pair: Any = trio.testing.memory_stream_pair,
) -> AsyncGenerator[AnsweringHost]:
    """Serve VMs until the block ends; open it outside of the block that is cancelled."""
    host = AnsweringHost(behaviours or (be_helpful,), level, make_pair)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(host.serve)
        yield host
        nursery.cancel_scope.cancel()
