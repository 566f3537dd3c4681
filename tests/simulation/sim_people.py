"""The users of a simulation: people who say things, and readers who check what they see."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import h11
import trio
from sim_network import End, Owner

from semibot.wire.sse import EventId, SseDecoder

if TYPE_CHECKING:
    from sim_world import World

TERMINAL = frozenset({"execution_complete", "execution_error"})
BROKEN = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, h11.RemoteProtocolError)


class Exchange:
    """A request and its answer as it comes."""

    def __init__(self, stream: End) -> None:
        self.stream = stream
        self.connection = h11.Connection(h11.CLIENT)
        self.status = 0
        self.headers: Mapping[str, str] = {}

    async def _next(self) -> object:
        while (event := self.connection.next_event()) is h11.NEED_DATA:
            self.connection.receive_data(await self.stream.receive_some(65536))
        return event

    async def read_head(self) -> None:
        event = await self._next()
        if not isinstance(event, h11.Response):
            raise ConnectionResetError("no answer")
        self.status = event.status_code
        self.headers = {name.decode(): value.decode() for name, value in event.headers}

    async def receive(self) -> bytes:
        event = await self._next()
        if isinstance(event, h11.ConnectionClosed):
            raise ConnectionResetError("the answer broke off")
        return bytes(event.data) if isinstance(event, h11.Data) else b""

    async def read_all(self) -> bytes:
        data = bytearray()
        while piece := await self.receive():
            data += piece
        return bytes(data)


class Browser:
    """What a user's requests go through."""

    def __init__(self, world: World, user: str, name: str) -> None:
        self.world = world
        self.user = user
        self.owner = Owner(name)
        self._dial = world.network.dial(self.owner, "http")

    @asynccontextmanager
    async def open(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> AsyncGenerator[Exchange]:
        stream = await self._dial("host", 8080, use_tls=False)  # type: ignore[misc]
        try:
            exchange = Exchange(stream)
            data = b"" if body is None else json.dumps(body).encode()
            fields = {
                "Host": "host:8080",
                "Authorization": f"Bearer {self.world.user_token(self.user)}",
                **{name.replace("_", "-"): value for name, value in headers.items()},
            }
            if method != "GET":
                fields |= {"Content-Type": "application/json", "Content-Length": str(len(data))}
            request = h11.Request(method=method, target=path, headers=list(fields.items()))
            parts = [exchange.connection.send(request)]
            if data:
                parts.append(exchange.connection.send(h11.Data(data)))
            parts.append(exchange.connection.send(h11.EndOfMessage()))
            await stream.send_all(b"".join(part for part in parts if part))
            await exchange.read_head()
            yield exchange
        finally:
            stream.close_now()

    async def ask(
        self, method: str, path: str, body: object = None, **headers: str
    ) -> tuple[int, dict[str, object]]:
        """Return status and data; status 0 if the connection broke, -1 if nothing came."""
        with trio.move_on_after(100) as scope:
            try:
                async with self.open(method, path, body, **headers) as exchange:
                    data = await exchange.read_all()
                    answer = json.loads(data) if data else {}
                    return exchange.status, answer.get("data") or answer.get("error") or {}
            except BROKEN:
                return 0, {}
        assert scope.cancelled_caught
        return -1, {}


class Reader:
    """Somebody who follows a session; connects again and again, with the last id."""

    def __init__(self, world: World, user: str, session_id: str, name: str) -> None:
        self.world = world
        self.session_id = session_id
        self.name = name
        self.browser = Browser(world, user, name)
        self.seen: list[tuple[EventId, str, dict[str, object]]] = []
        self.is_gone = False
        self.has_news = trio.Event()

    @property
    def last_id(self) -> EventId | None:
        return self.seen[-1][0] if self.seen else None

    async def follow(self, seconds: float, stall: float = 0.0) -> None:
        """Read for a while; *stall* seconds into it nothing is read for as long again."""
        last = {} if self.last_id is None else {"Last_Event_ID": str(self.last_id)}
        path = f"/api/v1/sessions/{self.session_id}/stream"
        with trio.move_on_after(seconds):
            try:
                async with self.browser.open("GET", path, **last) as exchange:
                    if exchange.status in {204, 404}:
                        self.is_gone = True
                        return
                    if exchange.status != 200:
                        self.world.trace.note("stream refused", exchange.status)
                        return
                    if stall:
                        await trio.sleep(stall)
                    decoder = SseDecoder(2 * 1024 * 1024)
                    while data := await exchange.receive():
                        for message in decoder.feed(data):
                            self.take(message.id, message.event, message.data)
            except BROKEN:
                return

    def take(self, event_id: str, name: str, data: bytes) -> None:
        event = json.loads(data)
        kind = event["type"]
        this = EventId.parse(event_id)
        self.world.trace.note(self.name, event_id, kind)
        if kind != "resync":
            self.world.saw(self.session_id, this, name, event, self.name)
            if self.seen:
                before = self.seen[-1][0]
                if this.seq != before.seq + 1 or this.term < before.term:
                    self.world.violate(f"{self.name}: {before} is followed by {this} {kind}")
            elif this.seq != 1:
                self.world.violate(f"{self.name}: begins with {this} {kind}")
        elif self.seen and this < self.seen[-1][0]:
            # Published, not committed, and its VM has not said it again in time.
            self.world.count("resync goes back")
        self.seen.append((this, name, event))
        self.has_news.set()
        self.has_news = trio.Event()

    async def live(self, draw: random.Random, until: trio.Event) -> None:
        """Come and go until *until* is set."""
        while not until.is_set() and not self.is_gone:
            stall = draw.uniform(2, 30) if draw.random() < 0.1 else 0.0
            await self.follow(draw.choice([0.05, 1.0, 10.0, 40.0, 90.0]) + stall, stall)
            await trio.sleep(draw.expovariate(1 / 2.0))


class Speaker:
    """Somebody who talks in one conversation, and sometimes deletes it and begins anew."""

    def __init__(self, world: World, user: str, name: str) -> None:
        self.world = world
        self.user = user
        self.name = name
        self.random = random.Random(f"speaker {world.seed} {name}")
        self.browser = Browser(world, user, name)
        self.session_id: str | None = None
        self.posts = 0
        self.readers = 0

    def _message(self) -> str:
        draw = self.random
        if draw.random() < 0.02:  # more than a tail, a chunk or a resync holds
            return "say 100 0.0 60000 -"
        count = draw.choice([0, 1, 3, 10, 40])
        delay = draw.choice([0.0, 0.01, 0.3, 2.0])
        size = draw.choice([8, 8, 200, 9000])
        work = draw.choice(["-", "a", "r", "ar"])
        return f"say {count} {delay} {size} {work}"

    async def live(self, nursery: trio.Nursery, until: trio.Event) -> None:
        draw = self.random
        while not until.is_set():
            roll = draw.random()
            if self.session_id is None or roll < 0.5:
                nursery.start_soon(self._say, self.session_id, self._message())
                await trio.sleep(draw.expovariate(1 / 2.0))
            elif roll < 0.65:
                nursery.start_soon(self._cancel, self.session_id)
                await trio.sleep(draw.expovariate(1 / 1.0))
            elif roll < 0.68:
                await self._delete(self.session_id)
            elif roll < 0.8 and self.readers < 6:
                self.readers += 1
                reader = self.world.add_reader(self.user, self.session_id)
                nursery.start_soon(reader.live, draw, until)
            await trio.sleep(draw.expovariate(1 / draw.choice([0.2, 4.0, 15.0])))

    async def _say(self, session_id: str | None, message: str) -> None:
        draw = self.random
        self.posts += 1
        key = f"{self.name}-{self.posts}"
        on_disconnect = draw.choice(["cancel", "continue"])
        on_busy = draw.choice(["interrupt", "interrupt", "enqueue", "reject"])
        patience = draw.choice([0.3, 5.0, 300.0, 300.0])
        body = {"message": message, "on_busy": on_busy, "on_disconnect": on_disconnect}
        path = "/api/v1/chat/start"
        if session_id is not None:
            path = f"/api/v1/chat/sessions/{session_id}"
        run_id = None
        for attempt in range(draw.choice([1, 3])):
            if attempt:
                await trio.sleep(draw.uniform(0.1, 4.0))
            found, is_over = await self._post(path, body, key, patience, session_id)
            if found is not None:
                if run_id is not None and found != run_id:
                    self.world.violate(f"{key}: the repeat is {found}, the first was {run_id}")
                run_id = found
            if is_over:
                return

    async def _post(
        self, path: str, body: object, key: str, patience: float, session_id: str | None
    ) -> tuple[str | None, bool]:
        """Send a message and follow its run: the run, and whether all is said."""
        world = self.world
        run_id: str | None = None
        with trio.move_on_after(patience):
            try:
                async with self.browser.open("POST", path, body, Idempotency_Key=key) as exchange:
                    world.trace.note("post", key, exchange.status)
                    if exchange.status != 200:
                        if exchange.status >= 500 and exchange.status != 503:
                            world.violate(f"POST {path}: {exchange.status}")
                        return None, exchange.status != 503
                    run_id = exchange.headers["x-run-id"]
                    found = exchange.headers["x-session-id"]
                    world.knows_run(found, run_id, key)
                    if session_id is None and self.session_id is None:
                        self.session_id = found
                        self.readers = 0
                    world.session(self.user, found)
                    return run_id, await self._follow(exchange, found, run_id)
            except BROKEN:
                return run_id, False
        return run_id, True

    async def _follow(self, exchange: Exchange, session_id: str, run_id: str) -> bool:
        world = self.world
        decoder = SseDecoder(2 * 1024 * 1024)
        has_ended = False
        last: EventId | None = None
        name = f"{self.name} {run_id[:6]}"
        while data := await exchange.receive():
            for message in decoder.feed(data):
                event = json.loads(message.data)
                this = EventId.parse(message.id)
                world.trace.note(name, message.id, event["type"])
                if event["type"] == "resync":
                    world.count("resync in a POST")
                    last = None
                    continue
                world.saw(session_id, this, message.event, event, name)
                if has_ended:
                    world.violate(f"{name}: {this} comes after the end")
                if last is None:
                    is_first = not has_ended and event["type"] == "run_started"
                    if not is_first and event["type"] not in TERMINAL:
                        world.note(f"{name}: begins with {this} {event['type']}")
                elif this.seq != last.seq + 1 or this.term < last.term:
                    world.violate(f"{name}: {last} is followed by {this} {event['type']}")
                last = this
                has_ended = event["type"] in TERMINAL
                if has_ended and event["run_id"] != run_id:
                    world.violate(f"{name}: the end of another run")
        return has_ended

    async def _cancel(self, session_id: str) -> None:
        world = self.world
        named = self.random.random() < 0.5
        runs = world.runs_of(session_id)
        run_id = self.random.choice(runs) if named and runs else None
        body = {} if run_id is None else {"run_id": run_id}
        path = f"/api/v1/chat/sessions/{session_id}/cancel"
        began = trio.current_time()
        status, data = await self.browser.ask("POST", path, body)
        took = trio.current_time() - began
        world.trace.note("cancel", status, str(data.get("outcome")))
        if status == 200:
            world.cancel_answered(data)
        elif status not in {0, -1, 202, 404, 503}:
            world.violate(f"cancel: {status} {data}")
        if status == 200 and took > 40:
            world.note(f"cancel took {took:.0f} s")

    async def _delete(self, session_id: str) -> None:
        self.world.maybe_deleted.add(session_id)
        status, _ = await self.browser.ask("DELETE", f"/api/v1/sessions/{session_id}")
        self.world.trace.note("delete", status)
        if status in {200, 404}:
            self.world.deleted.add(session_id)
            self.session_id = None
        elif status not in {0, -1, 503}:
            self.world.violate(f"delete: {status}")
