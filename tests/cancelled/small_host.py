"""A whole host in memory, people who ask it, and VMs that say what a scenario wants."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlencode

import attrs
import trials
import trio
from host_kit import KEY, TOKEN_TTL, VmSocket, accept_message, open_core
from http_kit import Exchange
from trials import Trial

from semibot.config import Deadlines
from semibot.config.settings import HostSettings
from semibot.host.core import HostCore
from semibot.host.host import Host, open_host, run_core
from semibot.host.server import App
from semibot.ports import Ports
from semibot.security.tokens import Tokens
from semibot.testing import simulated_ports
from semibot.testing.ports import SimulatedWallClock

TOKENS: Final = Tokens(KEY, SimulatedWallClock(), TOKEN_TTL)

BOUNDS: Final = Deadlines()

LEAVING: Final = (
    BOUNDS.vm_stop + BOUNDS.child_kill_grace + BOUNDS.channel_close + BOUNDS.store_commit
)
"""What leaving ``open_host`` may take."""

HOST_BOUND: Final = "vm.stop + child.kill_grace + channel.close + store.commit"
"""The same in words."""

HTTP: Final[Mapping[str, object]] = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "scheme": "http",
    "query_string": b"",
    "root_path": "",
    "client": ("127.0.0.1", 5),
    "server": ("127.0.0.1", 80),
    "extensions": {"semibot": {"stalled": lambda: False}},
}


def settings(trial: Trial, **changes: Any) -> HostSettings:
    """Return the settings of a host whose users bring their VMs."""
    known: dict[str, Any] = {
        "data_dir": trial.database.parent,
        "host": "192.0.2.1",
        "jwt_secret": KEY,
        "deadlines": BOUNDS,
    }
    return HostSettings(**{**known, **changes})


@asynccontextmanager
async def open_small_host(
    trial: Trial, ports: Ports | None = None, *, announces: bool = True, **changes: Any
) -> AsyncGenerator[Host]:
    """Open a host, and let ``ann`` bring her VM."""
    async with open_host(settings(trial, **changes), ports=ports or simulated_ports()) as host:
        store = host._core.store
        if "jwt_secret" not in changes:
            await store.ensure_user("ann", "org", vm_mode="external")
            await store.ensure_vm("ann", "vm-ann", "external")
        if announces:
            await host.announce("http://127.0.0.1:8080")
        yield host


@attrs.define(eq=False)
class Parts:
    """A host without its HTTP side."""

    core: HostCore
    _count: int = 0

    @property
    def app(self) -> App:
        """What serves VMs."""
        return self.core.links.serve_socket

    async def post(self, session_id: str = "s1", user_id: str = "ann") -> str:
        """Store a message, have it dispatched, and return its run."""
        self._count += 1
        accepted = await accept_message(self.core, user_id, session_id, f"r{self._count}", "hi")
        return accepted.run_id


@asynccontextmanager
async def open_parts(
    trial: Trial, ports: Ports | None = None, **changes: Any
) -> AsyncGenerator[Parts]:
    """Run the parts of a host, and let ``ann`` bring her VM."""
    options = settings(trial, **changes)
    async with open_core(options, ports or simulated_ports()) as core:
        await core.store.ensure_user("local", "local", vm_mode="local")
        await core.store.ensure_user("ann", "org", vm_mode="external")
        await core.store.ensure_vm("ann", "vm-ann", "external")
        trial.parts["host"] = core
        async with run_core(core):
            core.scheduler.announce("ws://127.0.0.1:8080/ws/vm")
            yield Parts(core)


# --- people -----------------------------------------------------------------------------


@asynccontextmanager
async def open_request(
    app: App, method: str, path: str, body: object = None
) -> AsyncGenerator[Exchange]:
    """Begin a request of ``ann``; the block's end is the end of her connection."""
    exchange = Exchange()
    data = b"" if body is None else json.dumps(body).encode()
    headers = {
        "host": "127.0.0.1:80",
        "content-type": "application/json",
        "content-length": str(len(data)),
        "authorization": "Bearer " + TOKENS.make_user_token("ann", "org"),
    }
    scope = {
        **HTTP,
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    exchange.feed(data)

    async def serve() -> None:
        await app(scope, exchange.receive, exchange.send)
        exchange.returned()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        yield exchange
        exchange.disconnect()
        nursery.cancel_scope.cancel()


async def ask(app: App, method: str, path: str, body: object = None) -> Exchange:
    """Make a request, and return the whole answer."""
    async with open_request(app, method, path, body) as exchange:
        await exchange.wait_returned()
    return exchange


# --- VMs --------------------------------------------------------------------------------


class HandVm(VmSocket):
    """One socket of a VM, which knows what VMs say."""

    def __init__(
        self,
        app: App,
        trial: Trial,
        user: str = "ann",
        boot: str = "boot-a",
        dial: int = 1,
        *,
        ticket: str | None = None,
        tokens: Tokens = TOKENS,
        events: dict[str, list[dict[str, Any]]] | None = None,
    ) -> None:
        super().__init__()
        self.connect()
        self.app = app
        self.trial = trial
        self.user = user
        self.boot = boot
        self.dial = dial
        self.ticket = ticket
        self.tokens = tokens
        self.has_ended = False
        self.fenced: set[str] = set()
        """Sessions that the host has given up."""
        self.events = {} if events is None else events
        """What each session has said; the next process or link goes on from there."""

    @property
    def close_code(self) -> int | None:
        return None if self.closed is None else self.closed[0]

    # --- the socket -------------------------------------------------------------------

    async def serve(self) -> None:
        """Be connected until the host is done with it."""
        query = {"user_id": self.user, **({"ticket": self.ticket} if self.ticket else {})}
        scope = {
            **HTTP,
            "type": "websocket",
            "path": "/ws/vm",
            "headers": [(b"host", b"127.0.0.1:80")],
            "query_string": urlencode(query).encode(),
        }
        try:
            await self.app(scope, self.receive, self.send)
        finally:
            self.has_ended = True
            self.notify()

    def hear_frame(self, frame: dict[str, Any]) -> None:
        self._note_ack(frame)
        super().hear_frame(frame)

    def _note_ack(self, frame: dict[str, Any]) -> None:
        """Note what the host has acknowledged: it has to be in the store."""
        if frame["type"] == "ack":
            acknowledged: Any = self.trial.parts.setdefault("events", [])
            acknowledged += (frame.get("sessions") or {}).items()

    async def hear(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Wait for a frame of a kind, and take it."""
        while (frame := self.take(kind, **fields)) is None:
            assert not self.has_ended, f"no {kind}; closed with {self.close_code}"
            await self.wait_news()
        return frame

    # --- what VMs do ------------------------------------------------------------------

    def token(self) -> str:
        return self.tokens.make_vm_token(self.user, "org" if self.user == "ann" else self.user)

    async def come_up(self) -> None:
        """Introduce itself up to ``resume_response``, and say again what was not committed."""
        self.say(
            type="auth",
            token=self.token(),
            protocol={"min": 1, "max": 2},
            boot_id=self.boot,
            dial=self.dial,
        )
        await self.hear("init")
        held = {
            session_id: {"term": 1, "first_seq": 1, "last_seq": len(said)}
            for session_id, said in self.events.items()
        }
        self.say(type="resume", pending_ids=[], sessions=held)
        answer = await self.hear("resume_response")
        statuses = answer.get("sessions") or {}
        self.fenced = {session_id for session_id in statuses if statuses[session_id].get("fenced")}
        for session_id, status in statuses.items():
            for frame in self.events.get(session_id, [])[status.get("acked_seq") or 0 :]:
                self.say(**frame)

    def event(self, session_id: str, run_id: str, kind: str, **data: Any) -> None:
        said = self.events.setdefault(session_id, [])
        body = (
            {"type": kind, **data}
            if kind == "text_chunk"
            else {"type": kind, "run_id": run_id, **data}
        )
        frame = {
            "type": "sse_event",
            "session_id": session_id,
            "term": 1,
            "seq": len(said) + 1,
            "run_id": run_id,
            "data": json.dumps(body),
        }
        said.append(frame)
        self.say(**frame)

    async def begin(self) -> tuple[str, str]:
        """Take the next message and begin its run; return session and run."""
        message = await self.hear("user_message")
        session_id, run_id = message["session_id"], message["run_id"]
        self.event(session_id, run_id, "run_started", message_id="m", message="hi")
        self.say(type="ack", commands=[message["command_id"]])
        return session_id, run_id

    def end(self, session_id: str, run_id: str, **end: Any) -> None:
        self.event(session_id, run_id, "execution_complete", **(end or {"final_response": "done"}))

    async def answer(self) -> None:
        """Answer the next message."""
        session_id, run_id = await self.begin()
        self.event(session_id, run_id, "text_chunk", content="one")
        self.end(session_id, run_id)


async def connect(nursery: trio.Nursery, vm: HandVm) -> HandVm:
    nursery.start_soon(vm.serve)
    await vm.come_up()
    return vm


__all__ = [
    "HandVm",
    "Parts",
    "ask",
    "connect",
    "open_parts",
    "open_request",
    "open_small_host",
    "trials",
]
