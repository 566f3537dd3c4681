from __future__ import annotations

import gc

import pytest
import trio
import trio.testing
from scripted_host import Handler, event, open_host

from semibot.testing.sweep import cancel_everywhere
from semibot.wire.frames import CommandAck


@pytest.fixture(autouse=True)
def only_new_garbage():
    """Spare the sweep, which collects garbage at every step, all that was there before."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("level", [1, 2])
def test_a_channel_may_be_cancelled_at_any_step(level, tmp_path):
    opened = []

    async def scenario():
        async with open_host() as host:
            async with host.open_channel(state_dir=tmp_path / "state") as channel:
                opened.append(channel)
                await use(host, channel)

    async def use(host, channel):
        handler = Handler()
        with channel.attach(handler):
            link = await host.accept()
            await link.introduce(level=level)
            if level == 2:
                await link.settle()
            await channel.wait_up()
            lane = channel.open_lane("s1", 1, 1)
            await lane.wait_room()
            lane.put_event(*event(1))
            lane.put_note(CommandAck(commands=("c1",)))
            await channel.fire_and_forget("s1", "audit_log", {"event": "x"})
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.request, "s1", "get_config", {"agent_id": "a"})
                frame = await link.receive()
                while frame["type"] != "request":
                    frame = await link.receive()
                answer = {"type": "response", "id": frame["id"], "result": {}, "error": None}
                await link.send(answer)
            channel.close_lane("s1")
            await link.drop()
            link = await host.accept()
            await link.introduce(level=level)
            await link.settle()
            await channel.wait_up()

    report = cancel_everywhere(scenario, audit=lambda: audit(opened))
    assert report.problems == ()
    assert report.cancel_points > 50
    assert report.longest <= 2.0 + 0.001  # channel.close


def audit(opened):
    left = [channel for channel in opened if channel.statistics().pending_requests]
    opened.clear()
    return "requests are left" if left else None


def test_a_dial_and_a_back_off_may_be_cancelled_at_any_step():
    async def scenario():
        async with open_host() as host:
            host.refuses = True
            async with host.open_channel() as channel:
                await channel.wait_status(lambda status: status.attempts == 3)

    report = cancel_everywhere(scenario)
    assert report.problems == ()
    assert report.longest == 0


async def test_a_heartbeat_that_fails_ends_the_connection_and_not_the_channel(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        link = await host.link()
        await channel.wait_up()
        await trio.aclose_forcefully(link.stream)
        await channel.wait_status(lambda status: status.state == "down")
        await host.link()
        await channel.wait_up()
        assert channel.statistics().links == 2
