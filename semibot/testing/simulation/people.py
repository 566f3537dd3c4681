"""The users of a simulation: they say things, stop answers, and delete conversations."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Final, final

import trio

from semibot.wire.codec import JsonObject
from semibot.wire.sse import EventId, SseDecoder

from .browsers import BROKEN, Browser, Exchange
from .happenings import CancelAnswered, CancelPending, Posted, Read, RunRead
from .readers import LARGEST_EVENT

if TYPE_CHECKING:
    from .world import World

TERMINAL: Final = frozenset({"execution_complete", "execution_error"})
"""Types of the events that end a run."""

MOST_READERS: Final = 2
"""Readers that one speaker's conversation gets at most."""


def draw_message(draw: random.Random) -> str:
    """Return something to say to the default adapter."""
    if draw.random() < 0.003:  # more than a tail, a chunk or a resync holds
        return "say 100 0.0 60000 -"
    count = draw.choice([0, 1, 3, 10, 30])
    delay = draw.choice([0.0, 0.01, 0.3, 2.0])
    size = draw.choice([8, 8, 8, 200, 200, 5000])
    work = draw.choice(["-", "a", "r", "arc", "c"])
    return f"say {count} {delay} {size} {work}"


@final
class Speaker:
    """Somebody who talks in one conversation, and sometimes begins a new one.

    Args:
        world: The simulation.
        user: Who it is.
        name: What the trace calls the speaker.
        pace: About how long it is silent, in seconds.
    """

    def __init__(self, world: World, user: str, name: str, pace: float) -> None:
        self._world = world
        self._user = user
        self._name = name
        self._pace = pace
        # Reproducible on purpose.
        self._random = random.Random(f"speaker {world.seed} {name}")  # noqa: S311
        self._browser = Browser(world, user, name)
        self.session_id: str | None = None
        """The conversation; None before the first answer."""
        self._posts = 0
        self._readers = 0

    async def live(self, nursery: trio.Nursery, until: trio.Event) -> None:
        """Talk until *until* is set. What was begun goes on in *nursery*."""
        draw = self._random
        while not until.is_set():
            roll = draw.random()
            if self.session_id is None or roll < 0.55:
                nursery.start_soon(self._say, self.session_id, self._world.draw_message(draw))
                await trio.sleep(draw.expovariate(1 / 2.0))
            elif roll < 0.7:
                nursery.start_soon(self._cancel, self.session_id)
                await trio.sleep(draw.expovariate(1 / 1.0))
            if self.session_id is not None and self._readers < MOST_READERS and draw.random() < 0.3:
                self._add_reader(self.session_id, nursery, until)
            await trio.sleep(draw.expovariate(1 / draw.choice([0.2, 4.0, 2 * self._pace])))

    def _add_reader(self, session_id: str, nursery: trio.Nursery, until: trio.Event) -> None:
        self._readers += 1
        reader = self._world.add_reader(self._user, session_id)
        nursery.start_soon(reader.live, self._random, until)

    async def _say(self, session_id: str | None, message: str) -> None:
        draw = self._random
        self._posts += 1
        key = f"{self._name}-{self._posts}"
        body: JsonObject = {
            "message": message,
            "on_disconnect": draw.choice(["cancel", "continue"]),
            "on_busy": draw.choice(["interrupt", "interrupt", "enqueue", "reject"]),
        }
        patience = draw.choice([0.3, 5.0, 300.0, 300.0])
        path = "/api/v1/chat/start"
        if session_id is not None:
            path = f"/api/v1/chat/sessions/{session_id}"
        for attempt in range(draw.choice([1, 3])):
            if attempt:
                await trio.sleep(draw.uniform(0.1, 4.0))
            if await self._post(path, body, key, patience, session_id):
                return

    async def _post(
        self, path: str, body: JsonObject, key: str, patience: float, session_id: str | None
    ) -> bool:
        """Send a message and follow its run; return whether all is said."""
        world = self._world
        with trio.move_on_after(patience):  # noqa: ASYNC912 - it connects
            try:
                async with self._browser.open("POST", path, body, Idempotency_Key=key) as exchange:
                    world.trace.note("post", key, exchange.status)
                    if exchange.status != 200:
                        if exchange.status >= 500 and exchange.status != 503:
                            world.violate("no_failure", f"POST {path}: {exchange.status}")
                        return exchange.status != 503
                    run_id = exchange.headers["x-run-id"]
                    found = exchange.headers["x-session-id"]
                    world.sessions.setdefault(found, self._user)
                    world.tell(Posted(session_id=found, run_id=run_id, key=key))
                    if session_id is None and self.session_id is None:
                        self.session_id = found
                    name = f"{self._name} {run_id[:6]}"
                    return await follow_run(world, exchange, found, run_id, name) is not None
            except BROKEN:
                return False
        return True

    async def _cancel(self, session_id: str) -> None:
        world = self._world
        named = self._random.random() < 0.5
        runs = world.runs_of(session_id)
        run_id = self._random.choice(runs) if named and runs else None
        body: JsonObject = {} if run_id is None else {"run_id": run_id}
        path = f"/api/v1/chat/sessions/{session_id}/cancel"
        since = trio.current_time()
        status, data = await self._browser.ask("POST", path, body)
        world.trace.note("cancel", status, str(data.get("outcome")))
        if status == 200:
            world.tell(CancelAnswered(session_id=session_id, asked=run_id, receipt=data))
        elif status == 202:
            world.tell(CancelPending(run_id=str(data.get("run_id")), since=since))
        elif status not in {0, -1, 404, 503}:
            world.violate("no_failure", f"cancel: {status} {data}")

    async def delete(self) -> bool:
        """Delete the conversation; return whether it is gone now."""
        session_id = self.session_id
        if session_id is None:
            return False
        self._world.maybe_deleted.add(session_id)
        status, _ = await self._browser.ask("DELETE", f"/api/v1/sessions/{session_id}")
        self._world.trace.note("delete", status)
        if status in {200, 404}:
            self._world.deleted.add(session_id)
            if self.session_id == session_id:
                self.session_id = None
                self._readers = 0
            return True
        if status not in {0, -1, 503}:
            self._world.violate("no_failure", f"delete: {status}")
        return False


async def follow_run(
    world: World, exchange: Exchange, session_id: str, run_id: str, name: str
) -> str | None:
    """Read the answer to a POST; return how the run ended, None if that did not come.

    That is the type of its terminal event, or the code of its error.
    """
    decoder = SseDecoder(LARGEST_EVENT)
    end: str | None = None
    last: EventId | None = None
    while data := await exchange.receive():
        for message in decoder.feed(data):
            event = json.loads(message.data)
            this = EventId.parse(message.id)
            kind = str(event["type"])
            world.trace.note(name, message.id, kind)
            if kind == "resync":
                last = None
                continue
            world.tell(
                Read(who=name, session_id=session_id, id=this, name=message.event, event=event)
            )
            world.tell(
                RunRead(run_id=run_id, before=last, has_ended=end is not None, id=this, event=event)
            )
            last = this
            end = str(event.get("code", kind)) if kind in TERMINAL else None
    return end
