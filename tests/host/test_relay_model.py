"""Whatever happens to a session, in whatever order: what its readers see is its history.

A client remembers every event it was shown, and forgets all when it is sent a ``resync``,
which says what the state is made of. In the end all of them remember what the store has.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import attrs
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from relay_kit import SESSION, EventStore, event, loss
from trio.testing import MockClock, wait_all_tasks_blocked

from semibot.config import Deadlines
from semibot.host.readers import Reader
from semibot.host.relay import Relay
from semibot.store.base import StoredEvent
from semibot.testing import simulated_ports
from semibot.wire.sse import EventId, SseDecoder, SseMessage

TERMINAL = {"execution_complete", "execution_error"}
WAITING = TERMINAL | {"tool_auth_required"}
UNKNOWN = EventId(0, 0)


@attrs.define(eq=False)
class World:
    """A session, the VM that has it, the host's relay, and what each of them knows."""

    clock: MockClock
    nursery: trio.Nursery
    store: EventStore = attrs.field(factory=EventStore)
    relay: Relay = attrs.field(init=False)
    said: dict[EventId, StoredEvent] = attrs.field(factory=dict)
    unacked: list[StoredEvent] = attrs.field(factory=list)
    is_up: bool = True
    vm_term: int = 1
    run: int = 1
    run_has_begun: bool = False
    untold: list[tuple[bool, Callable[[], None]]] = attrs.field(factory=list)
    clients: list[Client | RunClient] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.relay = self._relay()

    def _relay(self) -> Relay:
        return Relay(self.store, simulated_ports(), Deadlines(), max_committed_bytes=1000)

    @property
    def run_id(self) -> str:
        return f"r{self.run}"

    def _make(self, seq: int, term: int, type: str) -> StoredEvent:
        made = event(seq, term=term, run_id=self.run_id, type=type)
        self.said[EventId(term, seq)] = made
        self.run_has_begun = True
        if type in TERMINAL:
            self.run += 1
            self.run_has_begun = False
        return made

    # --- what happens -----------------------------------------------------------------

    async def say(self, number: int) -> None:
        """The VM says something more; if it is lost without knowing, nobody will keep it."""
        tail = await self.relay.tail(SESSION)
        if not self.is_up or tail.term != self.vm_term:
            return
        types = ["text_chunk", "text_chunk", "tool_auth_required", "execution_complete"]
        kind = types[number % 4] if self.run_has_begun else "run_started"
        seq = tail.received_seq + 1
        if self.store.term != self.vm_term:
            void = event(seq, term=self.vm_term, run_id="void")
            self.said[EventId(self.vm_term, seq)] = void
            tail.receive(void, waits_for_commit=False)
            return
        if self.unacked:
            assert tail.received_seq == self.unacked[-1].seq
        made = self._make(seq, self.vm_term, kind)
        self.unacked.append(made)
        tail.receive(made, waits_for_commit=kind in WAITING)

    async def commit(self, number: int) -> None:
        """The store has more; the tail hears of it later."""
        if not self.is_up or not self.unacked:
            return
        count = 1 + number % len(self.unacked)
        self.store.add(*self.unacked[:count])
        del self.unacked[:count]
        seq = len(self.store.events)
        self.untold.append((False, lambda: self._tell_commit(seq)))

    def _tell_commit(self, seq: int) -> None:
        tail = self.relay.loaded(SESSION)
        if tail is not None:
            tail.commit(seq)

    async def tell(self, number: int) -> None:
        """News reach the tail; those of losses in order."""
        if not self.untold:
            return
        index = number % len(self.untold)
        if self.untold[index][0]:
            index = next(i for i, (is_loss, _) in enumerate(self.untold) if is_loss)
        self.untold.pop(index)[1]()

    async def lose(self, _: int) -> None:
        """The session loses its VM; the run that has begun is ended in the new term."""
        base, term = len(self.store.events), self.store.term + 1
        self.unacked.clear()
        events = []
        if self.run_has_begun:
            run_id = self.run_id
            if all(each.run_id != run_id for each in self.store.events):
                events.append(self._make(base + 1, term, "run_started"))
            events.append(self._make(base + len(events) + 1, term, "execution_error"))
        self.store.add(*events)
        self.store.term = term
        self._tell_loss(loss(base, *events, term=term))

    def _tell_loss(self, lost) -> None:
        def tell() -> None:
            self.relay.publish_loss(lost)
            self.is_up, self.vm_term = True, self.store.term

        self.untold.append((True, tell))

    async def end_unwritten(self, _: int) -> None:
        """The host begins and ends a run by itself, while nobody has the session."""
        if self.unacked or self.untold or self.run_has_begun or not self.is_up:
            return
        base, term = len(self.store.events), self.store.term
        tail = await self.relay.tail(SESSION)
        if tail.received_seq != base:
            return
        events = [self._make(base + 1, term, "run_started")]
        events.append(self._make(base + 2, term, "execution_complete"))
        self.store.add(*events)
        self.is_up = False  # it is told before a VM gets the session
        self._tell_loss(loss(base, *events, term=term))

    async def break_off(self, number: int) -> None:
        """A commit fails, or looks as if it had."""
        if number % 3 == 0 and self.is_up and self.store.term == self.vm_term:
            self.store.add(*self.unacked)
            self.unacked.clear()
        self.relay.break_off([SESSION])
        self.is_up = False

    async def restart(self, _: int) -> None:
        """The host stops, and another one starts with the same store."""
        old, self.relay = self.relay, self._relay()
        old.close()
        self.untold.clear()
        self.is_up = False

    async def resume(self, _: int) -> None:
        """The VM comes back, and says again what nobody has acknowledged."""
        if self.is_up or any(is_loss for is_loss, _ in self.untold):
            return
        self.is_up, self.vm_term = True, self.store.term
        tail = await self.relay.tail(SESSION)
        tail.commit(len(self.store.events))
        for each in self.unacked:
            tail.receive(each, waits_for_commit=each.type in WAITING)
        tail.settle()

    async def pass_time(self, number: int) -> None:
        self.clock.jump(number % 13)

    async def stall(self, number: int) -> None:
        """A client stops to read, or goes on."""
        if self.clients:
            client = self.clients[number % len(self.clients)]
            if client.is_free.is_set():
                client.is_free = trio.Event()
            else:
                client.is_free.set()

    async def join(self, number: int) -> None:
        """Somebody comes: anew, with an id that was said, or with one made up."""
        client = Client(self)
        ids = sorted(self.said)
        if number % 3 == 1 and ids:
            client.come_with(ids[number % len(ids)])
        elif number % 3 == 2:
            client.come_with(EventId(1 + number % 4, number % 7))
        self._start(client)

    async def follow_run(self, number: int) -> None:
        """Somebody follows the newest run, or the one before, or the next."""
        run = max(1, self.run + number % 3 - 1)
        self._start(RunClient(self, f"r{run}"))

    def _start(self, client: Client | RunClient) -> None:
        self.clients.append(client)
        self.nursery.start_soon(client.live)

    async def finish(self) -> None:
        """Let everything come to rest."""
        for client in self.clients:
            client.is_free.set()
        for _ in range(2):
            await self.resume(0)
            while self.untold:
                await self.tell(0)
        await self.commit(len(self.unacked) - 1)
        await self.tell(0)
        for _ in range(8):
            await wait_all_tasks_blocked()
            self.clock.jump(11)
        await wait_all_tasks_blocked()
        assert not self.unacked
        for client in self.clients:
            client.check_end()


