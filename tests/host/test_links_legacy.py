"""VMs of level 1 are served correctly, without the guarantees of level 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from link_kit import Plane, Vm, open_plane, pass_time
from trio.testing import MockClock

from semibot.errors import StoreError

EXCHANGE = Path(__file__).parent.parent / "fixtures" / "plane" / "host-exchange.jsonl"
DEADLINE_GRACE = 10.0


def says(vm: Vm, kind: str, sid: str = "s1", **data: Any) -> None:
    vm.say(type="sse_event", session_id=sid, data=json.dumps({"type": kind, **data}))


async def data_of(plane: Plane, sid: str = "s1") -> list[dict[str, Any]]:
    return [json.loads(event.data) for event in await plane.store.read_events(sid, 0, 10_000_000)]


async def busy(plane: Plane, *, run: str = "r1") -> Vm:
    """A level 1 VM with a message under way."""
    vm = await plane.up_legacy()
    await plane.say("hello", run=run)
    await vm.hear("user_message")
    return vm


async def test_a_recorded_exchange_becomes_runs_with_numbers(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    lines = [json.loads(line) for line in EXCHANGE.read_text("utf-8").splitlines()]
    sid = "7154b594-1cb1-412a-802c-e7089858a113"
    frames = [
        line["frame"]
        for line in lines
        if line["conn"] == 1 and line["dir"] == "ep->cp" and "type" in line["frame"]
    ]
    async with open_plane(tmp_path) as plane:
        vm = await plane.up_legacy()
        await plane.say("hi again", sid)
        await plane.quiet()
        assert vm.kinds() == ["start_session", "user_message"]
        start = await vm.hear("start_session")
        assert set(start) == {"type", "data"}
        message = await vm.hear("user_message")
        assert set(message) == {"type", "session_id", "data"}
        assert message["data"]["metadata"] == {"org_id": "org", "user_id": "ann"}
        assert message["data"]["history"] == [{"role": "user", "content": "hi again"}]
        for frame in frames:
            if frame["type"] != "auth":
                vm.say(**frame)
        response = await vm.hear("response")
        assert response["result"] == {"results": []}
        events = await data_of(plane, sid)
        assert [each["type"] for each in events] == (
            ["run_started", "thinking", "thinking"] + ["text_chunk"] * 20 + ["execution_complete"]
        )
        assert events[0]["message"] == "hi again"
        assert events[-1]["run_id"] == "r1"
        assert [seq for _, seq, *_ in await plane.events(sid)] == list(range(1, 25))
        assert vm.kinds() == []  # nothing is acknowledged
        assert (await plane.store.get_run("r1")).outcome == "completed"


async def test_start_session_goes_before_every_message(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await busy(plane)
        await plane.say("two", run="r2")
        vm.heard.clear()
        await plane.quiet()
        assert vm.kinds() == []
        says(vm, "text", content="hi")
        says(vm, "execution_complete", final_response="hi")
        await plane.quiet()
        assert vm.kinds() == ["start_session", "user_message"]
        kinds = [each["type"] for each in await data_of(plane)]
        assert kinds == ["run_started", "text_chunk", "execution_complete", "run_started"]


async def test_events_reach_readers_only_after_their_commit(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await busy(plane)
        tail = plane.relay.loaded("s1")
        assert tail is not None
        plane.store.hangs = {"commit_intake"}
        says(vm, "text_chunk", content="hi")
        await plane.quiet()
        assert (tail.received_seq, tail.published_seq) == (2, 1)


async def test_what_is_said_while_no_run_is_open_is_dropped_and_counted(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await busy(plane)
        says(vm, "text_chunk", "stranger", content="a")
        says(vm, "unheard_of")
        says(vm, "execution_error", error="no")
        says(vm, "text_chunk", content="late")
        says(vm, "execution_complete", final_response="late")
        await plane.quiet()
        link = plane.links.of_user("ann")
        assert link is not None
        assert link.legacy is not None
        assert link.legacy.dropped == 3
        assert [each["type"] for each in await data_of(plane)] == ["run_started", "execution_error"]
        await plane.say("two", run="r2")
        await vm.hear("user_message")
        says(vm, "execution_complete", final_response="two")
        await plane.quiet()
        assert (await plane.store.get_run("r2")).outcome == "completed"


async def test_what_is_no_event_is_answered_with_an_error(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await busy(plane)
        vm.say(type="sse_event", session_id="s1", data="[]")
        assert (await vm.hear("error"))["code"] == "BAD_FRAME"
        assert vm.closed is None


async def test_with_a_cancel_outstanding_any_end_is_a_cancel(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await busy(plane)
        asked = await plane.dispatcher.cancel("ann", "s1", None, "user_cancelled")
        cancel = await vm.hear("cancel")
        assert cancel == {
            "type": "cancel",
            "session_id": "s1",
            "data": {"reason": "user_cancelled"},
        }
        says(
            vm,
            "execution_complete",
            final_response="half of it",
            usage={"tokens_in": 3, "tokens_out": 4},
        )
        says(vm, "execution_error", error="cancelled", code="CANCELLED")
        await plane.quiet()
        end = (await data_of(plane))[-1]
        assert end["type"] == "execution_complete"
        assert end["cancelled"] is True
        assert end["partial_response"] == "half of it"
        assert "final_response" not in end
        receipt = await plane.dispatcher.wait_receipt("r1", asked.command_id or "")
        assert receipt["outcome"] == "cancelled"
        assert receipt["usage"] == {"tokens_in": 3, "tokens_out": 4}
        assert receipt["abandoned"] == []
        assert await plane.store.sessions_with_work("ann") == ()


async def test_an_error_after_a_cancel_is_a_cancel_too(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await busy(plane)
        await plane.dispatcher.cancel("ann", "s1", None, "user_cancelled")
        await vm.hear("cancel")
        says(vm, "execution_error", error="interrupted")
        await plane.quiet()
        assert (await data_of(plane))[-1] == {
            "type": "execution_complete",
            "run_id": "r1",
            "cancelled": True,
        }


async def test_a_run_that_does_not_stop_is_ended_by_the_host(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await busy(plane)
        asked = await plane.dispatcher.cancel("ann", "s1", None, "user_cancelled")
        await vm.hear("cancel")
        await plane.say("two", run="r2")
        await plane.quiet()
        mock_clock.jump(9)
        says(vm, "text_chunk", content="still here")
        await plane.quiet()
        assert (await plane.store.get_run("r1")).outcome is None
        mock_clock.jump(1.1)
        await plane.quiet()
        assert (await plane.store.get_run("r1")).outcome == "cancelled"
        receipt = await plane.dispatcher.wait_receipt("r1", asked.command_id or "")
        assert receipt["abandoned"][0]["name"] == "level 1 VM"
        kinds = [kind for kind in vm.kinds() if kind != "heartbeat"]
        assert kinds[-3:] == ["stop_session", "start_session", "user_message"]
        says(vm, "execution_complete", final_response="two")
        await plane.quiet()
        assert (await plane.store.get_run("r2")).outcome == "completed"


async def test_a_message_that_is_cancelled_before_its_turn_never_reaches_the_vm(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await busy(plane)
        await plane.say("two", run="r2")
        await plane.say("three", run="r3")
        assert (await plane.dispatcher.cancel("ann", "s1", "r2", "x")).state == "not_started"
        says(vm, "execution_complete", final_response="one")
        message = await vm.hear("user_message")
        assert message["data"]["message"] == "three"
        assert (await plane.store.get_run("r2")).outcome == "cancelled"
        says(vm, "text_chunk", content="3")
        says(vm, "execution_complete", final_response="3")
        await plane.quiet()
        assert [kind for *_, kind in await plane.events()][-3:] == [
            "run_started",
            "text_chunk",
            "execution_complete",
        ]
        assert (await plane.store.get_run("r3")).outcome == "completed"


async def test_a_budget_that_ends_cancels_the_run(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up_legacy()
        now = int(plane.ports.wall_clock.now().timestamp() * 1000)
        await plane.say("hello", expires_at=now + 5000)
        await vm.hear("user_message")
        mock_clock.jump(5.1)
        assert (await vm.hear("cancel"))["data"] == {"reason": "timeout"}
        mock_clock.jump(10.1)
        await plane.quiet()
        assert (await plane.store.get_run("r1")).outcome == "cancelled"


async def test_a_run_goes_on_over_a_reconnect_and_nothing_is_written_again(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await busy(plane)
        says(vm, "text_chunk", content="a")
        await plane.quiet()
        vm.hang_up()
        await vm.wait_closed()
        again = await plane.up_legacy()
        await plane.quiet()
        assert again.kinds() == []
        says(again, "text_chunk", content="b")
        await plane.quiet()
        mock_clock.jump(25)
        again.say(type="heartbeat", active_sessions=["s1"])
        says(again, "execution_complete", final_response="ab")
        await plane.quiet()
        assert again.kinds() == []  # heartbeats are not answered either
        assert (await plane.store.get_run("r1")).outcome == "completed"
        assert [seq for _, seq, *_ in await plane.events()] == [1, 2, 3, 4]


async def test_a_run_that_is_silent_after_a_reconnect_is_interrupted(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await busy(plane)
        vm.hang_up()
        await vm.wait_closed()
        again = await plane.up_legacy()
        for _ in range(6):
            await plane.quiet()
            mock_clock.jump(20)
            again.say(type="heartbeat", active_sessions=["s1"])
        await plane.quiet()
        assert (await again.hear("cancel"))["session_id"] == "s1"
        end = (await data_of(plane))[-1]
        assert (end["code"], end["retryable"]) == ("INTERRUPTED", True)
        await plane.say("two", run="r2")
        await plane.quiet()
        assert again.kinds() == ["stop_session", "start_session", "user_message"]


async def test_a_cancel_counts_on_after_a_reconnect(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await busy(plane)
        asked = await plane.dispatcher.cancel("ann", "s1", None, "user_cancelled")
        await vm.hear("cancel")
        vm.hang_up()
        await vm.wait_closed()
        again = await plane.up_legacy()
        await plane.quiet()
        assert again.kinds() == []  # written once
        mock_clock.jump(10.1)
        await plane.quiet()
        receipt = await plane.dispatcher.wait_receipt("r1", asked.command_id or "")
        assert receipt["outcome"] == "cancelled"


async def test_a_run_whose_beginning_was_not_committed_begins_again_in_the_journal(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up_legacy()
        plane.store.error, plane.store.failing = StoreError("full"), {"commit_intake"}
        await plane.say("hello")
        assert await vm.wait_closed() == (4500, "store failed")
        plane.store.failing = set()
        again = await plane.up_legacy()
        await plane.quiet()
        assert again.kinds() == []
        says(again, "execution_complete", final_response="ok")
        await plane.quiet()
        assert await plane.events() == [
            (1, 1, "r1", "run_started"),
            (1, 2, "r1", "execution_complete"),
        ]
        assert (await data_of(plane))[0]["message"] == "hello"
        assert await plane.store.sessions_with_work("ann") == ()


async def test_the_answer_to_resume_waits_for_requests_under_way(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up_legacy()
        plane.store.hangs = {"search_memories"}
        for name in ("q1", "q2"):
            vm.say(
                type="request",
                id=name,
                session_id="__memory__",
                method="memory_search" if name == "q1" else "nope",
                params={"query": "x"},
            )
        await vm.hear("response", id="q2")
        vm.hang_up()
        await vm.wait_closed()
        again = await plane.up_legacy()
        again.say(type="resume", pending_ids=["q1", "q2", "q3"])
        again.say(type="request", id="q4", session_id="s", method="nope", params={})
        await again.hear("response", id="q4")  # nothing else waits
        assert again.kinds() == []
        mock_clock.jump(5.1)
        results = (await again.hear("resume_response"))["results"]
        assert results["q1"] == {"status": "lost"}
        assert results["q2"]["status"] == "failed"
        assert results["q3"] == {"status": "lost"}
        again.say(type="resume", pending_ids=["q1"])
        await plane.quiet()
        plane.store.released.set()
        response = await again.hear("resume_response")
        assert response["results"]["q1"]["status"] == "completed"
        assert "sessions" not in response


async def test_a_deleted_session_is_stopped_once(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await busy(plane)
        await plane.dispatcher.delete_session("ann", "s1")
        stop = await vm.hear("stop_session")
        assert stop == {
            "type": "stop_session",
            "data": {"session_id": "s1", "reason": "user_closed"},
        }
        says(vm, "text_chunk", content="late")
        await plane.quiet()
        assert vm.closed is None
        assert await plane.store.sessions_with_work("ann") == ()


async def test_a_level_1_vm_that_is_lost_leaves_interrupted_runs(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await busy(plane)
        vm.hang_up()
        await vm.wait_closed()
        await pass_time(mock_clock, 121)
        await plane.quiet()
        assert (await plane.store.get_run("r1")).outcome == "interrupted"
        again = await plane.up_legacy()
        says(again, "text_chunk", content="late")
        await plane.say("two", run="r2")
        await again.hear("user_message")
        says(again, "execution_complete", final_response="two")
        await plane.quiet()
        assert (await plane.store.get_run("r2")).outcome == "completed"


async def test_snapshots_of_level_1_cover_what_was_said(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await busy(plane)
        says(vm, "text_chunk", content="a")
        vm.say(
            type="fire_and_forget",
            session_id="s1",
            method="snapshot_sync",
            params={"checkpoint": {"n": 1}, "short_term_memory": {}},
        )
        await plane.quiet()
        row = await plane.store.get_session("ann", "s1")
        held = await plane.store.hold_session(row.id, plane.links.of_user("ann").ref)
        assert held.snapshot["covers_seq"] == 2
