from __future__ import annotations

import itertools
import json

import attrs
import pytest
import trio
import trio.testing
import wsproto
from scripted_host import Handler, open_host

from semibot.channel import open_control_channel
from semibot.config import Deadlines
from semibot.errors import ConfigError, LinkRefused
from semibot.secret import Secret


async def test_a_level_2_link_begins_with_auth_init_resume_and_its_answer(autojump_clock):
    async with open_host() as host, host.open_channel(ticket="one-time") as channel:
        assert channel.status.state == "connecting"
        link = await host.accept()
        auth = await link.receive(heartbeats=True)
        assert auth["type"] == "auth"
        assert auth["token"] == "t1"
        assert auth["protocol"] == {"min": 1, "max": 2}
        assert auth["dial"] == 1
        assert len(auth["boot_id"]) == 32
        assert link.path == "/ws/vm?user_id=u1&ticket=one-time"
        await link.send_init(heartbeat_interval_s=3, dead_after_s=9)
        resume = await link.receive(heartbeats=True)
        assert resume == {"type": "resume", "pending_ids": [], "sessions": {}}
        beat = await link.receive(heartbeats=True)
        assert beat["type"] == "heartbeat"
        assert channel.status.state == "connecting"
        await link.send({"type": "resume_response", "results": {}, "sessions": {}})
        status = await channel.wait_up()
        assert (status.level, status.epoch, status.attempts) == (2, 7, 0)
        assert await link.receive(heartbeats=True)
        assert trio.current_time() == pytest.approx(3)
        await link.send({"type": "heartbeat", "echo": 0.0})
        assert host.dialled == [(0, "host.test", 8080, False)]


async def test_a_level_1_link_is_up_after_init_and_resumes_only_reconnects(autojump_clock):
    handler = Handler()
    async with open_host() as host, host.open_channel() as channel:
        with channel.attach(handler):
            link = await host.accept()
            await link.introduce(level=1, api_keys={"openai": "sk-1"})
            status = await channel.wait_up()
            assert (status.level, status.epoch) == (1, None)
            assert handler.settings[0].api_keys == {"openai": Secret("sk-1")}
            beat = await link.receive(heartbeats=True)
            assert beat == {"type": "heartbeat", "active_sessions": []}
            await link.drop()
            link = await host.accept()
            await link.introduce(level=1)
            await link.send({"type": "cancel", "session_id": "s1", "reason": "why"})
            resume = await link.receive()
            assert resume == {"type": "resume", "pending_ids": []}
            await link.send({"type": "resume_response", "results": {}})
            await channel.wait_up()
            assert [frame.why for frame in handler.commands] == ["why"]


async def test_every_dial_counts_and_the_ticket_goes_once_init_has_come(autojump_clock):
    async with open_host() as host, host.open_channel(ticket=Secret("a b")):
        link = await host.accept()
        first = await link.receive()
        await link.drop()
        link = await host.accept()
        assert link.path == "/ws/vm?user_id=u1&ticket=a+b"
        second = await link.introduce()
        await link.drop()
        link = await host.accept()
        assert link.path == "/ws/vm?user_id=u1"
        third = await link.receive()
        assert [auth["dial"] for auth in (first, second, third)] == [1, 2, 3]
        assert first["boot_id"] == second["boot_id"] == third["boot_id"]


