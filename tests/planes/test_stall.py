from __future__ import annotations

import itertools
import os
import signal

import trio
from drain import stall
from following import Follower, check_history, check_reader, check_store
from harness import open_external_vm, open_plane, seconds_until, wait_vm
from scripted_vm import open_link

from semibot.wire.sse import EventId

QUICK_LOSS = {"link_heartbeat": 0.2, "link_dead_after": 1.0, "vm_lost_after": 1.0}


SOON = 4.0
"""What is not delayed takes, on a machine that is busy; less than any bound here, in seconds."""


async def test_who_reads_nothing_delays_nobody_and_is_cut_off(tmp_path):
    bounds = {"http_stall_timeout": 5.0}
    async with open_plane(tmp_path / "plane", deadlines=bounds) as plane:
        await wait_vm(plane)
        asker, reader = Follower(), Follower()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plane.start, asker, "stream 1000 0.002 4000")
            await asker.wait(lambda f: f.session_id)
            for _ in range(3):
                begun = trio.Event()
                nursery.start_soon(stall, plane.port, asker.session_id, begun)
                await begun.wait()
            nursery.start_soon(plane.follow, reader, asker.session_id)
            # What others wait for comes at once, while the four megabytes are sent.
            start = trio.current_time()
            async with open_link(plane.port, "no token") as vm:
                code, _, at = await vm.close_code()
            assert code == 4001
            assert at - start < SOON
            for follower in (asker, reader):
                await follower.wait(lambda f: f.terminals)
                times = [item.at for item in follower.seen]
                assert max(b - a for a, b in itertools.pairwise(times)) < SOON
            check_reader(reader.seen, plane.stored(asker.session_id))

            # The stalled ones are gone once they have accepted nothing for so long.
            def reader_count() -> int:
                return len(plane.connections())

            assert await seconds_until(lambda: reader_count() <= 2, 10) is not None
            nursery.cancel_scope.cancel()


async def test_a_stopped_vm_delays_neither_others_nor_the_next_vm(tmp_path):
    bounds = {"http_cancel_wait": 0.5}
    async with open_plane(tmp_path / "plane", deadlines=bounds, is_external=True) as plane:
        async with open_external_vm(plane) as stopped, trio.open_nursery() as nursery:
            linked = set(plane.connections())
            asker, reader = Follower(), Follower()
            nursery.start_soon(plane.start, asker, "stream 100000 0.01")
            await asker.wait_types("text_chunk", 5)
            os.kill(stopped.pid, signal.SIGSTOP)
            start = trio.current_time()
            nursery.start_soon(plane.follow, reader, asker.session_id)
            await reader.wait(lambda f: f.seen)
            answer = await plane.ask("POST", f"/api/v1/chat/sessions/{asker.session_id}/cancel", {})
            assert (answer.status, answer.data["pending"]) == (202, True)
            assert trio.current_time() - start < SOON
            start = trio.current_time()
            async with open_link(plane.port, plane.token, boot_id="b" * 32) as vm:
                await vm.hear("init")
                await vm.resume()
                assert trio.current_time() - start < SOON
                for follower in (asker, reader):  # whose run the stopped VM had
                    await follower.wait(lambda f: f.terminals)
                    assert follower.seen[-1].at - start < SOON
                check_store(plane.stored(asker.session_id))
                # Nobody waits for its part of the closing handshake.
                gone = await seconds_until(lambda: not linked & set(plane.connections()), 5)
                assert gone is not None
            nursery.cancel_scope.cancel()


async def test_a_vm_that_was_given_up_wakes_and_changes_nothing(tmp_path):
    async with open_plane(tmp_path / "plane", deadlines=QUICK_LOSS, is_external=True) as plane:
        async with open_external_vm(plane) as vm, trio.open_nursery() as nursery:
            asker, reader = Follower(), Follower()
            nursery.start_soon(plane.start, asker, "stream 100000 0.01")
            await asker.wait(lambda f: f.session_id)
            nursery.start_soon(plane.follow, reader, asker.session_id)
            await reader.wait_types("text_chunk", 10)
            os.kill(vm.pid, signal.SIGSTOP)
            await reader.wait(lambda f: f.terminals)
            assert reader.terminals[0]["code"] == "EXECUTION_PLANE_DISCONNECTED"
            ended = plane.stored(asker.session_id)
            os.kill(vm.pid, signal.SIGCONT)
            await wait_vm(plane, mode="external")
            assert plane.stored(asker.session_id) == ended
            again = Follower()
            await plane.say(again, asker.session_id, "stream 3 0")
            assert again.types[-1] == "execution_complete", (again.body, again.types)
            await reader.wait(lambda f: len(f.terminals) == 2)
            stored = plane.stored(asker.session_id)
            check_store(stored)
            assert stored[: len(ended)] == ended
            for follower in (asker, reader, again):
                check_reader(follower.seen, stored)
            check_history(reader.seen, await plane.messages(asker.session_id))
            # The model that the woken VM was listening to was left.
            with trio.fail_after(10):
                await plane.model.requests[0].connection.peer_closed.wait()
            nursery.cancel_scope.cancel()


async def test_a_host_replaces_its_own_vm_that_has_stopped(tmp_path):
    bounds = {**QUICK_LOSS, "vm_stop": 1.0}
    async with open_plane(tmp_path / "plane", deadlines=bounds) as plane:
        await wait_vm(plane)
        asker = Follower()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plane.start, asker, "stream 100000 0.01")
            await asker.wait_types("text_chunk", 5)
            stopped = plane.vm_pid()
            os.kill(stopped, signal.SIGSTOP)
            await asker.wait(lambda f: f.terminals)
            again = Follower()
            with trio.fail_after(20):
                while again.status != 200:
                    await plane.say(again, asker.session_id, "stream 3 0")
            assert again.types[-1] == "execution_complete", again.types
            assert stopped not in [entry.pid for entry in plane.processes()]
            check_store(plane.stored(asker.session_id))
            nursery.cancel_scope.cancel()


async def test_nobody_who_stands_still_delays_the_end_of_a_host(tmp_path):
    bounds = {"host_drain": 13.0, "vm_stop": 1.0, "channel_close": 1.0}
    async with open_plane(tmp_path / "plane", deadlines=bounds) as plane:
        await wait_vm(plane)
        asker = Follower()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(plane.start, asker, "stream 100000 0.001 4000")
            await asker.wait_types("text_chunk", 10)
            begun = trio.Event()
            nursery.start_soon(stall, plane.port, asker.session_id, begun)
            await begun.wait()
            await asker.wait_types("text_chunk", 300)
            os.kill(plane.vm_pid(), signal.SIGSTOP)
            plane.process.send_signal(signal.SIGTERM)
            start = trio.current_time()
            with trio.fail_after(13):
                assert await plane.process.wait() == 0
            # A second for the run to end, one for the VM, and what the last clean-up takes.
            assert trio.current_time() - start < 8
            assert await seconds_until(lambda: not plane.processes(), 1.0) is not None
            stored = plane.stored(asker.session_id)
            check_store(stored)
            assert stored[-1][3]["type"] == "execution_error"
            assert EventId(stored[-1][0], stored[-1][1]) >= asker.last_id
            nursery.cancel_scope.cancel()
