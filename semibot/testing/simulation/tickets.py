"""Tokens that expire, and tickets that are used twice.

VMs that a host starts are coroutines here: guests, each with the environment that the host gave
it, and with the real channel. They are beside the users of the simulation, whose VMs were
started by their users, and their connections are of a kind of their own that no other fault
breaks; the host's kills hit them all the same.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final, final

import attrs
import trio

from semibot.channel import open_control_channel
from semibot.errors import LinkRefused
from semibot.ports import Ports
from semibot.secret import Secret
from semibot.security.tokens import Tokens
from semibot.testing.ports import simulated_ports

from .browsers import Browser
from .children import SimulatedChild, spawning
from .lives import Life
from .pipes import Machine
from .planes import GUESTS, KEY

if TYPE_CHECKING:
    from .world import World

GUEST: Final = "guest"
"""Kind of the connections of VMs that a host has started."""

STRANGERS: Final = "keeps_strangers_out"
"""The invariant: nobody gets in with what has expired, or was used up by another."""

PATIENCE: Final = 25.0
"""How long a guest has to get in or be refused, in seconds; a host gives it 30."""

REFUSED: Final = 4001
"""The close code for a token or ticket that is not accepted."""

SHORT: Final = 30
"""How long the token of a VM is accepted that sees it expire, in seconds."""


@final
@attrs.define(eq=False)
class _Guest:
    """One VM process that tries to get in."""

    environment: Mapping[str, str]
    token: Secret
    machine: Machine
    ports: Ports
    links: int = 0
    refusal: int | None = None
    changed: trio.Event = attrs.field(factory=trio.Event)

    async def live(self) -> None:
        """Stay connected until cancelled or refused."""
        try:
            async with open_control_channel(
                self.environment["CONTROL_PLANE_WS"],
                user_id=self.environment["VM_USER_ID"],
                token=self.token,
                ticket=self.environment["VM_TICKET"],
                ports=self.ports,
            ) as channel:
                while True:
                    await channel.wait_up()
                    self.links += 1
                    self._change()
                    await channel.wait_status(lambda status: status.state != "up")
        except LinkRefused as exc:
            self.refusal = exc.close_code
            self._change()

    def _change(self) -> None:
        self.changed.set()
        self.changed = trio.Event()

    async def decided(self, links: int = 1) -> None:
        """Wait until it was let in so many times or is refused, or for as long as makes sense."""
        with trio.move_on_after(PATIENCE):  # noqa: ASYNC912 - decided already is fine
            while self.links < links and self.refusal is None:
                await self.changed.wait()


Visit = Callable[["Guests", Mapping[str, str]], Awaitable[None]]


@final
class Guests:
    """VMs that hosts start. Called with a life and its ports, it lets a host start some.

    Args:
        world: The simulation.
    """

    def __init__(self, world: World) -> None:
        self.world: Final = world
        """The simulation."""
        self._visits: dict[str, Visit] = {}

    def __call__(self, life: Life, ports: Ports) -> Ports:
        """Return ports that can start VMs, if it is a host."""
        if not life.is_host:
            return ports
        spawn = spawning(self.world, sys.executable, self._be_vm, ports.spawn, name=GUEST)
        return attrs.evolve(ports, spawn=spawn)

    async def _be_vm(self, child: SimulatedChild, environment: Mapping[str, str]) -> int:
        visit = self._visits.pop(environment["VM_USER_ID"], None)
        if visit is not None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_hear_end, child, nursery.cancel_scope)
                await visit(self, environment)
                nursery.cancel_scope.cancel("the visit is over")
        return 0

    def guest(self, environment: Mapping[str, str], token: Secret | None = None) -> _Guest:
        """Return another process with what a host gave to one."""
        number = self.world.next_number()
        machine = Machine(f"{GUEST}{number}")
        seed = self.world.seed * 1_000_000 + number
        ports = attrs.evolve(simulated_ports(seed), dial=self.world.network.dial(machine, GUEST))
        return _Guest(environment, token or Secret(environment["VM_TOKEN"]), machine, ports)

    async def invite(self, visit: Visit) -> None:
        """Have the host start the VM of a user that it does not know yet."""
        user = f"guest{self.world.next_number()}"
        self._visits[user] = visit
        # In an organization of their own, whose VMs the host starts.
        token = _Moment(self.world).tokens(3600).make_user_token(user, GUESTS)
        self.world.lend_token(user, token)
        browser = Browser(self.world, user, f"browser of {user}")
        status, _ = await browser.ask("POST", "/api/v1/vm/rebootstrap")
        self.world.trace.note("invited", user, status)


async def _hear_end(child: SimulatedChild, scope: trio.CancelScope) -> None:
    """End with the host that has the other end of stdin."""
    while await child.input.receive_some():
        pass
    scope.cancel("the host is gone")


def use_guests(world: World) -> None:
    """Let hosts start VMs."""
    if _guests_of(world) is None:
        world.port_changes.append(Guests(world))


def _guests_of(world: World) -> Guests | None:
    return next((each for each in world.port_changes if isinstance(each, Guests)), None)


@final
class _Moment:
    """Which host it is and what time it shows, to see whether that has changed."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._host = world.processes.host
        self._offset = self._host.clock.offset

    def is_now(self) -> bool:
        """Whether the host runs on, and nobody has set its clock."""
        host = self._world.processes.host
        is_same = host is self._host and host.is_alive and host.is_up.is_set()
        return is_same and host.clock.offset == self._offset

    def tokens(self, seconds: int) -> Tokens:
        """Return what makes tokens that the host accepts for so long."""
        return Tokens(KEY, self._host.clock, seconds)


