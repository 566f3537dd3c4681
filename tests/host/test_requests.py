"""What VMs ask is answered once, within its deadline, on whichever link they have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import trio
import trio.testing
from link_kit import Plane, Vm, open_plane
from trio.testing import MockClock

from semibot.errors import StoreError
from semibot.host import requests
from semibot.store.base import AgentRow, MemoryHit, NewMessage, NewSession

AGENT = AgentRow(
    id="agent-1",
    org_id="org",
    name="Ann's",
    agent_config={"model": "gpt-4o"},
    runtime_type="semigraph",
    openclaw_config=None,
)


async def ask(vm: Vm, method: str, *, id: str = "q1", sid: str = "__memory__", **params: Any):
    vm.say(type="request", id=id, session_id=sid, method=method, params=params)
    return await vm.hear("response", id=id)


async def add_session(plane: Plane, sid: str, user: str) -> None:
    await plane.store.accept_message(
        NewMessage(
            user_id=user,
            session_id=sid,
            create=NewSession(agent_id="agent-1", runtime_type="semigraph", openclaw_config=None),
            message="x",
            message_id=f"m-{sid}",
            run_id=f"r-{sid}",
            command_id=f"c-{sid}",
            cancel_ids=tuple(f"{sid}-{i}" for i in range(17)),
            on_busy="enqueue",
            expires_at=None,
            idempotency=None,
        )
    )


async def test_a_skill_package_is_handed_out(tmp_path: Path, mock_clock: MockClock) -> None:
    skill = tmp_path / "skills" / "pdf-kit"
    skill.mkdir(parents=True)
    (skill / "SKILL.md").write_text("# s")
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        package = (await ask(vm, "get_skill_package", skill_id="pdf-kit"))["result"]["package"]
        assert package["skill_id"] == "pdf-kit"
        assert package["files"] == [{"path": "SKILL.md", "content": "# s", "encoding": "utf-8"}]
        for name, wanted in (
            ("q2", {"skill_id": "no"}),
            ("q3", {"skill_id": "pdf-kit", "version": "9"}),
        ):
            assert (await ask(vm, "get_skill_package", id=name, **wanted))["result"] == {
                "package": None
            }
        bad = await ask(vm, "get_skill_package", id="q4", skill_id=5)
        assert bad["error"]["code"] == "BAD_PARAMS"
        await plane.say("hi")
        index = (await vm.hear("start_session"))["data"]["skill_index"]
        assert [entry["id"] for entry in index] == ["pdf-kit"]


async def test_memories_are_found_by_their_owner(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        vm.say(
            type="fire_and_forget",
            id="w1",
            session_id="__memory__",
            method="memory_write",
            params={"agent_id": "a", "content": "umbrellas are in the hall"},
        )
        await vm.hear("ack", ids=["w1"])
        found = await ask(vm, "memory_search", query="umbrellas", top_k=99)
        assert found["result"]["results"][0]["content"] == "umbrellas are in the hall"
        assert found["result"]["results"][0]["score"] > 0
        assert (await ask(vm, "memory_search", id="q2", query="  "))["result"] == {"results": []}
        for name, params in (("q3", {"query": 5}), ("q4", {"query": "x", "top_k": "5"})):
            bad = await ask(vm, "memory_search", id=name, **params)
            assert bad["error"]["code"] == "BAD_PARAMS"
        await plane.external("bob")
        bob = await plane.up("boot-bob", user="bob")
        assert (await ask(bob, "memory_search", query="umbrellas"))["result"] == {"results": []}


async def test_agents_and_sessions_are_shown_to_their_owner_only(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        await plane.store.put_agent(AGENT)
        await plane.external("bob")
        await add_session(plane, "s1", "ann")
        await add_session(plane, "bobs", "bob")
        vm = await plane.up()
        config = (await ask(vm, "get_config", agent_id="agent-1"))["result"]
        assert config["agent_config"] == {"model": "gpt-4o"}
        missing = await ask(vm, "get_config", id="q2", agent_id="nobody's")
        assert missing["error"]["code"] == "NOT_FOUND"
        own = (await ask(vm, "get_session", id="q3", sid="s1"))["result"]
        assert own["session"]["id"] == "s1"
        assert own["agent"]["id"] == "agent-1"
        for name, sid, params in (
            ("q4", "__memory__", {}),
            ("q5", "__memory__", {"session_id": "bobs"}),
            ("q6", "s1", {"session_id": "bobs"}),
        ):
            refused = await ask(vm, "get_session", id=name, sid=sid, **params)
            assert refused["error"]["code"] == "NOT_FOUND"


async def test_a_session_without_an_agent_has_none(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await plane.say("hi")
        assert (await ask(vm, "get_session", session_id="s1"))["result"]["agent"] is None


async def test_an_mcp_call_is_not_supported_here(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        answer = await ask(vm, "mcp_call", server="s", tool="t", arguments={})
        assert answer["error"]["code"] == "UNSUPPORTED_METHOD"


async def test_a_request_ends_at_its_deadline(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        plane.store.hangs = {"search_memories"}
        for name, fields in (("q1", {"deadline_ms": 500}), ("q2", {})):
            vm.say(
                type="request",
                id=name,
                session_id="__memory__",
                method="memory_search",
                params={"query": "x"},
                **fields,
            )
        await plane.quiet()
        mock_clock.jump(0.6)
        assert (await vm.hear("response", id="q1"))["error"]["code"] == "DEADLINE_EXCEEDED"
        assert vm.kinds() == []
        vm.say(type="heartbeat", active_sessions=[])
        await plane.quiet()
        for _ in range(3):
            mock_clock.jump(20)
            vm.say(type="heartbeat", active_sessions=[])
            await plane.quiet()
        assert (await vm.hear("response", id="q2"))["error"]["code"] == "DEADLINE_EXCEEDED"


async def test_failures_are_answered_in_plain_words(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        plane.store.failing = {"search_memories"}
        plane.store.error = StoreError("/secret/path is full")
        answer = await ask(vm, "memory_search", query="x")
        assert answer["error"] == {
            "code": "REQUEST_FAILED",
            "message": "the host could not look it up",
        }
        plane.store.error = RuntimeError("a bug")
        answer = await ask(vm, "memory_search", id="q2", query="x")
        assert answer["error"]["message"] == "the host failed: RuntimeError"
        assert vm.closed is None


async def test_a_repeat_gets_the_same_answer_and_does_nothing_again(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        first = await ask(vm, "memory_search", query="x")
        assert await ask(vm, "memory_search", query="something else") == first
        assert plane.store.calls.count("search_memories") == 1
        mock_clock.jump(20)
        vm.say(type="heartbeat", active_sessions=[])
        await plane.quiet()
        vm.hang_up()
        await vm.wait_closed()
        mock_clock.jump(300)
        await plane.quiet()
        again = await plane.up(dial=2)
        await ask(again, "memory_search", query="x")
        assert plane.store.calls.count("search_memories") == 2


async def test_a_cancelled_request_is_not_answered(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        plane.store.hangs = {"search_memories"}
        vm.say(
            type="request",
            id="q1",
            session_id="__memory__",
            method="memory_search",
            params={"query": "x"},
        )
        vm.say(type="request_cancel", id="q1")
        vm.say(type="request_cancel", id="unknown")
        await plane.quiet()
        plane.store.hangs = set()
        answer = await ask(vm, "memory_search", query="x")
        assert answer["error"] is None
        assert vm.kinds() == []


async def test_answers_are_found_again_after_a_reconnect(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await ask(vm, "memory_search", id="done", query="x")
        await ask(vm, "mcp_call", id="failed")
        plane.store.hangs = {"search_memories"}
        vm.say(
            type="request",
            id="slow",
            session_id="__memory__",
            method="memory_search",
            params={"query": "x"},
        )
        await plane.quiet()
        vm.hang_up()
        await vm.wait_closed()
        again = await plane.dial(dial=2, pending=("done", "failed", "slow", "never"))
        results = (await again.hear("resume_response"))["results"]
        assert results["done"] == {"status": "completed", "data": {"results": []}}
        assert results["failed"]["status"] == "failed"
        assert results["failed"]["error"]["code"] == "UNSUPPORTED_METHOD"
        assert results["slow"] == {"status": "pending"}
        assert results["never"] == {"status": "lost"}
        again.say(  # asked again while it is under way
            type="request",
            id="slow",
            session_id="__memory__",
            method="memory_search",
            params={"query": "x"},
        )
        await plane.quiet()
        plane.store.released.set()
        await again.hear("response", id="slow")
        assert again.kinds() == []


async def test_a_user_may_have_so_many_requests_under_way(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        plane.store.hangs = {"search_memories"}
        for number in range(requests.MAX_RUNNING + 1):
            vm.say(
                type="request",
                id=f"q{number}",
                session_id="__memory__",
                method="memory_search",
                params={"query": "x"},
            )
        answer = await vm.hear("response")
        assert answer["id"] == f"q{requests.MAX_RUNNING}"
        assert answer["error"]["code"] == "REQUEST_FAILED"


async def test_the_oldest_answers_are_forgotten_first_and_big_ones_are_refused(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    text = ""

    async def search_memories(user_id: str, query: str, top_k: int) -> tuple[MemoryHit, ...]:
        await trio.lowlevel.checkpoint()
        return (MemoryHit(content=text, score=1.0, metadata={}),)

    async with open_plane(tmp_path) as plane:
        plane.store.search_memories = search_memories
        vm = await plane.up()
        text = "x" * (9 * 2**20)
        await ask(vm, "memory_search", id="old", query="x")
        await ask(vm, "memory_search", id="new", query="x")
        text = "x" * (11 * 2**20)
        big = await ask(vm, "memory_search", id="big", query="x")
        assert big["error"]["message"] == "the answer is too big"
        text = "\ud800"
        odd = await ask(vm, "memory_search", id="odd", query="x")
        assert odd["error"]["code"] == "REQUEST_FAILED"
        vm.hang_up()
        await vm.wait_closed()
        again = await plane.dial(dial=2, pending=("old", "new"))
        results = (await again.hear("resume_response"))["results"]
        assert results["old"]["status"] == "lost"
        assert results["new"]["status"] == "completed"


async def test_what_vms_report_takes_effect_once(tmp_path: Path, mock_clock: MockClock) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        report = {
            "type": "fire_and_forget",
            "id": "u1",
            "session_id": "s1",
            "method": "usage_report",
            "params": {"model": "m", "tokens_in": 3, "tokens_out": 4},
        }
        vm.say(**report)
        vm.say(**report)
        vm.say(**{**report, "id": "bad", "params": {}})
        await plane.quiet()
        ids = [each for frame in vm.heard for each in frame["ids"]]
        assert sorted(ids) == ["bad", "u1", "u1"]
        assert len((await plane.store.list_usage("ann", None, 10)).rows) == 1


async def test_what_was_asked_is_not_kept_with_the_answer(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    async with open_plane(tmp_path) as plane:
        vm = await plane.up()
        await ask(vm, "no such method" * 1000, much="x" * 100_000)
        (entry,) = plane.links.requests._books["ann"].answered.values()
        assert (entry.request.method, entry.request.params) == ("other", {})
