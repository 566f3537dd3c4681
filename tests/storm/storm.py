"""A thousand VMs lose their host at the same moment: when do they dial, and when are they back?

The VMs' channels and the host are the real ones, in one process on Trio's clock; only the
network is simulated, and the host's disk takes its time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import attrs
import trio
import trio.testing

from semibot.channel import ControlChannel, open_control_channel
from semibot.config import Deadlines
from semibot.config.settings import HostSettings
from semibot.host.host import open_host
from semibot.host.server import App, Message, Receive, Scope, Send, open_server
from semibot.secret import Secret
from semibot.security.tokens import Tokens
from semibot.store.sqlite import open_sqlite_store
from semibot.testing import simulated_ports
from semibot.testing.ports import SimulatedWallClock
from semibot.testing.scheduling import seeded_scheduler
from semibot.testing.simulation.network import LINK, Network
from semibot.testing.simulation.pipes import Machine
from semibot.testing.simulation.threads import Drive, SimulatedThreads

KEY = Secret("correct-length-and-quite-random-8f2a61c0")
ORG = "org"
MOST_HAPPENINGS = 10_000_000
"""A simulation in which more pieces are sent and received has gone astray."""

SPREAD_AFTER = 30.0
"""From when on VMs are spread, in seconds after the drop."""

MOST_SHARE = 0.1
"""Most VMs that dial in one second from then on, as a share of all."""

BACK_BOUND = 45.0
"""When all VMs are up again, in seconds after the outage: the longest delay of theirs, which is
30 s, and what one dial and one handshake may take."""

MOST_STRANGERS = 256
"""Most sockets that a host lets wait without a word; above that it turns them away (1013)."""


@attrs.frozen(kw_only=True)
class Plan:
    """What is simulated."""

    vms: int = 1000
    """How many are dropped."""
    outage: float = 90.0
    """For how long nobody answers a dial, in seconds."""
    how: Literal["refused", "unanswered"] = "refused"
    """What becomes of dials meanwhile."""
    disk_delay: float = 0.002
    """What the host's disk takes for anything, in seconds, on average, before and after."""
    has_host: bool = True
    """Whether there is a host at all. Without one VMs begin to dial at the same moment instead
    of being dropped, and nobody comes back; that costs little."""


@attrs.frozen(kw_only=True)
class Outcome:
    """What came of it; times are simulated seconds since the drop."""

    vms: int
    """How many were dropped."""
    outage: float
    """For how long nobody answered."""
    dials: Sequence[float] = attrs.field(repr=False)
    """When anybody dialled."""
    back: Sequence[float] = attrs.field(repr=False)
    """When each VM was up again, the first one first."""
    most_strangers: int
    """Most sockets at the host that had not said yet who they were."""
    closes: Mapping[int, int]
    """How often the host closed a link during the storm, by code."""
    real_seconds: float
    """What the simulation took."""

    @property
    def per_second(self) -> Sequence[int]:
        """Dials in each second."""
        counts = Counter(int(at) for at in self.dials)
        return [counts[second] for second in range(max(counts, default=0) + 1)]

    @property
    def busiest_share(self) -> float:
        """Dials in the busiest second after :data:`SPREAD_AFTER`, as a share of all VMs."""
        late = self.per_second[int(SPREAD_AFTER) :]
        return max(late, default=0) / self.vms

    @property
    def all_back_after(self) -> float:
        """Seconds from the end of the outage until the last VM was up."""
        return self.back[-1] - self.outage


class _Count:
    """Takes the place of a trace: nobody asks what happened when."""

    def __init__(self) -> None:
        self._count = 0

    def note(self, *_: object) -> None:
        self._count += 1
        assert self._count < MOST_HAPPENINGS


