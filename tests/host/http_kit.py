"""A host's HTTP side without sockets: the real app and relay, and fakes of what is behind them."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import attrs
import trio

from semibot.config import Deadlines
from semibot.config.settings import HostSettings
from semibot.errors import (
    BadCursor,
    IdempotencyConflict,
    NotFound,
    SemibotError,
    SessionBusy,
    StoreError,
)
from semibot.host.app import make_app
from semibot.host.liveness import Pulses
from semibot.host.metrics import Metrics
from semibot.host.relay import Relay
from semibot.observe.standstill import Standstill
from semibot.secret import Secret
from semibot.security.principals import Principals
from semibot.security.tokens import Tokens
from semibot.store.base import (
    AgentRow,
    CancelAsked,
    MessageAccepted,
    MessageRow,
    MessagesPage,
    NewMessage,
    Page,
    ResyncView,
    SessionRow,
    SessionsPage,
    StoredEvent,
)
from semibot.testing import simulated_ports
from semibot.testing.ports import EPOCH


class FixedClock:
    """Stands still, so that tokens last as long as a test does."""

    def now(self) -> datetime:
        return EPOCH


KEY = Secret("correct-length-and-quite-random-8f2a61c0")


TOKENS = Tokens(KEY, FixedClock(), 3600.0)
ANN = {"authorization": "Bearer " + TOKENS.make_user_token("ann", "org")}
BOB = {"authorization": "Bearer " + TOKENS.make_user_token("bob", "org")}


def event(seq: int, kind: str = "text_chunk", *, run_id: str, term: int = 1, **data: object):
    text = json.dumps({"type": kind, **data})
    return StoredEvent(term=term, seq=seq, run_id=run_id, type=kind, data=text)


class FakeStore:
    """What a host remembers, as far as HTTP asks for it."""

    def __init__(self) -> None:
        self.failure: str | None = None
        self.sessions: dict[str, SessionRow] = {}
        self.deleted: set[tuple[str, str]] = set()
        self.agents: dict[tuple[str, str], AgentRow] = {}
        self.users: list[str] = []
        self.accepted: list[NewMessage] = []
        self.keys: dict[tuple[str, str], tuple[str, object]] = {}
        self.open_runs: list[str] = []
        self.messages: tuple[MessageRow, ...] = ()
        self.events: dict[str, list[StoredEvent]] = {}
        self.vm: object = None
        self.checks = 0
        self.fail: dict[str, Exception] = {}
        self.gate: trio.Event | None = None

    def _may_fail(self, name: str) -> None:
        if name in self.fail:
            raise self.fail[name]

    def add_session(self, session_id: str = "s1", user_id: str = "ann", **changes: object):
        row = SessionRow(
            id=session_id,
            user_id=user_id,
            org_id="org",
            agent_id=None,
            title="Hello",
            runtime_type="semigraph",
            openclaw_config=None,
            term=1,
            holder_vm="vm",
            holder_boot="secret-hash",
            last_seq=0,
            created_at=1_000,
            updated_at=2_000,
        )
        self.sessions[session_id] = attrs.evolve(row, **changes)

    async def check(self) -> None:
        self.checks += 1
        self._may_fail("check")
        self.failure = None

    async def ensure_user(self, user_id: str, org_id: str, *, vm_mode: object) -> None:
        self.users.append(user_id)

    async def get_agent(self, org_id: str, agent_id: str) -> AgentRow | None:
        return self.agents.get((org_id, agent_id))

    async def get_session(self, user_id: str, session_id: str) -> SessionRow | None:
        self._may_fail("get_session")
        row = self.sessions.get(session_id)
        return row if row is not None and row.user_id == user_id else None

    async def was_deleted(self, user_id: str, session_id: str) -> bool:
        return (user_id, session_id) in self.deleted

    async def find_accepted(self, message: NewMessage) -> MessageAccepted | None:
        known = self.keys.get((message.user_id, message.idempotency[0]))
        if known is None:
            return None
        if known[0] != message.idempotency[1]:
            raise IdempotencyConflict("other body")
        if known[1].session_id not in self.sessions:
            raise NotFound("deleted")
        return attrs.evolve(known[1], is_repeat=True)

    async def accept_message(self, message: NewMessage) -> MessageAccepted:
        if self.gate is not None:
            await self.gate.wait()
        self._may_fail("accept_message")
        if message.idempotency is not None:
            known = await self.find_accepted(message)
            if known is not None:
                return known
        if message.create is not None:
            self.add_session(
                message.session_id, message.user_id, runtime_type=message.create.runtime_type
            )
        elif await self.get_session(message.user_id, message.session_id) is None:
            raise NotFound("gone")
        elif message.on_busy == "reject" and self.open_runs:
            raise SessionBusy(message.session_id, len(self.open_runs))
        self.accepted.append(message)
        accepted = MessageAccepted(
            session_id=message.session_id,
            run_id=message.run_id,
            message_id=message.message_id,
            after_seq=self.sessions[message.session_id].last_seq,
            is_repeat=False,
        )
        if message.idempotency is not None:
            key, body_hash = message.idempotency
            self.keys[message.user_id, key] = (body_hash, accepted)
        return accepted

    async def remember_answer(self, user_id: str, key: str, body_hash: str, answer: object):
        known = self.keys.setdefault((user_id, key), (body_hash, answer))
        if known[0] != body_hash:
            raise IdempotencyConflict("other body")
        return known[1]

    async def session_work(self, session_id: str) -> object:
        return SimpleNamespace(open_runs=tuple(SimpleNamespace(id=run) for run in self.open_runs))

    async def newest_vm(self, user_id: str) -> object:
        return self.vm

    async def list_sessions(self, user_id: str, cursor: str | None, limit: int) -> SessionsPage:
        if cursor not in (None, "c1"):
            raise BadCursor("foreign")
        rows = tuple(row for row in self.sessions.values() if row.user_id == user_id)
        return SessionsPage(sessions=rows[:limit], next_cursor="c1" if len(rows) > limit else None)

    async def list_messages(
        self, user_id: str, session_id: str, cursor: str | None, limit: int
    ) -> MessagesPage:
        if await self.get_session(user_id, session_id) is None:
            raise NotFound("gone")
        return MessagesPage(messages=self.messages, next_cursor=None, last_event_id="1-7")

    async def list_audit(self, user_id: str, cursor: str | None, limit: int) -> Page:
        return Page(rows=({"event": "login", "user": user_id},), next_cursor=None)

    async def list_usage(self, user_id: str, cursor: str | None, limit: int) -> Page:
        return Page(rows=({"model": "m", "limit": limit},), next_cursor="n")

    async def daily_usage(self, user_id: str, days: int) -> tuple[Mapping[str, object], ...]:
        return ({"day": "2026-01-01", "days": days},)

    async def tail_start(self, session_id: str) -> tuple[int, int] | None:
        self._may_fail("tail_start")
        row = self.sessions.get(session_id)
        return None if row is None else (row.term, row.last_seq)

    async def read_events(self, session_id: str, after_seq: int, max_bytes: int):
        found = self.events.get(session_id, [])
        return tuple(each for each in found if each.seq > after_seq)

    async def resync_view(self, session_id: str, max_bytes: int) -> ResyncView | None:
        row = self.sessions.get(session_id)
        if row is None:
            return None
        return ResyncView(
            term=row.term, last_seq=row.last_seq, messages=(), run=None, truncated=False
        )


class FakeDispatcher:
    """Takes commands and notes them."""

    def __init__(self, store: FakeStore) -> None:
        self.store = store
        self.kicked: list[str] = []
        self.cancelled: list[tuple[str, str, str | None, str]] = []
        self.cancel_times: list[float] = []
        self.answer = CancelAsked(state="pending", run_id="r1", receipt=None, command_id="k1")
        self.receipt: dict[str, object] | None = {"run_id": "r1", "outcome": "cancelled"}
        self.fail: Exception | None = None
        self.seconds = 0.0

    def kick(self, session_id: str, user_id: str) -> None:
        self.kicked.append(session_id)

    async def cancel(
        self, user_id: str, session_id: str, run_id: str | None, reason: str
    ) -> CancelAsked:
        await trio.sleep(self.seconds)
        if self.fail is not None:
            raise self.fail
        self.cancelled.append((user_id, session_id, run_id, reason))
        self.cancel_times.append(trio.current_time())
        return self.answer

    async def wait_receipt(self, run_id: str, command_id: str) -> dict[str, object]:
        if self.receipt is None:
            await trio.sleep_forever()
        return self.receipt

    async def delete_session(self, user_id: str, session_id: str) -> bool:
        self.store.deleted.add((user_id, session_id))
        return self.store.sessions.pop(session_id, None) is not None


class FakeScheduler:
    """Knows whether the VM is up."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.seconds = 0.0
        self.asked = 0
        self.on_asked = lambda: None
        self.rebootstraps = 0
        self.state: dict[str, object] = {"status": "missing"}

    async def ensure_ready(self, user_id: str) -> None:
        self.asked += 1
        self.on_asked()
        await trio.sleep(self.seconds)
        if self.error is not None:
            raise self.error

    async def status(self, user_id: str) -> dict[str, object]:
        return self.state

    async def rebootstrap(self, user_id: str) -> dict[str, object]:
        self.rebootstraps += 1
        return {"ready": False, "status": "provisioning", "instanceId": "v1"}


