"""Cancel a call at every point, and look at what is on record and under way afterwards."""

from __future__ import annotations

import itertools
import threading

import pytest
import trio
import trio.testing
from gate_kit import make_kit, wait_until

from semibot.config import Deadlines
from semibot.lifetimes import open_stop_clock
from semibot.tools import CallEnded, Decision, ToolContext, tool


class Trap:
    """A place where a task stays until it is cancelled."""

    def __init__(self):
        self.reached = trio.Event()

    async def enter(self):
        self.reached.set()
        await trio.sleep_forever()


async def cancel_in(trap, kit, name, **arguments):
    """Call a tool, cancel it once it is in the trap, and return whether that came out."""
    scope = trio.CancelScope()

    async def call():
        with scope:
            await kit.call(name, **arguments)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        await trap.reached.wait()
        scope.cancel("enough")
    return scope.cancelled_caught


async def test_a_cancel_during_the_tool_is_on_record_and_comes_out():
    trap = Trap()

    @tool
    async def hang(context: ToolContext) -> None:
        context.activity.effect = "half done"
        await trap.enter()

    kit = make_kit(hang)
    assert await cancel_in(trap, kit, "hang")
    [decision, ended] = kit.records
    assert (ended.outcome, ended.error, ended.effect) == ("cancelled", "Cancelled", "half done")
    assert ended.decision_id == decision.id
    assert kit.ledger.under_way() == ()


async def test_a_cancel_while_the_decision_is_recorded_runs_nothing():
    trap, ran, records = Trap(), [], []

    @tool
    async def effect() -> None:
        ran.append(1)

    async def recorder(entry):
        records.append(entry)
        if isinstance(entry, Decision):
            await trap.enter()

    kit = make_kit(effect, recorder=recorder)
    assert await cancel_in(trap, kit, "effect")
    assert ran == []
    assert [type(record).__name__ for record in records] == ["Decision", "CallEnded"]
    assert records[1].outcome == "cancelled"


async def test_a_recorder_that_fails_because_it_is_cancelled_does_not_hide_that():
    trap = Trap()

    @tool
    async def effect() -> None:
        pass

    async def recorder(entry):
        if isinstance(entry, Decision):
            try:
                await trap.enter()
            except trio.Cancelled:
                raise OSError("interrupted") from None

    assert await cancel_in(trap, make_kit(effect, recorder=recorder), "effect")


async def test_nothing_runs_for_a_run_that_was_cancelled_while_recording():
    ran = []

    @tool
    async def effect() -> None:
        ran.append(1)

    async def recorder(entry):
        scope.cancel("in the middle, without a checkpoint")

    with trio.CancelScope() as scope:
        await make_kit(effect, recorder=recorder).call("effect")
    assert scope.cancelled_caught
    assert ran == []


async def test_nothing_is_decided_for_a_run_that_is_over():
    @tool
    async def effect() -> None:
        pass

    kit = make_kit(effect)
    with trio.CancelScope() as scope:
        scope.cancel("before the call")
        await kit.call("effect")
    assert scope.cancelled_caught
    assert kit.records == []


async def test_the_end_is_recorded_although_the_run_is_cancelled_meanwhile():
    recorded = []

    @tool
    async def effect() -> str:
        return "done"

    async def recorder(entry):
        if not isinstance(entry, Decision):
            scope.cancel("too late")
        await trio.lowlevel.checkpoint()
        recorded.append(entry)

    kit = make_kit(effect, recorder=recorder)
    with trio.CancelScope() as scope:
        result = await kit.call("effect")
        await trio.sleep_forever()
    assert scope.cancelled_caught
    assert [getattr(entry, "outcome", None) for entry in recorded] == [None, "ok"]
    assert result.outcome == "ok"


async def test_a_recorder_that_hangs_after_a_cancel_is_left_at_the_end_of_its_grace(autojump_clock):
    trap = Trap()

    @tool
    async def hang() -> None:
        await trap.enter()

    async def recorder(entry):
        if not isinstance(entry, Decision):
            await trio.sleep_forever()

    kit = make_kit(hang, recorder=recorder, deadlines=Deadlines(session_save=3))
    assert await cancel_in(trap, kit, "hang")
    assert trio.current_time() == pytest.approx(3)
    assert kit.ledger.under_way() == ()


