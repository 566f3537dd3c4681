"""Commands reach a level 2 VM once, in order, and again only after a reconnect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio
from link_kit import Plane, Vm, open_plane
from trio.testing import MockClock


async def began(plane: Plane, vm: Vm, run: str = "r1", sid: str = "s1", seq: int = 1) -> int:
    """Let the VM take a message: run_started and the ack. Returns the next number."""
    message = await vm.hear("user_message", run_id=run)
    vm.event(sid, 1, seq, run, "run_started", message_id=f"m-{run}", message="hi")
    vm.say(type="ack", commands=[message["command_id"]])
    await vm.hear("ack", ids=[message["command_id"]])
    return seq + 1


async def finish(
    plane: Plane, vm: Vm, seq: int, run: str = "r1", sid: str = "s1", **end: Any
) -> int:
    vm.event(sid, 1, seq, run, "execution_complete", **(end or {"final_response": "done"}))
    await vm.hear("ack", sessions={sid: seq})
    return seq + 1


async def test_a_message_goes_to_the_vm_and_its_events_come_back(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.say("hello")
        start = await vm.hear("start_session")
        assert start["term"] == 1
        assert start["next_seq"] == 1
        assert start["data"]["session_id"] == "s1"
        assert start["data"]["runtime_type"] == "semigraph"
        message = await vm.hear("user_message")
        assert message["run_id"] == "r1"
        assert message["command_id"] == "c-r1"
        assert message["data"]["message"] == "hello"
        assert message["data"]["history"] == [{"role": "user", "content": "hello"}]
        vm.event("s1", 1, 1, "r1", "run_started", message_id="m-r1", message="hello")
        vm.event("s1", 1, 2, "r1", content="hi")
        vm.event("s1", 1, 3, "r1", "execution_complete", final_response="hi")
        vm.say(type="ack", commands=["c-r1"])
        await plane.quiet()
        assert [kind for *_, kind in await plane.events()] == [
            "run_started",
            "text_chunk",
            "execution_complete",
        ]
        run = await plane.store.get_run("r1")
        assert run.outcome == "completed"
        acks = [frame for frame in vm.heard if frame["type"] == "ack"]
        assert max(frame["sessions"].get("s1", 0) for frame in acks) == 3
        assert "c-r1" in [each for frame in acks for each in frame["ids"]]


async def test_the_second_message_waits_for_the_end_of_the_first(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.say("one")
        await plane.say("two", run="r2")
        seq = await began(plane, vm)
        await plane.quiet()
        assert "user_message" not in vm.kinds()
        seq = await finish(plane, vm, seq)
        message = await vm.hear("user_message")
        assert message["run_id"] == "r2"
        assert [each["content"] for each in message["data"]["history"]] == ["one", "done", "two"]
        assert "start_session" in vm.kinds()  # of the first message, and no other
        assert vm.kinds().count("start_session") == 1


async def test_a_cancel_overtakes_waiting_messages_and_its_receipt_is_answered(
    tmp_path: Path,
    mock_clock: MockClock,
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.say("one")
        await plane.say("two", run="r2")
        seq = await began(plane, vm)
        asked = await plane.dispatcher.cancel("ann", "s1", None, "user_cancelled")
        assert asked.state == "pending"
        assert asked.run_id == "r1"
        cancel = await vm.hear("cancel")
        assert cancel["run_id"] == "r1"
        assert cancel["command_id"] == asked.command_id
        assert cancel["reason"] == "user_cancelled"
        vm.event("s1", 1, seq, "r1", "execution_complete", cancelled=True)
        receipt = {"run_id": "r1", "outcome": "cancelled", "seconds": 0.1}
        vm.say(
            type="cancelled",
            session_id="s1",
            command_id=asked.command_id,
            run_id="r1",
            receipt=receipt,
        )
        assert await plane.dispatcher.wait_receipt("r1", asked.command_id or "") == receipt
        assert (await vm.hear("user_message"))["run_id"] == "r2"


async def test_a_cancelled_message_that_waits_is_written_as_cancelled(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.say("one")
        await plane.say("two", run="r2")
        seq = await began(plane, vm)
        asked = await plane.dispatcher.cancel("ann", "s1", "r2", "user_cancelled")
        assert asked.state == "not_started"
        await finish(plane, vm, seq)
        message = await vm.hear("user_message")
        assert message["run_id"] == "r2"
        assert message["data"]["cancelled"] is True


async def test_a_cancelled_message_without_a_holder_is_ended_by_the_host(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        await plane.say("one")
        await plane.quiet()
        reader = await plane.relay.open_run_reader("s1", "r1", 0)
        await plane.dispatcher.cancel("ann", "s1", "r1", "user_cancelled")
        await plane.quiet()
        assert [kind for *_, kind in await plane.events()] == ["run_started", "execution_complete"]
        text = b""
        while (chunk := await reader.next_chunk()) is not None:
            text += chunk
        assert b'"cancelled":true' in text
        vm = await plane.up()
        await plane.quiet()
        assert vm.kinds() == []


async def test_a_message_that_waits_for_its_vm_goes_out_once_it_is_there(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        await plane.say("one")
        await plane.quiet()
        vm = await plane.up()
        assert (await vm.hear("user_message"))["run_id"] == "r1"


async def test_a_command_is_sent_again_to_the_same_process_only(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.say("one")
        await vm.hear("user_message")
        vm.hang_up()
        await vm.wait_closed()
        held = {"s1": {"term": 1, "first_seq": 1, "last_seq": 0}}
        again = await plane.up(dial=2, resume=held)
        message = await again.hear("user_message")
        assert message["command_id"] == "c-r1"
        await plane.quiet()
        assert "start_session" not in again.kinds()
        assert again.kinds().count("user_message") == 0  # once on each link
        other = await plane.up("boot-b")
        assert await again.wait_closed() == (4009, "other_instance")
        await plane.quiet()
        assert "user_message" not in other.kinds()
        assert await plane.events() == [
            (2, 1, "r1", "run_started"),
            (2, 2, "r1", "execution_error"),
        ]


async def test_a_command_that_was_acknowledged_is_not_sent_again(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.say("one")
        await began(plane, vm)
        vm.hang_up()
        await vm.wait_closed()
        again = await plane.up(dial=2, resume={"s1": {"term": 1, "first_seq": 2, "last_seq": 1}})
        await plane.quiet()
        assert again.kinds() == []


async def test_the_next_message_after_a_loss_starts_the_session_anew(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.say("one")
        await began(plane, vm)
        await plane.say("two", run="r2")
        other = await plane.up("boot-b")
        start = await other.hear("start_session")
        assert start["term"] == 2
        assert start["next_seq"] == 3
        message = await other.hear("user_message")
        assert message["run_id"] == "r2"
        assert (await plane.events())[-1] == (2, 2, "r1", "execution_error")


async def test_a_snapshot_goes_with_the_start_of_a_session(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.say("one")
        seq = await began(plane, vm)
        await finish(plane, vm, seq)
        vm.say(
            type="fire_and_forget",
            id="snap-1",
            session_id="s1",
            method="snapshot_sync",
            params={"checkpoint": {"a": 1}, "short_term_memory": {}, "term": 1, "covers_seq": 2},
        )
        await vm.hear("ack", ids=["snap-1"])
        other = await plane.up("boot-b")
        await plane.say("two", run="r2")
        start = await other.hear("start_session")
        assert start["snapshot"]["covers_seq"] == 2
        assert start["snapshot"]["checkpoint"] == {"a": 1}


async def test_a_receipt_says_that_the_vm_was_lost(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.say("one")
        await began(plane, vm)
        asked = await plane.dispatcher.cancel("ann", "s1", None, "user_cancelled")
        await vm.hear("cancel")
        answers: list[Any] = []

        async def wait() -> None:
            answers.append(await plane.dispatcher.wait_receipt("r1", asked.command_id or ""))

        plane.nursery.start_soon(wait)
        await plane.quiet()
        assert answers == []
        await plane.up("boot-b")
        await plane.quiet()
        assert answers[0]["vm_lost"] is True
        assert answers[0]["run_id"] == "r1"


async def test_a_deleted_session_is_stopped_and_late_events_are_dropped(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.say("one")
        seq = await began(plane, vm)
        assert await plane.dispatcher.delete_session("ann", "s1")
        stop = await vm.hear("stop_session")
        assert stop["data"] == {"session_id": "s1", "reason": "user_closed"}
        vm.event("s1", 1, seq, "r1", content="late")
        assert (await vm.hear("ack", sessions={"s1": seq}))["ids"] == []
        vm.say(
            type="cancelled",
            session_id="s1",
            command_id=stop["command_id"],
            run_id="r1",
            receipt={"run_id": "r1"},
        )
        await vm.hear("ack", ids=[stop["command_id"]])
        assert await plane.store.sessions_with_work("ann") == ()
        assert vm.closed is None
        assert not await plane.dispatcher.delete_session("ann", "s1")


async def test_a_session_deleted_while_the_vm_was_away_is_gone_for_it(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.say("one")
        await began(plane, vm)
        vm.hang_up()
        await vm.wait_closed()
        assert await plane.dispatcher.delete_session("ann", "s1")
        again = await plane.dial(dial=2, resume={"s1": {"term": 1, "first_seq": 2, "last_seq": 1}})
        answer = await again.hear("resume_response")
        assert answer["sessions"] == {"s1": {"gone": True}}
        stop = await again.hear("stop_session")
        again.say(
            type="cancelled",
            session_id="s1",
            command_id=stop["command_id"],
            run_id=None,
            receipt={},
        )
        await again.hear("ack", ids=[stop["command_id"]])
        assert await plane.store.sessions_with_work("ann") == ()


async def test_idle_is_when_no_run_is_open(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path) as plane:
        await plane.dispatcher.wait_idle("ann")
        vm = await plane.up()
        await plane.say("one")
        seq = await began(plane, vm)
        done = trio.Event()

        async def wait() -> None:
            await plane.dispatcher.wait_idle("ann")
            done.set()

        plane.nursery.start_soon(wait)
        await plane.quiet()
        assert not done.is_set()
        await finish(plane, vm, seq)
        await plane.quiet()
        assert done.is_set()
