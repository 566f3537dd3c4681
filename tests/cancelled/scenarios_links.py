"""Scheduler, links and dispatcher of a host, to be cancelled at every step."""

from __future__ import annotations

import signal
from typing import Final

import trials
import trio
from host_looks import the_data_is_whole, vms_have_ended
from small_host import BOUNDS, HOST_BOUND, LEAVING, HandVm, Parts, connect, open_parts
from started_vms import MemoryVmProcess, Starter, new_starter
from trials import Case, Trial

from semibot.config import Deadlines
from semibot.errors import PlaneNotReady
from semibot.testing.sweep import cut_here

# --- VMs that the host starts -------------------------------------------------------------


async def connect_as(
    nursery: trio.Nursery, trial: Trial, parts: Parts, starter: Starter, count: int
) -> tuple[MemoryVmProcess, HandVm]:
    """Be the VM that was started as the *count*-th."""
    process = await starter.wait_started(count)
    vm = HandVm(parts.app, trial, "local", f"boot-{count}", ticket=starter.tickets[-1])
    return process, await connect(nursery, vm)


async def start_a_vm(trial: Trial) -> None:
    """Start the local user's VM, lose it, and start it again for the next message."""
    starter = new_starter(trial)
    async with trio.open_nursery() as nursery, open_parts(trial, starter.ports()) as parts:
        nursery.start_soon(parts.core.scheduler.ensure_ready, "local")
        process, vm = await connect_as(nursery, trial, parts, starter, 1)
        process.end(1)
        vm.hang_up()
        while parts.core.scheduler.own_users():  # noqa: ASYNC110 - nobody here is told
            await trio.sleep(1)
        nursery.start_soon(parts.core.scheduler.ensure_ready, "local")
        process, vm = await connect_as(nursery, trial, parts, starter, 2)
        await parts.core.scheduler.stop_all()
        assert process.signals[0] == signal.SIGTERM
        vm.hang_up()


async def fail_to_start_a_vm(trial: Trial) -> None:
    """Have a VM's start fail twice, with the pause between two attempts."""
    starter = new_starter(trial, fails=2)
    async with open_parts(trial, starter.ports()) as parts:
        for _ in range(2):
            await refused(parts)
            await trio.sleep(30)
    assert starter.fails == 0


async def refused(parts: Parts) -> None:
    try:
        await parts.core.scheduler.ensure_ready("local")
    except PlaneNotReady:
        return
    raise AssertionError("it got ready")


async def stop_a_deaf_vm(trial: Trial) -> None:
    """Stop a VM that never connects and ends on nothing but SIGKILL."""
    starter = new_starter(trial, heeds=(signal.SIGKILL,))
    async with open_parts(trial, starter.ports()) as parts, trio.open_nursery() as nursery:
        nursery.start_soon(refused, parts)
        await starter.wait_started(1)
        await trio.sleep(1)
        await parts.core.scheduler.stop_all()


async def replace_a_vm(trial: Trial) -> None:
    """Start a VM anew on request while the first one is still coming up."""
    starter = new_starter(trial)
    async with trio.open_nursery() as nursery, open_parts(trial, starter.ports()) as parts:
        nursery.start_soon(parts.core.scheduler.ensure_ready, "local")
        await starter.wait_started(1)
        nursery.start_soon(parts.core.scheduler.rebootstrap, "local")
        _, vm = await connect_as(nursery, trial, parts, starter, 2)
        assert starter.processes[0].has_ended.is_set()
        vm.hang_up()


# --- links --------------------------------------------------------------------------------


async def supersede(trial: Trial) -> None:
    """Have a VM dial again before its old link has ended, with an event on its way."""
    async with trio.open_nursery() as nursery, open_parts(trial) as parts:
        old = await connect(nursery, HandVm(parts.app, trial))
        await parts.post()
        run = await old.begin()
        old.event(*run, "text_chunk", content="one")
        new = await connect(nursery, HandVm(parts.app, trial, dial=2, events=old.events))
        new.end(*run)
        await new.hear("ack", sessions={"s1": 3})
        assert old.close_code == 4009
        new.hang_up()


async def be_cut_and_come_again(trial: Trial) -> None:
    """Cut one link off at any step; the VM's next link goes on where that one was."""
    async with trio.open_nursery() as nursery, open_parts(trial) as parts:
        await parts.post()
        first = HandVm(parts.app, trial)
        with cut_here():
            async with trio.open_nursery() as links:
                await connect(links, first)
                run = await first.begin()
                first.event(*run, "text_chunk", content="one")
                await first.hear("ack", sessions={"s1": 2})
                first.hang_up()
        second = await connect(nursery, HandVm(parts.app, trial, dial=2, events=first.events))
        if second.fenced:  # the first had not heard of it yet, so it does not name it
            lost = await parts.core.store.get_run("r1")
            assert lost is not None
            assert lost.outcome == "interrupted"
        else:
            run = ("s1", "r1") if first.events else await second.begin()
            second.end(*run)
            await second.hear("ack", sessions={"s1": len(second.events["s1"])})
        second.hang_up()


