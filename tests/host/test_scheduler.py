"""The scheduler without programs: what it decides, on a mock clock."""

from __future__ import annotations

import pytest
import trio
import trio.testing
from scheduler_kit import open_bench

from semibot.config import Deadlines
from semibot.errors import PlaneNotReady, StoreError
from semibot.security.tickets import hash_secret
from semibot.testing import capture_logs

GONE = ("no-such-program",)


async def refused(bench, user="ann"):
    """Ask for the VM, and return why it is not there."""
    with pytest.raises(PlaneNotReady) as caught:
        await bench.scheduler.ensure_ready(user)
    return caught.value


def open_quick(path, **settings):
    """A scheduler whose every start fails at once."""
    return open_bench(path, None, is_live=False, vm_bootstrap_cmd=GONE, **settings)


async def test_without_a_row_the_vm_is_missing(tmp_path, autojump_clock):
    async with open_quick(tmp_path) as bench:
        assert await bench.scheduler.status("ann") == {"status": "missing"}


async def test_what_the_start_said_is_in_the_row_and_in_the_answer(tmp_path, autojump_clock):
    async with open_quick(tmp_path) as bench:
        error = await refused(bench)
        assert (error.status, error.retry_after_ms) == ("starting", 30_000)
        assert "no-such-program" in (error.last_error or "")
        status = await bench.scheduler.status("ann")
        row = await bench.row()
    assert status == {
        "instanceId": row.id,
        "status": "starting",
        "mode": "local",
        "bootstrapAttempts": 1,
        "lastBootstrapAt": row.last_bootstrap_at,
        "lastHeartbeatAt": None,
        "disconnectedAt": None,
        "lastError": error.last_error,
        "retryAfterMs": 30_000,
    }


async def test_an_attempt_that_never_got_ready_is_followed_by_a_pause(tmp_path, autojump_clock):
    async with open_quick(tmp_path) as bench:
        await refused(bench)
        await trio.sleep(10)
        assert (await refused(bench)).retry_after_ms == 20_000
        assert (await bench.row()).attempts == 1
        await trio.sleep(20)
        await refused(bench)
        assert (await bench.row()).attempts == 2


async def test_after_the_last_attempt_the_row_is_failed_and_the_next_message_opens_another(
    tmp_path, autojump_clock
):
    async with open_quick(tmp_path, vm_bootstrap_max_attempts=3) as bench:
        for _ in range(2):
            assert (await refused(bench)).status == "starting"
            await trio.sleep(30)
        error = await refused(bench)
        assert (error.status, error.retry_after_ms) == ("failed", 30_000)
        assert "no-such-program" in (error.last_error or "")
        failed = await bench.row()
        assert (failed.status, failed.attempts) == ("failed", 3)
        assert (await bench.scheduler.status("ann"))["retryAfterMs"] == 30_000
        await trio.sleep(29)
        assert (await refused(bench)).retry_after_ms == 1_000
        assert (await bench.row()).id == failed.id
        await trio.sleep(1)
        assert (await refused(bench)).status == "starting"
        fresh = await bench.row()
        assert (fresh.id != failed.id, fresh.attempts) == (True, 1)


async def test_rebootstrap_neither_waits_nor_counts(tmp_path, autojump_clock):
    async with open_quick(tmp_path, vm_bootstrap_max_attempts=2) as bench:
        await refused(bench)
        for _ in range(2):
            answer = await bench.scheduler.rebootstrap("ann")
            assert answer == {
                "ready": False,
                "status": "starting",
                "instanceId": (await bench.row()).id,
            }
            await bench.wait_ended()
        # The second one made the limit full, so that the third began a new row.
        assert (await bench.row()).status == "starting"
        assert trio.current_time() == 0.0


async def test_a_row_that_has_used_up_its_attempts_is_failed_when_it_is_needed(
    tmp_path, autojump_clock
):
    async with open_quick(tmp_path, vm_bootstrap_max_attempts=1) as bench:
        row = await bench.store.ensure_vm("ann", "vm", "local")
        await bench.store.begin_attempt(row.id, "ticket", 0)  # by a host that died over it
        await trio.sleep(60)
        error = await refused(bench)
        assert (error.status, error.last_error) == ("failed", "it never got ready")
        await trio.sleep(60)
        assert (await refused(bench)).status == "failed"  # the one attempt of the new row
        assert (await bench.row()).id != "vm"


async def test_a_wall_clock_that_was_set_back_makes_no_pause_longer(tmp_path, autojump_clock):
    async with open_quick(tmp_path) as bench:
        await refused(bench)
        bench.clock.offset = -3600.0
        await trio.sleep(10)
        assert (await refused(bench)).retry_after_ms == 20_000
        await trio.sleep(20)
        await refused(bench)
        assert (await bench.row()).attempts == 2
        bench.scheduler._tried_at.clear()  # another host, on a clock that was set back
        await refused(bench)
        assert (await bench.row()).attempts == 3


async def test_a_row_that_was_terminated_is_history_without_a_pause(tmp_path, autojump_clock):
    async with open_quick(tmp_path) as bench:
        await refused(bench)
        old = await bench.row()
        await bench.store.set_vm_status(old.id, "terminated")
        assert "retryAfterMs" not in await bench.scheduler.status("ann")
        await refused(bench)
        assert (await bench.row()).id != old.id


async def test_an_unknown_user_has_no_vm(tmp_path, autojump_clock):
    async with open_quick(tmp_path) as bench:
        error = await refused(bench, "nobody")
        assert (error.status, error.last_error) == ("missing", "the user is unknown")
        with pytest.raises(PlaneNotReady):
            await bench.scheduler.rebootstrap("nobody")


