"""Recorded bridges of level 1, replayed as children over real pipes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest
import trio
from bridge_sessions import PROGRAMS, PYTHON, Seen, is_alive, newest_checkpoint, opened, terminals

from semibot.adapters import BridgeAgent
from semibot.wire.codec import JsonObject, JsonValue
from semibot.wire.events import ExecutionComplete, SessionEvent, TextChunk, Usage

RECORDINGS: Final = Path(__file__).parents[1] / "fixtures" / "plane"


class RecordedPlane:
    """Answers as the recorded control plane did; the second search waits for the test."""

    def __init__(self) -> None:
        self.methods: list[str] = []
        self.reports: list[str] = []
        self.asked_again = trio.Event()
        self.may_answer = trio.Event()

    async def request(self, session_id: str, method: str, params: JsonObject) -> JsonValue:
        self.methods.append(method)
        if method == "get_skill_package":
            package = {"skill_id": params["skill_id"], "version": params["version"], "files": []}
            return {"package": package}
        if self.methods.count("memory_search") == 2:
            self.asked_again.set()
            await self.may_answer.wait()
        return {"results": [{"content": "memo-hit"}]}

    async def fire_and_forget(self, session_id: str, method: str, params: JsonObject) -> None:
        await trio.lowlevel.checkpoint()
        self.reports.append(method)


def texts(events: list[SessionEvent]) -> list[str]:
    return [event.content for event in events if isinstance(event, TextChunk)]


def agent(name: str) -> BridgeAgent:
    return BridgeAgent(
        [*PYTHON, str(PROGRAMS / "replay_bridge.py"), str(RECORDINGS / f"bridge-{name}.jsonl")]
    )


async def answered(seen: Seen, plane: RecordedPlane, answer: str, usage: Usage) -> None:
    events = await seen.ask("hello")
    assert texts(events) == [answer]
    assert isinstance(events[-1], ExecutionComplete)
    assert events[-1].final_response == answer
    assert events[-1].usage == usage
    assert plane.methods == ["get_skill_package", "memory_search"]
    assert plane.reports == ["audit_log", "usage_report"]


@pytest.mark.parametrize(
    ("name", "answer", "usage"),
    [
        (
            "mock",
            "OpenClaw mock response: memo-hit (skills:1)",
            Usage(tokens_in=5, tokens_out=8),
        ),
        ("sdk", "sdk says hi", Usage(tokens_in=7, tokens_out=3)),
    ],
)
async def test_a_recorded_bridge_answers_keeps_its_snapshot_and_is_cancelled(
    tmp_path: Path, name: str, answer: str, usage: Usage
) -> None:
    plane = RecordedPlane()
    payload = {"skill_index": [{"id": "k1", "version": "latest"}, {"id": "k2"}]}
    async with opened(tmp_path, agent(name), control_plane=plane, payload=payload) as seen:
        await answered(seen, plane, answer, usage)
        snapshot = newest_checkpoint(tmp_path)["adapter"]["checkpoint"]
        assert snapshot["last_user_message"] == "hello"
        assert snapshot["last_response"] == answer
        assert snapshot["runner_mode"] == name

        seen.session.update_config({"agent_config": {"model": "gpt-5"}})
        dropped = seen.adapter.statistics().dropped_events
        async with seen.session.run("to cancel") as run:
            await plane.asked_again.wait()
            pid = seen.adapter.statistics().pid
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run.cancel)
                # The recorded text and end come only now that the run is being cancelled.
                plane.may_answer.set()
            events = [event async for event in run.events]
        assert run.outcome == "cancelled"
        assert texts(events) == []
        assert terminals(events) == [
            ExecutionComplete(
                run_id=run.id,
                cancelled=True,
                usage=Usage(),
                termination_reason="user_cancelled",
            )
        ]
        # An error, the text and the completion that the bridge went on to say.
        assert seen.adapter.statistics().dropped_events - dropped >= 1
        assert pid is not None
        assert not is_alive(pid)
        assert newest_checkpoint(tmp_path)["adapter"] == {"checkpoint": snapshot}
        assert newest_checkpoint(tmp_path)["status"] == "cancelled"

        plane.methods.clear()
        plane.reports.clear()
        await answered(seen, plane, answer, usage)  # by a new child
        assert seen.adapter.statistics().starts == 2
