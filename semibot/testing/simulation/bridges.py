"""Sessions on bridges: the bridge adapter, with children that exit and talk nonsense.

Some sessions of a simulation run on the real bridge adapter. Their children are coroutines
that speak JSON lines, do what messages say, and now and then do what no bridge should. They go
on for a while with what they were told to leave, and those that do not hear at all have to be
stopped.
"""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, final

import attrs
import trio

from semibot.adapters import BridgeAgent
from semibot.ports import Ports
from semibot.session import Adapter, AdapterContext, AdapterFactory
from semibot.wire.codec import JsonObject, JsonValue
from semibot.wire.jsonl import MAX_LINE_BYTES, LineFramer, encode_line

from .children import SimulatedChild, spawning
from .happenings import RunWorks
from .lives import Life
from .talker import talker_of

if TYPE_CHECKING:
    from .world import World

PROGRAM: Final = "simulated-bridge"
"""What the adapter starts."""

EVERY: Final = 2
"""Of how many sessions one runs on a bridge."""

CLEAN_UP: Final = (0.9, 1.8, 2.7)
"""How long a bridge cleans up when its run is cancelled, or when it is stopped, in seconds; which
of them depends on the session. With the last it is killed, if it began when it was stopped."""

STEP: Final = 0.3
"""How often it does something meanwhile, in seconds."""

MOST_SILENT: Final = 60.0
"""How long a bridge stops talking at most, in seconds."""


@final
class Bridges:
    """The bridges of one simulation. Called with a life and its ports, it lets it start some.

    Args:
        world: The simulation.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._bridges: list[_Bridge] = []

    def __call__(self, life: Life, ports: Ports) -> Ports:
        """Return ports that can start bridges."""

        async def be_bridge(child: SimulatedChild, environment: Mapping[str, str]) -> int:
            bridge = _Bridge(life, child)
            self._bridges.append(bridge)
            try:
                return await bridge.serve()
            finally:
                self._bridges.remove(bridge)

        spawn = spawning(self._world, PROGRAM, be_bridge, ports.spawn, name="bridge")
        return attrs.evolve(ports, spawn=spawn)

    async def busy(self) -> _Bridge | None:
        """Return a bridge that works on a run; waits a while for one."""
        with trio.move_on_after(30.0):  # noqa: ASYNC912 - one that is busy already is fine
            while not (busy := [each for each in self._bridges if each.run_id is not None]):
                await self._world.trace.wait_next()
            return self._world.random.choice(busy)
        return None


def use_bridges(world: World) -> None:
    """Let some sessions run on bridges, if the simulation's own adapter is the default."""
    if world.plan.adapter is not talker_of or _bridges_of(world) is not None:
        return
    world.port_changes.append(Bridges(world))
    usual = world.adapters["graph"]
    world.adapters["graph"] = lambda life: _sometimes_bridges(usual(life))


def _bridges_of(world: World) -> Bridges | None:
    return next((each for each in world.port_changes if isinstance(each, Bridges)), None)


def _sometimes_bridges(usual: AdapterFactory) -> AdapterFactory:
    bridge = BridgeAgent((PROGRAM,))

    @asynccontextmanager
    async def open_either(context: AdapterContext) -> AsyncGenerator[Adapter]:
        is_bridge = int(context.session_id[:4], 16) % EVERY == 0
        factory = bridge if is_bridge else usual
        async with factory(context) as adapter:
            yield adapter

    return open_either


# --- faults ---------------------------------------------------------------------------


async def exit_bridge(world: World) -> None:
    """Have a bridge end in the middle of a run, perhaps in the middle of a line."""
    bridges = _bridges_of(world)
    bridge = None if bridges is None else await bridges.busy()
    if bridge is None:
        await trio.lowlevel.checkpoint()
        return
    if world.random.random() < 0.3:
        await bridge.blurt(b'{"type":"text_chunk","content":"ha')
    if bridge.run_id is not None and bridge.child.is_alive:
        bridge.child.exit(world.random.choice([0, 1, 70, -signal.SIGSEGV, -signal.SIGKILL]))
        world.hit("bridge_exit")


async def talk_nonsense(world: World) -> None:
    """Have a bridge say what none should, or nothing, in the middle of a run."""
    bridges = _bridges_of(world)
    bridge = None if bridges is None else await bridges.busy()
    if bridge is None:
        await trio.lowlevel.checkpoint()
        return
    kind = world.random.choice((*_NONSENSE, "silence", "huge line", "stderr"))
    world.trace.note("nonsense", kind)
    match kind:
        case "silence":
            bridge.silent_until = trio.current_time() + world.random.uniform(1.0, MOST_SILENT)
            is_done = True
        case "huge line":
            is_done = await bridge.blurt(b"x" * (MAX_LINE_BYTES + 10) + b"\n")
        case "stderr":
            is_done = await bridge.blurt(b"woe!\n" * 20_000, to_stderr=True)
        case _:
            text = _NONSENSE[kind].replace("RUN", bridge.run_id or "")
            is_done = await bridge.blurt(text.encode("latin-1") + b"\n")
    if is_done:
        world.hit("bridge_garbage")


