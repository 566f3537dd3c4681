"""Child processes and bridges, to be cancelled at every step."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import pytest
import trials
import trio
import trio.testing
from bridge_sessions import terminals
from child_harness import ENVIRONMENT
from process_table import alive, seconds_until
from trials import Case, Trial

from semibot.adapters import BridgeAgent
from semibot.config import Deadlines
from semibot.errors import ChildError, ChildStartFailed
from semibot.live import live_ports
from semibot.ports import Ports
from semibot.session import open_session
from semibot.testing import faulty_ports, simulated_ports
from semibot.tools.ledger import Ledger
from semibot.tools.processes import ExitStatus, open_child, run_child
from semibot.wire.codec import dump_json, load_json

SWIFT: Final = Deadlines(child_eof_grace=0, child_term_grace=0, child_kill_grace=3)
"""No step of stopping waits for what it asks, so that no run is slow."""

STUBBORN: Final = Deadlines(child_eof_grace=0, child_term_grace=0.05, child_kill_grace=3)

SLOWER: Final = 2.0
"""What a loaded machine may take on top of the graces, to start a guard or to be heard by one."""


def swift_bound(deadlines: Deadlines) -> float:
    """Return what leaving a child may take: its three graces."""
    three = deadlines.child_eof_grace + deadlines.child_term_grace + deadlines.child_kill_grace
    return three + SLOWER


def start(trial: Trial, argv: Sequence[str], deadlines: Deadlines = SWIFT, **options: Any) -> Any:
    """Open a real child whose command line can be found again."""
    mark = trial.parts["mark"] = uuid.uuid4().hex
    ledger = trial.parts["ledger"] = Ledger()
    return open_child(
        [*argv, mark],
        ports=live_ports(),
        deadlines=deadlines,
        environment=ENVIRONMENT,
        ledger=ledger,
        **options,
    )


def shell(script: str) -> list[str]:
    """Return a command that runs *script*; the mark is its ``$0``."""
    return ["sh", "-c", script]


def nobody_is_left(trial: Trial) -> str | None:
    """Find descendants, zombies too, whatever session they went to, and open entries."""
    mark = trial.parts.get("mark")
    patience = float(str(trial.parts.get("patience", 0)))
    if mark is not None and seconds_until(lambda: not alive(str(mark)), patience) is None:
        left = alive(str(mark))
        for entry in left:
            os.kill(entry.pid, signal.SIGKILL)
        return f"alive: {left}"
    ledger = trial.parts.get("ledger")
    if isinstance(ledger, Ledger) and ledger.under_way():
        return f"still in the ledger: {ledger.under_way()}"
    return None


# --- children ---------------------------------------------------------------------------


async def converse(trial: Trial) -> None:
    """Write to a program, read what it answers, and let it end by itself."""
    async with start(trial, shell("cat")) as child:
        await child.send(b"one\ntwo\n")
        lines = child.lines()
        assert [await anext(lines), await anext(lines)] == [b"one", b"two"]
        await child.close_input()
        assert await child.wait() == ExitStatus(code=0)
        assert [line async for line in lines] == []


async def ignore_the_end(trial: Trial) -> None:
    """Leave a program that neither reads its input nor heeds SIGTERM."""
    script = "trap '' TERM; echo up; while :; do sleep 1000; done"
    async with start(trial, shell(script), STUBBORN) as child:
        assert await anext(child.lines()) == b"up"


async def flood(trial: Trial) -> None:
    """Leave in the middle of output without end on both streams."""
    async with start(trial, shell("yes $0 | head -c 100000 >&2 & yes $0")) as child:
        for _ in range(30):
            assert await child.receive_some()


async def fork_away(trial: Trial) -> None:
    """Leave a program whose grandchild has gone to a session of its own, deaf to SIGTERM."""
    deaf = "trap : TERM; echo up; while :; do sleep 1000; done"
    async with start(trial, shell(f"(setsid sh -c '{deaf}' $0 &) ; echo here; cat")) as child:
        lines = child.lines()
        assert {await anext(lines), await anext(lines)} == {b"up", b"here"}


async def send_to_nobody(trial: Trial) -> None:
    """Give up a message that a program does not read."""
    async with start(trial, shell("exec sleep 1000")) as child:
        with trio.move_on_after(0.01):
            await child.send(b"x" * 1_000_000)
        with pytest.raises(ChildError):
            await child.send(b"more")


async def lose_the_guard(trial: Trial) -> None:
    """Have the guard of a program killed by a stranger."""
    trial.parts["patience"] = 1.0  # the kernel kills the others then, which nobody waits for
    async with start(trial, shell("echo up; exec sleep 1000")) as child:
        assert await anext(child.lines()) == b"up"
        child._tree._guard.signal_group(signal.SIGKILL)
        await child.wait()


async def kill_one_of_two(trial: Trial) -> None:
    """Run two at once; one ends by itself, and the other is killed."""
    async with start(trial, shell("read line; exit 3")) as brief:
        first = trial.parts["mark"]
        async with start(trial, shell("exec sleep 1000")) as long:
            await brief.send(b"go\n")
            assert await brief.wait() == ExitStatus(code=3)
            long.kill()
            assert await long.wait() == ExitStatus(signal=signal.SIGKILL)
        trial.parts["mark"] = first


async def fail_to_start(trial: Trial) -> None:
    """Start what is not there, in either tier, and where there is no directory."""
    for argv, options in (
        (["/no/such"], {}),
        (["/no/such"], {"tier": "group"}),
        (["true"], {"cwd": Path("/no/such")}),
    ):
        with pytest.raises(ChildStartFailed):
            async with start(trial, argv, **options):
                raise AssertionError


async def collect(trial: Trial) -> None:
    """Run a program to its end that says more than is kept and leaves others behind."""
    mark = trial.parts["mark"] = uuid.uuid4().hex
    result = await run_child(
        ["sh", "-c", "sh -c 'sleep 1000; true' $0 & head -c 100000 /dev/zero; cat", mark],
        ports=live_ports(),
        deadlines=SWIFT,
        environment=ENVIRONMENT,
        stdin=b"the end",
        max_output_bytes=1000,
    )
    assert result.status == ExitStatus(code=0)
    assert result.stdout_truncated


# --- bridges ----------------------------------------------------------------------------

FEATURES: Final = ("run_id",)

BRIDGE: Final = Deadlines(
    child_eof_grace=1, child_term_grace=1, child_kill_grace=1, bridge_snapshot=1, bridge_request=5
)


class Input:
    """What a bridge in memory reads; it acts at once, in the task that writes."""

    def __init__(self, bridge: MemoryBridge) -> None:
        self._bridge = bridge
        self._rest = b""

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        if self._bridge.has_ended.is_set():
            raise trio.BrokenResourceError
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._bridge.hear(load_json(line))

    async def aclose(self) -> None:
        self._bridge.end(0)
        await trio.lowlevel.checkpoint()


class MemoryBridge:
    """A bridge that is a process only in name."""

    pid = 4242

    def __init__(self, behaviour: str, features: Sequence[str]) -> None:
        self.behaviour = behaviour
        self.features = features
        self.stdin = Input(self)
        self.stdout = trio.testing.MemoryReceiveStream()
        self.stderr = trio.testing.MemoryReceiveStream()
        self.has_ended = trio.Event()
        self.status = 0

    def say(self, kind: str, **fields: object) -> None:
        self.stdout.put_data((dump_json({"type": kind, **fields}) + "\n").encode())

    def hear(self, frame: Any) -> None:
        if self.has_ended.is_set():
            return
        named = {"run_id": frame["run_id"]} if frame.get("run_id") else {}
        match frame["type"]:
            case "start":
                self.say("ready", features=list(self.features))
            case "user_message":
                self.say("text", content="one", **named)
                if self.behaviour == "asks":
                    params = {"query": "x", "top_k": 1}
                    self.say(
                        "cp_request", id="q1", session_id="s", method="memory_search", params=params
                    )
                elif self.behaviour == "exits":
                    self.end(3)
                elif self.behaviour == "answers":
                    self.say("execution_complete", final_response="one", **named)
            case "cp_response":
                self.say("execution_complete", final_response="one", **named)
            case "cancel" if named:
                self.say("execution_complete", cancelled=True, **named)
            case "snapshot":
                self.say("snapshot_response", id=frame["id"], session_id="s", snapshot={"n": 1})
            case "stop":
                self.end(0)
            case _:
                pass

    def end(self, status: int) -> None:
        if self.behaviour != "deaf" and not self.has_ended.is_set():
            self.status = status
            self.stdout.put_eof()
            self.stderr.put_eof()
            self.has_ended.set()

    async def wait(self) -> int:
        await self.has_ended.wait()
        return self.status

    def signal_group(self, signum: int) -> None:
        if signum == signal.SIGKILL:
            self.behaviour = "dead"
        if signum in (signal.SIGTERM, signal.SIGKILL):
            self.end(-signum)


def bridge_ports(trial: Trial, *behaviours: str, features: Sequence[str] = ()) -> Ports:
    """Return seams whose n-th process is a bridge of the n-th behaviour, or of the last."""
    bridges: list[MemoryBridge] = []
    trial.parts["bridges"] = bridges

    async def spawn(*_: object, **__: object) -> MemoryBridge:
        behaviour = behaviours[min(len(bridges), len(behaviours) - 1)]
        await trio.lowlevel.checkpoint()
        bridges.append(MemoryBridge(behaviour, features))
        return bridges[-1]

    return faulty_ports(attrs.evolve(simulated_ports(), spawn=spawn))


async def talk(trial: Trial, ports: Ports, messages: int = 1, cancel: bool = False) -> None:
    """Open a session with a bridge, say something, and close it."""
    async with open_session(
        BridgeAgent(["bridge"]),
        workspace=trial.directory,
        session_id="s",
        deadlines=BRIDGE,
        ports=ports,
    ) as session:
        for number in range(messages):
            async with session.run(f"message {number}") as run:
                events = []
                trial.parts.setdefault("runs", []).append((run, events))  # type: ignore[union-attr]
                async for event in run.events:
                    events.append(event)
                    if cancel and event.type == "text_chunk":
                        receipt = await run.cancel()
                        assert receipt is not None
                        if any(item.kind == "child" for item in receipt.stopped):
                            check_obeyed(trial)
                        cancel = False


def check_obeyed(trial: Trial) -> None:
    """Find a bridge that goes on although the receipt says that it was stopped."""
    bridges: Any = trial.parts["bridges"]
    if not bridges[-1].has_ended.is_set():
        trial.problems.append("the receipt came before the end of the bridge")


def bridges_have_ended(trial: Trial) -> str | None:
    """Find bridges that live, and runs with two ends or none."""
    bridges: Any = trial.parts.get("bridges", ())
    if not all(bridge.has_ended.is_set() for bridge in bridges):
        return "a bridge is alive"
    runs: Any = trial.parts.get("runs", ())
    for run, events in runs:
        if len(terminals(events)) > 1:
            return f"two ends: {terminals(events)}"
        if run.outcome is None:
            return "a run of a session that is closed has no outcome"
    return None


async def ask_a_bridge(trial: Trial) -> None:
    """Start a bridge, have it answer two messages, the first with a request, and close it."""
    await talk(trial, bridge_ports(trial, "asks"), messages=2)


async def lose_a_bridge(trial: Trial) -> None:
    """Have a bridge exit in the middle of a run, and the next message start another."""
    await talk(trial, bridge_ports(trial, "exits", "answers"), messages=2)


async def cancel_a_bridge(trial: Trial) -> None:
    """Cancel a run of a bridge that knows no runs: it is stopped, and started again."""
    await talk(trial, bridge_ports(trial, "hangs", "answers"), messages=2, cancel=True)


async def cancel_a_deaf_bridge(trial: Trial) -> None:
    """Cancel a run of a bridge that ends on nothing but SIGKILL."""
    await talk(trial, bridge_ports(trial, "deaf", "answers"), messages=2, cancel=True)


async def cancel_a_run_of_a_bridge(trial: Trial) -> None:
    """Cancel a run of a bridge that knows runs, and goes on."""
    ports = bridge_ports(trial, "hangs", features=FEATURES)
    await talk(trial, ports, cancel=True)


REAL_BRIDGE: Final = """
read start; echo '{"type":"ready"}'
read message; echo '{"type":"text","content":"one"}'
sleep 1000 & echo 'no JSON'; echo noise >&2
echo '{"type":"execution_complete","final_response":"one"}'
while read line; do :; done
"""


async def run_a_real_bridge(trial: Trial) -> None:
    """Have a bridge that is a real program answer, leave a child behind, and ignore ``stop``."""
    mark = trial.parts["mark"] = uuid.uuid4().hex
    deadlines = attrs.evolve(SWIFT, child_term_grace=0.1, bridge_snapshot=0)
    async with open_session(
        BridgeAgent(["/bin/sh", "-c", REAL_BRIDGE, mark]),
        workspace=trial.directory,
        session_id="s",
        deadlines=deadlines,
    ) as session:
        async with session.run("hello") as run:
            events = [event async for event in run.events]
            assert len(terminals(events)) == 1


CHILD_BOUND: Final = "child.eof_grace + child.term_grace + child.kill_grace"

REAL: Final = [
    ("a conversation over pipes", converse, SWIFT),
    ("a program that ignores SIGTERM is stopped", ignore_the_end, STUBBORN),
    ("output without end is left", flood, SWIFT),
    ("a grandchild in a session of its own is stopped", fork_away, SWIFT),
    ("input that nobody reads is given up", send_to_nobody, SWIFT),
    ("the guard is killed", lose_the_guard, SWIFT),
    ("one of two ends and the other is killed", kill_one_of_two, SWIFT),
    ("a program that is not there is started", fail_to_start, SWIFT),
    ("a program is run to its end", collect, SWIFT),
]

IN_MEMORY: Final = [
    ("asks, answers and is closed", ask_a_bridge),
    ("exits in the middle of a run", lose_a_bridge),
    ("is stopped by a cancel", cancel_a_bridge),
    ("is deaf to everything but SIGKILL", cancel_a_deaf_bridge),
    ("confirms a cancel", cancel_a_run_of_a_bridge),
]

CASES: Final = (
    *(
        Case(
            name=f"children: {name}",
            act=act,
            look=nobody_is_left,
            within=swift_bound(deadlines),
            because=CHILD_BOUND,
            is_real=True,
            grandchildren=act is not lose_the_guard,
        )
        for name, act, deadlines in REAL
    ),
    *(
        Case(
            name=f"bridge: {name}",
            act=act,
            look=bridges_have_ended,
            within=BRIDGE.stop_bound,
            because="Deadlines.stop_bound",
            errors_within=BRIDGE.bridge_ready + 2 * BRIDGE.stop_bound,
        )
        for name, act in IN_MEMORY
    ),
    Case(
        name="bridge: a real one leaves a child behind",
        act=run_a_real_bridge,
        look=nobody_is_left,
        within=SWIFT.stop_bound,
        because="Deadlines.stop_bound",
        is_real=True,
    ),
)

__all__ = ["CASES", "trials"]
