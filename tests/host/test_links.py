"""One live link a VM: who supersedes whom, what a lost VM leaves, what a resume settles."""

from __future__ import annotations

import json
from pathlib import Path

from link_kit import Listener, began, lose, open_plane, started
from trio.testing import MockClock

# --- two links ------------------------------------------------------------------------


async def test_a_later_dial_supersedes_and_the_old_close_touches_nothing(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        listener = Listener()
        plane.links.observe(listener)
        old = await plane.up(dial=1)
        new = await plane.up(dial=2)
        assert await old.wait_closed() == (4009, "superseded")
        assert listener.said == ["up 1", "up 2"]
        assert plane.links.of_user("ann") is not None
        assert (await plane.store.newest_vm("ann")).status == "ready"
        assert plane.metrics.ws_connections_active.value() == 1
        assert plane.metrics.ws_reconnections_total.value() == 1
        new.say(type="heartbeat", active_sessions=[])
        await new.hear("heartbeat")
        new.hang_up()
        await new.wait_closed()
        assert listener.said == ["up 1", "up 2", "down 2"]


async def test_an_earlier_dial_that_comes_late_is_refused(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        new = await plane.up(dial=2)
        late = plane.connect()
        late.say(
            type="auth",
            token=plane.token(),
            protocol={"min": 1, "max": 2},
            boot_id="boot-a",
            dial=1,
        )
        closed = await late.wait_closed()
        assert closed is not None
        assert closed[0] == 4009
        new.say(type="heartbeat", active_sessions=[])  # was let read again
        await new.hear("heartbeat")


async def test_a_ticket_is_spent_by_one_process(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path, is_external=False) as plane:
        await plane.ticket()
        without = plane.connect()
        without.say(
            type="auth", token=plane.token(), protocol={"min": 1, "max": 2}, boot_id="x", dial=1
        )
        assert await without.wait_closed() == (4001, "refused")
        vm = await plane.up(ticket="ticket-1")
        thief = plane.connect("user_id=ann&ticket=ticket-1")
        thief.say(
            type="auth", token=plane.token(), protocol={"min": 1, "max": 2}, boot_id="x", dial=1
        )
        assert await thief.wait_closed() == (4001, "refused")
        assert vm.closed is None
        await plane.up(ticket="ticket-1", dial=2)  # its own, again
        await plane.up(dial=3)  # and without


async def test_what_was_received_is_committed_before_another_process_takes_over(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane)
        reader = await plane.relay.open_run_reader("s1", "r1", 0)
        vm.event("s1", 1, 2, "r1", content="last words")
        other = plane.connect()
        other.say(
            type="auth",
            token=plane.token(),
            protocol={"min": 1, "max": 2},
            boot_id="boot-b",
            dial=1,
        )
        assert await vm.wait_closed() == (4009, "other_instance")
        assert await plane.events() == [
            (1, 1, "r1", "run_started"),
            (1, 2, "r1", "text_chunk"),
            (2, 3, "r1", "execution_error"),
        ]
        text = b""
        while (chunk := await reader.next_chunk()) is not None:
            text += chunk
        assert b"last words" in text
        assert b"EXECUTION_PLANE_DISCONNECTED" in text
        assert b"resync" not in text


async def test_an_old_vm_that_wakes_is_fenced(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane, "a")
        vm.hang_up()
        await vm.wait_closed()
        await lose(plane)
        again = await plane.dial(dial=2, resume={"s1": {"term": 1, "first_seq": 3, "last_seq": 9}})
        answer = await again.hear("resume_response")
        assert answer["sessions"] == {"s1": {"fenced": True}}
        again.event("s1", 1, 3, "r1", content="late")
        await plane.quiet()
        assert (await plane.events())[-1] == (2, 3, "r1", "execution_error")
        await plane.say("next", run="r2")
        assert (await again.hear("start_session"))["term"] == 2


# --- numbers --------------------------------------------------------------------------


async def test_duplicates_are_acknowledged_and_gaps_are_named(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane, "a")
        vm.heard.clear()
        vm.event("s1", 1, 2, "r1", content="a")
        assert (await vm.hear("ack"))["sessions"] == {"s1": 2}
        vm.event("s1", 1, 5, "r1", content="far")
        error = await vm.hear("error")
        assert (error["code"], error["expected"], error["session_id"]) == ("SEQ_GAP", 3, "s1")
        vm.event("s1", 1, 3, "r1", content="c")
        assert (await vm.hear("ack"))["sessions"] == {"s1": 3}
        assert vm.closed is None


async def test_a_duplicate_of_what_is_not_committed_is_answered_with_the_maximum(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane)
        plane.store.hangs = {"commit_intake"}
        vm.event("s1", 1, 2, "r1", content="b")
        vm.event("s1", 1, 2, "r1", content="b")
        assert (await vm.hear("ack"))["sessions"] == {"s1": 1}


async def test_other_bytes_under_one_number_lose_the_session_alone(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane, "a")
        vm.event("s1", 1, 2, "r1", content="another")
        error = await vm.hear("error")
        assert error["code"] == "SEQ_CONFLICT"
        assert (await plane.events())[-1] == (2, 3, "r1", "execution_error")
        vm.event("s1", 1, 3, "r1", content="more")
        await plane.quiet()
        assert vm.closed is None
        await plane.say("next", run="r2")
        await vm.hear("start_session", term=2)


async def test_a_conflict_with_what_was_just_received_is_noticed_too(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane)
        frames = [
            {
                "type": "sse_event",
                "session_id": "s1",
                "term": 1,
                "seq": 2,
                "run_id": "r1",
                "data": json.dumps({"type": "text_chunk", "content": text}),
            }
            for text in ("a", "b")
        ]
        vm.say(type="batch", frames=frames)
        assert (await vm.hear("error"))["code"] == "SEQ_CONFLICT"
        assert (await plane.events())[1:] == [
            (1, 2, "r1", "text_chunk"),
            (2, 3, "r1", "execution_error"),
        ]


async def test_an_event_that_is_none_loses_the_session_and_counts_as_malformed(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane)
        vm.say(type="sse_event", session_id="s1", term=1, seq=2, run_id="r1", data="[]")
        assert (await vm.hear("error"))["code"] == "SEQ_CONFLICT"
        assert (await vm.hear("error"))["code"] == "BAD_FRAME"
        assert (await plane.events())[-1] == (2, 2, "r1", "execution_error")


async def test_an_event_of_another_term_is_fenced(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane)
        vm.event("s1", 2, 2, "r1", content="from the future")
        assert (await vm.hear("error"))["code"] == "FENCED"
        assert await plane.events() == [(1, 1, "r1", "run_started")]


async def test_events_of_strangers_are_refused_and_count(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.external("bob")
        await plane.say("hi", "bobs", user="bob", run="rb")
        vm.event("bobs", 1, 1, "rb", content="forged")
        assert (await vm.hear("error"))["code"] == "BAD_FRAME"
        vm.event("bobs", 1, 1, "rb", content="forged")  # known by now: dropped
        await plane.quiet()
        assert vm.closed is None
        assert await plane.events("bobs") == []
        for number in range(4):
            vm.event(f"no-{number}", 1, 1, "rb", content="forged")
        assert await vm.wait_closed() == (4400, "malformed frames")


async def test_an_ask_is_published_after_its_commit_and_holds_back_what_follows(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane)
        tail = plane.relay.loaded("s1")
        assert tail is not None
        plane.store.hangs = {"commit_intake"}
        vm.event("s1", 1, 2, "r1", content="now")
        vm.event("s1", 1, 3, "r1", "tool_auth_required", ask_id="a")
        vm.event("s1", 1, 4, "r1", content="later")
        await plane.quiet()
        assert (tail.committed_seq, tail.published_seq, tail.received_seq) == (1, 2, 4)


# --- resuming -------------------------------------------------------------------------


async def test_a_resume_goes_on_from_the_committed_maximum(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane, "a")
        vm.hang_up()
        await vm.wait_closed()
        again = await plane.dial(dial=2, resume={"s1": {"term": 1, "first_seq": 2, "last_seq": 4}})
        answer = await again.hear("resume_response")
        assert answer["sessions"] == {"s1": {"acked_seq": 2}}
        tail = plane.relay.loaded("s1")
        assert tail is not None
        tail.is_settled = False
        again.event("s1", 1, 3, "r1", content="c")
        await plane.quiet()
        assert not tail.is_settled
        again.event("s1", 1, 4, "r1", content="d")
        await plane.quiet()
        assert tail.is_settled
        assert [seq for _, seq, *_ in await plane.events()] == [1, 2, 3, 4]


async def test_sessions_that_cannot_go_on_are_fenced_and_lost_alone(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        for number in range(4):
            await plane.say("hi", f"s{number}", run=f"r{number}")
            await began(vm, f"r{number}", f"s{number}")
        vm.hang_up()
        await vm.wait_closed()
        again = await plane.dial(
            dial=2,
            resume={
                "s0": {"term": 1, "first_seq": 2, "last_seq": 1},  # goes on
                "s1": {"term": 1, "first_seq": 5, "last_seq": 9},  # has forgotten too much
                "s2": {"term": 2, "first_seq": 2, "last_seq": 1},  # another term
                "nobody's": {"term": 1, "first_seq": 2, "last_seq": 1},
            },
        )
        answer = await again.hear("resume_response")
        assert answer["sessions"] == {
            "s0": {"acked_seq": 1},
            "s1": {"fenced": True},
            "s2": {"fenced": True},
            "s3": {"fenced": True},  # not named
            "nobody's": {"fenced": True},
        }
        for sid in ("s1", "s2", "s3"):
            assert (await plane.events(sid))[-1][0] == 2
        assert (await plane.events("s0"))[-1] == (1, 1, "r0", "run_started")


async def test_a_vm_that_survives_its_host_settles_with_the_next_one(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane, "a")
        asked = await plane.dispatcher.cancel("ann", "s1", "r1", "user_cancelled")
        await vm.hear("cancel")
    assert vm.closed == (1012, "restarting")
    async with open_plane(tmp_path) as plane:
        again = await plane.up(dial=2, resume={"s1": {"term": 1, "first_seq": 3, "last_seq": 3}})
        assert (await again.hear("cancel"))["command_id"] == asked.command_id
        again.event("s1", 1, 3, "r1", "execution_complete", cancelled=True)
        again.say(
            type="cancelled",
            session_id="s1",
            command_id=asked.command_id,
            run_id="r1",
            receipt={"run_id": "r1"},
        )
        await plane.quiet()
        assert (await plane.store.get_run("r1")).outcome == "cancelled"
        assert await plane.dispatcher.wait_receipt("r1", asked.command_id or "") == {"run_id": "r1"}
