"""What goes wrong in a simulation: one table, with how each kind happens and what it excuses.

A fault is a row of :data:`FAULTS`. To add one, write an ``async def strike(world)`` and a row::

    Fault(kind="bridge_exit", strike=_exit, excuses="...", prepare=_use_bridges, heal=None)

* ``prepare(world)`` is called once, before anything has started. It may put adapters into
  ``world.adapters`` (name -> function of a :class:`~.lives.Life` that returns an adapter
  factory), functions ``(life, ports) -> ports`` into ``world.port_changes`` (each life's ports
  go through them), or add what it makes semibot log as an error to ``world.expected_errors``.
  It is called only if the kind is enabled, so what it needs costs
  nothing otherwise.
* ``strike(world)`` makes it happen once. It runs in a task of its own beside everything else,
  may wait for a good moment, and is cancelled when the time for faults is over. It draws only
  from ``world.random``, begins tasks that outlive it with ``world.begin(function)``, and calls
  ``world.hit(kind)`` when the fault *really* hits: when bytes were lost, an error was raised, a
  process died. What was tried in vain is not counted.
* ``heal(world)`` is called once, when the time for faults is over: after it nothing goes wrong
  any more.

What a fault excuses is not a switch: an invariant that would be wrong under a fault looks at
the world (is the process frozen, was its disk slow) and says so beside the check.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

import attrs
import trio

from .bridges import exit_bridge, talk_nonsense, use_bridges
from .frames import COMMANDS, MAY_COME_TWICE
from .lives import HOST
from .network import HTTP, LINK, Connection
from .tickets import expire_token, replay_ticket, use_guests

if TYPE_CHECKING:
    from .world import World


@attrs.frozen(kw_only=True)
class Fault:
    """One kind of what goes wrong."""

    kind: str
    """Its name, under which it is counted."""
    strike: Callable[[World], Awaitable[None]]
    """Makes it happen once."""
    excuses: str
    """What it allows that would be a violation otherwise."""
    weight: int = 2
    """How often it is drawn, compared with others."""
    prepare: Callable[[World], None] | None = None
    """Is called before anything has started."""
    heal: Callable[[World], None] | None = None
    """Is called when the time for faults is over."""


# --- connections ----------------------------------------------------------------------


def _hit(world: World, kind: str) -> Callable[[], None]:
    return lambda: world.hit(kind)


async def _living(world: World, kind: str) -> Connection | None:
    """Return an open connection; waits a while for one."""
    with trio.move_on_after(10.0):  # noqa: ASYNC912 - it may be there at once
        while not (living := world.network.living(kind)):
            await world.trace.wait_next()
        return world.random.choice(living)
    return None


async def _refuse(world: World) -> None:  # noqa: ASYNC124 - strikes are async
    kind = world.random.choice([LINK, LINK, HTTP])
    world.network.on_refusal = _hit(world, "connect_refused")
    world.network.refuses_until[kind] = trio.current_time() + world.random.uniform(1, 20)
    for connection in world.network.living(kind):
        connection.cut()


async def _swallow(world: World) -> None:
    kind = world.random.choice([LINK, HTTP])
    until = trio.current_time() + world.random.uniform(10, 70)
    world.network.swallows_until[kind] = until
    for connection in world.network.living(kind):
        connection.clog(until, up=True, down=True, on_hold=_hit(world, "partition"))
    await trio.lowlevel.checkpoint()


async def _cut(world: World) -> None:
    kind = world.random.choice([LINK, LINK, LINK, LINK, HTTP, HTTP])
    if kind == LINK and world.random.random() < 0.5:
        await _cut_off_answer(world)
        return
    with trio.move_on_after(20.0):
        while True:
            busy = [each for each in world.network.living(kind) if each.in_flight]
            if busy:
                world.random.choice(busy).cut()
                world.hit("cut_with_loss")
                return
            await world.trace.wait_next()


async def _cut_off_answer(world: World) -> None:
    """Cut a link on which a VM was just told to do something, before what it says of that comes.

    Whether it was told, nobody but the VM knows then: the host has to tell it again.
    """
    with trio.move_on_after(20.0):
        connection = await _next_command(world)
        told_at = trio.current_time()
        up, down = connection.client.out, connection.server.out
        while connection.is_open:
            await world.trace.wait_next()
            if down.received_at > told_at and up.in_flight:
                connection.cut()
                world.hit("cut_with_loss")
                return


async def _next_command(world: World) -> Connection:
    """Wait until a VM is told to do something, and return its connection."""
    since = trio.current_time()
    while True:  # noqa: ASYNC913 - there may be nothing to wait for
        for link in world.links:
            if link.commanded_at is not None and link.commanded_at > since:
                return link.connection
        await world.trace.wait_next()


async def _half_open(world: World) -> None:
    connection = await _living(world, world.random.choice([LINK, LINK, LINK, HTTP]))
    if connection is not None:
        up = world.random.random() < 0.5
        until = trio.current_time() + world.random.choice([5.0, 40.0, math.inf])
        connection.clog(until, up=up, down=not up, on_hold=_hit(world, "half_open"))


async def _clog(world: World) -> None:
    connection = await _living(world, world.random.choice([LINK, LINK, HTTP]))
    if connection is not None:
        until = trio.current_time() + world.random.choice([1.0, 8.0, 25.0, 60.0])
        connection.clog(until, up=True, down=True, on_hold=_hit(world, "clogged"))


async def _delay(world: World) -> None:
    world.network.on_slow = _hit(world, "delay_spike")
    world.network.slow_until = trio.current_time() + world.random.uniform(1, 20)
    await trio.lowlevel.checkpoint()


async def _haunt(world: World) -> None:
    """Break a link for its VM only: what it had sent arrives when the VM has a newer one."""
    connection = await _living(world, LINK)
    if connection is None:
        return
    pipe, machine = connection.client.out, connection.client.machine
    with trio.move_on_after(20.0) as scope:  # noqa: ASYNC912 - likewise
        while not pipe.in_flight:
            await world.trace.wait_next()
    if scope.cancelled_caught or not connection.is_open:
        return

    def has_newer() -> bool:
        return any(
            each.init_at is not None and each.connection.number > connection.number
            for each in world.links
            if each.connection.client.machine is machine
        )

    def arrived() -> None:
        if has_newer():
            pipe.on_take = None
            world.hit("late_dial")

    pipe.on_take = arrived
    connection.haunt(trio.current_time() + 60.0)
    with trio.move_on_after(60.0):  # noqa: ASYNC912 - likewise
        while not has_newer() and not connection.server.is_closed:
            await world.trace.wait_next()
    pipe.clogged_until = trio.current_time() + world.random.choice([0.0, 0.0, 0.01, 1.0, 20.0])
    pipe.changed()


async def _duplicate(world: World) -> None:
    links = [link for link in world.links if link.live_at is not None and link.connection.is_open]
    if links:
        link = world.random.choice(links)
        roll = world.random.random()
        tap = link.up if roll < 0.6 else link.down
        # Hosts say little else than that they have received something.
        tap.twice = COMMANDS if roll > 0.75 else MAY_COME_TWICE
        tap.says_twice = _hit(world, "duplicate_frame")
    await trio.lowlevel.checkpoint()


# --- processes ------------------------------------------------------------------------


async def _good_moment(world: World) -> None:
    """Wait until something is going on, or for one of the two ends of a commit."""
    roll = world.random.random()
    with trio.move_on_after(8.0):  # noqa: ASYNC912 - there may be nothing to wait for
        if roll < 0.5:
            await world.processes.host.drive.wait_commit("begun" if roll < 0.2 else "done")
        elif roll < 0.8:
            for _ in range(world.random.randint(1, 30)):
                await world.trace.wait_next()


async def _kill_host(world: World) -> None:
    pause = world.random.choice([0.05, 2.0, 5.0, 15.0])
    if world.random.random() < 0.4:
        with trio.move_on_after(8.0):
            await _cut_commit_in_two(world, pause)
            return
    await _good_moment(world)
    if world.processes.kill_and_restart(HOST, pause):
        world.hit("host_kill")


async def _cut_commit_in_two(world: World, pause: float) -> None:
    """Kill the host while it writes to its disk, between two of its writes and syncs."""
    host = world.processes.host
    left = world.random.randint(1, 8)
    is_over = trio.Event()

    def count(_: str) -> None:
        nonlocal left
        left -= 1
        if not left:
            host.disk.before_operation = None
            if world.processes.host is host and world.processes.kill_and_restart(HOST, pause):
                world.hit("host_kill")
            is_over.set()

    host.disk.before_operation = count
    try:
        await is_over.wait()
    finally:
        host.disk.before_operation = None


async def _kill_vm(world: World) -> None:
    await _good_moment(world)
    pause = world.random.choice([0.05, 2.0, 15.0, 140.0])
    if world.processes.kill_and_restart(world.draw_vm().kind, pause):
        world.hit("vm_kill")


async def _kill_both(world: World) -> None:
    await _good_moment(world)
    pause = world.random.uniform(0.1, 10)
    kinds = (HOST, world.draw_vm().kind)
    killed = [world.processes.kill_and_restart(kind, pause) for kind in kinds]
    if all(killed):
        world.hit("both_killed")


async def _stop_host(world: World) -> None:
    if await world.processes.stop_and_restart(HOST, world.random.uniform(0.05, 5.0)):
        world.hit("host_stop")


async def _stop_vm(world: World) -> None:
    kind = world.draw_vm().kind
    if await world.processes.stop_and_restart(kind, world.random.uniform(0.05, 5.0)):
        world.hit("vm_stop")


async def _twin(world: World) -> None:
    if world.processes.start_twin(world.draw_vm().kind):
        world.hit("twin_vm")
    await trio.lowlevel.checkpoint()


async def _freeze(world: World) -> None:
    life = world.draw_vm()
    if not (life.is_alive and life.is_up.is_set()) or life.is_frozen:
        return
    world.processes.freeze(life, world.random.choice([3.0, 12.0, 35.0, 70.0, 150.0]))
    await trio.sleep(life.frozen_until - trio.current_time())
    if life.is_alive:
        world.hit("frozen_vm")


async def _step_clock(world: World) -> None:
    life = world.draw_life()
    if life is not None:
        step = world.random.choice([-7200.0, -60.0, -1.0, 1.0, 60.0, 3600.0, 7200.0])
        life.clock.offset = max(-7200.0, min(7200.0, life.clock.offset + step))
        world.trace.note("clock", life.name, life.clock.offset)
        world.hit("clock_jump")
    await trio.lowlevel.checkpoint()


async def _slow_disk(world: World) -> None:
    life = world.draw_life()
    if life is not None:
        until = trio.current_time() + world.random.choice([0.1, 3.0, 20.0])
        life.drive.on_slow = _hit(world, "slow_disk")
        life.drive.slow_until = life.drive.bad_until = until
    await trio.lowlevel.checkpoint()


async def _fail_syncs(world: World) -> None:
    life = world.draw_life()
    if life is not None:
        seconds = world.random.choice([0.0, 3.0, 20.0])
        life.disk.fail_syncs(world.random.randint(1, 3), until=trio.current_time() + seconds)
    await trio.lowlevel.checkpoint()


async def _fill_disk(world: World) -> None:
    life = world.draw_life()
    if life is not None:
        until = trio.current_time() + world.random.choice([0.1, 3.0, 20.0])
        life.disk.fill(until=until)
    await trio.lowlevel.checkpoint()


# --- people ---------------------------------------------------------------------------


async def _stall_reader(world: World) -> None:
    """Follow a conversation without reading, then resume."""
    sessions = [each for each in world.sessions if each not in world.maybe_deleted]
    if sessions:
        session_id = world.random.choice(sessions)
        reader = world.add_reader(world.sessions[session_id], session_id)
        stall = world.random.uniform(5, 30)
        await reader.follow(stall + 20.0, stall)


async def _delete_mid_run(world: World) -> None:
    with trio.move_on_after(20.0):
        while not (busy := world.busy_speakers()):
            await world.trace.wait_next()
        speaker = world.random.choice(busy)
        if await speaker.delete():
            world.hit("delete_mid_run")


# --- the table ------------------------------------------------------------------------

FAULTS: Final = (
    Fault(kind="connect_refused", strike=_refuse, excuses="nothing"),
    Fault(kind="partition", strike=_swallow, excuses="nothing"),
    Fault(kind="cut_with_loss", strike=_cut, excuses="nothing", weight=3),
    Fault(kind="half_open", strike=_half_open, excuses="nothing"),
    Fault(kind="clogged", strike=_clog, excuses="nothing"),
    Fault(kind="delay_spike", strike=_delay, excuses="nothing"),
    Fault(kind="late_dial", strike=_haunt, excuses="nothing"),
    Fault(kind="duplicate_frame", strike=_duplicate, excuses="nothing"),
    Fault(
        kind="host_kill", strike=_kill_host, excuses="its errors; its files are a copy", weight=4
    ),
    Fault(kind="vm_kill", strike=_kill_vm, excuses="its errors; its runs end interrupted"),
    Fault(kind="both_killed", strike=_kill_both, excuses="as for each"),
    Fault(kind="host_stop", strike=_stop_host, excuses="nothing"),
    Fault(kind="vm_stop", strike=_stop_vm, excuses="nothing"),
    Fault(
        kind="twin_vm", strike=_twin, excuses="one of the two may be refused with 4009", weight=1
    ),
    Fault(
        kind="frozen_vm", strike=_freeze, excuses="silence while it stands still, and its deadlines"
    ),
    Fault(kind="clock_jump", strike=_step_clock, excuses="nothing, up to two hours"),
    Fault(
        kind="slow_disk", strike=_slow_disk, excuses="reports may fail to be kept; answers are late"
    ),
    Fault(
        kind="fsync_error",
        strike=_fail_syncs,
        excuses="what is stored meanwhile may fail; a host may not start",
    ),
    Fault(kind="disk_full", strike=_fill_disk, excuses="as for fsync_error"),
    Fault(
        kind="bridge_exit",
        strike=exit_bridge,
        prepare=use_bridges,
        excuses="the run of the bridge fails",
    ),
    Fault(
        kind="bridge_garbage",
        strike=talk_nonsense,
        prepare=use_bridges,
        excuses="the run of the bridge may fail, or stand still for a minute",
        weight=3,
    ),
    Fault(kind="token_expiry", strike=expire_token, prepare=use_guests, excuses="nothing"),
    Fault(kind="ticket_replay", strike=replay_ticket, prepare=use_guests, excuses="nothing"),
    Fault(kind="stalled_reader", strike=_stall_reader, excuses="the host may close its stream"),
    Fault(
        kind="delete_mid_run",
        strike=_delete_mid_run,
        excuses="the session is not looked at any more",
    ),
)
"""Every kind of fault."""


def faults_named(kinds: frozenset[str] | None) -> tuple[Fault, ...]:
    """Return rows of the table; None means all.

    Raises:
        ValueError: If there is no such kind.
    """
    if kinds is None:
        return FAULTS
    unknown = kinds - {fault.kind for fault in FAULTS}
    if unknown:
        raise ValueError(f"no such faults: {', '.join(sorted(unknown))}")
    return tuple(fault for fault in FAULTS if fault.kind in kinds)
