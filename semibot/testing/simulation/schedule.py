"""The course of one simulation: people talk, things go wrong, and then all must come right."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, final

import trio

from semibot.wire.codec import JsonObject

from .browsers import BROKEN, Browser
from .database import undone
from .faults import Fault, faults_named
from .happenings import Finished, Posted, Tick
from .lives import HOST
from .people import Speaker, follow_run
from .planes import host_settings, prepare_host
from .readers import Reader

if TYPE_CHECKING:
    from .world import World

SETTLED_WITHIN: Final = 300.0
"""After how long without faults everything has to be done, in seconds."""

UP_WITHIN: Final = 30.0
"""How long a process may take to start, in seconds."""

SPEAKERS: Final = 3
"""How many people talk at least."""

TALKED_ABOUT: Final = 16
"""How often each of them says something, about, however long things go wrong."""

LONGEST_PAUSE: Final = 1000.0
"""How long a simulation may take beside its faulty time, in simulated seconds."""

MOST_ROUNDS: Final = 4
"""How often something is said in every session when all has settled, at most."""

LEAST: Final = {"sessions": 3, "runs": 5, "events": 200, "readers": 2}
"""What a simulation has at least."""


@final
class Schedule:
    """Takes a world from its beginning to its end.

    Args:
        world: What happens in it.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._faults = faults_named(world.plan.faults)
        self._is_all_answered = True

    async def run(self) -> None:
        """Live through all of it."""
        world = self._world
        world.tell(Tick())  # before anything runs
        for fault in self._faults:
            if fault.prepare is not None:
                fault.prepare(world)
        directory = world.processes.directory_of(HOST)
        await prepare_host(host_settings(directory, world.lost_after), world.users)
        world.processes.insert_disks()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._begin_all, nursery)
            nursery.start_soon(self._tick)
            for kind in world.processes.kinds:
                world.processes.start(kind)
            await self._live()
            for kind in (*world.processes.kinds[1:], HOST):
                await world.processes.stop(world.processes.lives[kind])
            nursery.cancel_scope.cancel("everything has stopped")
        world.tell(Finished())
        self._check_size()

    async def _begin_all(self, nursery: trio.Nursery) -> None:
        async for function in self._world.begun:  # as long as the simulation lasts
            nursery.start_soon(function)

    async def _tick(self) -> None:
        while True:
            await trio.sleep(1.0)
            self._world.tell(Tick())

    async def _live(self) -> None:
        world = self._world
        until = trio.Event()
        async with trio.open_nursery() as people:
            faulty = world.plan.faulty
            for index in range(world.plan.speakers or SPEAKERS):
                user = world.users[index % len(world.users)]
                pace = max(2.0, faulty / TALKED_ABOUT)
                speaker = Speaker(world, user, f"speaker{index}", pace)
                world.speakers.append(speaker)
                people.start_soon(speaker.live, people, until)
            with trio.move_on_after(faulty):
                await self._go_wrong(faulty)
            until.set()
            await self._heal()
            await self._settle()
            await self._talk_once_more()
            people.cancel_scope.cancel("all is said")
        await self._settle()  # somebody may have had the very last word
        await self._read_up()

    # --- faults -----------------------------------------------------------------------

    async def _go_wrong(self, faulty: float) -> None:
        world = self._world
        if not self._faults:
            await trio.sleep_forever()
        draw = world.random
        weights = [fault.weight for fault in self._faults]
        every = max(0.7, faulty * draw.choice([0.01, 0.02, 0.04, 0.1]))
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(draw.expovariate(1 / every))
                fault: Fault = draw.choices(self._faults, weights)[0]
                world.trace.note("fault", fault.kind)
                nursery.start_soon(fault.strike, world)

    async def _heal(self) -> None:
        world = self._world
        processes = world.processes
        world.network.heal()
        for fault in self._faults:
            if fault.heal is not None:
                fault.heal(world)
        processes.heal_disks()
        world.trace.note("healed")
        frozen = [life.frozen_until for life in processes.everyone]
        await trio.sleep_until(max([trio.current_time(), *frozen]) + 1.0)
        await processes.end_twins()
        if processes.doubled:  # the close of a link that was taken over may come late
            await trio.sleep(70)
        for kind in processes.kinds:
            if processes.lives[kind].ask_to_stop.is_set():  # by a fault that was cut short
                await processes.stop(processes.lives[kind])
            if not processes.lives[kind].is_alive:
                processes.start(kind)
            with trio.move_on_after(UP_WITHIN) as scope:
                await processes.lives[kind].is_up.wait()
            if scope.cancelled_caught:
                world.violate("settles", f"{kind} does not come up")

    # --- what has to come right -------------------------------------------------------

    async def _settle(self) -> None:
        world = self._world
        until = trio.current_time() + SETTLED_WITHIN
        while left := self._undone():
            if trio.current_time() > until:
                for text in left:
                    world.violate("settles", text)
                return
            await trio.sleep(5)

    def _undone(self) -> list[str]:
        processes = self._world.processes
        return undone(processes.directory_of(HOST), processes.wanted_reports())

    async def _talk_once_more(self) -> None:
        """Say something in every session that is left; it has to be answered.

        Where little was said before, there is more of it.
        """
        world = self._world
        for again in range(MOST_ROUNDS):
            left = [each for each in world.sessions if each not in world.maybe_deleted]
            new = max(1, LEAST["sessions"] - len(left)) if not again else 0
            async with trio.open_nursery() as nursery:
                for session_id in left:
                    path = f"/api/v1/chat/sessions/{session_id}"
                    name = f"{session_id[:6]}-{again}"
                    nursery.start_soon(self._insist, world.sessions[session_id], path, name)
                for index in range(new):
                    user = world.users[index % len(world.users)]
                    nursery.start_soon(self._insist, user, "/api/v1/chat/start", f"new-{index}")
            if not self._is_all_answered or not self._lacks():
                return

    async def _insist(self, user: str, path: str, name: str) -> None:
        world = self._world
        browser = Browser(world, user, f"last of {name}")
        status, end, refusals = 0, None, 0
        said: dict[str, str] = {}  # by key: who says another thing with it is refused
        with trio.move_on_after(SETTLED_WITHIN):
            for attempt in range(30):  # the VM may still be waiting to dial again
                with trio.move_on_after(60):
                    key = f"last-{attempt // 5}-{refusals}-{name}"
                    if key not in said:
                        said[key] = world.plan.last_message or world.draw_message(world.random)
                    status, end = await self._ask(browser, user, path, key, said[key])
                world.trace.note("last", name, attempt, status, end)
                if end == "TOO_MANY_SESSIONS":  # the others have not been put aside yet
                    refusals += 1
                elif status not in {0, 503}:
                    break
                await trio.sleep(5)
        if end != "execution_complete":  # a late cancel may have met it
            self._is_all_answered = False
            world.violate("settles", f"{name}: the last message is not answered: {status} {end}")

    async def _ask(
        self, browser: Browser, user: str, path: str, key: str, message: str
    ) -> tuple[int, str | None]:
        """Say the last words once; return the status, 0 if nothing came, and how it ended."""
        world = self._world
        body: JsonObject = {
            "message": message,
            "on_busy": "enqueue",
            "on_disconnect": "continue",
        }
        try:
            async with browser.open("POST", path, body, Idempotency_Key=key) as exchange:
                if exchange.status != 200:
                    return exchange.status, (await exchange.read_all()).decode()[-300:]
                session_id, run_id = (
                    exchange.headers[name] for name in ("x-session-id", "x-run-id")
                )
                world.sessions.setdefault(session_id, user)
                world.tell(Posted(session_id=session_id, run_id=run_id, key=key))
                name = f"last {run_id[:6]}"
                return 200, await follow_run(world, exchange, session_id, run_id, name)
        except BROKEN as exc:
            world.trace.note("last broke off", repr(exc))
            return 0, None

    async def _read_up(self) -> None:
        """Let every reader come back once and see the rest."""
        world = self._world
        for session_id, user in tuple(world.sessions.items()):
            if session_id not in world.maybe_deleted:
                world.add_reader(user, session_id)
        async with trio.open_nursery() as nursery:
            for reader in world.readers:
                nursery.start_soon(self._read_on, reader)

    async def _read_on(self, reader: Reader) -> None:
        """Let a reader come back until it has seen everything, or should have."""
        until = trio.current_time() + SETTLED_WITHIN
        while not reader.is_gone and trio.current_time() < until:
            await reader.follow(40.0)
            end = self._world.rows("SELECT last_seq FROM sessions WHERE id = ?", reader.session_id)
            seen = 0 if reader.last_id is None else reader.last_id.seq
            if not end or seen >= int(str(end[0][0])):
                return

    def _lacks(self) -> list[str]:
        """Return what there are too few of, except readers, who come last."""
        return [text for what, text in self._small() if what != "readers"]

    def _small(self) -> list[tuple[str, str]]:
        world = self._world
        return [
            (what, f"{size} {what} are fewer than {least}")
            for (what, least), size in zip(LEAST.items(), world.sizes(), strict=True)
            # How much an answer says is for its adapter to know.
            if size < least and (what != "events" or world.plan.last_message is not None)
        ]

    def _check_size(self) -> None:
        for _, text in self._small():
            self._world.violate("too_small", text)
