from __future__ import annotations

import pytest
import trio
import trio.testing
from scripted_host import open_host

from semibot.errors import DeadlineExceeded, LocalProtocolError, RequestFailed
from semibot.wire.frames import MEMORY_SESSION


class Asked:
    """Requests under way, and what became of them."""

    def __init__(self, nursery, channel):
        self._nursery = nursery
        self._channel = channel
        self.outcomes = []

    async def ask(self, method="memory_search", scope=None):
        self._nursery.start_soon(self._ask, method, scope or trio.CancelScope())
        await trio.testing.wait_all_tasks_blocked()

    async def _ask(self, method, scope):
        with scope:
            try:
                answer = await self._channel.request(MEMORY_SESSION, method, {"query": "q"})
            except (RequestFailed, DeadlineExceeded) as exc:
                answer = exc
            self.outcomes.append(answer)


async def settled(asked):
    await trio.testing.wait_all_tasks_blocked()
    return [
        (outcome.code, str(outcome)) if isinstance(outcome, Exception) else outcome
        for outcome in asked.outcomes
    ]


async def test_a_request_is_answered_once(autojump_clock):
    async with open_host() as host, host.open_channel() as channel, trio.open_nursery() as nursery:
        link = await host.link()
        await channel.wait_up()
        asked = Asked(nursery, channel)
        await asked.ask()
        await asked.ask("get_config")
        first, second = await link.receive_many(2)
        request_id = first.pop("id")
        assert first == {
            "type": "request",
            "session_id": "__memory__",
            "method": "memory_search",
            "params": {"query": "q"},
            "deadline_ms": 60_000,
        }
        answer = {"type": "response", "id": request_id, "result": {"results": []}, "error": None}
        await link.send(answer, answer)
        error = {"code": "NOT_FOUND", "message": "no such agent"}
        await link.send({"type": "response", "id": second["id"], "result": None, "error": error})
        assert await settled(asked) == [{"results": []}, ("NOT_FOUND", "no such agent")]
        assert channel.statistics().pending_requests == 0
        assert channel.statistics().dropped_frames == 1


async def test_an_error_frame_that_names_a_request_answers_it(autojump_clock):
    async with open_host() as host, host.open_channel() as channel, trio.open_nursery() as nursery:
        link = await host.link()
        await channel.wait_up()
        asked = Asked(nursery, channel)
        await asked.ask()
        request_id = (await link.receive())["id"]
        await link.send({"type": "error", "id": request_id, "code": "BAD_PARAMS", "message": "no"})
        assert await settled(asked) == [("BAD_PARAMS", "no")]


async def test_a_request_made_while_down_waits_and_says_what_is_left_of_it(autojump_clock):
    async with open_host() as host, host.open_channel() as channel, trio.open_nursery() as nursery:
        asked = Asked(nursery, channel)
        await asked.ask(scope=trio.CancelScope(relative_deadline=20))
        await asked.ask()
        link = await host.accept()
        await trio.sleep(5)
        await link.introduce()
        resume = await link.settle()
        assert resume["pending_ids"] == []
        frames = await link.receive_many(2)
        assert [frame["deadline_ms"] for frame in frames] == [15_000, 55_000]
        nursery.cancel_scope.cancel()


async def test_a_request_is_given_up_after_channel_request(autojump_clock):
    async with open_host() as host, host.open_channel() as channel, trio.open_nursery() as nursery:
        host.refuses = True
        asked = Asked(nursery, channel)
        await asked.ask()
        await trio.sleep(60)
        assert await settled(asked) == [("DEADLINE_EXCEEDED", "channel.request (60 s) exceeded")]


async def test_nobody_who_waits_means_request_cancel_at_level_2_only(autojump_clock):
    async with open_host() as host, host.open_channel() as channel, trio.open_nursery() as nursery:
        for level in (2, 1):
            link = await host.accept()
            await link.introduce(level=level)
            await link.settle()
            await channel.wait_up()
            asked, scope = Asked(nursery, channel), trio.CancelScope()
            await asked.ask(scope=scope)
            request = await link.receive()
            request_id = request["id"]
            assert ("deadline_ms" in request) == (level == 2)
            scope.cancel()
            frames = await link.collect(1)
            assert frames == ([{"type": "request_cancel", "id": request_id}] if level == 2 else [])
            assert channel.statistics().pending_requests == 0
            await link.drop()