def percentile(values: Sequence[float], percent: int) -> float:
    """Return what so many percent of *values*, which are sorted, do not exceed."""
    return values[max(0, -(-len(values) * percent // 100) - 1)]


@attrs.define(eq=False)
class _Storm:
    """One simulation."""

    plan: Plan
    network: Network
    dropped_at: float = float("inf")
    dials: list[float] = attrs.field(factory=list[float])
    strangers: int = 0
    most_strangers: int = 0
    closes: Counter[int] = attrs.field(factory=Counter[int])

    @classmethod
    def begin(cls, plan: Plan, seed: int) -> _Storm:
        dials: list[float] = []
        network = Network(
            seed,
            _Count(),
            on_connect=lambda _: None,
            on_dial=lambda *_: dials.append(trio.current_time()),
        )
        return cls(plan, network, dials=dials)

    def watching(self, app: App) -> App:
        """Return *app* with somebody at the door who counts."""

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            is_stranger = True
            self.strangers += 1
            self.most_strangers = max(self.most_strangers, self.strangers)

            async def tell(message: Message) -> None:
                nonlocal is_stranger
                if message["type"] == "websocket.close":
                    self.closes[message["code"]] += 1
                if is_stranger and message["type"] != "websocket.accept":
                    is_stranger = False
                    self.strangers -= 1
                await send(message)

            try:
                await app(scope, receive, tell)
            finally:
                self.strangers -= is_stranger

        return watched

    def drop_all(self) -> None:
        """Cut every link at once, and let nobody in until the outage is over."""
        self.dropped_at = trio.current_time()
        until = self.dropped_at + self.plan.outage
        is_refused = self.plan.how == "refused"
        ways = self.network.refuses_until if is_refused else self.network.swallows_until
        ways[LINK] = until
        self.dials.clear()
        self.closes.clear()
        self.most_strangers = 0
        for connection in self.network.living(LINK):
            connection.cut()

    def outcome(self, back: Sequence[float], began: float) -> Outcome:
        """Return what came of it, for a simulation that began at *began* in real time."""
        return Outcome(
            vms=self.plan.vms,
            outage=self.plan.outage,
            dials=[at - self.dropped_at for at in self.dials],
            back=sorted(back),
            most_strangers=self.most_strangers,
            closes=dict(self.closes),
            real_seconds=time.perf_counter() - began,
        )


async def _live(
    user: str,
    network: Network,
    token: str,
    seed: int,
    *,
    task_status: trio.TaskStatus[ControlChannel],
) -> None:
    """Be one VM."""
    ports = attrs.evolve(simulated_ports(seed), dial=network.dial(Machine(user), LINK))
    async with open_control_channel(
        "ws://host:8080/ws/vm", user_id=user, token=token, ports=ports
    ) as channel:
        task_status.started(channel)
        await trio.sleep_forever()


async def _simulate(plan: Plan, directory: Path, seed: int, say: Callable[[str], None]) -> Outcome:
    began = time.perf_counter()
    storm = _Storm.begin(plan, seed)
    machine = Machine("host")
    ports = attrs.evolve(
        simulated_ports(seed),
        threads=SimulatedThreads(machine, f"disk {seed}", Drive(plan.disk_delay)),
        listen=storm.network.listen(machine),
    )
    deadlines = Deadlines(vm_lost_after=600.0)
    settings = HostSettings(
        data_dir=directory / "data",
        host="192.0.2.1",
        run_mode="production",
        jwt_secret=KEY,
        deadlines=deadlines,
    )
    users = [f"user-{number}" for number in range(plan.vms)]
    async with open_sqlite_store(
        settings.data_dir / "semibot.db", ports=simulated_ports(seed), deadlines=deadlines
    ) as store:
        for user in users:
            await store.ensure_user(user, ORG, vm_mode="external")
            await store.ensure_vm(user, f"vm-of-{user}", "external")
    say(f"users made after {time.perf_counter() - began:.1f} s")
    tokens = Tokens(KEY, SimulatedWallClock(), 12 * 3600.0)
    back: list[float] = []
    async with open_host(settings, ports=ports) as host:
        server = open_server(
            storm.watching(host.asgi), "host", 8080, deadlines=deadlines, ports=ports
        )
        async with server, trio.open_nursery() as vms:
            await host.announce("http://host:8080")
            channels: list[ControlChannel] = []
            for number, user in enumerate(users):
                token = tokens.make_vm_token(user, ORG)
                live = (user, storm.network, token, seed * 1_000_000 + number)
                channels.append(await vms.start(_live, *live))
                await trio.sleep(0.005)
            for channel in channels:
                await channel.wait_up()
            say(f"VMs up after {time.perf_counter() - began:.1f} s")
            storm.drop_all()
            with trio.fail_after(plan.outage + 300):
                async with trio.open_nursery() as waiting:
                    for channel in channels:
                        waiting.start_soon(_wait_back, channel, storm.dropped_at, back)
            say(f"VMs back after {time.perf_counter() - began:.1f} s")
            outcome = storm.outcome(back, began)
            vms.cancel_scope.cancel()
    return outcome


async def _wait_back(channel: ControlChannel, dropped_at: float, back: list[float]) -> None:
    await channel.wait_status(lambda status: status.state == "down")
    await channel.wait_up()
    back.append(trio.current_time() - dropped_at)


async def _dial_in_vain(plan: Plan, seed: int) -> Outcome:
    began = time.perf_counter()
    storm = _Storm.begin(plan, seed)
    storm.drop_all()
    async with trio.open_nursery() as vms:
        for number in range(plan.vms):
            await vms.start(_live, f"user-{number}", storm.network, "no token", number)
        await trio.sleep(plan.outage)
        vms.cancel_scope.cancel()
    return storm.outcome([], began)


def simulate(
    plan: Plan, directory: Path, *, seed: int = 1, say: Callable[[str], None] = lambda _: None
) -> Outcome:
    """Drop all VMs at once, and return how they came back.

    Args:
        plan: How many, and for how long.
        directory: For the host's files; empty.
        seed: Decides jitter, delays and the order of tasks.
        say: Told what is going on.
    """
    clock = trio.testing.MockClock(autojump_threshold=0)
    with seeded_scheduler(seed):
        if not plan.has_host:
            return trio.run(_dial_in_vain, plan, seed, clock=clock)
        return trio.run(_simulate, plan, directory, seed, say, clock=clock)
