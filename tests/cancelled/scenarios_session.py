"""Sessions and the manager of a VM's sessions, to be cancelled at every step."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import attrs
import manager_kit
import trio
from answering_host import be_helpful, open_answering_host, say
from conversations import answer, hang, look_at_state, opened, read_back, run_problems
from manager_kit import cancel, config, echo_or_hang, message, start, stop
from slow_threads import SlowThreads
from trials import Case, Trial

from semibot.adapters import GraphAgent
from semibot.config import Deadlines
from semibot.errors import DeadlineExceeded, SessionBusy
from semibot.models import Say, scripted_model
from semibot.session import ActiveRun, Session, open_session_manager
from semibot.testing import LaneEvent, MemoryPlane, adapter_from, cut_here, simulated_ports
from semibot.wire.events import ExecutionComplete, ExecutionError, TextChunk
from semibot.wire.frames import Cancelled

BOUNDS: Final = Deadlines()

# --- sessions -------------------------------------------------------------------------


async def talk(session: Session, *words: str) -> None:
    for word in words:
        async with session.run(word) as run:
            await run.wait()


async def two_runs(trial: Trial) -> None:
    with cut_here():
        async with opened(trial, answer) as session:
            await talk(session, "one", "two")
    await read_back(trial)


async def open_again(trial: Trial) -> None:
    with cut_here():
        async with opened(trial, answer) as session:
            await talk(session, "one")
        async with opened(trial, answer) as session:
            if len(session.history) != 2:
                trial.problems.append(f"{session.history} is remembered")
            await talk(session, "two")
    await read_back(trial)


async def interrupt(trial: Trial) -> None:
    async def handle(run: ActiveRun) -> None:
        await (hang if run.message == "hang" else answer)(run)

    with cut_here():
        async with opened(trial, handle) as session, session.run("hang") as first:
            await trio.sleep(1)
            async with session.run("next") as second:
                await second.wait()
            if not first.has_ended:
                trial.problems.append("the second run went past the first")
    await read_back(trial)


async def enqueue(trial: Trial) -> None:
    async def ask(session: Session, word: str) -> None:
        async with session.run(word, on_busy="enqueue") as run:
            await run.wait()

    with cut_here():
        async with opened(trial, answer) as session, trio.open_nursery() as nursery:
            for word in ("one", "two", "three"):
                nursery.start_soon(ask, session, word)
            try:
                await trio.sleep(0.1)
                async with session.run("no", on_busy="reject"):
                    trial.problems.append("a busy session took a run")
            except SessionBusy:
                pass
    await read_back(trial)


async def read_along(trial: Trial) -> None:
    async def read(session: Session, pause: float) -> None:
        cursor = session.cursor(after=0)
        for _ in range(3):
            await anext(cursor)
            await trio.sleep(pause)

    with cut_here():
        async with opened(trial, answer) as session, trio.open_nursery() as nursery:
            nursery.start_soon(read, session, 0)
            nursery.start_soon(read, session, 5)
            async with session.run("one") as run:
                async for _ in run.events:
                    pass
    await read_back(trial)


async def change_the_configuration(trial: Trial) -> None:
    agent = GraphAgent(scripted_model([Say("a"), Say("b")]))
    with cut_here():
        async with opened(trial, agent) as session:
            await talk(session, "one")
            session.update_config({"agent_config": {"system_prompt": "Be short."}})
            await talk(session, "two")
            if session.last_run.outcome != "completed":
                trial.problems.append(f"the second run is {session.last_run.outcome}")
    await read_back(trial)


async def use_a_slow_disk(trial: Trial) -> None:
    ports = attrs.evolve(simulated_ports(), threads=SlowThreads())
    with cut_here():
        async with opened(trial, answer, ports=ports) as session:
            await talk(session, "one", "two")
    ports.threads.come_back()
    await read_back(trial)


async def use_a_disk_that_hangs(trial: Trial) -> None:
    threads = SlowThreads()
    ports = attrs.evolve(simulated_ports(), threads=threads)
    with cut_here(), suppress(DeadlineExceeded):
        async with opened(trial, answer, ports=ports) as session:
            await talk(session, "one")
            threads.hang("files")
            await talk(session, "two")
    threads.come_back()
    await read_back(trial)


# --- the manager ----------------------------------------------------------------------


def look_at_lanes(trial: Trial) -> str | None:
    """Look at what each session has said to the host, and whether it took its last word."""
    plane: Any = trial.parts.get("plane")
    problems: list[str] = []
    for lane in plane.lanes if plane else ():
        items = [item for item in lane.items if isinstance(item, LaneEvent)]
        problems += run_problems((item.run_id, item.event) for item in items)
        numbers = [item.seq for item in items]
        if numbers != list(range(lane.next_seq - len(numbers), lane.next_seq)):
            problems.append(f"events {numbers} have gaps")
        if any(isinstance(item.event, TextChunk) for item in items) and not lane.snapshots:
            problems.append("a run was driven and there is no snapshot")
    return "; ".join(problems) or None


def managed(trial: Trial, handle: Any = echo_or_hang, **options: Any) -> Any:
    trial.parts["plane"] = MemoryPlane()
    return manager_kit.opened(trial.directory, handle, plane=trial.parts["plane"], **options)


async def obey(trial: Trial) -> None:
    with cut_here():
        async with managed(trial) as vm:
            vm.plane.say(start(command_id="c1"), message("hi", "r1", command_id="c2"))
            lane = vm.plane.lane("s1")
            await lane.wait(ExecutionComplete)
            vm.plane.say(message("hang", "r2", command_id="c3"), cancel("c4", "r2"))
            await lane.wait(Cancelled)
            vm.plane.say(stop("c5", reason="user_closed"))
            await lane.wait(Cancelled, 2)


async def steer(trial: Trial) -> None:
    with cut_here():
        async with managed(trial) as vm:
            vm.plane.say(start(), message("hang", "r1"))
            lane = vm.plane.lane("s1")
            await lane.wait(TextChunk)
            vm.plane.say(cancel("c1"), config({"model": "m"}, "c2"), message("go on", "r2"))
            await lane.wait(ExecutionError)  # this agent has nothing that can change


async def evict(trial: Trial) -> None:
    with cut_here():
        async with managed(trial, max_open=1) as vm:
            for name in ("s1", "s2", "s1"):
                if not vm.plane.has_lane(name) or name == "s2":
                    vm.plane.say(start(name))
                vm.plane.say(message("hi", f"r-{name}", session_id=name))
                await vm.plane.lane(name).wait(ExecutionComplete)


async def snapshot_in_a_long_run(trial: Trial) -> None:
    with cut_here():
        async with managed(trial) as vm:
            vm.plane.say(start(), message("hang", "r1"))
            await vm.plane.lane("s1").wait(TextChunk)
            await trio.sleep(61)  # a snapshot is made once a minute
            vm.plane.say(cancel("c1", "r1"))
            await vm.plane.lane("s1").wait(Cancelled)


async def be_fenced(trial: Trial) -> None:
    with cut_here():
        async with managed(trial) as vm:
            vm.plane.say(start(), message("hang", "r1"))
            await vm.plane.lane("s1").wait(TextChunk)
            vm.manager.drop_session("s1")
            trial.parts["plane"] = None  # it ends without a word
            await trio.sleep(1)
            vm.plane.say(start(term=2), message("hi", "r2"))
            await vm.plane.lane("s1").wait(ExecutionComplete)


# --- a whole VM -----------------------------------------------------------------------

START: Final = {
    "type": "start_session",
    "command_id": "c1",
    "term": 1,
    "next_seq": 1,
    "data": {
        "session_id": "s1",
        "runtime_type": "semigraph",
        "agent_id": "a",
        "agent_config": {},
        "mcp_servers": [],
        "skill_index": [],
        "sub_agents": [],
    },
}

ASK: Final = {
    "type": "user_message",
    "session_id": "s1",
    "command_id": "c2",
    "run_id": "r1",
    "data": {"message": "hi", "history": [], "metadata": {}},
}


async def whole_vm(trial: Trial) -> None:
    (trial.directory / "workspace").mkdir()
    async with open_answering_host(say(START, ASK), be_helpful) as host:
        with cut_here():
            async with (
                host.open_channel(state_dir=trial.directory / "outbox") as channel,
                open_session_manager(
                    channel,
                    adapters={"graph": adapter_from(answer)},
                    workspace=trial.directory / "workspace",
                    state_dir=trial.directory / "state",
                    ports=host.ports,
                ),
            ):
                with trio.move_on_after(90):
                    while host.seen["s1"] < 3:  # noqa: ASYNC110 - nothing says so
                        await trio.sleep(1)
    trial.problems += host.problems


def _case(
    name: str,
    act: Callable[[Trial], Awaitable[object]],
    look: Callable[[Trial], str | None],
    within: float,
    because: str,
    **options: Any,
) -> Case:
    return Case(name=name, act=act, look=look, within=within, because=because, **options)


AT_ONCE: Final = 0.0
PROMPT: Final = "agents that stop at once: nothing to wait for"

CASES: Final = (
    *(
        _case(f"session: {name}", act, look_at_state, AT_ONCE, PROMPT)
        for name, act in (
            ("open, two runs, close", two_runs),
            ("closed, and opened again from its directory", open_again),
            ("a message interrupts a run", interrupt),
            ("messages wait for their turn", enqueue),
            ("a fast and a slow reader", read_along),
            ("its configuration changes between runs", change_the_configuration),
        )
    ),
    *(
        _case(f"session: {name}", act, look, BOUNDS.stop_bound, "Deadlines.stop_bound")
        for name, act, look in (
            ("two runs on a slow disk", use_a_slow_disk, look_at_state),
            ("the disk hangs in the second run", use_a_disk_that_hangs, lambda _: None),
        )
    ),
    *(
        _case(f"manager: {name}", act, look_at_lanes, AT_ONCE, PROMPT)
        for name, act in (
            ("start, message, cancel and stop", obey),
            ("a run is steered", steer),
            ("an idle session makes room for another", evict),
            ("a snapshot in the middle of a long run", snapshot_in_a_long_run),
            ("a session is fenced and comes back", be_fenced),
        )
    ),
    _case(
        "VM: a run from a command to its events on the link",
        whole_vm,
        lambda _: None,
        BOUNDS.channel_close,
        "channel.close",
        errors_within=120.0,
    ),
)
