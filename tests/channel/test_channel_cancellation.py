from __future__ import annotations

import pytest
import trio
import trio.testing
from scripted_host import Handler, event, open_host

from semibot.testing.sweep import cancel_everywhere
from semibot.wire.frames import CommandAck


@pytest.mark.parametrize("level", [1, 2])
def test_a_channel_may_be_cancelled_at_any_step(level, tmp_path):
    ended_at = []

    async def scenario():
        async with open_host() as host:
            try:
                async with host.open_channel(state_dir=tmp_path / "state") as channel:
                    await use(host, channel)
            finally:
                ended_at.append(channel)

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

    report = cancel_everywhere(scenario, audit=lambda: audit(ended_at))
    assert report.problems == ()
    assert report.cancel_points > 50
    assert report.longest <= 2.0 + 0.001  # channel.close


def audit(ended_at):
    left = [channel for channel in ended_at if channel.statistics().pending_requests]
    ended_at.clear()
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
