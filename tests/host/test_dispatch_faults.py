"""Commands survive what goes wrong on the way: stores that fail, links that end, races."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import trio
from link_kit import Plane, Vm, open_plane
from trio.testing import MockClock

from semibot.errors import StoreError
from semibot.store.base import CommandRow


async def began(vm: Vm, run: str = "r1", sid: str = "s1", seq: int = 1) -> int:
    message = await vm.hear("user_message", run_id=run)
    vm.event(sid, 1, seq, run, "run_started", message_id=f"m-{run}", message="hi")
    vm.say(type="ack", commands=[message["command_id"]])
    await vm.hear("ack", ids=[message["command_id"]])
    return seq + 1


async def passes(plane: Plane, vm: Vm, clock: MockClock, seconds: float) -> None:
    """Let time pass while the VM stays alive."""
    while seconds > 0:
        step = min(seconds, 20.0)
        seconds -= step
        await plane.quiet()
        clock.jump(step)
        vm.say(type="heartbeat", active_sessions=[])
    await plane.quiet()


async def test_reading_what_is_to_be_done_is_tried_again(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        await plane.say("hi")
        await plane.quiet()
        plane.store.error, plane.store.failing = StoreError("full"), {"sessions_with_work"}
        vm = await plane.up()
        await passes(plane, vm, mock_clock, 1.1)
        assert plane.store.calls.count("sessions_with_work") == 2
        plane.store.failing = set()
        await passes(plane, vm, mock_clock, 2.1)
        await vm.hear("user_message")


async def test_writing_a_command_is_tried_again(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        plane.store.error, plane.store.failing = StoreError("full"), {"mark_written"}
        await plane.say("hi")
        await plane.quiet()
        assert vm.kinds() == ["start_session"]
        plane.store.failing = set()
        await passes(plane, vm, mock_clock, 1.1)
        await vm.hear("user_message")
        assert vm.kinds().count("start_session") == 1


async def test_a_session_that_could_not_be_taken_over_is_started_anew(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        plane.store.error, plane.store.failing = StoreError("full"), {"tail_start"}
        await plane.say("hi")
        await plane.quiet()
        assert vm.kinds() == []
        plane.store.failing = set()
        await passes(plane, vm, mock_clock, 1.1)
        assert (await vm.hear("start_session"))["term"] == 2
        await vm.hear("user_message")


async def test_a_bug_with_one_session_stops_no_other(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        plane.store.error, plane.store.failing = RuntimeError("a bug"), {"read_history"}
        await plane.say("hi")
        await plane.quiet()
        plane.store.failing = set()
        await plane.say("hi", "s2", run="r2")
        await vm.hear("user_message", run_id="r2")
        assert "user_message" not in vm.kinds()
        plane.dispatcher.kick("s1", "ann")
        await vm.hear("user_message", run_id="r1")


async def test_a_kick_during_a_failure_is_not_forgotten(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        plane.store.hangs = {"session_work"}
        plane.store.error, plane.store.failing = RuntimeError("a bug"), {"session_work"}
        await plane.say("hi")
        await plane.quiet()
        plane.dispatcher.kick("s1", "ann")
        plane.store.hangs = set()
        inner = plane.store._store.session_work

        async def session_work(session_id: str) -> Any:
            return await inner(session_id)

        plane.store.released.set()
        await trio.lowlevel.checkpoint()
        plane.store.session_work = session_work
        await vm.hear("user_message")


async def test_a_cancel_that_comes_while_a_message_is_written_goes_with_it(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        plane.store.hangs = {"mark_written"}
        await plane.say("hi")
        await plane.quiet()
        asked = await plane.dispatcher.cancel("ann", "s1", "r1", "user_cancelled")
        assert asked.state == "not_started"
        plane.store.released.set()
        assert (await vm.hear("user_message"))["data"]["cancelled"] is True


async def test_a_link_that_ends_while_a_command_is_written_sends_nothing(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.say("hi")
        await began(vm)
        plane.store.hangs = {"mark_written"}
        asked = await plane.dispatcher.cancel("ann", "s1", "r1", "user_cancelled")
        await plane.quiet()
        vm.hang_up()
        await vm.wait_closed()
        plane.store.released.set()
        await plane.quiet()
        assert "cancel" not in vm.kinds()
        again = await plane.up(dial=2, resume={"s1": {"term": 1, "first_seq": 2, "last_seq": 1}})
        assert (await again.hear("cancel"))["command_id"] == asked.command_id


async def test_a_session_that_is_deleted_while_a_message_is_written_is_left_alone(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        plane.store.hangs = {"hold_session"}
        await plane.say("hi")
        await plane.quiet()
        await plane.dispatcher.delete_session("ann", "s1")
        plane.store.released.set()
        await plane.quiet()
        assert vm.kinds() == []
        assert vm.closed is None


async def test_who_waits_for_a_receipt_is_answered_when_the_session_is_deleted(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.say("hi")
        await began(vm)
        asked = await plane.dispatcher.cancel("ann", "s1", "r1", "user_cancelled")
        answers: list[Any] = []

        async def wait() -> None:
            answers.append(await plane.dispatcher.wait_receipt("r1", asked.command_id or ""))

        plane.nursery.start_soon(wait)
        plane.nursery.start_soon(wait)
        await plane.quiet()
        await plane.dispatcher.delete_session("ann", "s1")
        await plane.quiet()
        assert answers == [{"run_id": "r1", "already": True}] * 2


async def test_a_cancel_that_comes_too_late_has_an_answer(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.say("hi")
        seq = await began(vm)
        asked = await plane.dispatcher.cancel("ann", "s1", "r1", "user_cancelled")
        await vm.hear("cancel")
        vm.event("s1", 1, seq, "r1", "execution_complete", final_response="done")
        vm.say(type="ack", commands=[asked.command_id])  # no receipt
        await plane.quiet()
        assert await plane.dispatcher.wait_receipt("r1", asked.command_id or "") == {
            "run_id": "r1",
            "outcome": "completed",
            "already": True,
        }


async def test_a_change_of_configuration_waits_for_earlier_messages(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        inner = plane.store._store
        extra = CommandRow(
            id="conf",
            session_id="s1",
            kind="config_update",
            run_id=None,
            payload={"model": "other"},
            boot_hash=None,
        )

        async def session_work(session_id: str) -> Any:
            work = await inner.session_work(session_id)
            return attrs.evolve(work, commands=(*work.commands, extra))

        async def mark_written(command_id: str, link: Any) -> None:
            if command_id != "conf":
                await inner.mark_written(command_id, link)

        plane.store.session_work, plane.store.mark_written = session_work, mark_written
        await plane.say("one")
        await plane.say("two", run="r2")
        seq = await began(vm)
        assert "config_update" not in vm.kinds()
        vm.event("s1", 1, seq, "r1", "execution_complete", final_response="done")
        update = await vm.hear("config_update")
        assert update["data"] == {"model": "other"}
        assert update["session_id"] == "s1"


async def test_a_snapshot_or_history_that_fits_no_frame_is_left_out(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        inner = plane.store._store
        big = "x" * (11 * 2**20)
        snapshot: Any = {"covers_seq": 0, "checkpoint": {"a": big}, "short_term_memory": {}}

        async def hold_session(session_id: str, link: Any) -> Any:
            return attrs.evolve(await inner.hold_session(session_id, link), snapshot=snapshot)

        async def read_history(*_: Any) -> Any:
            await trio.lowlevel.checkpoint()
            return ({"role": "user", "content": big}, {"role": "user", "content": "hi"})

        plane.store.hold_session, plane.store.read_history = hold_session, read_history
        await plane.say("hi")
        assert "snapshot" not in await vm.hear("start_session")
        message = await vm.hear("user_message")
        assert message["data"]["history"] == [{"role": "user", "content": "hi"}]
        snapshot = {"covers_seq": "odd"}
        await plane.say("hi", "s2", run="r2")
        assert "snapshot" not in await vm.hear("start_session")


async def test_answers_that_do_not_fit_into_one_frame_follow(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.store.put_agent(_agent("x" * (6 * 2**20)))
        for name in ("q1", "q2"):
            vm.say(
                type="request",
                id=name,
                session_id="__memory__",
                method="get_config",
                params={"agent_id": "a"},
            )
        await plane.quiet()
        vm.hang_up()
        await vm.wait_closed()
        again = await plane.dial(dial=2, pending=("q1", "q2", "q3"))
        results = (await again.hear("resume_response"))["results"]
        assert {name: each["status"] for name, each in results.items()} == {
            "q1": "pending",
            "q2": "pending",
            "q3": "lost",
        }
        for name in ("q1", "q2"):
            assert (await again.hear("response", id=name))["error"] is None


def _agent(prompt: str) -> Any:
    from semibot.store.base import AgentRow

    return AgentRow(
        id="a",
        org_id="org",
        name="big",
        agent_config={"system_prompt": prompt},
        runtime_type="semigraph",
        openclaw_config=None,
    )


# --- what the store refuses of a commit -----------------------------------------------


async def test_events_of_a_session_that_was_deleted_meanwhile_are_acknowledged(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.say("hi")
        seq = await began(vm)
        await plane.store.delete_session("ann", "s1", "stop-1")
        vm.event("s1", 1, seq, "r1", content="late")
        await vm.hear("ack", sessions={"s1": seq})
        vm.event("s1", 1, seq + 1, "r1", content="later")
        await vm.hear("ack", sessions={"s1": seq + 1})


async def test_an_event_of_a_run_that_has_ended_loses_the_session(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.say("hi")
        seq = await began(vm)
        vm.event("s1", 1, seq, "r1", "execution_complete", final_response="done")
        await plane.quiet()
        vm.event("s1", 1, seq + 1, "r1", content="more")
        assert (await vm.hear("error"))["code"] == "SEQ_CONFLICT"
        assert len(await plane.events()) == 2
        assert (await plane.store.get_session("ann", "s1")).term == 2


async def test_a_session_that_the_store_has_fenced_is_given_up(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.say("hi")
        seq = await began(vm)
        await plane.store.lose_session("s1", code="X", message="y")
        vm.event("s1", 1, seq, "r1", content="late")
        assert (await vm.hear("error"))["code"] == "SEQ_CONFLICT"
        vm.event("s1", 1, seq + 1, "r1", content="later")
        await plane.quiet()
        assert "error" not in vm.kinds()
        assert vm.closed is None


async def test_a_session_unknown_to_the_link_is_looked_up_once(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.say("hi", user="ann")
        await vm.hear("user_message")
        link = plane.links.of_user("ann")
        assert link is not None
        del link.sessions["s1"]
        plane.store.calls.clear()
        for _ in range(2):
            vm.event("s1", 1, 1, "r1", content="x")
        assert (await vm.hear("error"))["code"] == "SEQ_CONFLICT"
        assert plane.store.calls.count("look_up_sessions") == 1


async def test_only_so_many_strangers_are_remembered(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path) as plane:
        await plane.up()
        link = plane.links.of_user("ann")
        assert link is not None
        for number in range(1025):
            link.release(f"s{number}", "fenced")
        assert link.fate_of("s0") is None
        assert link.fate_of("s1024") == "fenced"


# --- level 1 --------------------------------------------------------------------------


async def test_a_level_1_cancel_that_comes_too_late_is_answered(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up_legacy()
        await plane.say("hi")
        await vm.hear("user_message")
        plane.store.hangs = {"mark_written"}
        asked = await plane.dispatcher.cancel("ann", "s1", "r1", "user_cancelled")
        await plane.quiet()
        vm.say(
            type="sse_event",
            session_id="s1",
            data=json.dumps({"type": "execution_complete", "final_response": "x"}),
        )
        await plane.quiet()
        plane.store.released.set()
        receipt = await plane.dispatcher.wait_receipt("r1", asked.command_id or "")
        assert receipt["already"] is True
        assert "cancel" not in vm.kinds()


async def test_a_level_1_cancel_that_comes_while_the_message_is_written_counts(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up_legacy()
        plane.store.hangs = {"mark_written"}
        await plane.say("hi")
        await plane.quiet()
        asked = await plane.dispatcher.cancel("ann", "s1", "r1", "user_cancelled")
        assert asked.state == "not_started"
        plane.store.released.set()
        await vm.hear("cancel")
        mock_clock.jump(10.1)
        await plane.quiet()
        assert (await plane.store.get_run("r1")).outcome == "cancelled"


async def test_a_level_1_message_of_which_nobody_knows_whether_it_was_written_ends_the_link(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up_legacy()
        plane.store.error, plane.store.failing = StoreError("full"), {"mark_written"}
        await plane.say("hi")
        assert await vm.wait_closed() == (4500, "store failed")
        plane.store.failing = set()
        again = await plane.up_legacy()
        await again.hear("user_message")


async def test_a_level_1_configuration_is_sent_once_somebody_holds_the_session(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up_legacy()
        inner = plane.store._store
        done: list[str] = []
        extra = CommandRow(
            id="conf",
            session_id="s1",
            kind="config_update",
            run_id=None,
            payload={"model": "other"},
            boot_hash=None,
        )

        async def session_work(session_id: str) -> Any:
            work = await inner.session_work(session_id)
            return work if done else attrs.evolve(work, commands=(extra, *work.commands))

        async def mark_written(command_id: str, link: Any) -> None:
            if command_id != "conf":
                await inner.mark_written(command_id, link)

        async def finish_commands(ids: list[str]) -> None:
            await trio.lowlevel.checkpoint()
            done.extend(ids)

        plane.store.session_work, plane.store.mark_written = session_work, mark_written
        plane.store.finish_commands = finish_commands
        await plane.say("one")
        await plane.quiet()
        assert vm.kinds() == ["start_session", "user_message"]
        plane.dispatcher.kick("s1", "ann")
        assert (await vm.hear("config_update"))["data"] == {"model": "other", "session_id": "s1"}
