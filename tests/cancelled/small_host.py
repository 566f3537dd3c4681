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
from http_kit import Exchange
from trials import Trial

from semibot.config import Deadlines
from semibot.config.settings import HostSettings
from semibot.host.dispatch import Dispatcher
from semibot.host.host import Host, open_host
from semibot.host.links import Links
from semibot.host.metrics import Metrics
from semibot.host.relay import Relay
from semibot.host.scheduler import Scheduler
from semibot.host.server import App
from semibot.lifetimes import grace, open_services
from semibot.ports import Ports
from semibot.secret import Secret
from semibot.security.tokens import Tokens
from semibot.store.base import NewMessage, NewSession
from semibot.store.sqlite import SqliteStore, open_sqlite_store
from semibot.testing import simulated_ports
from semibot.testing.ports import SimulatedWallClock

KEY: Final = Secret("correct-length-and-quite-random-8f2a61c0")
TOKENS: Final = Tokens(KEY, SimulatedWallClock(), 12 * 3600.0)

BOUNDS: Final = Deadlines()

LEAVING: Final = (
    BOUNDS.vm_stop + BOUNDS.child_kill_grace + BOUNDS.channel_close + BOUNDS.store_commit
)
"""What leaving ``open_host`` may take."""

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
    """A host without its HTTP side, put together as ``open_host`` does."""

    store: SqliteStore
    relay: Relay
    links: Links
    dispatcher: Dispatcher
    scheduler: Scheduler
    _count: int = 0

    @property
    def app(self) -> App:
        """What serves VMs."""
        return self.links.serve_socket

    async def post(self, session_id: str = "s1", user_id: str = "ann") -> str:
        """Store a message, have it dispatched, and return its run."""
        self._count += 1
        run_id = f"r{self._count}"
        is_new = await self.store.get_session(user_id, session_id) is None
        new = NewSession(agent_id=None, runtime_type="semigraph", openclaw_config=None)
        await self.store.accept_message(
            NewMessage(
                user_id=user_id,
                session_id=session_id,
                create=new if is_new else None,
                message="hi",
                message_id=f"m-{run_id}",
                run_id=run_id,
                command_id=f"c-{run_id}",
                cancel_ids=tuple(f"x-{run_id}-{i}" for i in range(17)),
                on_busy="enqueue",
                expires_at=None,
                idempotency=None,
            )
        )
        self.dispatcher.kick(session_id, user_id)
        return run_id


@asynccontextmanager
async def open_parts(
    trial: Trial, ports: Ports | None = None, **changes: Any
) -> AsyncGenerator[Parts]:
    """Open the parts of a host, and let ``ann`` bring her VM."""
    options = settings(trial, **changes)
    bounds = options.deadlines
    ports = ports or simulated_ports()
    async with open_sqlite_store(trial.database, ports=ports, deadlines=bounds) as store:
        await store.ensure_user("local", "local", vm_mode="local")
        await store.ensure_user("ann", "org", vm_mode="external")
        await store.ensure_vm("ann", "vm-ann", "external")
        relay = Relay(store, ports, bounds)
        links = Links(
            store=store,
            relay=relay,
            tokens=TOKENS,
            settings=options,
            metrics=Metrics(),
            ports=ports,
            deadlines=bounds,
        )
        dispatcher = Dispatcher(
            store=store,
            relay=relay,
            links=links,
            settings=options,
            ports=ports,
            deadlines=bounds,
        )
        scheduler = Scheduler(
            store=store,
            links=links,
            tokens=TOKENS,
            settings=options,
            deadlines=bounds,
            ports=ports,
        )
        links.observe(scheduler)
        parts = trial.parts["host"] = Parts(store, relay, links, dispatcher, scheduler)
        async with open_services() as services:
            services.start_soon(links.serve)
            services.start_soon(dispatcher.serve)
            try:
                async with open_services() as starting:
                    starting.start_soon(scheduler.serve)
                    scheduler.announce("ws://127.0.0.1:8080/ws/vm")
                    yield parts
            finally:
                with grace("channel.close", bounds.channel_close):
                    relay.close()
                    await links.close_all(1012, "restarting")


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


@attrs.define(eq=False, slots=False)
class HandVm:
    """One socket of a VM, from the VM's end."""

    app: App
    trial: Trial
    user: str = "ann"
    boot: str = "boot-a"
    dial: int = 1
    ticket: str | None = None
    tokens: Tokens = TOKENS
    close_code: int | None = None
    has_ended: bool = False
    fenced: set[str] = attrs.field(factory=set[str])
    """Sessions that the host has given up."""
    events: dict[str, list[dict[str, Any]]] = attrs.field(factory=dict[str, list[dict[str, Any]]])
    """What each session has said; the next process or link goes on from there."""
    _heard: list[dict[str, Any]] = attrs.field(factory=list[dict[str, Any]])
    _news: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self._put, self._received = trio.open_memory_channel[dict[str, Any]](1000)
        self._put.send_nowait({"type": "websocket.connect"})

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
            await self.app(scope, self._receive, self._send)
        finally:
            self.has_ended = True
            self._news.set()

    async def _receive(self) -> dict[str, Any]:
        try:
            return await self._received.receive()
        except trio.EndOfChannel:
            return {"type": "websocket.disconnect", "code": 1006}

    async def _send(self, message: Any) -> None:
        await trio.lowlevel.checkpoint()
        if message["type"] == "websocket.send":
            frame = json.loads(message["text"])
            for each in frame["frames"] if frame["type"] == "batch" else [frame]:
                self._note_ack(each)
                self._heard.append(each)
        elif message["type"] == "websocket.close":
            self.close_code = message["code"]
        self._news.set()
        self._news = trio.Event()

    def _note_ack(self, frame: dict[str, Any]) -> None:
        """Note what the host has acknowledged: it has to be in the store."""
        if frame["type"] == "ack":
            acknowledged: Any = self.trial.parts.setdefault("events", [])
            acknowledged += (frame.get("sessions") or {}).items()

    def say(self, **frame: Any) -> None:
        self._put.send_nowait({"type": "websocket.receive", "text": json.dumps(frame)})

    def hang_up(self) -> None:
        self._put.close()

    async def hear(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Wait for a frame of a kind, and take it."""
        while True:
            for frame in self._heard:
                if frame["type"] == kind and all(frame.get(k) == v for k, v in fields.items()):
                    self._heard.remove(frame)
                    return frame
            assert not self.has_ended, f"no {kind}; closed with {self.close_code}"
            await self._news.wait()

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


__all__ = ["HandVm", "Parts", "ask", "open_parts", "open_request", "open_small_host", "trials"]
