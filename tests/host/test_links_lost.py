"""VMs that are lost for their silence, and links whose store fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from link_kit import DEADLINES, began, lose, open_plane, pass_time, started
from trio.testing import MockClock

from semibot.errors import StoreError

# --- losing ---------------------------------------------------------------------------


async def test_a_vm_is_lost_after_silence_and_not_before(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane)
        vm.hang_up()
        await vm.wait_closed()
        await pass_time(mock_clock, 119)
        await plane.quiet()
        assert (await plane.store.get_run("r1")).outcome is None
        mock_clock.jump(1.1)
        await plane.quiet()
        assert (await plane.store.get_run("r1")).outcome == "interrupted"
        row = await plane.store.newest_vm("ann")
        assert (row.status, row.last_error) == ("disconnected", "no link for too long")


async def test_a_vm_that_comes_back_in_time_is_not_lost(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane)
        vm.hang_up()
        await vm.wait_closed()
        mock_clock.jump(100)
        again = await plane.up(dial=2, resume={"s1": {"term": 1, "first_seq": 2, "last_seq": 1}})
        again.hang_up()
        await again.wait_closed()
        mock_clock.jump(100)
        await plane.quiet()
        assert (await plane.store.get_run("r1")).outcome is None


@pytest.mark.parametrize("goes_again", [False, True])
async def test_a_vm_that_comes_while_another_is_given_up_is_not_lost(
    tmp_path: Path, mock_clock: MockClock, goes_again: bool
) -> None:
    async with open_plane(tmp_path) as plane:
        first = await started(plane)
        await plane.external("bob")
        await plane.say("hello", "s2", run="r2", user="bob")
        second = await plane.up("boot-b", user="bob")
        await second.hear("user_message")
        for vm in (first, second):
            vm.hang_up()
            await vm.wait_closed()
        plane.store.hangs = {"lose_vm"}
        await pass_time(mock_clock, 121)
        assert plane.store.calls.count("lose_vm") == 1  # the other one's turn has not come
        sessions = {"s2": {"term": 1, "first_seq": 1, "last_seq": 0}}
        again = await plane.up("boot-b", 2, user="bob", resume=sessions)
        if goes_again:
            again.hang_up()
            await again.wait_closed()
        plane.store.released.set()
        await plane.quiet()
        assert (await plane.store.get_run("r1")).outcome == "interrupted"
        assert (await plane.store.get_run("r2")).outcome is None
        assert plane.store.calls.count("lose_vm") == 1


async def test_silence_is_counted_anew_from_the_start_of_the_host(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        await started(plane)
    mock_clock.jump(1000)
    async with open_plane(tmp_path) as plane:
        plane.store.error, plane.store.failing = StoreError("full"), {"lose_vm"}
        await plane.quiet()
        await pass_time(mock_clock, 120.1)
        await plane.quiet()
        assert (await plane.store.get_run("r1")).outcome is None
        plane.store.failing = set()
        await pass_time(mock_clock, 5.1)  # is tried again
        await plane.quiet()
        assert (await plane.store.get_run("r1")).outcome == "interrupted"


async def test_a_new_process_that_is_starting_stays_so_when_the_old_one_is_lost(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path, is_external=False) as plane:
        await plane.ticket()
        vm = await plane.up(ticket="ticket-1")
        await plane.say("hello")
        await began(vm)
        vm.hang_up()
        await vm.wait_closed()
        await plane.store.set_vm_status("vm-ann", "provisioning")
        await pass_time(mock_clock, 121)
        await plane.quiet()
        assert (await plane.store.get_run("r1")).outcome == "interrupted"
        assert (await plane.store.newest_vm("ann")).status == "provisioning"


async def test_a_row_that_is_history_is_not_lost_again(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane)
        vm.hang_up()
        await vm.wait_closed()
        await plane.store.set_vm_status("vm-ann", "terminated")
        await pass_time(mock_clock, 121)
        await plane.quiet()
        assert "lose_vm" not in plane.store.calls
        await lose(plane)  # nothing either


async def test_a_vm_whose_process_is_gone_is_lost_at_once(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane)
        plane.store.hangs = {"commit_intake"}
        vm.event("s1", 1, 2, "r1", content="last words")
        await plane.quiet()
        plane.nursery.start_soon(lose, plane)
        await plane.quiet()
        assert vm.closed is None
        plane.store.released.set()
        assert await vm.wait_closed() == (4008, "lost")
        assert await plane.events() == [
            (1, 1, "r1", "run_started"),
            (1, 2, "r1", "text_chunk"),
            (2, 3, "r1", "execution_error"),
        ]
        assert (await plane.store.newest_vm("ann")).last_error == "it died"
        mock_clock.jump(500)
        await plane.quiet()
        assert (await plane.store.newest_vm("ann")).last_error == "it died"


async def test_a_vm_that_has_failed_is_told_that_it_is_none_any_more(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane)
        await lose(plane, "failed")
        assert await vm.wait_closed() == (4003, "no_vm")


async def test_a_vm_that_cannot_be_lost_goes_on(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane)
        plane.store.error, plane.store.failing = StoreError("full"), {"lose_vm"}
        with pytest.raises(StoreError):
            await lose(plane)
        vm.event("s1", 1, 2, "r1", content="b")
        assert (await vm.hear("ack", sessions={"s1": 2}))["ids"] == []


# --- failures -------------------------------------------------------------------------


async def test_a_commit_that_fails_acknowledges_nothing_and_it_all_comes_again(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane)
        vm.heard.clear()
        reader = await plane.relay.open_run_reader("s1", "r1", 0)
        plane.store.error, plane.store.failing = StoreError("full"), {"commit_intake"}
        vm.event("s1", 1, 2, "r1", content="b")
        vm.say(type="fire_and_forget", id="u1", session_id="s1", method="audit_log", params={})
        assert await vm.wait_closed() == (4500, "store failed")
        assert vm.kinds() == []
        while await reader.next_chunk() is not None:
            pass
        assert reader.end_reason == "store_failed"
        plane.store.failing = set()
        again = await plane.dial(dial=2, resume={"s1": {"term": 1, "first_seq": 2, "last_seq": 2}})
        assert (await again.hear("resume_response"))["sessions"] == {"s1": {"acked_seq": 1}}
        again.event("s1", 1, 2, "r1", content="b")
        assert (await again.hear("ack"))["sessions"] == {"s1": 2}
        tail = plane.relay.loaded("s1")
        assert tail is not None
        assert tail.committed_seq == 2


async def test_a_link_that_the_store_fences_is_closed(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane)
        await plane.store.lose_vm(  # by somebody else
            "vm-ann", status="disconnected", last_error=None, code="X", message="y"
        )
        vm.event("s1", 1, 2, "r1", content="b")
        assert await vm.wait_closed() == (4009, "superseded")
        other = await plane.up(dial=2)
        await plane.store.lose_vm(
            "vm-ann", status="disconnected", last_error=None, code="X", message="y"
        )
        other.say(type="heartbeat", active_sessions=[])
        assert await other.wait_closed() == (4009, "superseded")


async def test_the_end_of_a_link_survives_a_store_that_fails(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane)
        plane.store.error, plane.store.failing = StoreError("full"), {"link_closed"}
        vm.hang_up()
        await vm.wait_closed()
        assert plane.links.of_user("ann") is None
        plane.store.failing = set()
        vm = await plane.up(dial=2)
        plane.store.hangs = {"link_closed"}
        vm.hang_up()
        await plane.quiet()
        assert not vm.has_ended.is_set()
        mock_clock.jump(DEADLINES.store_commit + 0.1)
        await vm.wait_closed()
        assert plane.links.of_user("ann") is None


async def test_reading_pauses_while_too_much_is_not_committed(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await started(plane)
        vm.heard.clear()
        plane.store.hangs = {"commit_intake"}
        text = "x" * 900_000
        for seq in range(2, 32):
            vm.event("s1", 1, seq, "r1", content=text)
        await plane.quiet()
        link = plane.links.of_user("ann")
        assert link is not None
        assert 16 * 2**20 <= link.intake.uncommitted_bytes <= 17 * 2**20
        assert plane.links.budget.used == link.intake.uncommitted_bytes
        mock_clock.jump(9)
        await plane.quiet()
        assert vm.closed is None
        mock_clock.jump(1.1)  # store.commit
        await plane.quiet()
        assert await vm.wait_closed() == (4500, "store failed")
        assert plane.links.budget.used == 0


async def test_a_host_that_stops_lets_nobody_in_any_more(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.links.close_all(1012, "restarting")
        assert await vm.wait_closed() == (1012, "restarting")
        late = plane.connect()
        late.say(
            type="auth",
            token=plane.token(),
            protocol={"min": 1, "max": 2},
            boot_id="boot-a",
            dial=2,
        )
        assert await late.wait_closed() == (1012, "restarting")
