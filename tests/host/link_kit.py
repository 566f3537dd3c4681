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
from host_kit import VmSocket, accept_message, open_core

from semibot.config import Deadlines
from semibot.config.settings import HostSettings, Provider
from semibot.host.core import HostCore
from semibot.host.dispatch import Dispatcher
from semibot.host.host import run_core
from semibot.host.links import Links
from semibot.host.metrics import Metrics
from semibot.host.relay import Relay
from semibot.secret import Secret
from semibot.security.tickets import hash_secret
from semibot.security.tokens import Tokens
from semibot.store.base import MessageAccepted, VmRow
from semibot.testing import simulated_ports

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


class Vm(VmSocket):
    """One socket of a VM; the test says what it says."""

    def __init__(self) -> None:
        super().__init__()
        self.has_ended = trio.Event()

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
        frame = self.take(kind, **fields)
        if frame is not None:
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

    core: HostCore
    nursery: Any
    """Where VMs are connected."""

    @property
    def store(self) -> Any:
        return self.core.store

    @property
    def relay(self) -> Relay:
        return self.core.relay

    @property
    def links(self) -> Links:
        return self.core.links

    @property
    def dispatcher(self) -> Dispatcher:
        return self.core.dispatcher

    @property
    def metrics(self) -> Metrics:
        return self.core.metrics

    @property
    def ports(self) -> Any:
        return self.core.ports

    @property
    def tokens(self) -> Tokens:
        return self.links.tokens

    # --- what people do ---------------------------------------------------------------

    async def say(
        self,
        message: str,
        sid: str = "s1",
        *,
        run: str = "r1",
        on_busy: Any = "enqueue",
        user: str = "ann",
        expires_at: int | None = None,
    ) -> MessageAccepted:
        return await accept_message(
            self.core, user, sid, run, message, on_busy=on_busy, expires_at=expires_at
        )

    async def events(self, sid: str = "s1") -> list[tuple[int, int, str, str]]:
        found = await self.store.read_events(sid, 0, 10_000_000)
        return [(event.term, event.seq, event.run_id, event.type) for event in found]

    async def quiet(self) -> None:
        await quiet()

    # --- VMs --------------------------------------------------------------------------

    def connect(self, query: str = "user_id=ann") -> Vm:
        vm = Vm()
        vm.connect()

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
    host_settings = HostSettings(
        data_dir=path,
        providers={"openai": Provider(api_key=Secret("sk-1"), base_url="http://models")},
        model="openai:gpt-5",
        deadlines=deadlines,
        **settings,
    )
    async with (
        open_core(host_settings, simulated_ports(), BrokenStore) as core,
        trio.open_nursery() as nursery,
    ):
        plane = Plane(core, nursery)
        async with run_core(core):
            if is_external:
                await plane.external()
            yield plane
            plane.store.released.set()
        nursery.cancel_scope.cancel()


# --- what happens often ----------------------------------------------------------------


async def began(vm: Vm, run: str = "r1", sid: str = "s1", seq: int = 1, term: int = 1) -> int:
    message = await vm.hear("user_message", run_id=run)
    vm.event(sid, term, seq, run, "run_started", message_id=f"m-{run}", message="hi")
    vm.say(type="ack", commands=[message["command_id"]])
    await vm.hear("ack", ids=[message["command_id"]])
    return seq + 1


async def started(plane: Plane, *texts: str) -> Vm:
    """A VM with a run that has said run_started and some text."""
    vm = await plane.up()
    await plane.say("hello")
    seq = await began(vm)
    for number, text in enumerate(texts):
        vm.event("s1", 1, seq + number, "r1", content=text)
    await plane.quiet()
    return vm


async def lose(plane: Plane, status: Any = "disconnected") -> None:
    await plane.links.lose_vm(
        "vm-ann", status=status, last_error="it died", code="LOST", message="it is gone"
    )


class Listener:
    def __init__(self) -> None:
        self.said: list[str] = []

    def link_up(self, vm: VmRow) -> None:
        self.said.append(f"up {vm.epoch}")

    def link_down(self, vm: VmRow) -> None:
        self.said.append(f"down {vm.epoch}")