async def test_other_modes_need_a_command(tmp_path, autojump_clock):
    async with open_bench(tmp_path, None, is_live=False, mode=None) as bench:
        error = await refused(bench)
        assert "mode docker: set VM_BOOTSTRAP_CMD" in (error.last_error or "")
        assert (await bench.row()).mode == "docker"


# --- a VM that its user starts ---------------------------------------------------------


async def test_nothing_is_started_for_a_user_who_starts_the_vm(tmp_path, autojump_clock):
    async with open_quick(tmp_path) as bench:
        assert await bench.scheduler.is_started_here("ann")
        row = await bench.plane.external()
        assert not await bench.scheduler.is_started_here("ann")
        error = await refused(bench)
        assert (error.status, error.last_error) == ("starting", None)
        assert trio.current_time() == 5.0
        assert await bench.scheduler.rebootstrap("ann") == {
            "ready": False,
            "status": "starting",
            "instanceId": row.id,
        }
        assert (await bench.row()).attempts == 0


async def test_a_vm_of_a_user_is_waited_for_and_may_come_again(tmp_path, autojump_clock):
    async with open_quick(tmp_path) as bench:
        await bench.plane.external()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.scheduler.ensure_ready, "ann")
            await trio.testing.wait_all_tasks_blocked()
            first = await bench.plane.up("boot-a")
        assert (await bench.scheduler.rebootstrap("ann"))["ready"]
        first.hang_up()
        await first.wait_closed()
        assert (await bench.row()).status == "disconnected"
        await bench.plane.up("boot-b")  # started again by hand
        assert (await bench.scheduler.ensure_ready("ann")).status == "ready"


async def test_an_external_row_with_attempts_of_old_is_not_failed(tmp_path, autojump_clock):
    async with open_quick(tmp_path, vm_bootstrap_max_attempts=1) as bench:
        await bench.store.ensure_vm("ann", "vm", "external")
        await bench.store.begin_attempt("vm", "ticket", 0)
        await trio.sleep(60)
        assert (await refused(bench)).status == "starting"


# --- VMs elsewhere --------------------------------------------------------------------


async def test_a_vm_elsewhere_whose_link_is_down_is_waited_for_before_it_is_lost(
    tmp_path, autojump_clock
):
    async with open_quick(tmp_path, mode="docker") as bench:
        await bench.plane.ticket()  # makes it local, as if started before
        await bench.store.set_vm_status("vm-ann", "terminated")
        await bench.store.ensure_vm("ann", "vm-2", "docker")
        row = await bench.store.begin_attempt("vm-2", hash_secret("t"), 2**50)
        vm = await bench.plane.up("boot-a", ticket="t")
        vm.hang_up()
        await vm.wait_closed()
        error = await refused(bench)
        assert (error.status, error.last_error) == ("disconnected", None)
        assert (await bench.row()).attempt == row.attempt
        await trio.sleep(120)
        await refused(bench)  # it is lost, so that another one is tried
        assert (await bench.row()).attempt == row.attempt + 1


# --- stopping and failing -------------------------------------------------------------


async def test_a_host_that_stops_starts_nothing(tmp_path, autojump_clock):
    async with open_quick(tmp_path) as bench:
        bench.scheduler.stop()
        assert "stopping" in str(await refused(bench))
        assert await bench.row() is None


async def test_a_stop_while_the_row_is_read_starts_nothing(tmp_path, autojump_clock):
    async with open_quick(tmp_path) as bench, trio.open_nursery() as nursery:
        bench.store.hangs.add("ensure_vm")

        async def ask() -> None:
            assert "stopping" in str(await refused(bench))

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        bench.scheduler.stop()
        bench.store.released.set()
    assert bench.scheduler.own_users() == ()
    assert bench.scheduler._turns == {}


async def test_what_was_wanted_when_the_service_ends_has_ended(tmp_path, autojump_clock):
    async with open_quick(tmp_path, serves=False) as bench:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.scheduler.ensure_ready, "ann")
            await trio.testing.wait_all_tasks_blocked()
            assert bench.scheduler.own_users() == ("ann",)
            nursery.cancel_scope.cancel()
        with trio.CancelScope() as scope:
            scope.cancel()
            await bench.scheduler.serve()
        assert bench.scheduler.own_users() == ()
        await bench.scheduler.stop_all()
        assert (await bench.row()).status == "disconnected"


async def test_a_store_that_fails_is_an_attempt_that_fails(tmp_path, autojump_clock):
    async with open_quick(tmp_path) as bench:
        bench.store.error = StoreError("the disk is full")
        bench.store.failing = {"begin_attempt", "set_vm_status"}
        with capture_logs() as logs:
            await refused(bench)
        assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == [
            "VM did not get ready",
            "end of a VM not recorded",
        ]
        bench.store.error = None
        await refused(bench)  # no pause: there was no attempt
        assert (await bench.row()).attempts == 1


async def test_users_who_asked_leave_nothing_behind(tmp_path, autojump_clock):
    async with open_quick(tmp_path) as bench:
        for number in range(20):
            await bench.store.ensure_user(f"u{number}", "org", vm_mode=None)
            await refused(bench, f"u{number}")
        assert bench.scheduler._turns == {}
        assert bench.scheduler._attempts == {}


async def test_a_directory_that_cannot_be_made_is_what_the_row_says(tmp_path, autojump_clock):
    (tmp_path / "vms").write_text("in the way")
    async with open_quick(tmp_path, deadlines=Deadlines()) as bench:
        assert "vms" in ((await refused(bench)).last_error or "")