async def test_a_request_that_nobody_wants_any_more_is_not_sent(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        link = await host.link()
        await channel.wait_up()
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope(deadline=trio.current_time())
            await Asked(nursery, channel).ask(scope=scope)
        assert await link.collect(1) == []


async def test_after_a_reconnect_the_host_is_asked_about_requests_it_may_have_seen(autojump_clock):
    async with open_host() as host, host.open_channel() as channel, trio.open_nursery() as nursery:
        link = await host.link()
        await channel.wait_up()
        asked = Asked(nursery, channel)
        methods = ("a", "b", "c", "d", "mcp_call", "mcp_call", "e")
        for method in methods:
            await asked.ask(method)
        ids = [frame["id"] for frame in await link.receive_many(len(methods))]
        await link.drop()
        await trio.testing.wait_all_tasks_blocked()
        await asked.ask("made while down")
        link = await host.accept()
        await link.introduce()
        resume = await link.settle(
            results={
                ids[0]: {"status": "completed", "data": 1},
                ids[1]: {"status": "failed", "error": {"code": "NOT_FOUND", "message": "no"}},
                ids[2]: {"status": "pending"},
                ids[3]: {"status": "lost"},
                ids[4]: {"status": "not_found"},
                ids[5]: {"status": "failed"},
            }
        )
        assert resume["pending_ids"] == ids
        frames = await link.collect(1)
        assert [(frame["id"] in ids, frame["method"]) for frame in frames] == [
            (True, "d"),
            (True, "e"),
            (False, "made while down"),
        ]
        assert [frame["id"] for frame in frames[:2]] == [ids[3], ids[6]]
        await link.send({"type": "response", "id": ids[2], "result": 3, "error": None})
        outcomes = await settled(asked)
        assert outcomes[-1] == 3
        assert 1 in outcomes
        failed = sorted(outcome[0] for outcome in outcomes if isinstance(outcome, tuple))
        assert failed == ["NOT_FOUND", "OUTCOME_UNKNOWN", "REQUEST_FAILED"]
        nursery.cancel_scope.cancel()


async def test_a_resume_response_that_makes_no_sense_changes_nothing(autojump_clock):
    async with open_host() as host, host.open_channel() as channel, trio.open_nursery() as nursery:
        link = await host.link()
        await channel.wait_up()
        asked = Asked(nursery, channel)
        await asked.ask()
        request_id = (await link.receive())["id"]
        await link.drop()
        link = await host.accept()
        await link.introduce()
        await link.settle(results={request_id: {"status": "who knows"}})
        assert (await link.receive())["code"] == "REMOTE_PROTOCOL"
        assert asked.outcomes == []
        nursery.cancel_scope.cancel()


async def test_requests_of_a_channel_that_closes_fail(autojump_clock):
    async with open_host() as host, trio.open_nursery() as nursery:
        async with host.open_channel() as channel:
            link = await host.link()
            await channel.wait_up()
            asked = Asked(nursery, channel)
            await asked.ask()
            await link.receive()
        assert await settled(asked) == [
            ("REQUEST_FAILED", "the channel to the host was closed"),
        ]
        with pytest.raises(RequestFailed):
            await channel.request("s1", "get_session", {})


async def test_a_request_that_cannot_be_said_is_refused_at_once(autojump_clock):
    async with open_host() as host, host.open_channel() as channel:
        with pytest.raises(LocalProtocolError):
            await channel.request("s1", "get_config", {"x": "y" * 11 * 2**20})
        with pytest.raises(LocalProtocolError):
            await channel.request("s1", "get_config", {"x": "\ud800"})
        assert channel.statistics().pending_requests == 0