async def test_a_renewed_token_is_used_from_the_next_auth_on(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        link = await host.link()
        await link.send({"type": "token", "token": "t2"})
        await trio.testing.wait_all_tasks_blocked()
        await link.drop()
        link = await host.accept()
        auth = await link.receive()
        assert auth["token"] == "t2"
        assert "t2" not in repr(channel.status)


@pytest.mark.parametrize(
    ("code", "reason"), [(4001, "x"), (4003, ""), (4004, ""), (4009, "other_instance")]
)
async def test_a_final_close_code_ends_the_block(code, reason, autojump_clock):
    async with open_host() as host:
        with pytest.raises(LinkRefused) as caught:
            async with host.open_channel():
                link = await host.accept()
                await link.receive()
                await link.close(code, reason)
                await trio.sleep_forever()
        assert caught.value.close_code == code
        assert len(host.dialled) == 1


@pytest.mark.parametrize(
    "code", [1000, 1001, 1003, 1009, 1011, 1012, 1013, 4008, 4009, 4029, 4400, 4500, 4999]
)
async def test_any_other_close_code_is_followed_by_a_new_link(code, autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        link = await host.link()
        await channel.wait_up()
        await link.close(code, "some reason")
        status = await channel.wait_status(lambda status: status.state == "down")
        assert status.last_error == f"some reason (close code {code})"
        await host.link()
        status = await channel.wait_up()
        assert status.last_error is not None
        assert trio.current_time() <= 1


async def test_a_host_that_falls_silent_is_dialled_again_after_30_s(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        link = await host.link()
        await channel.wait_up()
        await trio.sleep(20)
        await link.send({"type": "heartbeat", "echo": 0})
        await trio.testing.wait_all_tasks_blocked()
        status = await channel.wait_status(lambda status: status.state == "down")
        assert 50 <= trio.current_time() <= 52
        assert status.last_error == "the host was silent for 30 s (close code 4008)"
        await host.link()


async def test_bytes_of_an_unfinished_frame_count_as_life(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        link = await host.link()
        await channel.wait_up()
        for _ in range(20):
            await trio.sleep(10)
            await link.stream.send_all(b"\x89\x00")  # a ping
        assert channel.status.state == "up"


async def test_a_process_that_was_stopped_gives_its_host_a_chance(mock_clock):
    async with open_host() as host, host.open_channel() as channel:
        link = await host.link()
        await channel.wait_up()
        mock_clock.jump(100)
        await trio.testing.wait_all_tasks_blocked()
        assert channel.status.state == "up"
        await link.send({"type": "heartbeat", "echo": 0})
        await trio.testing.wait_all_tasks_blocked()
        for _ in range(10):
            mock_clock.jump(1)
            await trio.testing.wait_all_tasks_blocked()
        assert channel.status.state == "up"
        beats = [json.loads(await link.receive_message()) for _ in range(3)]
        assert max(beat["lag_ms"] for beat in beats) == 99_000
        mock_clock.jump(100)
        for _ in range(5):
            await trio.testing.wait_all_tasks_blocked()
            assert channel.status.state == "up"
            mock_clock.jump(1)
        await trio.testing.wait_all_tasks_blocked()
        assert channel.status.state == "down"


async def test_a_level_1_host_is_kept_alive_by_pings(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        link = await host.accept()
        await link.introduce(level=1)
        await channel.wait_up()
        with trio.move_on_after(300):
            while True:
                await link.receive_message()
        assert channel.status.state == "up"


async def test_a_level_1_host_that_answers_no_ping_is_dialled_again(autojump_clock):
    async with open_host() as host:
        host.is_deaf = True
        async with host.open_channel() as channel:
            await trio.testing.wait_all_tasks_blocked()
            await answer_by_hand(host.kept, 'init","data":{"user_id":"u1","org_id":"o1"}}')
            await channel.wait_up()
            await channel.wait_status(lambda status: status.state == "down")
            assert 30 <= trio.current_time() <= 32


async def answer_by_hand(stream, rest):
    """Shake hands, send one frame, and never read again."""
    server = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    server.receive_data(await stream.receive_some())
    next(iter(server.events()))
    await stream.send_all(server.send(wsproto.events.AcceptConnection()))
    await stream.send_all(server.send(wsproto.events.TextMessage(data='{"type":"' + rest)))


async def test_a_malformed_frame_is_answered_and_the_link_goes_on(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        link = await host.link()
        for text in ("no json", '{"type":"unheard_of"}', '{"type":"response"}', "[]"):
            await link.socket.send_message(text)
            answer = await link.receive()
            assert (answer["type"], answer["code"]) == ("error", "REMOTE_PROTOCOL")
        await link.idle(61)
        await link.send({"type": "resume_response", "results": {}})
        assert (await link.receive())["type"] == "error"
        assert channel.statistics().dropped_frames == 5
        await link.send({"type": "error", "code": "X", "message": "for nobody"})


async def test_five_malformed_frames_in_a_minute_end_the_link(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        link = await host.link()
        for _ in range(5):
            await link.socket.send_message("{}")
        assert await link.wait_closed() == 4400
        await channel.wait_status(lambda status: status.state == "down")
        await host.link()


@pytest.mark.parametrize(
    ("message", "code"),
    [(b"binary", 1003), ('"' + "ä" * (6 * 1024 * 1024) + '"', 1009), ("x" * 11 * 2**20, 1009)],
)
async def test_a_message_that_the_protocol_forbids_ends_the_link(message, code, autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        link = await host.link()
        await channel.wait_up()
        await link.socket.send_message(message)
        assert await link.wait_closed() == code
        await host.link()


async def test_a_host_that_never_says_init_is_given_up(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        link = await host.accept()
        await link.send({"type": "error", "code": "BUSY", "message": "wait"})
        status = await channel.wait_status(lambda status: status.state == "down")
        assert status.last_error == "the host did not answer auth: channel.resume (10 s) exceeded"
        assert trio.current_time() == pytest.approx(10)


async def test_a_host_that_never_answers_resume_is_given_up(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        link = await host.accept()
        await link.introduce()
        status = await channel.wait_status(lambda status: status.state == "down")
        assert status.last_error == "the host did not answer resume: channel.resume (10 s) exceeded"
        assert status.attempts == 1


@pytest.mark.parametrize(
    "first",
    ['{"type":"token","token":"t"}', "?", '{"type":"init","data":{"user_id":"u1"}}'],
)
async def test_a_host_that_begins_with_something_else_is_given_up(first, autojump_clock):
    async with open_host() as host, host.open_channel():
        link = await host.accept()
        await link.receive()
        await link.socket.send_message(first)
        assert await link.wait_closed() == 4400
        await host.link()


@pytest.mark.parametrize(("field", "value"), [("user_id", "somebody else"), ("protocol", 3)])
async def test_an_init_that_makes_no_sense_ends_the_link(field, value, autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        link = await host.accept()
        await link.introduce(**{field: value})
        await channel.wait_status(lambda status: status.state == "down")
        await host.link()


async def test_a_host_that_is_not_there_is_dialled_with_jitter_for_ever(autojump_clock):
    async with open_host() as host:
        host.refuses = True
        async with host.open_channel() as channel:
            await trio.sleep(600)
            assert channel.status.state == "down"
            assert channel.status.last_error == "cannot connect: nobody is there"
            assert channel.status.attempts == len(host.dialled)
            times = [time for time, *_ in host.dialled]
            delays = [later - earlier for earlier, later in itertools.pairwise(times)]
            assert len(delays) > 20
            for failures, delay in enumerate(delays):
                assert 0 <= delay <= min(30, 2**failures)
            assert max(delays) > 15
            host.refuses = False
            await host.link()
            status = await channel.wait_up()
            assert status.attempts == 0


async def test_a_link_that_held_for_60_s_makes_the_next_failure_the_first(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        for up_for, longest in ((1, 2), (1, 4), (1, 8), (61, 1), (1, 2)):
            link = await host.link()
            await channel.wait_up()
            await link.idle(up_for)
            await link.drop()
            before = trio.current_time()
            await channel.wait_status(lambda status: status.state == "connecting")
            assert trio.current_time() - before <= longest


async def test_a_reconnect_has_one_order(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        lane = channel.open_lane("s1", 1, 1)
        async with trio.open_nursery() as nursery:
            link = await host.link()
            await channel.wait_up()
            nursery.start_soon(channel.request, "s1", "get_config", {})
            lane.put_event(1, "r1", "{}")
            await link.receive_many(2)
            await link.drop()
            await channel.fire_and_forget("s1", "audit_log", {"event": "x"})
            lane.put_event(2, "r1", "{}")
            nursery.start_soon(channel.request, "s1", "get_session", {})
            link = await host.accept()
            await link.introduce()
            await link.settle()
            frames = await link.collect(1)
            await link.send({"type": "response", "id": frames[1]["id"], "result": 1, "error": None})
            nursery.cancel_scope.cancel()
        said = [frame.get("method") or frame["seq"] for frame in frames]
        assert sorted(said[:2]) == ["get_config", "get_session"]
        assert said[2:] == [1, 2, "audit_log"]


async def test_a_dial_or_handshake_that_hangs_is_bounded(autojump_clock):
    async with open_host() as host:
        host.is_deaf = True
        async with host.open_channel() as channel:
            status = await channel.wait_status(lambda status: status.state == "down")
            assert trio.current_time() == pytest.approx(10)
            assert "handshake in time" in status.last_error

    async def hang(host, port, *, use_tls):
        await trio.sleep_forever()

    ports = attrs.evolve(host.ports, dial=hang)
    async with open_control_channel("wss://h", user_id="u", token="t", ports=ports) as channel:
        status = await channel.wait_status(lambda status: status.state == "down")
        assert status.last_error == "cannot connect: channel.dial (10 s) exceeded"


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", "the host closed the connection before the handshake"),
        (
            b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
            "the host answered 503 instead of opening a WebSocket",
        ),
        (b"nonsense\r\n\r\n", "the "),
    ],
)
async def test_a_host_that_refuses_the_handshake_is_dialled_again(answer, error, autojump_clock):
    async with open_host() as host:
        host.is_deaf = True
        async with host.open_channel() as channel:
            await trio.testing.wait_all_tasks_blocked()
            if answer:
                await host.kept.send_all(answer)
            await host.kept.aclose()
            status = await channel.wait_status(lambda status: status.state == "down")
            assert status.last_error.startswith(error)
            assert trio.current_time() < 2


async def test_the_block_ends_within_channel_close_whatever_the_host_does(autojump_clock):
    async with open_host() as host:
        async with host.open_channel(deadlines=Deadlines(channel_close=2.0)) as channel:
            link = await host.link()
            await channel.wait_up()
            await channel.fire_and_forget("s1", "audit_log", {"event": "x", "details": {}})
            began = trio.current_time()
        assert trio.current_time() - began <= 2
        assert (await link.receive())["type"] == "fire_and_forget"
        assert await link.wait_closed() == 1000


async def test_an_idle_block_ends_at_once_with_1000(autojump_clock):
    async with open_host() as host:
        async with host.open_channel() as channel, trio.open_nursery() as nursery:
            link = await host.link()
            await channel.wait_up()
            nursery.cancel_scope.cancel()
        assert trio.current_time() == 0
        assert await link.wait_closed() == 1000
        with pytest.raises(trio.ClosedResourceError):
            await channel.wait_status(lambda _: False)


@pytest.mark.parametrize(
    "url", ["http://h/", "ws://", "ws://h:x/", "ws://h:0/", "ws://u:p@h/", "ws://h/#x"]
)
async def test_a_url_that_is_none_is_a_configuration_error(url):
    with pytest.raises(ConfigError, match="the host's URL must look like"):
        async with open_control_channel(url, user_id="u", token="t"):
            pass
