from __future__ import annotations

import json

import pytest
import trio
import trio.testing
from scripted_host import Handler, event, open_host

from semibot.channel.exchange import MAX_WAITING_COMMANDS
from semibot.errors import LocalProtocolError, UsageError
from semibot.wire.frames import Cancelled, CommandAck, FireAndForget


def seqs(frames):
    return [frame["seq"] for frame in frames if frame["type"] == "sse_event"]


def snapshot(session_id="s1", covers_seq=1):
    return FireAndForget(
        session_id=session_id,
        method="snapshot_sync",
        params={"term": 3, "covers_seq": covers_seq, "checkpoint": {}, "short_term_memory": {}},
    )


async def test_what_a_session_says_goes_out_in_order_and_together(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        link = await host.link()
        await channel.wait_up()
        before = channel.statistics()
        lane = channel.open_lane("s1", 3, 5)
        for number in (5, 6):
            lane.put_event(*event(number))
        lane.put_note(CommandAck(commands=("c1",)))
        lane.put_event(*event(7))
        lane.put_note(Cancelled(session_id="s1", command_id="c2", run_id="r1", receipt={}))
        lane.put_snapshot(snapshot(covers_seq=7))
        frames = await link.receive_many(6)
        assert [frame["type"] for frame in frames] == [
            "sse_event",
            "sse_event",
            "ack",
            "sse_event",
            "cancelled",
            "fire_and_forget",
        ]
        assert frames[0] == {
            "type": "sse_event",
            "session_id": "s1",
            "term": 3,
            "seq": 5,
            "run_id": "r1",
            "data": event(5)[2],
        }
        assert len(frames[-1]["id"]) == 32
        after = channel.statistics()
        assert after.messages_sent - before.messages_sent <= 2  # a heartbeat, and the batch
        assert after.frames_sent - before.frames_sent >= 6
        assert after.unacknowledged_bytes > 0
        ids = ["c1", "c2", frames[-1]["id"], "unheard of"]
        await link.send({"type": "ack", "sessions": {"s1": 7, "s9": 4}, "ids": ids})
        await trio.testing.wait_all_tasks_blocked()
        assert channel.statistics().unacknowledged_bytes == 0


async def test_what_is_unacknowledged_is_said_again_from_there_after_a_reconnect(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        link = await host.link()
        await channel.wait_up()
        lane = channel.open_lane("s1", 1, 1)
        for number in range(1, 6):
            lane.put_event(*event(number))
        assert seqs(await link.receive_many(5)) == [1, 2, 3, 4, 5]
        await link.send({"type": "ack", "sessions": {"s1": 2}})
        await trio.testing.wait_all_tasks_blocked()
        await link.drop()
        lane.put_event(*event(6))  # while down
        link = await host.accept()
        await link.introduce()
        resume = await link.receive()
        assert resume["sessions"] == {"s1": {"term": 1, "first_seq": 3, "last_seq": 6}}
        assert await link.collect(5) == []  # nothing before the answer
        await link.send(
            {"type": "resume_response", "results": {}, "sessions": {"s1": {"acked_seq": 4}}}
        )
        assert seqs(await link.collect(1)) == [5, 6]


@pytest.mark.parametrize(
    "answer", [{"fenced": True}, {"gone": True}, {"acked_seq": 9}, {"acked_seq": 0}, {}, None]
)
async def test_a_session_that_the_host_took_away_is_dropped_silently(answer, autojump_clock):
    handler = Handler()
    async with open_host() as host, host.open_channel() as channel:
        with channel.attach(handler):
            link = await host.link()
            await channel.wait_up()
            lane = channel.open_lane("s1", 1, 3)
            other = channel.open_lane("s2", 1, 1)
            lane.put_event(*event(3))
            lane.put_event(*event(4))
            await link.receive_many(2)
            await link.send({"type": "ack", "sessions": {"s1": 3}})
            await trio.testing.wait_all_tasks_blocked()
            await link.drop()
            link = await host.accept()
            await link.introduce()
            await link.receive()
            sessions = {"s2": {"acked_seq": 0}} | ({} if answer is None else {"s1": answer})
            await link.send({"type": "resume_response", "results": {}, "sessions": sessions})
            await channel.wait_up()
            assert handler.dropped == ["s1"]
            assert channel.statistics().lost_sessions == 1
            lane.put_event(*event(5))  # it may not know yet
            lane.put_note(CommandAck(commands=("c1",)))
            lane.put_snapshot(snapshot())
            await lane.wait_room()
            other.put_event(*event(1))
            frames = await link.collect(1)
            assert [frame["session_id"] for frame in frames] == ["s2"]


async def test_a_stopped_session_whose_answers_are_lost_is_dropped_too(autojump_clock):
    handler = Handler()
    async with open_host() as host, host.open_channel() as channel:
        with channel.attach(handler):
            link = await host.link()
            await channel.wait_up()
            lane = channel.open_lane("s1", 4, 3)
            lane.put_event(*event(3))
            lane.put_note(Cancelled(session_id="s1", command_id="c1", run_id=None, receipt={}))
            channel.close_lane("s1")
            await link.receive_many(2)
            await link.drop()
            link = await host.accept()
            await link.introduce()
            await link.receive()
            gone = {"s1": {"gone": True}}
            await link.send({"type": "resume_response", "results": {}, "sessions": gone})
            await channel.wait_up()
            assert handler.dropped == ["s1"]
            assert channel.open_lane("s1", 1, 1) is not lane


async def test_a_gap_is_filled_and_a_conflict_loses_the_session(autojump_clock):
    handler = Handler()
    async with open_host() as host, host.open_channel() as channel:
        with channel.attach(handler):
            link = await host.link()
            await channel.wait_up()
            lane = channel.open_lane("s1", 1, 1)
            for number in range(1, 5):
                lane.put_event(*event(number))
            await link.receive_many(4)
            gap = {"type": "error", "code": "SEQ_GAP", "message": "gap", "session_id": "s1"}
            await link.send({**gap, "expected": 3})
            assert seqs(await link.receive_many(2)) == [3, 4]
            await link.send({**gap, "expected": 3, "session_id": "unknown"})
            await link.send(gap)
            assert (await link.receive())["code"] == "REMOTE_PROTOCOL"
            conflict = {"type": "error", "code": "SEQ_CONFLICT", "message": "c"}
            await link.send({**conflict, "session_id": "s1"})
            await trio.testing.wait_all_tasks_blocked()
            assert handler.dropped == ["s1"]
            await link.send({**conflict, "session_id": "s1"})
            lane = channel.open_lane("s2", 1, 8)
            await link.send({**gap, "session_id": "s2", "expected": 1})
            await trio.testing.wait_all_tasks_blocked()
            assert handler.dropped == ["s1", "s2"]


async def test_an_acknowledgement_of_what_was_never_said_is_refused(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        link = await host.link()
        await channel.wait_up()
        lane = channel.open_lane("s1", 1, 1)
        lane.put_event(*event(1))
        await link.receive()
        await link.send({"type": "ack", "sessions": {"s1": 2}, "ids": []})
        assert (await link.receive())["code"] == "REMOTE_PROTOCOL"
        assert channel.statistics().unacknowledged_bytes > 0


async def test_a_closed_lane_delivers_what_it_has_and_a_discarded_one_does_not(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        for name in ("s1", "s2"):
            channel.open_lane(name, 1, 1).put_event(*event(1))
        channel.close_lane("s1")
        channel.discard_lane("s2")
        channel.close_lane("unknown")
        channel.discard_lane("unknown")
        link = await host.link()
        await channel.wait_up()
        frames = await link.collect(1)
        assert [frame["session_id"] for frame in frames] == ["s1"]
        await link.send({"type": "ack", "sessions": {"s1": 1}, "ids": []})
        await trio.testing.wait_all_tasks_blocked()
        await link.drop()
        link = await host.accept()
        await link.introduce()
        assert (await link.receive())["sessions"] == {}


async def test_level_1_gets_events_without_numbers_once_and_no_notes(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        lane = channel.open_lane("s1", 1, 1)
        lane.put_note(CommandAck(commands=("c1",)))
        lane.put_event(*event(1))
        link = await host.accept()
        await link.introduce(level=1)
        lane.put_event(*event(2))
        lane.put_note(Cancelled(session_id="s1", command_id="c2", run_id="r1", receipt={}))
        lane.put_snapshot(snapshot())
        frames = await link.collect(1)
        assert frames[:2] == [
            {"type": "sse_event", "session_id": "s1", "data": event(number)[2]} for number in (1, 2)
        ]
        assert frames[2:] == [
            {
                "type": "fire_and_forget",
                "session_id": "s1",
                "method": "snapshot_sync",
                "params": {"checkpoint": {}, "short_term_memory": {}},
            }
        ]
        assert all(json.loads(message)["type"] != "batch" for message in link.messages)
        assert channel.statistics().unacknowledged_bytes == 0
        await link.drop()
        link = await host.accept()
        await link.introduce(level=1)
        await link.settle()
        assert await link.collect(1) == []


async def test_a_session_that_floods_waits_for_room_and_holds_nobody_up(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        flood = channel.open_lane("flood", 1, 1)
        data = json.dumps({"type": "text_chunk", "content": "x" * 1_000_000})
        said = 0

        async def pour():
            nonlocal said
            while True:
                await flood.wait_room()
                said += 1
                flood.put_event(said, "r1", data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour)
            await trio.testing.wait_all_tasks_blocked()
            assert 16 * 2**20 - 64 * 1024 <= channel.statistics().unacknowledged_bytes <= 17 * 2**20
            assert said == 17
            other = channel.open_lane("other", 1, 1)
            await other.wait_room()
            other.put_event(*event(1))
            link = await host.accept()
            await link.introduce()
            resume = await link.receive()
            assert resume["sessions"]["flood"]["last_seq"] == 17
            settled = {"flood": {"acked_seq": 15}, "other": {"acked_seq": 0}}
            await link.send({"type": "resume_response", "results": {}, "sessions": settled})
            frames = await link.receive_many(2)
            assert [frame["session_id"] for frame in frames] == ["flood", "other"]
            await trio.testing.wait_all_tasks_blocked()
            assert said == 17 + 15
            channel.discard_lane("flood")
            while said < 100:  # nobody waits in a lane that is gone
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()


async def test_what_cannot_be_sent_is_refused_where_it_is_said(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        lane = channel.open_lane("s1", 2, 1)
        with pytest.raises(LocalProtocolError):
            lane.put_event(2, "r1", "{}")
        with pytest.raises(LocalProtocolError):
            lane.put_event(1, "r1", '"' + "x" * 2**20 + '"')
        with pytest.raises(LocalProtocolError):
            lane.put_event(1, "r1", "\ud800")
        huge = {"x": "y" * 11 * 2**20}
        with pytest.raises(LocalProtocolError):
            lane.put_note(Cancelled(session_id="s1", command_id="c", run_id=None, receipt=huge))
        with pytest.raises(LocalProtocolError):
            lane.put_snapshot(FireAndForget(session_id="s1", method="snapshot_sync", params=huge))
        with pytest.raises(LocalProtocolError):
            channel.open_lane("s1", 1, 1)
        with pytest.raises(LocalProtocolError):
            channel.open_lane("s1", 2, 2)
        lane.put_event(*event(1))
        assert host.dialled is not None


async def test_commands_are_kept_until_somebody_carries_them_out(autojump_clock):
    handler = Handler()
    async with open_host() as host, host.open_channel() as channel:
        link = await host.link()
        await channel.wait_up()
        stop = {"type": "stop_session", "data": {"session_id": "s1"}, "command_id": "c1"}
        await link.send(stop)
        await trio.testing.wait_all_tasks_blocked()
        assert channel.statistics().waiting_commands == 1
        with channel.attach(handler):
            assert handler.settings[0].org_id == "o1"
            assert [frame.command_id for frame in handler.commands] == ["c1"]
            with pytest.raises(trio.BusyResourceError), channel.attach(Handler()):
                pass
            handler.active = ("s1",)
            await link.receive(heartbeats=True)
            beat = await link.receive(heartbeats=True)
            assert beat["active_sessions"] == ["s1"]
            assert beat["sent_at"] == 10
            await link.send({**stop, "command_id": "c2"})
            await trio.testing.wait_all_tasks_blocked()
            assert [frame.command_id for frame in handler.commands] == ["c1", "c2"]
        batch = {"type": "batch", "frames": [stop] * 500}
        await link.send(batch, batch, stop)
        answer = await link.receive()
        assert answer["code"] == "REMOTE_PROTOCOL"
        assert channel.statistics().waiting_commands == MAX_WAITING_COMMANDS


async def test_a_command_that_is_refused_is_answered_with_an_error(autojump_clock):
    handler = Handler()
    handler.error = UsageError("there is no such session")
    async with open_host() as host, host.open_channel() as channel:
        with channel.attach(handler):
            link = await host.link()
            await link.send({"type": "cancel", "session_id": "s1", "command_id": "c1"})
            assert await link.receive() == {
                "type": "error",
                "id": "c1",
                "code": "USAGE",
                "message": "there is no such session",
            }


async def test_a_defect_of_the_handler_ends_the_block(autojump_clock):
    handler = Handler()
    handler.error = ZeroDivisionError()
    async with open_host() as host:
        with pytest.raises(ZeroDivisionError):
            async with host.open_channel() as channel:
                with channel.attach(handler):
                    link = await host.link()
                    await link.send({"type": "cancel", "session_id": "s1"})
                    await trio.sleep_forever()


async def test_what_sessions_say_last_still_goes_out_when_the_block_is_cancelled(autojump_clock):
    async with open_host() as host:
        with trio.CancelScope() as scope:
            async with host.open_channel() as channel:
                link = await host.link()
                await channel.wait_up()
                lane = channel.open_lane("s1", 1, 1)
                scope.cancel()
                try:
                    await trio.sleep_forever()
                finally:
                    lane.put_event(*event(1))
                    channel.close_lane("s1")
        assert seqs([await link.receive()]) == [1]
        assert await link.wait_closed() == 1000


async def test_a_send_that_is_cancelled_breaks_the_connection_off(autojump_clock):
    async with open_host() as host:
        host.stream_pair = trio.testing.lockstep_stream_pair
        async with host.open_channel() as channel:
            link = await host.link()
            await channel.wait_up()
            lane = channel.open_lane("s1", 1, 1)
            # The host stops reading: two messages fill its queue, the third blocks half-way.
            for number in range(1, 40):
                lane.put_event(number, "r1", json.dumps("y" * 60_000))
            status = await channel.wait_status(lambda status: status.state == "down")
            assert "silent" in status.last_error
        with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
            await link.stream.send_all(b"x")
            await link.stream.send_all(b"x")
