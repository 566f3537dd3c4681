"""What a bridge adapter promises as long as nothing goes wrong, over real pipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import trio
from bridge_sessions import (
    COMPLETE,
    GOOD,
    PYTHON,
    QUICK,
    START,
    START_WITH_RUNS,
    newest_checkpoint,
    no_process_is_left,
    one_run,
    opened,
    scripted,
)

from semibot.adapters import BridgeAgent
from semibot.session import open_session
from semibot.wire.chat import Message
from semibot.wire.codec import JsonObject
from semibot.wire.events import (
    ExecutionComplete,
    ExecutionError,
    RunStarted,
    TextChunk,
    Thinking,
    ToolCallComplete,
    ToolCallStart,
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "bridge_child.py"


async def test_a_message_is_answered_by_the_bridge_with_its_text(tmp_path: Path) -> None:
    async with opened(tmp_path, scripted(GOOD)) as seen:
        events = await seen.ask("hello")
    assert [type(event) for event in events] == [RunStarted, TextChunk, ExecutionComplete]
    assert events[1] == TextChunk(content="echo: hello")
    assert isinstance(events[2], ExecutionComplete)
    assert events[2].final_response == "echo: hello"


async def test_one_child_serves_one_session_from_message_to_message(tmp_path: Path) -> None:
    async with opened(tmp_path, scripted(GOOD)) as seen:
        for number in range(3):
            await seen.ask(f"message {number}")
        statistics = seen.adapter.statistics()
        assert statistics.starts == 1
        assert statistics.pid is not None
        assert (statistics.dropped_events, statistics.skipped_lines) == (0, 0)


async def test_the_example_bridge_answers_is_cancelled_configured_and_stopped(
    tmp_path: Path,
) -> None:
    agent = BridgeAgent([*PYTHON, str(EXAMPLE)])
    async with opened(tmp_path, agent) as seen:
        events = await seen.ask("good day")
        assert "".join(e.content for e in events if isinstance(e, TextChunk)) == (
            "You said: good day "
        )
        async with seen.session.run("a b c d e f g h i j k l m n o p q r s t u v") as run:
            async for event in run.events:
                if isinstance(event, TextChunk):
                    receipt = await run.cancel()
                    break
        assert receipt is not None
        assert [(item.kind, item.pid) for item in receipt.stopped] == [("sub_run", None)]
        assert receipt.abandoned == ()
        seen.session.update_config({"agent_config": {"greeting": "Hear, hear:"}})
        events = await seen.ask("again")
        assert isinstance(events[-1], ExecutionComplete)
        assert events[-1].final_response == "Hear, hear: again"
        assert seen.adapter.statistics().starts == 1


async def test_the_start_line_carries_only_what_a_bridge_may_know(tmp_path: Path) -> None:
    payload = {
        "agent_id": "a1",
        "agent_config": {"model": "m"},
        "api_keys": {"openai": "sk-secret"},
        "mcp_servers": None,
        "skill_index": [
            {"id": "plain"},
            {"id": "needs-moon", "requires": {"binaries": ["no-such-binary-xyz"]}},
            "nonsense",
        ],
    }
    async with opened(tmp_path, scripted(GOOD), payload=payload) as seen:
        await seen.ask("hello")
        (start,) = seen.heard("start")
    assert start == {
        "type": "start",
        "session_id": "s",
        "payload": {
            "runtime_type": "openclaw",
            "agent_id": "a1",
            "agent_config": {"model": "m"},
            "skill_index": [{"id": "plain"}],
        },
    }


async def test_the_skills_of_the_workspace_are_in_the_index_unless_they_lack_something(
    tmp_path: Path,
) -> None:
    for name, requires in (("kit", {}), ("moon", {"requires": {"env_vars": ["NO_SUCH_VAR_XYZ"]}})):
        directory = tmp_path / ".semibot" / "skills" / name
        directory.mkdir(parents=True)
        (directory / "SKILL.md").write_text(f"---\nname: {name}\ndescription: d\n---\n")
        (directory / "manifest.json").write_text(json.dumps(requires))
    async with opened(tmp_path, scripted(GOOD)) as seen:
        await seen.ask("hello")
        (start,) = seen.heard("start")
    assert [entry["id"] for entry in start["payload"]["skill_index"]] == ["kit"]


async def test_a_message_carries_the_history_that_ends_with_it_and_its_metadata(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, scripted(GOOD)) as seen:
        await seen.ask("one")
        async with seen.session.run("two", metadata={"request_id": "r"}) as run:
            await run.wait()
        message = seen.heard("user_message")[1]
    assert message["payload"]["message"] == "two"
    assert message["payload"]["metadata"] == {"request_id": "r"}
    assert [(m["role"], m["content"]) for m in message["payload"]["history"]] == [
        ("user", "one"),
        ("assistant", "echo: one"),
        ("user", "two"),
    ]
    assert "run_id" not in message


async def test_a_bridge_that_knows_runs_is_told_them(tmp_path: Path) -> None:
    script = [
        *START_WITH_RUNS,
        ["wait", "user_message"],
        ["say", {"type": "text_chunk", "run_id": "another", "content": "late"}],
        ["say", {"type": "text_chunk", "content": "nameless"}],
        ["say", {"type": "text_chunk", "run_id": "$run_id", "content": "mine"}],
        ["say", {**COMPLETE, "run_id": "another"}],
        ["say", {**COMPLETE, "run_id": "$run_id"}],
        ["serve", None],
    ]
    async with opened(tmp_path, scripted(script)) as seen:
        events = await seen.ask("hello")
        (message,) = seen.heard("user_message")
        assert message["run_id"] == events[0].run_id  # type: ignore[union-attr]  # RunStarted
        assert [e.content for e in events if isinstance(e, TextChunk)] == ["mine"]
        assert seen.adapter.statistics().dropped_events == 3


async def test_a_history_that_is_too_long_loses_its_oldest_messages(tmp_path: Path) -> None:
    history = tuple(
        Message(role="user" if n % 2 == 0 else "assistant", content=f"{n}:" + "x" * 200_000)
        for n in range(10)
    )
    async with opened(tmp_path, scripted(GOOD)) as seen:
        async with seen.session.run("new", history=history) as run:
            assert await run.wait() == "completed"
        (message,) = seen.heard("user_message")
    kept = [entry["content"].partition(":")[0] for entry in message["payload"]["history"]]
    assert kept == ["6", "7", "8", "9", "new"]  # from a question on, under 1 MiB


async def test_a_message_that_no_line_can_carry_fails_its_run_only(tmp_path: Path) -> None:
    async with opened(tmp_path, scripted(GOOD)) as seen:
        events = await seen.ask("x" * 1024 * 1024)
        assert isinstance(events[-1], ExecutionError)
        assert events[-1].code == "OPENCLAW_BRIDGE_PROTOCOL"
        assert (await seen.ask("short"))[1] == TextChunk(content="echo: short")
        assert seen.adapter.statistics().starts == 1


async def test_an_answer_that_was_not_streamed_is_said_once_as_text(tmp_path: Path) -> None:
    async with opened(tmp_path, scripted(one_run(COMPLETE))) as seen:
        events = await seen.ask("hello")
        assert events[1] == TextChunk(content="done")
        assert seen.session.history[-1] == Message(role="assistant", content="done")


async def test_an_answer_that_was_streamed_is_not_doubled(tmp_path: Path) -> None:
    script = one_run({"type": "text", "content": "done"}, COMPLETE)
    async with opened(tmp_path, scripted(script)) as seen:
        events = await seen.ask("hello")
        assert [e.content for e in events if isinstance(e, TextChunk)] == ["done"]
        assert isinstance(events[-1], ExecutionComplete)
        assert events[-1].final_response == "done"


async def test_a_bridge_without_an_answer_completes_with_what_it_streamed(tmp_path: Path) -> None:
    script = one_run({"type": "text", "content": "all"}, {"type": "execution_complete"})
    async with opened(tmp_path, scripted(script)) as seen:
        events = await seen.ask("hello")
    assert isinstance(events[-1], ExecutionComplete)
    assert events[-1].final_response == "all"


async def test_old_names_of_events_come_out_as_the_standard_ones(tmp_path: Path) -> None:
    script = one_run(
        {"type": "thinking", "content": "hm", "stage": "openclaw"},
        {"type": "tool_call", "tool_name": "ls", "input": {"path": "."}},
        {"type": "tool_result", "tool_name": "ls", "output": ["a"]},
        COMPLETE,
    )
    async with opened(tmp_path, scripted(script)) as seen:
        events = await seen.ask("hello")
    assert events[1] == Thinking(content="hm", stage="planning")
    assert isinstance(events[2], ToolCallStart)
    assert isinstance(events[3], ToolCallComplete)
    assert events[2].call_id == events[3].call_id
    assert (events[3].result, events[3].success) == (["a"], True)


async def test_a_bridge_says_why_a_run_failed(tmp_path: Path) -> None:
    error = {"type": "execution_error", "code": "SDK_COMMAND_TIMEOUT", "error": "too slow"}
    async with opened(tmp_path, scripted(one_run({**error, "retryable": True}))) as seen:
        events = await seen.ask("hello")
        assert events[-1] == ExecutionError(
            run_id=events[0].run_id,  # type: ignore[union-attr]  # RunStarted
            code="SDK_COMMAND_TIMEOUT",
            error="too slow",
            retryable=True,
        )
        assert isinstance((await seen.ask("again"))[-1], ExecutionComplete)


async def test_a_cancel_that_nobody_asked_for_is_a_failure(tmp_path: Path) -> None:
    script = one_run({"type": "execution_complete", "cancelled": True})
    async with opened(tmp_path, scripted(script)) as seen:
        events = await seen.ask("hello")
    assert isinstance(events[-1], ExecutionError)
    assert events[-1].code == "OPENCLAW_EXECUTION_ERROR"
    assert events[-1].retryable is True


# --- snapshots and configuration ------------------------------------------------------


async def test_a_snapshot_is_wrapped_kept_and_handed_to_the_next_opening(tmp_path: Path) -> None:
    agent = scripted(GOOD)
    async with opened(tmp_path, agent) as seen:
        await seen.ask("hello")
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint["adapter"] == {"checkpoint": {"heard": 3}}  # start, message, snapshot
    mute = BridgeAgent([*PYTHON, "-c", "import sys; sys.exit(3)"])
    async with opened(tmp_path, mute) as seen:
        assert isinstance((await seen.ask("again"))[-1], ExecutionError)
        assert await seen.adapter.get_snapshot() == {"checkpoint": {"heard": 3}}
    assert newest_checkpoint(tmp_path)["adapter"] == {"checkpoint": {"heard": 3}}


async def test_a_snapshot_that_is_a_checkpoint_is_kept_as_it_is(tmp_path: Path) -> None:
    snapshot = {"checkpoint": {"a": 1}, "short_term_memory": {}}
    script = [*one_run(COMPLETE)[:-1], ["wait", "snapshot"], ["snapshot", snapshot]]
    async with opened(tmp_path, scripted([*script, ["serve", None]])) as seen:
        await seen.ask("hello")
        assert newest_checkpoint(tmp_path)["adapter"] == snapshot


async def test_a_bridge_may_have_no_state_to_keep(tmp_path: Path) -> None:
    script = [*one_run(COMPLETE)[:-1], ["wait", "snapshot"], ["snapshot", None], ["serve", None]]
    async with opened(tmp_path, scripted(script)) as seen:
        await seen.ask("hello")
        assert await seen.adapter.get_snapshot() == {"checkpoint": {"heard": 4}}
    assert "adapter" not in newest_checkpoint(tmp_path)


async def test_a_bridge_without_snapshots_is_waited_for_only_once(tmp_path: Path) -> None:
    said = [["wait", "user_message"], ["say", COMPLETE]]
    script = [*START, *said * 4, ["wait", "snapshot"], ["snapshot", {"late": 1}], ["serve", None]]
    async with opened(tmp_path, scripted(script)) as seen:
        for _ in range(4):
            await seen.ask("hello")
        assert len(seen.heard("snapshot")) <= 1
        assert await seen.adapter.get_snapshot() is None
        assert len(seen.heard("snapshot")) <= 1


async def test_an_answer_to_a_snapshot_that_was_not_asked_for_is_skipped(tmp_path: Path) -> None:
    stray = {"type": "snapshot_response", "id": "stray", "snapshot": {"a": 1}}
    script = [["wait", "start"], ["say", stray], ["serve", None]]
    async with opened(tmp_path, scripted(script)) as seen:
        await seen.ask("hello")
        assert seen.adapter.statistics().skipped_lines == 1
        assert await seen.adapter.get_snapshot() != {"checkpoint": {"a": 1}}


async def test_a_configuration_is_told_at_the_next_run_and_to_every_later_child(
    tmp_path: Path,
) -> None:
    payload = {"agent_config": {"model": "old", "temperature": 0.5}, "agent_id": "a"}
    script = [*START, ["wait", "user_message"], ["say", COMPLETE], ["wait", "user_message"]]
    async with opened(tmp_path, scripted([*script, ["exit", 1]], GOOD), payload=payload) as seen:
        await seen.ask("one")
        seen.session.update_config(
            {"agent_config": {"model": "new", "temperature": None}, "unknown": 1}
        )
        await seen.ask("two")
        await seen.ask("three")
        (update,) = seen.heard("config_update")
        first, second = seen.heard("start")
    assert update["session_id"] == "s"
    assert update["payload"] == {"agent_config": {"model": "new", "temperature": None}}
    assert first["payload"]["agent_config"] == {"model": "old", "temperature": 0.5}
    assert second["payload"]["agent_config"] == {"model": "new"}
    assert second["payload"]["agent_id"] == "a"


@pytest.mark.parametrize(
    "patch", [{"temperature": 1}, {"agent_config": {"x": "y" * 1024 * 1024}}], ids=["none", "long"]
)
async def test_a_configuration_that_no_bridge_understands_fails_the_next_run(
    tmp_path: Path, patch: JsonObject
) -> None:
    async with opened(tmp_path, scripted(GOOD)) as seen:
        seen.session.update_config(patch)
        events = await seen.ask("hello")
        assert isinstance(events[-1], ExecutionError)
        assert events[-1].code == "USAGE"
        assert isinstance((await seen.ask("again"))[-1], ExecutionComplete)


# --- the child's surroundings ---------------------------------------------------------


async def test_a_child_inherits_an_allow_list_and_no_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OPENAI_API_KEY", "JWT_SECRET", "SEMIBOT_DATABASE_URL", "VM_TOKEN"):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("LC_TIME", "C")
    monkeypatch.setenv("OPENCLAW_RUNNER_MODE", "mock")
    script = [["environment", "environment.json"], *GOOD]
    agent = scripted(script)
    agent = BridgeAgent(agent.command, environment={"MY_KEY": "mine"})
    async with opened(tmp_path, agent) as seen:
        await seen.ask("hello")
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert "secret" not in environment.values()
    assert environment["MY_KEY"] == "mine"
    assert environment["OPENCLAW_RUNNER_MODE"] == "mock"
    assert environment["LC_TIME"] == "C"
    assert "mine" not in repr(agent)


async def test_events_outside_a_run_are_dropped_and_counted(tmp_path: Path) -> None:
    script = [["wait", "start"], ["say", COMPLETE], ["serve", None]]
    async with opened(tmp_path, scripted(script)) as seen:
        events = await seen.ask("hello")
        assert events[1] == TextChunk(content="echo: hello")
        assert seen.adapter.statistics().dropped_events == 1


async def test_a_silent_child_that_lives_for_a_second_is_ready(tmp_path: Path) -> None:
    async with opened(tmp_path, scripted([["serve", None]])) as seen:
        start = trio.current_time()
        assert isinstance((await seen.ask("hello"))[-1], ExecutionComplete)
        assert trio.current_time() - start > 0.5


async def test_leaving_a_session_tells_the_child_to_stop(tmp_path: Path) -> None:
    async with opened(tmp_path, scripted(GOOD)) as seen:
        await seen.ask("hello")
    assert seen.heard("stop") == [{"type": "stop", "session_id": "s"}]


async def test_a_session_may_be_left_while_its_child_is_still_being_started(
    tmp_path: Path,
) -> None:
    with no_process_is_left(), trio.fail_after(5):
        async with open_session(scripted(GOOD), workspace=tmp_path, deadlines=QUICK):
            pass


@pytest.mark.parametrize(("command", "error"), [("bridge --fast", TypeError), ([], ValueError)])
def test_a_command_is_a_sequence_of_words(command: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        BridgeAgent(command)  # type: ignore[arg-type]  # that is what is tested