async def _host_runs(world: World) -> bool:
    """Wait a while until a host runs; return whether one does."""
    with trio.move_on_after(PATIENCE):  # noqa: ASYNC912 - one that runs already is fine
        while not (world.processes.host.is_alive and world.processes.host.is_up.is_set()):
            await world.trace.wait_next()
        return True
    return False


# --- faults ---------------------------------------------------------------------------


async def replay_ticket(world: World) -> None:
    """Use one ticket for three processes: two at once, one when it is used up."""
    guests = _guests_of(world)
    if guests is not None and await _host_runs(world):
        await guests.invite(_race)


async def _race(guests: Guests, environment: Mapping[str, str]) -> None:
    world = guests.world
    racers = [guests.guest(environment) for _ in range(2)]
    thief = guests.guest(environment)
    async with trio.open_nursery() as nursery:
        for racer in racers:
            nursery.start_soon(racer.live)
            await trio.sleep(world.random.choice([0.0, 0.0, 0.02]))
        for racer in racers:
            await racer.decided()
        if any(racer.links for racer in racers):
            nursery.start_soon(thief.live)
            await thief.decided()
        nursery.cancel_scope.cancel("that is all")
    everyone = (*racers, thief)
    if sum(guest.links > 0 for guest in everyone) > 1:
        world.violate(STRANGERS, f"{environment['VM_USER_ID']}: one ticket let two processes in")
    for guest in everyone:
        if guest.refusal not in {None, REFUSED}:
            user = environment["VM_USER_ID"]
            world.violate(STRANGERS, f"{user}: a spent ticket is refused with {guest.refusal}")
    if any(guest.refusal == REFUSED for guest in everyone):
        world.hit("ticket_replay")


async def expire_token(world: World) -> None:
    """Let the token of a reader expire while it reads, or that of a VM while it is connected."""
    guests = _guests_of(world)
    if guests is None or not await _host_runs(world):
        return
    if world.random.random() < 0.4:
        await guests.invite(_outlive_token)
    elif sessions := [each for each in world.sessions if each not in world.maybe_deleted]:
        await _read_on(world, world.random.choice(sessions))


async def _outlive_token(guests: Guests, environment: Mapping[str, str]) -> None:
    """Be a VM whose token expires; the host has given it a new one by then."""
    world, user = guests.world, environment["VM_USER_ID"]
    moment = _Moment(world)
    token = Secret(moment.tokens(SHORT).make_vm_token(user, environment["VM_ORG_ID"]))
    guest = guests.guest(environment, token)
    stranger = guests.guest(environment, token)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guest.live)
        await guest.decided()
        await trio.sleep(SHORT + 1)
        links = guest.links
        for connection in world.network.living(GUEST):
            if connection.client.machine is guest.machine:
                connection.cut()
        nursery.start_soon(stranger.live)
        if moment.is_now() and links:
            await guest.decided(links + 1)
            await stranger.decided()
            if guest.refusal is not None and moment.is_now():
                world.violate(STRANGERS, f"{user}: a new token is refused: {guest.refusal}")
            if stranger.links and moment.is_now():
                world.violate(STRANGERS, f"{user}: an expired token lets a VM in")
            if guest.links > links and stranger.refusal == REFUSED:
                world.hit("token_expiry")
        nursery.cancel_scope.cancel("that is all")


async def _read_on(world: World, session_id: str) -> None:
    """Follow a session with a token that expires meanwhile; nothing new can be asked with it."""
    user = world.sessions[session_id]
    name = f"{user} for {world.next_number()}"
    moment = _Moment(world)
    seconds = world.random.randint(2, 8)
    world.lend_token(name, moment.tokens(seconds).make_user_token(user, "org"))
    reader = world.add_reader(name, session_id)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader.follow, seconds + 30.0)
            await trio.sleep(seconds + 1.0)
            is_same = moment.is_now()
            browser = Browser(world, name, f"browser of {name}")
            status, _ = await browser.ask("GET", f"/api/v1/sessions/{session_id}")
            if status == 200 and is_same and moment.is_now():
                world.violate(STRANGERS, f"{name}: an expired token is accepted")
            if status == 401 and is_same:
                world.hit("token_expiry")
    finally:
        world.lend_token(name, world.user_token(user))
