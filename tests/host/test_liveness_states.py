"""What a host says of a VM's life is true at every moment, also after its own standstill."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from link_kit import DEADLINES, open_plane, pass_time, quiet

from semibot.host.liveness import MAX_TEXT, STATES, Pulses
from semibot.host.metrics import Metrics
from semibot.observe.standstill import Standstill
from semibot.wire.frames import BlockReport, VmHeartbeat

FUNCTION = "agent.py:12 in work"
BLOCK = BlockReport(seconds=5.0, where=FUNCTION, stack=())


def described(plane, user="ann"):
    row = plane.links.pulses.describe(user, f"vm-{user}")
    assert row is None or row["state"] == plane.links.pulses.state(user)
    return row


def state(plane):
    return plane.links.pulses.state("ann")


def beat(vm, **fields):
    vm.say(type="heartbeat", active_sessions=[], **fields)


async def test_the_states_one_after_the_other(tmp_path, mock_clock):
    async with open_plane(tmp_path) as plane:
        assert state(plane) is None
        assert described(plane) is None
        vm = await plane.up()
        beat(vm, lag_ms=3.0)
        await quiet()
        assert described(plane) == {
            "state": "alive",
            "heardMsAgo": 0,
            "lagMs": 3,
            "block": None,
        }
        beat(vm, lag_ms=249.0)
        await quiet()
        assert state(plane) == "alive"
        beat(vm, lag_ms=250.0)
        await quiet()
        assert state(plane) == "busy"
        await pass_time(mock_clock, 15)
        assert state(plane) == "busy"
        assert plane.metrics.vm_loop_lag_seconds.value(user_id="ann") == 0.25
        await pass_time(mock_clock, 0.1)
        assert (state(plane), described(plane)["heardMsAgo"]) == ("silent", 15_100)
        await pass_time(mock_clock, 14.8)
        assert state(plane) == "silent"
        assert vm.closed is None
        assert (await plane.store.newest_vm("ann")).status == "ready"
        await pass_time(mock_clock, 0.2)
        assert state(plane) == "dead"
        assert await vm.wait_closed() == (4008, "silence")
        assert described(plane)["lagMs"] is None
        assert plane.metrics.vm_loop_lag_seconds.value(user_id="ann") == 0


async def test_a_block_of_20_s_is_silence_and_then_a_function_with_a_stack(tmp_path, mock_clock):
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        beat(vm, lag_ms=0.0)
        await quiet()
        seen = []
        for _ in range(29):
            await pass_time(mock_clock, 1)
            seen.append(state(plane))
        assert seen == ["alive"] * 15 + ["silent"] * 14
        assert vm.closed is None
        beat(
            vm,
            lag_ms=20_000.0,
            blocked={"seconds": 20.0, "where": FUNCTION, "stack": ["app.py:1 in main", FUNCTION]},
        )
        await quiet()
        assert described(plane) == {
            "state": "blocked",
            "heardMsAgo": 0,
            "lagMs": 20_000,
            "block": {
                "seconds": 20.0,
                "where": FUNCTION,
                "stack": ["app.py:1 in main", FUNCTION],
                "toldMsAgo": 0,
            },
        }
        assert plane.metrics.vm_blocks_total.value() == 1
        assert plane.metrics.vm_blocked_seconds_total.value() == 20
        assert plane.metrics.vm_loop_lag_seconds.value(user_id="ann") == 20
        await pass_time(mock_clock, 10)
        beat(vm, lag_ms=1.0)
        await quiet()
        after = described(plane)
        assert (after["state"], after["block"]["where"]) == ("alive", FUNCTION)
        assert after["block"]["toldMsAgo"] == 10_000


async def test_a_vm_that_told_of_a_block_and_says_no_more_is_silent_and_then_dead(
    tmp_path, mock_clock
):
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        beat(vm, lag_ms=2000.0, blocked={"seconds": 2.0, "where": FUNCTION})
        await quiet()
        seen = []
        for _ in range(31):
            seen.append(state(plane))
            await pass_time(mock_clock, 1)
        assert seen == ["blocked"] * 16 + ["silent"] * 14 + ["dead"]
        assert vm.closed == (4008, "silence")


async def test_any_byte_is_life(tmp_path, mock_clock):
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        link = plane.links.of_user("ann")
        heard_at = [0.0]
        link.bytes_heard_at = lambda: heard_at[0]
        for _ in range(5):
            await pass_time(mock_clock, 14)
            heard_at[0] = mock_clock.current_time()
        await pass_time(mock_clock, 15)
        assert state(plane) == "alive"
        await pass_time(mock_clock, 14.9)
        assert state(plane) == "silent"
        assert vm.closed is None
        await pass_time(mock_clock, 0.2)
        assert await vm.wait_closed() == (4008, "silence")


async def test_a_vm_is_not_silent_while_the_host_does_not_listen(tmp_path, mock_clock):
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        link = plane.links.of_user("ann")
        link.hold_reading()
        beat(vm)
        await pass_time(mock_clock, 100)
        assert state(plane) == "alive"
        link.release_reading()
        await quiet()
        await pass_time(mock_clock, 16)
        assert state(plane) == "silent"


async def test_a_host_that_stood_still_closes_no_link_of_a_vm_that_spoke_meanwhile(
    tmp_path, mock_clock
):
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        late = await plane.up(user="ann", boot="boot-a", dial=2)
        assert (await vm.wait_closed())[0] == 4009
        await pass_time(mock_clock, 29)
        beat(late)  # it waits in the socket, together with what the clock says
        mock_clock.jump(3600)
        await quiet()
        assert late.closed is None
        assert state(plane) == "alive"
        beat(late)
        assert await late.hear("heartbeat") is not None


async def test_what_a_vm_has_said_is_read_before_it_is_judged(tmp_path, mock_clock):
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        for _ in range(10):  # who of two tasks runs first is up to chance
            beat(vm)
            await pass_time(mock_clock, 29)
            beat(vm)
            mock_clock.jump(2)  # late, but no standstill
            await quiet()
            assert vm.closed is None
            assert state(plane) == "alive"


async def test_after_a_standstill_a_vm_has_5_s_to_be_heard(tmp_path, mock_clock):
    async with open_plane(tmp_path) as plane:
        quick, slow = await plane.up(), None
        await plane.external("bob")
        slow = await plane.up(user="bob", boot="boot-b")
        await pass_time(mock_clock, 10)
        mock_clock.jump(60)
        assert state(plane) == "alive"  # also if whoever asks runs first
        await quiet()
        # Nobody was listened to for a minute, so nobody was silent for it.
        assert plane.links.pulses.counts() == {
            "alive": 2,
            "busy": 0,
            "blocked": 0,
            "silent": 0,
            "dead": 0,
        }
        await pass_time(mock_clock, 4.9)
        assert (quick.closed, slow.closed) == (None, None)
        beat(quick)
        await pass_time(mock_clock, 0.2)
        assert quick.closed is None
        assert await slow.wait_closed() == (4008, "silence")


async def test_a_vm_between_links_is_silent_and_dead_after_the_limit(tmp_path, mock_clock):
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        beat(vm, blocked={"seconds": 2.0, "where": FUNCTION})
        await quiet()
        vm.hang_up()
        await vm.wait_closed()
        assert state(plane) == "silent"
        await pass_time(mock_clock, 29)
        assert state(plane) == "silent"
        again = await plane.up(dial=2)
        assert described(plane)["state"] == "alive"
        assert described(plane)["block"]["where"] == FUNCTION
        again.hang_up()
        await again.wait_closed()
        await pass_time(mock_clock, 31)
        assert state(plane) == "dead"
        other = await plane.up(boot="boot-b")
        assert other.closed is None
        assert described(plane) == {
            "state": "alive",
            "heardMsAgo": 0,
            "lagMs": None,
            "block": None,
        }


async def test_the_end_of_an_old_link_says_nothing_of_the_new_one(tmp_path, mock_clock):
    async with open_plane(tmp_path) as plane:
        old = await plane.up()
        new = await plane.up(dial=2)
        beat(old)
        assert (await old.wait_closed())[0] == 4009
        assert new.closed is None
        assert state(plane) == "alive"


async def test_a_vm_that_was_given_up_is_dead_at_once(tmp_path, mock_clock):
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.links.lose_vm(
            "vm-ann", status="disconnected", last_error=None, code="INTERRUPTED", message="gone"
        )
        assert await vm.wait_closed() == (4008, "lost")
        assert state(plane) == "dead"


async def test_a_vm_that_is_given_up_between_two_links_is_dead_at_once(tmp_path, mock_clock):
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        vm.hang_up()
        await vm.wait_closed()
        plane.links.pulses.lost("an older row of hers", "ann")
        assert state(plane) == "silent"
        await plane.links.lose_vm(
            "vm-ann", status="disconnected", last_error=None, code="INTERRUPTED", message="gone"
        )
        assert state(plane) == "dead"
        assert plane.links.pulses.describe("ann", "an older row of hers") is None


async def test_an_old_link_says_nothing_once_there_is_a_new_one(mock_clock):
    pulses = Pulses(Standstill(), DEADLINES, Metrics())
    old, new = (
        SimpleNamespace(
            user_id="ann",
            vm=SimpleNamespace(id="vm-ann"),
            boot=f"boot-{n}",
            is_lost=False,
            heard=lambda now: now,
        )
        for n in range(2)
    )
    pulses.link_up(old)
    pulses.link_up(new)
    pulses.beat(old, VmHeartbeat(active_sessions=(), lag_ms=5000.0, blocked=BLOCK))
    pulses.link_down(old)
    pulses.expect("ann", "vm-ann")
    assert pulses.state("ann") == "alive"
    assert pulses.describe("ann", "vm-ann")["block"] is None


async def test_a_host_that_starts_counts_anew(tmp_path, mock_clock):
    async with open_plane(tmp_path) as plane:
        await plane.up()
    mock_clock.jump(1000)
    async with open_plane(tmp_path) as plane:
        await quiet()
        assert state(plane) == "silent"
        await pass_time(mock_clock, 30)
        assert state(plane) == "dead"


async def test_a_vm_is_not_lost_by_a_standstill_of_the_host(tmp_path, mock_clock):
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        vm.hang_up()
        await vm.wait_closed()
        await pass_time(mock_clock, 20)
        mock_clock.jump(500)
        await quiet()
        assert plane.links.may_return("vm-ann")
        await pass_time(mock_clock, 97)  # of 120, the first second is part of the standstill
        assert plane.links.may_return("vm-ann")
        await pass_time(mock_clock, 4)
        assert not plane.links.may_return("vm-ann")


async def test_level_1_vms_are_alive_or_not(tmp_path, mock_clock):
    async with open_plane(tmp_path) as plane:
        vm = await plane.up_legacy()
        beat(vm)
        await quiet()
        assert described(plane)["state"] == "alive"
        assert described(plane)["lagMs"] is None
        await pass_time(mock_clock, 16)
        assert state(plane) == "silent"


async def test_what_a_vm_says_of_a_block_is_fit_to_be_shown(tmp_path, mock_clock):
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        beat(
            vm,
            lag_ms=-5.0,
            blocked={"seconds": -1.0, "where": "\x1b[2J\u202e" + "x" * 500, "stack": ["a\nb"] * 64},
        )
        await quiet()
        block = described(plane)["block"]
        assert block["seconds"] == 0
        assert block["where"] == "?[2J?" + "x" * (MAX_TEXT - 5)
        assert block["stack"] == ["a?b"] * 64
        assert described(plane)["lagMs"] == 0
        beat(vm, blocked={"seconds": 1.0, "where": "x", "stack": ["a"] * 65})
        assert (await vm.hear("error"))["code"] == "BAD_FRAME"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-1e999"])
async def test_numbers_that_are_none_are_refused(tmp_path, mock_clock, number):
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        text = json.dumps({"type": "heartbeat", "active_sessions": [], "lag_ms": 1.5})
        vm.say_text(text.replace("1.5", number))
        assert (await vm.hear("error"))["code"] == "BAD_FRAME"
        assert state(plane) == "alive"


async def test_every_vm_is_counted_in_one_state(tmp_path, mock_clock):
    async with open_plane(tmp_path) as plane:
        await plane.up()
        for user in ("bob", "cyd"):
            await plane.external(user)
            await plane.up(user=user, boot=f"boot-{user}")
        beat(plane_vm := await plane.up(dial=2), blocked={"seconds": 3.0, "where": FUNCTION})
        await quiet()
        assert plane_vm.closed is None
        counts = plane.links.pulses.counts()
        assert tuple(counts) == STATES
        assert counts == {"alive": 2, "busy": 0, "blocked": 1, "silent": 0, "dead": 0}