_NONSENSE: Final[Mapping[str, str]] = {
    "no JSON": '}{ "type',
    "no text": "\xff\xfe\x00\x80",
    "no object": '["text_chunk"]',
    "nothing": "",
    "deep": "[" * 5000,
    "no type": '{"content":"x"}',
    "unknown type": '{"type":"say_it_loud","content":"x"}',
    "host's event": '{"type":"resync","messages":[]}',
    "start of a run": '{"type":"run_started","run_id":"RUN","message":"x"}',
    "wrong field": '{"type":"text_chunk","content":17,"run_id":"RUN"}',
    "end of another run": '{"type":"execution_complete","run_id":"another","final_response":"x"}',
    "text of another run": '{"type":"text_chunk","run_id":"another","content":"x"}',
    "malformed end": '{"type":"execution_complete","run_id":"RUN","final_response":["x"]}',
    "end twice": '{"type":"execution_complete","run_id":"RUN","final_response":"a"}\n'
    '{"type":"execution_error","run_id":"RUN","code":"B","error":"b"}\n'
    '{"type":"text_chunk","run_id":"RUN","content":"after the end"}',
    "unasked snapshot": '{"type":"snapshot_response","id":"nobody","snapshot":{"x":1}}',
    "unknown request": '{"type":"cp_request","id":"7","method":"rm","params":{"x":[]}}',
    "unknown report": '{"type":"cp_fire_and_forget","method":"rm","params":{"x":[]}}',
}


# --- the program ----------------------------------------------------------------------


@final
class _Bridge:
    """One bridge that runs: it does what :mod:`.talker` says that messages mean."""

    def __init__(self, life: Life, child: SimulatedChild) -> None:
        self.child = child
        self.run_id: str | None = None
        self.silent_until = 0.0
        self._life = life
        self._world = life.world
        self._session_id = ""
        self._knows_runs = False
        self._turn = trio.Lock()
        self._run_scope = trio.CancelScope()
        self._answers: dict[str, trio.Event] = {}
        self._asked = 0

    # --- lines

    async def _put(self, data: bytes) -> None:
        async with self._turn:
            await trio.sleep_until(self.silent_until)
            await self.child.output.send_all(data)

    async def blurt(self, data: bytes, *, to_stderr: bool = False) -> bool:
        """Write something, whatever it is; return whether a run was under way."""
        was_busy = self.run_id is not None
        try:
            async with self._turn:
                await (self.child.complaints if to_stderr else self.child.output).send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False  # it has ended
        return was_busy

    async def _say(self, type_: str, **fields: JsonValue) -> None:
        if self._knows_runs and self.run_id is not None and "run_id" not in fields:
            fields["run_id"] = self.run_id
        await self._put(encode_line({"type": type_, **fields}))

    async def serve(self) -> int:
        """Answer until told to stop, or until nobody speaks any more, and a bit longer."""
        async with trio.open_nursery() as nursery:
            await self._listen(nursery)
            if self.run_id is not None:
                await self._clean_up(self.run_id)
            nursery.cancel_scope.cancel("nobody wants more of it")
        return 0

    @property
    def _is_deaf(self) -> bool:
        """Whether it does not hear that a run is cancelled; it has to be stopped."""
        return int(self._session_id[6:8], 16) % 3 == 0

    async def _clean_up(self, run_id: str) -> None:
        seconds = CLEAN_UP[int(self._session_id[8:10], 16) % len(CLEAN_UP)]
        for _ in range(round(seconds / STEP)):
            await trio.sleep(STEP)
            self._work_on(run_id)

    def _work_on(self, run_id: str) -> None:
        self._world.tell(RunWorks(run_id=run_id, life=self._life))

    async def _listen(self, nursery: trio.Nursery) -> None:
        framer = LineFramer()
        while data := await self.child.input.receive_some():
            for line in framer.feed(data):
                frame: JsonObject = json.loads(line)
                if frame["type"] == "stop":
                    return
                await self._take(frame, nursery)

    async def _take(self, frame: JsonObject, nursery: trio.Nursery) -> None:
        match frame["type"]:
            case "start":
                self._session_id = str(frame["session_id"])
                # Some are of level 1: they never say that they are ready, and know no runs.
                self._knows_runs = int(self._session_id[4:6], 16) % 3 != 0
                if self._knows_runs:
                    await self._say("ready", features=["run_id"])
            case "user_message":
                self.run_id = str(frame.get("run_id") or self._world.next_number())
                self._run_scope = trio.CancelScope()
                payload = frame["payload"]
                text = str(payload["message"]) if isinstance(payload, Mapping) else ""
                nursery.start_soon(self._run, text, self._run_scope)
            case "cancel" if not self._is_deaf:
                self._run_scope.cancel("as the user wants")
            case "cp_response":
                self._answers.pop(str(frame["id"]), trio.Event()).set()
            case "snapshot":
                state: JsonObject = {"checkpoint": {"asked": self._asked}}
                await self._say("snapshot_response", id=frame["id"], snapshot=state)
            case _:
                pass

    async def _run(self, message: str, scope: trio.CancelScope) -> None:
        """Answer one message."""
        run_id = self.run_id or ""
        with scope:
            _, count, delay, size, work = message.split()[:5]
            for index in range(int(count)):
                await trio.sleep(float(delay))
                self._work_on(run_id)
                text = f"{run_id}.{index} "[-20:].ljust(int(size), "x")
                await self._say("text_chunk", content=text)
                if index == 0 and "a" in work:
                    event = f"audit {self.child.pid} {run_id}"
                    self._world.asked_reports.add(event)
                    params: JsonObject = {"event": event, "details": {}}
                    await self._say("cp_fire_and_forget", method="audit_log", params=params)
                if index == 1 and "r" in work:
                    await self._ask()
        if scope.cancelled_caught:
            await self._say("text_chunk", content="it has to be cleaned up")
            await self._clean_up(run_id)
            await self._say("text_chunk", content="it is clean")
            await self._say("execution_complete", cancelled=True)
        else:
            await self._say("execution_complete", final_response="that is all")
        self.run_id = None

    async def _ask(self) -> None:
        self._asked += 1
        number = str(self._asked)
        answered = self._answers[number] = trio.Event()
        params: JsonObject = {"query": "x", "top_k": 3}
        await self._say("cp_request", id=number, method="memory_search", params=params)
        await answered.wait()
