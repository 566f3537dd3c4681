"""A whole VM: it connects, carries out what its host wants, and leaves in order."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock
from vm_host import Frame, VmHost, open_vm_host

from semibot.config.settings import VmSettings
from semibot.errors import LinkRefused, StoreError, UsageError, WorkspaceUnusable
from semibot.secret import Secret
from semibot.testing import simulated_ports
from semibot.vm import run_vm


def settings(directory: Path, **changes: object) -> VmSettings:
    workspace = directory / "workspace"
    workspace.mkdir(exist_ok=True)
    known: dict[str, object] = {
        "url": "ws://host.test/ws/vm",
        "user_id": "u1",
        "token": Secret("t1"),
        "ticket": Secret("once"),
        "workspace": workspace,
        "state_dir": directory / "state",
    }
    return VmSettings(**{**known, **changes})  # type: ignore[arg-type]


def events_in(frames: list[Frame]) -> list[dict[str, object]]:
    return [json.loads(str(frame["data"])) for frame in frames if frame["type"] == "sse_event"]


async def test_a_vm_answers_a_message(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_vm_host() as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_vm, settings(tmp_path), host.ports())
            link = await host.accept()
            assert link.path == "/ws/vm?user_id=u1&ticket=once"
            auth = await link.bring_up()
            assert auth["token"] == "t1"
            await link.start("hello")
            frames = await link.receive_until("execution_complete")
            events = events_in(frames)
            assert events[0]["type"] == "run_started"
            assert "demonstration" in str(events[-1]["final_response"])
            acks = [frame["commands"] for frame in frames if frame["type"] == "ack"]
            assert acks == [["start hello"], ["message hello"]]
            nursery.cancel_scope.cancel()


async def test_a_vm_that_is_told_to_leave_delivers_the_end_of_its_runs(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    vm = trio.CancelScope()

    async def run(host: VmHost) -> None:
        with vm:
            await run_vm(settings(tmp_path), host.ports())

    async with open_vm_host() as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, host)
            link = await host.accept()
            await link.bring_up()
            await link.start("hello")  # the demonstration takes its time over an answer
            await link.receive_until("run_started")
            vm.cancel()
            frames, code = await link.wait_closed()
        assert events_in(frames)[-1]["code"] == "INTERRUPTED"
        assert "snapshot_sync" in [f.get("method") for f in frames]
        assert code == 1000


async def test_a_runtime_that_is_not_set_up_says_so(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_vm_host() as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_vm, settings(tmp_path), host.ports())
            link = await host.accept()
            await link.bring_up()
            await link.start("hello", runtime_type="openclaw")
            frames = await link.receive_until("execution_error")
            assert "OPENCLAW_BRIDGE_NOT_CONFIGURED" in str(frames[-1]["data"])
            nursery.cancel_scope.cancel()


async def test_a_vm_that_is_refused_for_good_ends(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_vm_host() as host:

        async def refuse() -> None:
            link = await host.accept()
            await link.receive()
            await link.socket.aclose(4003, "no VM")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse)
            with pytest.raises(LinkRefused, match="vm-token"):
                await run_vm(settings(tmp_path), host.ports())


async def test_a_state_directory_is_one_vms_at_a_time(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_vm_host() as host:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_vm, settings(tmp_path), host.ports())
            await (await host.accept()).bring_up()
            with pytest.raises(StoreError, match="in use"):
                await run_vm(settings(tmp_path), host.ports())
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"allow": ("rum",)}, UsageError), ({"workspace": Path("/none/such")}, WorkspaceUnusable)],
)
async def test_what_the_user_has_to_mend_is_said_before_anybody_is_dialled(
    changes: dict[str, object],
    error: type[Exception],
    autojump_clock: MockClock,
    tmp_path: Path,
) -> None:
    with pytest.raises(error):
        await run_vm(settings(tmp_path, **changes), simulated_ports())