ACTIONS = [
    World.say,
    World.say,
    World.say,
    World.commit,
    World.commit,
    World.tell,
    World.tell,
    World.lose,
    World.end_unwritten,
    World.break_off,
    World.restart,
    World.resume,
    World.pass_time,
    World.stall,
    World.join,
    World.join,
    World.follow_run,
]


# --- who reads ------------------------------------------------------------------------


@attrs.define(eq=False)
class Client:
    """Follows the session, and comes back with the last id when the stream ends."""

    world: World
    history: list[EventId] = attrs.field(factory=list)
    last_id: EventId | None = None
    joined_with: EventId | None = None
    is_free: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.is_free.set()

    def come_with(self, event_id: EventId) -> None:
        """As if it had read that far; what exactly it has read is not known."""
        self.joined_with = self.last_id = event_id
        self.history = [UNKNOWN] * event_id.seq

    async def live(self) -> None:
        while True:
            relay = self.world.relay
            reader = await relay.open_reader(SESSION, last_event_id=self.last_id)
            with reader:
                await read(self, reader, self.take)
            assert reader.end_reason in {"store_failed", "closing"}

    def take(self, message: SseMessage) -> None:
        event_id = EventId.parse(message.id)
        body = json.loads(message.data)
        if body["type"] == "resync":
            state = json.loads(body["messages"][0]["content"])
            self.history = [EventId(*each) for each in state]
            self.joined_with = None
            assert event_id.seq == len(self.history)
        else:
            assert event_id.seq == len(self.history) + 1
            assert not self.history or event_id > self.history[-1]
            check_event(self.world, event_id, message)
            self.history.append(event_id)
        self.last_id = event_id

    def check_end(self) -> None:
        real = [EventId(each.term, each.seq) for each in self.world.store.events]
        assert len(self.history) == len(real)
        assert all(seen in (each, UNKNOWN) for seen, each in zip(self.history, real, strict=True))
        joined = self.joined_with
        if joined is not None and joined.seq:
            assert real[joined.seq - 1].term <= joined.term, "what it had read was void"


