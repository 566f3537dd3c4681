"""Calls through the gate, to be cancelled at every step."""

from __future__ import annotations

import threading
from typing import Any, Final

import attrs
import trio
from gate_kit import Kit, make_kit
from slow_threads import SlowThreads
from trials import Case, Trial

from semibot.live import live_ports
from semibot.testing import cut_here, simulated_ports
from semibot.tools import CallEnded, Decision, Tool, ToolContext, tool


def kit_of(trial: Trial, *tools: Tool, **options: Any) -> Kit:
    """Make a gate whose records take a moment to be written."""
    records: list[Decision | CallEnded] = []

    async def record(entry: Decision | CallEnded) -> None:
        await trio.sleep(0.1)
        records.append(entry)
        await trio.lowlevel.checkpoint()

    options.setdefault("ports", simulated_ports())
    kit = make_kit(*tools, recorder=record, **options)
    kit.records = records
    trial.parts["kit"] = kit
    return kit


def look(trial: Trial) -> str | None:
    """Every effect was decided about, every decision has one end, and nothing is under way."""
    kit: Any = trial.parts.get("kit")
    if kit is None:
        return None
    decided = [entry.id for entry in kit.decisions]
    ended = [entry.decision_id for entry in kit.ends]
    problems = []
    if len(set(ended)) != len(ended):
        problems.append("a call has two ends")
    if not set(decided) <= set(ended):
        problems.append(f"{len(decided)} decisions and {len(ended)} ends")
    if len(trial.kept) > len(decided):
        problems.append("a tool ran that was not decided about")
    release: Any = trial.parts.get("release")
    if release is not None:
        release.set()
    elif kit.ledger.under_way():
        problems.append(f"under way: {kit.ledger.under_way()}")
    return "; ".join(problems) or None


# --- scenarios ------------------------------------------------------------------------


async def ask_and_be_denied(trial: Trial) -> None:
    @tool
    async def look_up(word: str) -> str:
        trial.kept.append(word)
        await trio.sleep(1)
        return word

    @tool(is_allowed=False)
    async def overwrite(word: str) -> str:
        trial.problems.append("what was denied ran")
        return word

    kit = kit_of(trial, look_up, overwrite)
    with cut_here():
        await kit.call("look_up", word="a")
        await kit.call("overwrite", word="b")
        await kit.call("nonsense", word="c")


async def several_at_once(trial: Trial) -> None:
    @tool
    async def work(seconds: float) -> str:
        trial.kept.append("work")
        await trio.sleep(seconds)
        if seconds == 2:
            raise ValueError("half-way")
        return "x"

    kit = kit_of(trial, work)
    with cut_here():
        async with trio.open_nursery() as nursery:
            for number in (1, 2, 3):
                nursery.start_soon(call, kit, number)


async def call(kit: Kit, number: int) -> None:
    await kit.call("work", id=f"call-{number}", seconds=float(number))


async def reach_the_limit(trial: Trial) -> None:
    @tool
    async def hang() -> None:
        trial.kept.append("hang")
        await trio.sleep_forever()

    kit = kit_of(trial, hang)
    with cut_here():
        await kit.call("hang", limit=5)


async def clean_up_slowly(trial: Trial) -> None:
    @tool
    async def slow(context: ToolContext) -> None:
        trial.kept.append("slow")
        try:
            async with trio.open_nursery() as nursery:
                for _ in range(2):
                    nursery.start_soon(trio.sleep, 3)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await trio.sleep(0.5)

    kit = kit_of(trial, slow)
    with cut_here():
        await kit.call("slow", limit=2)


async def use_a_thread(trial: Trial) -> None:
    @tool
    def compute(number: int) -> int:
        trial.kept.append("compute")
        return number

    kit = kit_of(trial, compute, ports=attrs.evolve(simulated_ports(), threads=SlowThreads()))
    trial.parts["release"] = threading.Event()  # one that is cut off is under way for ever
    with cut_here():
        await kit.call("compute", number=7)


async def leave_a_thread(trial: Trial) -> None:
    release = trial.parts["release"] = threading.Event()

    @tool
    def block() -> None:
        trial.kept.append("block")
        release.wait(5)

    kit = make_kit(block, ports=live_ports())
    trial.parts["kit"] = kit
    with cut_here():
        await kit.call("block", limit=0.02)


async def keep_a_large_result(trial: Trial) -> None:
    @tool
    async def large() -> str:
        trial.kept.append("large")
        await trio.lowlevel.checkpoint()
        return "x" * 200_000

    async def keep_result(call_id: str, text: str) -> str:
        await trio.sleep(1)
        return "results/large.txt"

    kit = kit_of(trial, large, keep_result=keep_result)
    with cut_here():
        await kit.call("large")


RECORD: Final = 0.1
"""What putting one thing on record takes here."""

CASES: Final = (
    *(
        Case(name=f"gate: {name}", act=act, look=look, within=within, because=because)
        for name, act, within, because in (
            ("one call is granted and one is denied", ask_and_be_denied, RECORD, "its record"),
            ("three calls at once, and one raises", several_at_once, RECORD, "its record"),
            ("a call reaches its limit", reach_the_limit, RECORD, "its record"),
            ("a tool cleans up slowly", clean_up_slowly, 0.5 + RECORD, "the tool and its record"),
            ("a sync tool works in a thread", use_a_thread, RECORD, "its record"),
            ("a large result is kept in a file", keep_a_large_result, RECORD, "its record"),
        )
    ),
    Case(
        name="gate: a real thread is left behind",
        act=leave_a_thread,
        look=look,
        within=1.0,
        because="nothing to wait for, on a loaded machine",
        is_real=True,
        threads=1,
    ),
)