async def lose_a_vm(trial: Trial) -> None:
    """Have a VM go silent in the middle of a run: its link ends, then its run."""
    deadlines = Deadlines(vm_lost_after=40)
    async with trio.open_nursery() as nursery, open_parts(trial, deadlines=deadlines) as parts:
        vm = await connect(nursery, HandVm(parts.app, trial))
        run_id = await parts.post()
        await vm.begin()
        with await parts.core.relay.open_run_reader("s1", run_id, 0) as reader:
            text = b""
            while (chunk := await reader.next_chunk()) is not None:
                text += chunk
        assert b"EXECUTION_PLANE_DISCONNECTED" in text
        assert vm.close_code is not None


async def cancel_a_run(trial: Trial) -> None:
    """Cancel a run on its VM, with another message waiting; the receipt is the answer."""
    async with trio.open_nursery() as nursery, open_parts(trial) as parts:
        vm = await connect(nursery, HandVm(parts.app, trial))
        run_id = await parts.post()
        await parts.post()
        run = await vm.begin()

        async def obey() -> None:
            command = await vm.hear("cancel")
            vm.end(*run, cancelled=True)
            receipt = {"run_id": run_id, "outcome": "cancelled", "seconds": 0.1}
            answer = {"command_id": command["command_id"], "run_id": run_id, "receipt": receipt}
            vm.say(type="cancelled", session_id="s1", **answer)

        nursery.start_soon(obey)
        asked = await parts.core.dispatcher.cancel("ann", "s1", run_id, "user_cancelled")
        assert asked.command_id is not None
        receipt = await parts.core.dispatcher.wait_receipt(run_id, asked.command_id)
        assert receipt["outcome"] == "cancelled"
        await vm.answer()
        await vm.hear("ack", sessions={"s1": 5})
        vm.hang_up()


async def answer_requests(trial: Trial) -> None:
    """Answer what a VM asks, take what it reports, and delete the session meanwhile."""
    async with trio.open_nursery() as nursery, open_parts(trial) as parts:
        vm = await connect(nursery, HandVm(parts.app, trial))
        await parts.post()
        await vm.begin()
        search = {"method": "memory_search", "params": {"query": "x", "top_k": 1}}
        report = {"method": "audit_log", "params": {"event": "x", "details": {}}}
        for name in ("q1", "q2"):
            vm.say(type="request", id=name, session_id="s1", **search)
        vm.say(type="fire_and_forget", id="w1", session_id="s1", **report)
        await vm.hear("response", id="q1")
        await vm.hear("ack", ids=["w1"])
        assert await parts.core.dispatcher.delete_session("ann", "s1")
        vm.hang_up()


async def refuse_strangers(trial: Trial) -> None:
    """Have one VM say nothing, one lie, and one break off, while a good one comes up."""
    async with trio.open_nursery() as nursery, open_parts(trial) as parts:
        silent, lying, gone = (HandVm(parts.app, trial, dial=n) for n in (1, 2, 3))
        for vm in (silent, lying, gone):
            nursery.start_soon(vm.serve)
        lying.say(type="auth", token="no", protocol={"min": 1, "max": 2}, boot_id="b", dial=1)
        gone.hang_up()
        good = await connect(nursery, HandVm(parts.app, trial, dial=4))
        await trio.sleep(BOUNDS.link_auth + 1)
        assert (silent.close_code, lying.close_code) == (4008, 4001)
        good.hang_up()


CASES: Final = tuple(
    Case(
        name=name,
        act=act,
        look=look,
        within=LEAVING,
        because=HOST_BOUND,
        has_database=True,
    )
    for name, act, look in (
        ("scheduler: start of a VM, its end, and the next", start_a_vm, vms_have_ended),
        ("scheduler: a VM is started anew on request", replace_a_vm, vms_have_ended),
        ("scheduler: a VM does not start", fail_to_start_a_vm, vms_have_ended),
        ("scheduler: a VM is deaf to everything but SIGKILL", stop_a_deaf_vm, vms_have_ended),
        ("links: a VM dials again before its old link has ended", supersede, the_data_is_whole),
        ("links: one is cut off and the next goes on", be_cut_and_come_again, the_data_is_whole),
        ("links: a silent VM is given up", lose_a_vm, the_data_is_whole),
        ("links: strangers are refused", refuse_strangers, the_data_is_whole),
        ("dispatch: a run is cancelled on its VM", cancel_a_run, the_data_is_whole),
        ("requests: are answered while the session is deleted", answer_requests, the_data_is_whole),
    )
)

__all__ = ["CASES", "trials"]