@attrs.define(eq=False)
class RunClient:
    """Follows one run, and begins again if the stream breaks off."""

    world: World
    run_id: str
    seen: list[EventId] = attrs.field(factory=list)
    has_begun_anew: bool = False
    end_reason: str | None = None
    is_free: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.is_free.set()

    async def live(self) -> None:
        while self.end_reason != "run_ended":
            world = self.world
            self.seen, self.has_begun_anew = [], False
            mine = [each.seq for each in world.store.events if each.run_id == self.run_id]
            after_seq = mine[0] - 1 if mine else len(world.store.events)
            reader = await world.relay.open_run_reader(SESSION, self.run_id, after_seq)
            with reader:
                await read(self, reader, self.take)
            self.end_reason = reader.end_reason

    def take(self, message: SseMessage) -> None:
        event_id = EventId.parse(message.id)
        if json.loads(message.data)["type"] == "resync":
            assert self.seen, "a reader that was shown nothing needs no state"
            self.seen, self.has_begun_anew = [], True
            return
        check_event(self.world, event_id, message)
        assert self.world.said[event_id].run_id == self.run_id
        assert not self.seen or event_id.seq > self.seen[-1].seq
        self.seen.append(event_id)

    def check_end(self) -> None:
        events = [each for each in self.world.store.events if each.run_id == self.run_id]
        ids = [EventId(each.term, each.seq) for each in events]
        if self.has_begun_anew:
            ids = ids[len(ids) - len(self.seen) :]
        assert self.seen == ids
        has_ended = bool(events) and events[-1].type in TERMINAL
        assert (self.end_reason == "run_ended") == has_ended
        assert not has_ended or self.seen


async def read(
    client: Client | RunClient, reader: Reader, take: Callable[[SseMessage], None]
) -> None:
    decoder = SseDecoder()
    while (chunk := await reader.next_chunk()) is not None:
        for message in decoder.feed(chunk):
            take(message)
        await client.is_free.wait()


def check_event(world: World, event_id: EventId, message: SseMessage) -> None:
    said = world.said[event_id]
    assert message.data.decode() == said.data
    if said.type in WAITING:
        assert world.store.events[event_id.seq - 1] is said, "seen before its commit"


steps = st.tuples(
    st.integers(0, len(ACTIONS) - 1), st.integers(0, 1000), st.sampled_from([True, True, False])
)


@settings(max_examples=150, deadline=None)
@given(st.lists(steps, min_size=10, max_size=60))
def test_every_reader_sees_the_history_whatever_happens(plan):
    clock = MockClock()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            world = World(clock, nursery)
            for index, number, comes_to_rest in plan:
                await ACTIONS[index](world, number)
                if comes_to_rest:
                    await wait_all_tasks_blocked()
            await world.finish()
            nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)
