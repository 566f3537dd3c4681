"""The host's end of VM links without sockets: real store, relay and dispatcher, a VM by hand."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
import trio.testing

from semibot.config import Deadlines
from semibot.config.settings import HostSettings, Provider
from semibot.host.dispatch import Dispatcher
from semibot.host.links import Links
from semibot.host.metrics import Metrics
from semibot.host.relay import Relay
from semibot.secret import Secret
from semibot.security.tickets import hash_secret
from semibot.security.tokens import Tokens
from semibot.store.base import MessageAccepted, NewMessage, NewSession, VmRow
from semibot.store.sqlite import open_sqlite_store
from semibot.testing import simulated_ports

KEY = Secret("correct-length-and-quite-random-8f2a61c0")
DEADLINES = Deadlines()


async def quiet() -> None:
    """Wait until nothing more happens without the clock."""
    await trio.testing.wait_all_tasks_blocked()


async def pass_time(clock: trio.testing.MockClock, seconds: float) -> None:
    """Let time pass as it does; one jump would mean that the host stood still meanwhile."""
    while seconds > 0:
        clock.jump(min(1.0, seconds))
        seconds -= 1.0
        await quiet()


class BrokenStore:
    """The real store, with a switch that makes commits of what VMs say fail."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.error: Exception | None = None
        self.failing: set[str] = set()
        self.hangs: set[str] = set()
        self.released = trio.Event()
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._store, name)
        if name.startswith("_"):
            return inner

        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            if name in self.hangs:
                await self.released.wait()
            if name in self.failing and self.error is not None:
                raise self.error
            return await inner(*args, **kwargs)

        return call