class FakeLinks:
    """Serves VMs."""

    def __init__(self) -> None:
        self.served: list[str] = []
        self.pulses = Pulses(Standstill(), Deadlines(), Metrics())

    async def serve_socket(self, scope, receive, send) -> None:
        self.served.append(scope["path"])


@attrs.define(eq=False)
class Answered:
    """A whole answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def code(self) -> str:
        assert self.json["success"] is False
        return self.json["error"]["code"]

    @property
    def data(self):
        assert self.json["success"] is True, self.json
        return self.json["data"]


class Exchange:
    """One request on its way: what the app reads and what it has sent so far."""

    def __init__(self) -> None:
        self._to_app, self._from_test = trio.open_memory_channel[dict](math.inf)
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.body = b""
        self.is_complete = False
        self.has_returned = False
        self.send_error: Exception | None = None
        self.send_blocks = False
        self.is_stalled = False
        self._changed = trio.Event()

    async def receive(self) -> dict:
        return await self._from_test.receive()

    def feed(self, body: bytes, *, more: bool = False) -> None:
        self._to_app.send_nowait({"type": "http.request", "body": body, "more_body": more})

    def disconnect(self) -> None:
        self._to_app.send_nowait({"type": "http.disconnect"})

    async def send(self, message) -> None:
        await trio.lowlevel.checkpoint()
        if self.send_blocks:
            await trio.sleep_forever()
        if self.send_error is not None:
            raise self.send_error
        if message["type"] == "http.response.start":
            assert self.status is None
            self.status = message["status"]
            for name, value in message["headers"]:
                assert name.decode().lower() not in self.headers, name
                self.headers[name.decode().lower()] = value.decode()
        else:
            assert not self.is_complete
            self.body += message.get("body", b"")
            self.is_complete = not message.get("more_body", False)
        self._notify()

    def _notify(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def wait_for(self, condition) -> None:
        """Wait until *condition* holds; something has to be sent for it to be looked at."""
        while not condition():
            await self._changed.wait()

    async def wait_returned(self) -> None:
        await self.wait_for(lambda: self.has_returned)

    def returned(self) -> None:
        self.has_returned = True
        self._notify()


class Host:
    """The app over fakes."""

    def __init__(self, *, is_local: bool = False, **deadlines: float) -> None:
        self.ports = simulated_ports(1)
        self.deadlines = Deadlines(**deadlines)
        self.store = FakeStore()
        self.relay = Relay(self.store, self.ports, self.deadlines)
        self.dispatcher = FakeDispatcher(self.store)
        self.scheduler = FakeScheduler()
        self.links = FakeLinks()
        self.metrics = Metrics()
        self.status = SimpleNamespace(is_ready=True, is_draining=False)
        self.principals = Principals(is_local=is_local, tokens=TOKENS)
        settings = HostSettings(
            data_dir=Path("unused"),
            host="127.0.0.1" if is_local else "192.0.2.1",
            jwt_secret=None if is_local else KEY,
            deadlines=self.deadlines,
        )
        self.core = SimpleNamespace(
            settings=settings,
            deadlines=self.deadlines,
            ports=self.ports,
            store=self.store,
            relay=self.relay,
            links=self.links,
            dispatcher=self.dispatcher,
            scheduler=self.scheduler,
            metrics=self.metrics,
            principals=self.principals,
            status=self.status,
        )
        self.app = make_app(self.core)

    def scope(self, method: str, target: str, headers: Mapping[str, str], exchange: Exchange):
        path, _, query = target.partition("?")
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": raw,
            "client": ("127.0.0.1", 5),
            "server": ("127.0.0.1", 80),
            "extensions": {"semibot": {"stalled": lambda: exchange.is_stalled}},
        }

    @asynccontextmanager
    async def open(
        self,
        method: str,
        target: str,
        body: object = None,
        headers: Mapping[str, str] = ANN,
        exchange: Exchange | None = None,
    ) -> AsyncGenerator[Exchange]:
        """Begin a request; the block's end cancels it like a server that ends."""
        exchange = exchange or Exchange()
        said = {"host": "127.0.0.1:80", **headers}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if body is None:
            data = b""
        else:
            said.setdefault("content-type", "application/json")
        exchange.feed(data)

        async def run() -> None:
            await self.app(
                self.scope(method, target, said, exchange), exchange.receive, exchange.send
            )
            exchange.returned()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            yield exchange
            nursery.cancel_scope.cancel()

    async def ask(
        self,
        method: str,
        target: str,
        body: object = None,
        headers: Mapping[str, str] = ANN,
    ) -> Answered:
        """Make a request and return the whole answer."""
        async with self.open(method, target, body, headers) as exchange:
            await exchange.wait_returned()
        assert exchange.is_complete
        assert exchange.status is not None
        return Answered(exchange.status, exchange.headers, exchange.body)

    async def say(self, session_id: str, *events: StoredEvent) -> None:
        """Let a VM say *events*, and commit them."""
        tail = await self.relay.tail(session_id)
        for each in events:
            tail.receive(each, waits_for_commit=False)
            self.store.events.setdefault(session_id, []).append(each)
        tail.commit(events[-1].seq)


def store_error() -> SemibotError:
    return StoreError("disk full at /secret/path")