async def test_the_grace_of_the_record_obeys_the_stop_clock(autojump_clock):
    trap = Trap()

    @tool
    async def hang() -> None:
        await trap.enter()

    async def recorder(entry):
        if not isinstance(entry, Decision):
            await trio.sleep_forever()

    with open_stop_clock() as clock:
        clock.stop(0.5)
        assert await cancel_in(trap, make_kit(hang, recorder=recorder), "hang")
    assert trio.current_time() == pytest.approx(0.5)


async def test_a_tool_that_turns_a_cancellation_into_an_error_does_not_hide_it():
    trap = Trap()

    @tool
    async def hang() -> None:
        try:
            await trap.enter()
        except trio.Cancelled:
            raise ConnectionError("closed") from None

    kit = make_kit(hang)
    assert await cancel_in(trap, kit, "hang")
    assert kit.ends[0].outcome == "cancelled"


async def test_a_cancellation_in_a_group_is_one():
    trap = Trap()

    @tool
    async def hang() -> None:
        async def fail_late() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ValueError("while stopping")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail_late)
            nursery.start_soon(trap.enter)

    kit = make_kit(hang)
    with pytest.RaisesGroup(pytest.RaisesGroup(ValueError)):
        await cancel_in(trap, kit, "hang")
    assert [ended.outcome for ended in kit.ends] == ["cancelled"]


async def test_a_cancel_leaves_a_sync_tool_in_the_ledger_until_it_ends():
    release, begun = threading.Event(), threading.Event()

    @tool
    def block(context: ToolContext) -> None:
        context.activity.effect = "in the thread"
        begun.set()
        release.wait(10)

    kit = make_kit(block)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(kit.call, "block")
        await trio.to_thread.run_sync(begun.wait, 10)
        nursery.cancel_scope.cancel()
    [thread] = kit.ledger.under_way()
    assert (thread.kind, thread.effect) == ("thread", "in the thread")
    assert (kit.ends[0].outcome, kit.ends[0].effect) == ("cancelled", "in the thread")
    release.set()
    await wait_until(lambda: not kit.ledger.under_way())


async def test_a_cancel_while_a_result_is_kept_is_on_record():
    trap = Trap()

    @tool
    async def large() -> str:
        return "x" * 200_000

    async def keep_result(call_id, text):
        await trap.enter()
        return "never"

    kit = make_kit(large, keep_result=keep_result)
    assert await cancel_in(trap, kit, "large")
    assert kit.ends[0].outcome == "cancelled"


async def call_and_cancel(steps):
    """Cancel a call after so many steps; return its story, and whether it was over by then."""
    story = []

    @tool
    async def effect() -> str:
        await trio.lowlevel.checkpoint()
        story.append("effect")
        await trio.lowlevel.checkpoint()
        return "x" * 150_000

    async def recorder(entry):
        await trio.lowlevel.checkpoint()
        story.append(entry)
        await trio.lowlevel.checkpoint()

    async def keep_result(call_id, text):
        await trio.lowlevel.checkpoint()
        return "path"

    kit = make_kit(effect, recorder=recorder, keep_result=keep_result)
    scope = trio.CancelScope()

    async def call():
        with scope:
            await kit.call("effect")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(call)
        for _ in range(steps):
            await trio.lowlevel.checkpoint()
        was_over = not nursery.child_tasks
        scope.cancel("after some steps")
    assert kit.ledger.under_way() == ()
    return story, was_over


async def test_a_cancel_after_any_number_of_steps_keeps_the_promises():
    outcomes = []
    for steps in itertools.count():
        story, was_over = await call_and_cancel(steps)
        decisions = [entry for entry in story if isinstance(entry, Decision)]
        ends = [entry for entry in story if isinstance(entry, CallEnded)]
        if "effect" in story:
            assert story.index(decisions[0]) < story.index("effect")
        assert story.count("effect") <= len(decisions) <= len(ends) <= 1
        if ends:
            assert story[-1] is ends[0]
            outcomes.append(ends[0].outcome)
        if was_over:
            break
    assert outcomes[0] == "cancelled"
    assert outcomes[-1] == "ok"
    assert steps > 5
