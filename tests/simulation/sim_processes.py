"""Hosts and VMs of a simulation: the real ones, in processes that can be killed.

A killed process keeps running until its clean-up is done, but it is dead for everybody: its
connections are gone, and its disk is a copy that nobody looks at any more. The next process
goes on with the disk as it was at the moment of the kill.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, TypeVarTuple, cast

import attrs
import structlog
import trio
from sim_network import Owner

from semibot.channel import open_control_channel
from semibot.config.settings import HostSettings
from semibot.errors import DeadlineExceeded, LinkRefused, RequestFailed, StoreError
from semibot.host.host import open_host
from semibot.host.server import open_server
from semibot.ports import Ports
from semibot.secret import Secret
from semibot.security.tokens import Tokens
from semibot.session import ActiveRun, Adapter, AdapterContext, open_session_manager
from semibot.store._writer import Committed
from semibot.store.sqlite import open_sqlite_store
from semibot.testing import FunctionAdapter, simulated_ports
from semibot.testing.ports import SimulatedWallClock
from semibot.wire.events import TextChunk
from semibot.wire.frames import HostAck

if TYPE_CHECKING:
    from sim_world import World

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

KEY = Secret("correct-length-and-quite-random-8f2a61c0")


class Disk:
    """How the disk of a host is doing."""

    def __init__(self, usual_delay: float) -> None:
        self.usual_delay = usual_delay
        self.full_until = 0.0
        self.slow_until = 0.0


class SimThreads:
    """Runs blocking work on the loop, after and before a little time; a kill may hit either."""

    def __init__(self, owner: Owner, seed: str, disk: Disk) -> None:
        self._owner = owner
        self._random = random.Random(seed)
        self._disk = disk

    def _draw_delay(self, limiter: str) -> float:
        if limiter in {"store", "files"} and trio.current_time() < self._disk.slow_until:
            return self._random.choice([0.05, 1.0, 7.0, 15.0])
        return self._random.expovariate(1 / self._disk.usual_delay)

    async def run_sync(
        self,
        fn: Callable[[*Ts], T],
        *args: *Ts,
        limiter: str,
        abandon_on_cancel: bool = False,
        on_exit: Callable[[], None] | None = None,
    ) -> T:
        with trio.CancelScope(shield=not abandon_on_cancel):
            is_abandoned = False
            if not self._owner.is_dead:
                try:
                    await trio.sleep(self._draw_delay(limiter))
                except trio.Cancelled:  # only if it may be abandoned: the thread goes on
                    is_abandoned = True
            try:
                is_full = trio.current_time() < self._disk.full_until
                if is_full and getattr(fn, "__name__", "") == "commit":
                    return cast("T", Committed(failure="the disk is full", has_written=False))
                return fn(*args)
            finally:
                if on_exit is not None:
                    on_exit()
                if is_abandoned:
                    await trio.lowlevel.checkpoint_if_cancelled()
                elif not self._owner.is_dead:
                    await trio.sleep(self._draw_delay(limiter))

    def in_use(self) -> Mapping[str, int]:
        return {}


class SimProcess:
    """One life of a host or VM."""

    def __init__(self, world: World, kind: str, number: int, disk: Path) -> None:
        self.world = world
        self.kind = kind
        self.name = f"{kind}{number}"
        self.disk = disk
        self.owner = Owner(self.name)
        self.scope = trio.CancelScope()
        self.ask_to_stop = trio.Event()
        self.has_ended = trio.Event()
        self.is_stopping = False
        self.is_up = trio.Event()
        self.disk_state = Disk(world.disk_delay)
        self.outbox: set[str] = set()

    @property
    def is_alive(self) -> bool:
        return not self.owner.is_dead and not self.has_ended.is_set()

    def ports(self) -> Ports:
        seed = f"{self.world.seed} {self.name}"
        return attrs.evolve(
            simulated_ports(seed),  # type: ignore[arg-type]
            threads=SimThreads(self.owner, f"threads {seed}", self.disk_state),
            dial=self.world.network.dial(self.owner, "link"),
            listen=self.world.network.listen(self.owner),
        )

    def kill(self, how: str, copy: Path) -> None:
        """End it as SIGKILL does; *copy* becomes its disk as it was."""
        shutil.copytree(self.disk, copy)
        self.owner.die(how)
        listening = self.world.network.listening
        if listening is not None and listening.owner is self.owner:
            self.world.network.listening = None
        self.scope.cancel()

    async def run(self) -> None:
        structlog.contextvars.bind_contextvars(process=self.name)
        try:
            with self.scope:
                await (self._run_host() if self.kind == "host" else self._run_vm())
        except LinkRefused as exc:
            if not self.owner.is_dead:
                self.world.refused(self, exc)
        except Exception as exc:  # noqa: BLE001 - a finding like any other
            if not self.owner.is_dead:
                self.world.violate(f"{self.name} failed: {exc!r}", exc)
        finally:
            if not self.owner.is_dead:
                for end in tuple(self.owner.ends):
                    self.world.violate(f"{self.name} left {end.out.name} open")
                    end.close_now()
                self.owner.is_dead = True
            self.has_ended.set()

    async def _run_host(self) -> None:
        ports = self.ports()
        settings = self.world.host_settings(self.disk)
        async with (
            open_host(settings, ports=ports) as host,
            open_server(
                host.asgi, "host", 8080, deadlines=settings.deadlines, ports=ports
            ) as server,
        ):
            self.host = host
            await host.announce(f"http://host:{server.port}")
            self.is_up.set()
            await self.ask_to_stop.wait()
            self.is_stopping = True
            await host.drain()

    async def _run_vm(self) -> None:
        ports = self.ports()
        workspace = self.disk / "work"
        workspace.mkdir(exist_ok=True, parents=True)
        user = self.kind.removeprefix("vm-")
        async with open_control_channel(
            "ws://host:8080/ws/vm",
            user_id=user,
            token=self.world.vm_token(user),
            state_dir=self.disk / "state",
            ports=ports,
        ) as channel:
            self.channel = channel
            self._watch_acks(channel)
            async with open_session_manager(
                channel,
                adapters={"graph": self._adapter},
                workspace=workspace,
                state_dir=self.disk / "state",
                max_open=self.world.max_open,
                ports=ports,
            ) as manager:
                self.manager = manager
                self.is_up.set()
                await self.ask_to_stop.wait()
                self.is_stopping = True

    def _watch_acks(self, channel: object) -> None:
        """Note what the host has acknowledged: it has to be on its disk."""
        exchange = channel._exchange  # type: ignore[attr-defined]
        dispatch = exchange.dispatch

        def watched(frame: object) -> None:
            if isinstance(frame, HostAck) and not self.owner.is_dead:
                for session_id, seq in (frame.sessions or {}).items():
                    self.world.acknowledged(session_id, seq)
            dispatch(frame)

        exchange.dispatch = watched

    @asynccontextmanager
    async def _adapter(self, context: AdapterContext) -> AsyncGenerator[Adapter]:
        async def handle(run: ActiveRun) -> None:
            await self._handle(run, context)

        yield FunctionAdapter(handle)

    async def _handle(self, run: ActiveRun, context: AdapterContext) -> None:
        """Do what the message says: ``say COUNT DELAY SIZE WORK``."""
        world = self.world
        if not self.owner.is_dead:
            world.run_begins(run.id, self)
        try:
            _, count, delay, size, work = run.message.split()[:5]
            for index in range(int(count)):
                await trio.sleep(float(delay))
                text = f"{run.id[:6]}.{index} ".ljust(int(size), "x")
                await run.emit(TextChunk(content=text))
                if index == 0 and "a" in work:
                    await self._report(run, context)
                if index == 1 and "r" in work:
                    await self._request(context)
            await run.complete()
        finally:
            world.run_rests(run.id, self)

    async def _report(self, run: ActiveRun, context: AdapterContext) -> None:
        event = f"audit {run.id}"
        plane = context.control_plane
        self.world.asked_audits.add(event)
        try:
            await plane.fire_and_forget(
                context.session_id, "audit_log", {"event": event, "details": {}}
            )
        except (StoreError, RequestFailed) as exc:
            # A disk that hangs may have stored it, or not.
            if not self.owner.is_dead and trio.current_time() > self.disk_state.slow_until + 20:
                self.world.violate(f"a report failed: {exc!r}", exc)
        else:
            if not self.owner.is_dead:
                self.outbox.add(event)

    async def _request(self, context: AdapterContext) -> None:
        begun = trio.current_time()
        plane = context.control_plane
        try:
            await plane.request(context.session_id, "memory_search", {"query": "x", "top_k": 3})
            result = "answered"
        except (RequestFailed, DeadlineExceeded) as exc:
            result = type(exc).__name__
        took = trio.current_time() - begun
        self.world.trace.note("request", result)
        if not self.owner.is_dead and took > 61:
            self.world.violate(f"a request took {took:.0f} s")


def make_tokens() -> Tokens:
    """Return what makes the tokens of a simulation."""
    return Tokens(KEY, SimulatedWallClock(), 12 * 3600.0)


async def prepare_host(settings: HostSettings, users: tuple[str, ...]) -> None:
    """Make the users of a host, each with an external VM."""
    ports = simulated_ports(0)
    async with open_sqlite_store(
        settings.data_dir / "semibot.db", ports=ports, deadlines=settings.deadlines
    ) as store:
        for user in users:
            await store.ensure_user(user, "org", vm_mode="external")
            await store.ensure_vm(user, f"vm-of-{user}", "external")


__all__ = ["KEY", "LinkRefused", "SimProcess", "make_tokens", "prepare_host"]
