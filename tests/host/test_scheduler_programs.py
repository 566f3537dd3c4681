"""The scheduler with programs that are really started; the tests are their links."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import trio
import trio.testing
from scheduler_kit import STAY, URL, open_bench

from semibot.config import Deadlines
from semibot.errors import PlaneNotReady, StoreError
from semibot.secret import Secret


async def refused(bench, user="ann"):
    with pytest.raises(PlaneNotReady) as caught:
        await bench.scheduler.ensure_ready(user)
    return caught.value


# --- starting -------------------------------------------------------------------------


async def test_a_vm_is_started_once_for_any_number_of_first_messages(tmp_path):
    async with open_bench(tmp_path) as bench:
        rows = []

        async def ask() -> None:
            rows.append(await bench.scheduler.ensure_ready("ann"))

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(ask)
            environment = await bench.pipe.started()
            while (await bench.row()).status != "provisioning":
                await trio.lowlevel.checkpoint()
            assert (await bench.row()).attempts == 1
            await bench.connect(environment)
        assert {(row.status, row.attempts, row.attempt) for row in rows} == {("ready", 0, 1)}
        assert len(rows) == 100
        assert bench.pipe.nothing_more()
        assert bench.scheduler.own_users() == ("ann",)
        await bench.scheduler.stop_all()
        assert bench.scheduler.own_users() == ()
        row = await bench.row()
        assert (row.status, row.last_error) == ("disconnected", None)


async def test_a_vm_gets_its_own_environment_and_nothing_of_the_hosts_secrets(tmp_path):
    inherited = {"PATH": "/bin", "HOME": "/h", "LC_ALL": "C.UTF-8", "OPENCLAW_SDK_CMD": "sdk"}
    secrets = {
        "OPENAI_API_KEY": "sk-1",
        "JWT_SECRET": "s",
        "DATABASE_URL": "d",
        "SEMIBOT_TOKEN": "t",
        "SEMIBOT_DATA_DIR": "d",
    }
    async with open_bench(
        tmp_path,
        environment=inherited | secrets,
        allow=("write", "run:ls"),
        model="openai:m",
        jwt_secret=Secret("x" * 32),
    ) as bench:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.scheduler.ensure_ready, "ann")
            environment = await bench.pipe.started()
            await bench.connect(environment)
        row = await bench.row()
    token, ticket = environment.pop("VM_TOKEN"), environment.pop("VM_TICKET")
    assert bench.plane.tokens.verify_vm_token(token).user_id == "ann"
    assert len(ticket) >= 32
    assert environment == inherited | {
        "CONTROL_PLANE_WS": URL,
        "VM_USER_ID": "ann",
        "VM_ORG_ID": "org",
        "VM_INSTANCE_ID": row.id,
        "VM_MODE": "local",
        "FORCE_RESTART_RUNTIME": "false",
        "SEMIBOT_ALLOW": "write,run:ls",
        "SEMIBOT_MODEL": "openai:m",
        "SEMIBOT_WORKSPACE": str(tmp_path / "workspaces" / "ann"),
        "SEMIBOT_STATE_DIR": str(tmp_path / "vms" / "ann"),
    }
    assert (tmp_path / "workspaces" / "ann").is_dir()
    assert (tmp_path / "vms" / "ann").stat().st_mode & 0o777 == 0o700


async def test_a_command_that_is_not_there_is_named(tmp_path):
    async with open_bench(tmp_path, None, vm_bootstrap_cmd=("/no/such/vm",)) as bench:
        error = await refused(bench)
        assert "/no/such/vm" in (error.last_error or "")
        assert error.retry_after_ms > 25_000


async def test_a_program_that_ends_at_once_leaves_its_last_words(tmp_path):
    words = "sys.stderr.write('x' * 5000 + 'no such model\\n'); sys.exit(3)"
    async with open_bench(tmp_path, words, vm_bootstrap_max_attempts=1) as bench:
        error = await refused(bench)
        assert error.status == "failed"
        assert (error.last_error or "").endswith("xno such model")
        assert len(error.last_error or "") == 2000


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [("sys.exit(0)", "it ended without a link"), ("sys.exit(4)", "exit status 4")],
)
async def test_a_silent_program_that_ends_at_once_is_an_attempt_too(tmp_path, behaviour, words):
    async with open_bench(tmp_path, behaviour) as bench:
        error = await refused(bench)
        row = await bench.row()
    assert row.attempts == 1
    assert words in (error.last_error or "")


async def test_a_program_that_never_connects_is_stopped(tmp_path):
    words = "sys.stderr.write('waiting for nothing\\n'); sys.stderr.flush();" + STAY
    async with open_bench(tmp_path, words, deadlines=Deadlines(vm_ready=1.0)) as bench:
        error = await refused(bench)
        await bench.wait_ended()
        row = await bench.row()
    assert error.status in {"provisioning", "starting"}  # as the one or the other ends first
    assert (row.status, row.last_error) == ("starting", "no link within 1 s; waiting for nothing")


async def test_rebootstrap_while_one_is_starting_stops_that_and_starts_another(tmp_path):
    async with open_bench(tmp_path) as bench, trio.open_nursery() as nursery:
        nursery.start_soon(bench.scheduler.ensure_ready, "ann")
        first = await bench.pipe.started()
        answers = []

        async def ask() -> None:
            answers.append(await bench.scheduler.rebootstrap("ann"))

        async with trio.open_nursery() as asking:
            for _ in range(5):
                asking.start_soon(ask)
        second = await bench.pipe.started()
        assert second["VM_TICKET"] != first["VM_TICKET"]
        assert second["FORCE_RESTART_RUNTIME"] == "true"
        assert {answer["status"] for answer in answers} == {"starting"}
        await bench.connect(second)  # which the first who asked has waited for
        assert bench.pipe.nothing_more()


async def test_rebootstrap_replaces_a_vm_that_is_up(tmp_path):
    async with open_bench(tmp_path) as bench:
        old = await bench.bring_up()
        answer = await bench.scheduler.rebootstrap("ann")
        assert (answer["ready"], answer["status"]) == (False, "starting")
        assert await old.wait_closed() == (4008, "lost")
        await bench.connect(await bench.pipe.started(), "boot-b")
        assert (await bench.row()).status == "ready"


# --- ends -----------------------------------------------------------------------------


async def test_a_vm_that_was_up_and_died_starts_again_at_once(tmp_path):
    async with open_bench(tmp_path, "import signal; signal.pause()") as bench:
        await bench.bring_up()
        (attempt,) = bench.scheduler._attempts.values()
        assert attempt.is_ready
        kill_vm(attempt)
        await bench.wait_ended()
        row = await bench.row()
        assert row.status == "disconnected"
        assert "SIGKILL" in (row.last_error or "")
        await bench.bring_up(boot="boot-b")
        assert (await bench.row()).last_error is None


def kill_vm(attempt) -> None:
    """Kill the program of an attempt, as the kernel would."""
    instance = attempt.vm.id
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
                words = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if f"VM_INSTANCE_ID={instance}".encode() in environment and b"signal.pause" in words:
                os.kill(int(entry.name), signal.SIGKILL)


async def test_messages_that_no_vm_ever_got_start_one(tmp_path):
    async with open_bench(tmp_path, "import signal; signal.pause()") as bench:
        await bench.bring_up()
        (attempt,) = bench.scheduler._attempts.values()
        bench.plane.store.hangs.add("mark_written")
        await bench.plane.say("hello")
        kill_vm(attempt)
        vm = await bench.connect(await bench.pipe.started(), "boot-b")
        assert bench.scheduler._attempts["ann"].is_automatic
        bench.plane.store.hangs.clear()
        bench.plane.store.released.set()
        bench.plane.dispatcher.kick("s1", "ann")
        assert (await vm.hear("user_message"))["data"]["message"] == "hello"


async def test_a_vm_whose_link_stays_down_is_stopped(tmp_path):
    deadlines = Deadlines(vm_lost_after=0.3, vm_stop=5.0)
    async with open_bench(tmp_path, deadlines=deadlines) as bench:
        vm = await bench.bring_up()
        vm.hang_up()
        await bench.wait_ended()
        row = await bench.row()
        assert row.status == "disconnected"
        assert (row.last_error or "").startswith("no link for ")


async def test_a_link_that_drops_and_returns_changes_nothing(tmp_path):
    async with open_bench(tmp_path) as bench:
        vm = await bench.bring_up()
        vm.hang_up()
        await vm.wait_closed()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.scheduler.ensure_ready, "ann")
            await trio.testing.wait_all_tasks_blocked()
            await bench.plane.up("boot-a", 2)
        assert bench.pipe.nothing_more()


async def test_a_message_that_comes_as_the_vm_ends_gets_another(tmp_path):
    async with open_bench(tmp_path, "import signal; signal.pause()") as bench:
        vm = await bench.bring_up()
        (attempt,) = bench.scheduler._attempts.values()
        vm.hang_up()
        await vm.wait_closed()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.scheduler.ensure_ready, "ann")
            await trio.testing.wait_all_tasks_blocked()
            kill_vm(attempt)
            await bench.connect(await bench.pipe.started(), "boot-b")


async def test_leaving_without_stopping_stops_what_was_started(tmp_path):
    async with open_bench(tmp_path, serves=False) as bench:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.scheduler.serve)
            bench.scheduler.announce(URL)
            await bench.bring_up()
            nursery.cancel_scope.cancel()
        assert bench.scheduler.own_users() == ()
        row = await bench.row()
        assert (row.status, row.last_error) == ("disconnected", None)


async def test_stopping_a_vm_that_is_starting_is_no_failure(tmp_path):
    async with open_bench(tmp_path) as bench, trio.open_nursery() as nursery:

        async def ask() -> None:
            error = await refused(bench)
            assert (error.status, error.last_error) == ("disconnected", None)

        nursery.start_soon(ask)
        await bench.pipe.started()
        await bench.scheduler.stop_all()


async def test_an_end_that_cannot_be_recorded_is_still_an_end(tmp_path):
    async with open_bench(tmp_path) as bench:
        await bench.bring_up()
        bench.store.error = StoreError("the disk is full")
        bench.store.failing = {"lose_vm"}
        await bench.scheduler.stop_all()
        assert bench.scheduler.own_users() == ()


# --- a user who takes over ------------------------------------------------------------


async def test_the_vm_of_a_user_replaces_the_hosts_own(tmp_path):
    async with open_bench(tmp_path) as bench:
        own = await bench.bring_up()
        await bench.plane.external()
        assert (await bench.scheduler.ensure_ready("ann")).mode == "external"  # until then
        await bench.plane.up("boot-user")
        assert await own.wait_closed() == (4009, "other_instance")
        await bench.wait_ended()
        row = await bench.row()
        assert (row.status, row.mode, row.last_error) == ("ready", "external", None)
        assert (await bench.scheduler.ensure_ready("ann")).boot_hash == row.boot_hash
        assert bench.scheduler.own_users() == ()


async def test_the_hosts_own_vm_may_dial_again_until_the_user_connects(tmp_path):
    async with open_bench(tmp_path) as bench:
        own = await bench.bring_up()
        await bench.plane.external()
        own.hang_up()
        await own.wait_closed()
        again = await bench.plane.up("boot-a", 2)
        assert bench.scheduler.own_users() == ("ann",)
        assert again.closed is None
        await bench.scheduler.stop_all()
        assert (await bench.row()).status == "disconnected"  # it was still the user's only one


async def test_a_user_who_connects_while_the_hosts_own_is_starting_wins(tmp_path):
    async with open_bench(tmp_path) as bench, trio.open_nursery() as nursery:
        nursery.start_soon(bench.scheduler.ensure_ready, "ann")
        await bench.pipe.started()
        await bench.plane.external()
        await bench.plane.up("boot-user")
        await bench.wait_ended()
        row = await bench.row()
        assert (row.status, row.attempts) == ("ready", 0)


# --- VMs elsewhere --------------------------------------------------------------------


async def test_success_of_the_command_means_that_the_vm_was_launched_elsewhere(tmp_path):
    async with open_bench(tmp_path, "sys.exit(0)", mode="docker") as bench:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.scheduler.rebootstrap, "ann")
            environment = await bench.pipe.started()
        assert environment["VM_MODE"] == "docker"
        assert "SEMIBOT_WORKSPACE" not in environment
        assert not (tmp_path / "workspaces").exists()
        (attempt,) = bench.scheduler._attempts.values()
        with trio.fail_after(5):
            while not attempt._has_exited:
                await attempt._changed.wait()
        await bench.connect(environment)
        await bench.wait_ended()
        assert (await bench.scheduler.ensure_ready("ann")).status == "ready"
        assert bench.scheduler.own_users() == ()


async def test_a_command_that_fails_to_launch_says_why(tmp_path):
    words = "sys.exit('no such image')"
    async with open_bench(tmp_path, words, mode="firecracker") as bench:
        error = await refused(bench)
        assert error.last_error == "no such image"


async def test_a_command_that_stays_is_the_vm(tmp_path):
    async with open_bench(tmp_path, mode="docker") as bench:
        await bench.bring_up()
        assert bench.scheduler.own_users() == ("ann",)
        await bench.scheduler.stop_all()
        assert bench.scheduler.own_users() == ()


async def test_the_old_process_of_a_vm_elsewhere_is_not_taken_for_the_new_one(tmp_path):
    async with open_bench(tmp_path, "sys.exit(0)", mode="docker") as bench:
        old = await bench.bring_up()
        await bench.wait_ended()
        await bench.scheduler.rebootstrap("ann")
        environment = await bench.pipe.started()
        old.hang_up()
        await old.wait_closed()
        await bench.plane.up("boot-a", 2)  # the old one dials again
        (attempt,) = bench.scheduler._attempts.values()
        assert not attempt.is_ready
        await bench.connect(environment, "boot-b")
        assert attempt.is_ready


async def test_a_vm_of_level_1_is_known_by_its_row(tmp_path):
    async with open_bench(tmp_path) as bench:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.scheduler.ensure_ready, "ann")
            environment = await bench.pipe.started()
            await bench.plane.up_legacy(ticket=environment["VM_TICKET"])
        await bench.scheduler.stop_all()
        assert (await bench.row()).status == "disconnected"