class Vm:
    """One socket of a VM; the test says what it says."""

    def __init__(self) -> None:
        self.to_host, self._from_vm = trio.open_memory_channel[dict[str, Any]](10_000)
        self.closed: tuple[int, str] | None = None
        self.has_ended = trio.Event()
        self.heard: list[dict[str, Any]] = []
        self.messages: list[str] = []
        self.accepts = True
        self.is_stuck = False

    async def receive(self) -> dict[str, Any]:
        try:
            return await self._from_vm.receive()
        except trio.EndOfChannel:
            return {"type": "websocket.disconnect", "code": 1006}

    async def send(self, message: Any) -> None:
        await trio.lowlevel.checkpoint()
        if not self.accepts:
            raise OSError("gone")
        if self.is_stuck:
            await trio.sleep_forever()
        if message["type"] == "websocket.send":
            self.messages.append(message["text"])
            frame = json.loads(message["text"])
            self.heard += frame["frames"] if frame["type"] == "batch" else [frame]
        elif message["type"] == "websocket.close":
            self.closed = (message["code"], message["reason"])

    def say_text(self, text: str) -> None:
        self.to_host.send_nowait({"type": "websocket.receive", "text": text})

    def say(self, **frame: Any) -> None:
        self.say_text(json.dumps(frame))

    def hang_up(self) -> None:
        self.to_host.close()

    def event(self, sid: str, term: int, seq: int, run: str, kind: str = "text_chunk", **data: Any):
        data = {"type": kind, **data}
        if kind in {"run_started", "execution_complete", "execution_error"}:
            data["run_id"] = run
        self.say(
            type="sse_event", session_id=sid, term=term, seq=seq, run_id=run, data=json.dumps(data)
        )

    async def hear(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Return the next frame of a kind that was not taken yet, once all is quiet."""
        await quiet()
        for index, frame in enumerate(self.heard):
            if frame["type"] == kind and all(frame.get(k) == v for k, v in fields.items()):
                del self.heard[index]
                return frame
        raise AssertionError(f"no {kind} with {fields} in {self.heard}; closed: {self.closed}")

    async def wait_closed(self) -> tuple[int, str] | None:
        await quiet()
        assert self.has_ended.is_set(), "the socket is still served"
        return self.closed

    def kinds(self) -> list[str]:
        return [frame["type"] for frame in self.heard]


@attrs.define
class Plane:
    """A host's link side, and its parts."""

    store: Any
    relay: Relay
    links: Links
    dispatcher: Dispatcher
    metrics: Metrics
    ports: Any
    tokens: Tokens
    nursery: Any

    # --- what people do ---------------------------------------------------------------

    async def say(
        self,
        message: str,
        sid: str = "s1",
        *,
        run: str = "r1",
        on_busy: str = "enqueue",
        user: str = "ann",
        expires_at: int | None = None,
    ) -> MessageAccepted:
        known = await self.store.get_session(user, sid)
        create = NewSession(agent_id=None, runtime_type="semigraph", openclaw_config=None)
        accepted = await self.store.accept_message(
            NewMessage(
                user_id=user,
                session_id=sid,
                create=None if known else create,
                message=message,
                message_id=f"m-{run}",
                run_id=run,
                command_id=f"c-{run}",
                cancel_ids=tuple(f"x-{run}-{i}" for i in range(17)),
                on_busy=on_busy,
                expires_at=expires_at,
                idempotency=None,
            )
        )
        self.dispatcher.kick(sid, user)
        return accepted

    async def events(self, sid: str = "s1") -> list[tuple[int, int, str, str]]:
        found = await self.store.read_events(sid, 0, 10_000_000)
        return [(event.term, event.seq, event.run_id, event.type) for event in found]

    async def quiet(self) -> None:
        await quiet()

    # --- VMs --------------------------------------------------------------------------

    def connect(self, query: str = "user_id=ann") -> Vm:
        vm = Vm()
        vm.to_host.send_nowait({"type": "websocket.connect"})

        async def run() -> None:
            await self.links.serve_socket(
                {"type": "websocket", "query_string": query.encode()}, vm.receive, vm.send
            )
            vm.has_ended.set()

        self.nursery.start_soon(run)
        return vm

    def token(self, user: str = "ann") -> str:
        return self.tokens.make_vm_token(user, "org")

    async def dial(
        self,
        boot: str = "boot-a",
        dial: int = 1,
        *,
        ticket: str | None = None,
        resume: dict[str, Any] | None = None,
        pending: tuple[str, ...] = (),
        user: str = "ann",
    ) -> Vm:
        """Connect a level 2 VM up to ``resume_response``; sessions are what it names."""
        query = f"user_id={user}" + (f"&ticket={ticket}" if ticket else "")
        vm = self.connect(query)
        vm.say(
            type="auth",
            token=self.token(user),
            protocol={"min": 1, "max": 2},
            boot_id=boot,
            dial=dial,
        )
        await vm.hear("init")
        vm.say(type="resume", pending_ids=list(pending), sessions=resume or {})
        return vm

    async def up(self, boot: str = "boot-a", dial: int = 1, **kwargs: Any) -> Vm:
        vm = await self.dial(boot, dial, **kwargs)
        await vm.hear("resume_response")
        return vm

    async def up_legacy(self, user: str = "ann", ticket: str | None = None) -> Vm:
        vm = self.connect(f"user_id={user}" + (f"&ticket={ticket}" if ticket else ""))
        vm.say(type="auth", token=self.token(user))
        await vm.hear("init")
        return vm

    async def external(self, user: str = "ann") -> VmRow:
        await self.store.ensure_user(user, "org", vm_mode=None)
        return await self.store.ensure_vm(user, f"vm-{user}", "external")

    async def ticket(self, user: str = "ann", text: str = "ticket-1") -> VmRow:
        await self.store.ensure_user(user, "org", vm_mode=None)
        row = await self.store.ensure_vm(user, f"vm-{user}", "local")
        now = int(self.ports.wall_clock.now().timestamp() * 1000)
        return await self.store.begin_attempt(row.id, hash_secret(text), now + 30_000)


@asynccontextmanager
async def open_plane(
    path: Path, *, deadlines: Deadlines = DEADLINES, is_external: bool = True, **settings: Any
) -> AsyncGenerator[Plane]:
    ports = simulated_ports()
    tokens = Tokens(KEY, ports.wall_clock, 12 * 3600.0)
    metrics = Metrics()
    host_settings = HostSettings(
        data_dir=path,
        providers={"openai": Provider(api_key=Secret("sk-1"), base_url="http://models")},
        model="openai:gpt-5",
        deadlines=deadlines,
        **settings,
    )
    async with open_sqlite_store(path / "host.db", ports=ports, deadlines=deadlines) as real:
        store = BrokenStore(real)
        relay = Relay(store, ports, deadlines)
        links = Links(
            store=store,
            relay=relay,
            tokens=tokens,
            settings=host_settings,
            metrics=metrics,
            ports=ports,
            deadlines=deadlines,
        )
        dispatcher = Dispatcher(
            store=store,
            relay=relay,
            links=links,
            settings=host_settings,
            ports=ports,
            deadlines=deadlines,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(links.serve)
            nursery.start_soon(dispatcher.serve)
            plane = Plane(store, relay, links, dispatcher, metrics, ports, tokens, nursery)
            if is_external:
                await plane.external()
            yield plane
            store.released.set()
            await links.close_all(1012, "restarting")
            nursery.cancel_scope.cancel()
