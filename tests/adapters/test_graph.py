"""The graph agent: plan, act, observe, replan or reflect, respond."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from semibot.adapters.graph import GraphAgent
from semibot.config import Deadlines
from semibot.errors import ModelError, UsageError
from semibot.models import (
    Call,
    Fail,
    Hang,
    Say,
    Script,
    scripted_model,
    strict_problems,
    tool_request,
)
from semibot.session import Run, Session, open_session
from semibot.testing import simulated_ports
from semibot.tools import Tool, tool
from semibot.wire.events import (
    ExecutionComplete,
    ExecutionError,
    FileCreated,
    PlanCreated,
    PlanStepComplete,
    PlanStepFailed,
    PlanStepStart,
    RunStarted,
    SkillCallComplete,
    SkillCallStart,
    TextChunk,
    Thinking,
    ToolAuthDenied,
    ToolCallComplete,
    ToolCallStart,
    Usage,
)


class Bench:
    """Tools that record what they did."""

    def __init__(self) -> None:
        self.effects: list[str] = []
        self.at_once = 0
        self.most_at_once = 0

    def tools(self) -> tuple[Tool, ...]:
        bench = self

        @tool
        async def effect(name: str, seconds: float = 1.0) -> str:
            """Do something to the world."""
            bench.effects.append(name)
            bench.enter()
            try:
                await trio.sleep(seconds)
            finally:
                bench.at_once -= 1
            return f"did {name}"

        @tool(is_parallel_safe=True)
        async def look(name: str, seconds: float = 1.0) -> str:
            """Look at something."""
            bench.enter()
            try:
                await trio.sleep(seconds)
            finally:
                bench.at_once -= 1
            if name == "bad":
                raise ValueError("nothing to see")
            return f"saw {name}"

        return effect, look

    def enter(self) -> None:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)


@pytest.fixture
def bench() -> Bench:
    return Bench()


@asynccontextmanager
async def opened(
    workspace: Path, script: Script, tools: Sequence[Tool] = (), **settings: object
) -> AsyncIterator[Session]:
    async with open_session(
        GraphAgent(script, tools=tools, **settings),  # type: ignore[arg-type]
        workspace=workspace,
        session_id="s",
        ports=simulated_ports(),
        deadlines=Deadlines(run_cancel_grace=3),
    ) as session:
        yield session


async def finish(session: Session, message: str = "go") -> tuple[Run, list[object]]:
    async with session.run(message) as run:
        events: list[object] = [event async for event in run.events]
    return run, events


def said(events: Sequence[object]) -> str:
    return "".join(event.content for event in events if isinstance(event, TextChunk))


def of_type(events: Sequence[object], *kinds: type) -> list[object]:
    return [event for event in events if isinstance(event, kinds)]


async def test_a_reply_without_calls_is_the_answer_streamed(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    script = scripted_model([Say("Hello you.", chunk=3, usage=Usage(tokens_in=5, tokens_out=2))])
    async with opened(tmp_path, script) as session:
        run, events = await finish(session)
    assert [e.content for e in events if isinstance(e, TextChunk)] == ["Hel", "lo ", "you", "."]
    assert run.terminal == ExecutionComplete(
        run_id=run.id, final_response="Hello you.", usage=Usage(tokens_in=5, tokens_out=2)
    )
    assert isinstance(events[0], RunStarted)
    (request,) = script.requests
    assert {"read_file", "run_command"} <= {spec.name for spec in request.tools}
    assert [m.role for m in request.messages] == ["system", "user"]


async def test_calls_become_steps_with_all_their_events_in_order(
    autojump_clock: MockClock, tmp_path: Path, bench: Bench
) -> None:
    script = scripted_model(
        [Call(tool_request("c1", "effect", {"name": "x"}), text="Let me."), Say("Done.")]
    )
    async with opened(tmp_path, script, bench.tools()) as session:
        run, events = await finish(session)
    kinds = [type(event) for event in events if not isinstance(event, Thinking)]
    assert kinds == [
        RunStarted,
        TextChunk,
        PlanCreated,
        PlanStepStart,
        ToolCallStart,
        ToolCallComplete,
        PlanStepComplete,
        TextChunk,
        TextChunk,
        ExecutionComplete,
    ]
    stages = [event.stage for event in events if isinstance(event, Thinking)]
    assert stages == ["analyzing", "planning", "reasoning", "concluding"]
    assert said(events) == "Let me.\n\nDone."
    assert isinstance(run.terminal, ExecutionComplete)
    assert run.terminal.final_response == said(events)
    (complete,) = of_type(events, ToolCallComplete)
    assert complete == ToolCallComplete(
        call_id="c1", tool_name="effect", result="did x", success=True, duration=1000
    )
    second = script.requests[1].messages
    assert [m.role for m in second] == ["system", "user", "assistant", "tool"]
    assert (second[3].tool_call_id, second[3].content) == ("c1", "did x")
    assert strict_problems(second) == []


async def test_a_plan_of_five_effects_cancelled_during_the_first_has_one_effect(
    autojump_clock: MockClock, tmp_path: Path, bench: Bench
) -> None:
    calls = [tool_request(f"c{n}", "effect", {"name": str(n)}) for n in range(5)]
    script = scripted_model([Call(calls), Say("Fine.")])
    async with opened(tmp_path, script, bench.tools()) as session:
        async with session.run("go") as run:
            await trio.sleep(0.5)
            receipt = await run.cancel()
            events = [event async for event in run.events]
        assert bench.effects == ["0"]
        assert receipt is not None
        assert [(a.kind, a.name) for a in receipt.stopped] == [("tool_call", "effect")]
        assert receipt.abandoned == ()
        assert len(of_type(events, ToolCallStart)) == 1
        (complete,) = of_type(events, ToolCallComplete)
        assert isinstance(complete, ToolCallComplete)
        assert (complete.success, complete.error) == (False, "cancelled")
        assert len(of_type(events, PlanStepFailed)) == 1
        run, events = await finish(session, "and now?")
        assert run.outcome == "completed"
    assert strict_problems(script.requests[1].messages) == []


async def test_a_tool_with_a_nursery_is_reported_as_cancelled_too(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    @tool
    async def fan_out() -> str:
        """Wait in two tasks."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 50)
            nursery.start_soon(trio.sleep, 50)
        return "done"

    script = scripted_model([Call(tool_request("c", "fan_out"))])
    async with opened(tmp_path, script, [fan_out]) as session, session.run("go") as run:
        await trio.sleep(0.5)
        await run.cancel()
        events = [event async for event in run.events]
    (complete,) = of_type(events, ToolCallComplete)
    assert isinstance(complete, ToolCallComplete)
    assert complete.error == "cancelled"
    assert len(of_type(events, PlanStepFailed)) == 1


async def test_of_ten_parallel_calls_one_raises_and_nine_have_results(
    autojump_clock: MockClock, tmp_path: Path, bench: Bench
) -> None:
    names = [*map(str, range(9)), "bad"]
    calls = [tool_request(f"c{n}", "look", {"name": name}) for n, name in enumerate(names)]
    script = scripted_model([Call(calls), Say("Nine.")])
    async with opened(tmp_path, script, bench.tools()) as session:
        run, events = await finish(session)
    completes = [e for e in events if isinstance(e, ToolCallComplete)]
    assert sum(event.success for event in completes) == 9
    assert bench.most_at_once == 8
    starts = [event.call_id for event in events if isinstance(event, ToolCallStart)]
    assert starts == [f"c{n}" for n in range(10)]
    results = [m.content for m in script.requests[1].messages if m.role == "tool"]
    assert results[:9] == [f"saw {name}" for name in names[:9]]
    assert "nothing to see" in results[9]
    assert run.outcome == "completed"


async def test_only_tools_declared_safe_overlap(
    autojump_clock: MockClock, tmp_path: Path, bench: Bench
) -> None:
    def calls(*names: str) -> Call:
        return Call([tool_request(f"{i}", n, {"name": str(i)}) for i, n in enumerate(names)])

    script = scripted_model([calls("effect", "effect", "look", "effect"), Say("ok")])
    async with opened(tmp_path, script, bench.tools()) as session:
        await finish(session)
    assert bench.most_at_once == 1
    script = scripted_model([calls("look", "look", "effect", "look"), Say("ok")])
    async with opened(tmp_path, script, bench.tools(), max_parallel=5) as session:
        await finish(session)
    assert bench.most_at_once == 2


async def test_at_most_ten_requests_and_the_last_one_wants_words(
    autojump_clock: MockClock, tmp_path: Path, bench: Bench
) -> None:
    turns = [Call(tool_request(f"c{n}", "effect", {"name": str(n)})) for n in range(9)]
    script = scripted_model([*turns, Say("Enough.")])
    async with opened(tmp_path, script, bench.tools()) as session:
        run, _ = await finish(session)
    assert [request.tool_choice for request in script.requests] == ["auto"] * 9 + ["none"]
    assert all(request.tools for request in script.requests)
    assert isinstance(run.terminal, ExecutionComplete)
    assert run.terminal.termination_reason == "max_iterations"
    assert run.terminal.final_response == "Enough."


async def test_a_model_that_never_answers_in_words_is_stopped_with_words(
    autojump_clock: MockClock, tmp_path: Path, bench: Bench
) -> None:
    turns = [Call(tool_request(f"c{n}", "look", {"name": "x"})) for n in range(3)]
    script = scripted_model([*turns, Say("next")])
    async with opened(tmp_path, script, bench.tools(), max_iterations=3) as session:
        run, events = await finish(session)
        assert run.outcome == "completed"
        assert "without an answer" in said(events)
        await finish(session, "next")
    assert strict_problems(script.requests[-1].messages) == []


async def test_after_three_replans_the_model_is_asked_for_words(
    autojump_clock: MockClock, tmp_path: Path, bench: Bench
) -> None:
    turns = [Call(tool_request(f"c{n}", "look", {"name": "bad"})) for n in range(4)]
    script = scripted_model([*turns, Say("I give up.")])
    async with opened(tmp_path, script, bench.tools()) as session:
        run, _ = await finish(session)
    assert [request.tool_choice for request in script.requests] == ["auto"] * 4 + ["none"]
    assert isinstance(run.terminal, ExecutionComplete)
    assert run.terminal.termination_reason == "max_replans"


async def test_a_cancel_in_mid_stream_keeps_what_was_said_and_the_next_message_is_accepted(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    script = scripted_model([Say("one two three four", chunk=4, delay=1), Say("Next.")])
    async with opened(tmp_path, script) as session:
        async with session.run("go") as run:
            await trio.sleep(2.5)
            receipt = await run.cancel()
        assert receipt is not None
        assert [(a.kind, a.name) for a in receipt.stopped] == [("model_call", "scripted")]
        assert isinstance(run.terminal, ExecutionComplete)
        assert run.terminal.partial_response == "one two "
        await finish(session, "go on")
    messages = script.requests[1].messages
    assert strict_problems(messages) == []
    assert [m.role for m in messages] == ["system", "user", "assistant", "user"]
    assert messages[2].content.startswith("one two")


@pytest.mark.parametrize("turn", [Hang(), Say("", delay=9)])
async def test_a_cancel_before_any_text_leaves_a_history_that_is_accepted(
    autojump_clock: MockClock, tmp_path: Path, turn: Hang | Say
) -> None:
    script = scripted_model([turn, Say("Next.")])
    async with opened(tmp_path, script) as session:
        async with session.run("go") as run:
            await wait_all_tasks_blocked(0)
            await run.cancel()
        await finish(session, "again")
    assert strict_problems(script.requests[1].messages) == []


async def test_a_model_that_fails_after_text_fails_the_run_without_saying_it_twice(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    error = ModelError("cut", code="MODEL_STREAM_BROKEN", is_retryable=True)
    script = scripted_model([Fail(error, after="Half an"), Say("whole")])
    async with opened(tmp_path, script) as session:
        run, events = await finish(session)
    assert said(events) == "Half an"
    assert run.terminal == ExecutionError(
        run_id=run.id, code="MODEL_STREAM_BROKEN", error="cut", retryable=True
    )


async def test_a_model_that_fails_before_text_is_asked_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    error = ModelError("busy", code="MODEL_RATE_LIMITED", is_retryable=True, retry_after=7)
    script = scripted_model([Fail(error), Say("whole")])
    async with opened(tmp_path, script) as session:
        run, events = await finish(session)
    assert (run.outcome, said(events)) == ("completed", "whole")
    assert trio.current_time() >= 7


@pytest.mark.parametrize("arguments", ["{", "[1]", '{"name": 5}', '{"wrong": 1}', ""])
async def test_a_call_with_bad_arguments_is_answered_and_nothing_runs(
    autojump_clock: MockClock, tmp_path: Path, bench: Bench, arguments: str
) -> None:
    script = scripted_model([Call(tool_request("c", "effect", arguments)), Say("Sorry.")])
    async with opened(tmp_path, script, bench.tools()) as session:
        run, events = await finish(session)
    assert bench.effects == []
    (complete,) = of_type(events, ToolCallComplete)
    assert isinstance(complete, ToolCallComplete)
    assert not complete.success
    assert run.outcome == "completed"
    assert strict_problems(script.requests[1].messages) == []


async def test_an_unknown_tool_is_answered_with_the_known_ones(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    script = scripted_model([Call(tool_request("c", "teleport")), Say("Sorry.")])
    async with opened(tmp_path, script) as session:
        await finish(session)
    assert "read_file" in script.requests[1].messages[-1].content


async def test_a_denied_call_says_how_to_allow_it_to_model_and_user(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    call = Call(tool_request("c", "write_file", {"path": "a.txt", "content": "x"}))
    script = scripted_model([call, Say("No.")])
    async with opened(tmp_path, script) as session:
        _, events = await finish(session)
    (denied,) = of_type(events, ToolAuthDenied)
    assert isinstance(denied, ToolAuthDenied)
    assert "--allow write" in denied.reason
    assert "--allow write" in script.requests[1].messages[-1].content
    (complete,) = of_type(events, ToolCallComplete)
    assert isinstance(complete, ToolCallComplete)
    assert complete.error == "denied"
    assert not (tmp_path / "a.txt").exists()


async def test_a_granted_write_reports_the_file(autojump_clock: MockClock, tmp_path: Path) -> None:
    call = Call(tool_request("c", "write_file", {"path": "a.txt", "content": "hällo"}))
    async with opened(tmp_path, scripted_model([call, Say("ok")]), grants=["write"]) as session:
        run, events = await finish(session)
    assert (tmp_path / "a.txt").read_text() == "hällo"
    assert of_type(events, FileCreated) == [
        FileCreated(
            file_id=f"{run.id}:a.txt",
            filename="a.txt",
            mime_type="text/plain",
            size=6,
            url=(tmp_path / "a.txt").as_uri(),
        )
    ]


async def test_a_skill_is_offered_read_and_reported_as_a_skill(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    directory = tmp_path / ".semibot" / "skills" / "tidy"
    directory.mkdir(parents=True)
    (directory / "SKILL.md").write_text(
        "---\nname: Tidy up\ndescription: How to tidy.\n---\nPut things away.\n"
    )
    (directory / "notes").mkdir()
    (directory / "notes" / "a.md").write_text("Socks first.")
    script = scripted_model(
        [
            Call(
                [
                    tool_request("c1", "use_skill", {"skill_id": "tidy"}),
                    tool_request("c2", "use_skill", {"skill_id": "nope"}),
                    tool_request("c3", "use_skill", {"skill_id": "tidy", "file": "notes/a.md"}),
                    tool_request("c4", "use_skill", {"skill_id": "tidy", "file": "../../x"}),
                ]
            ),
            Say("ok"),
        ]
    )
    async with opened(tmp_path, script) as session:
        _, events = await finish(session)
    assert "tidy" in script.requests[0].messages[0].content
    starts = [e for e in events if isinstance(e, SkillCallStart)]
    names = [(event.skill_id, event.skill_name) for event in starts]
    tidy = ("tidy", "Tidy up")
    assert names == [tidy, ("nope", "nope"), tidy, tidy]
    assert sum(event.success for event in events if isinstance(event, SkillCallComplete)) == 2
    assert of_type(events, ToolCallStart) == []
    results = [message.content for message in script.requests[1].messages[-4:]]
    assert "Put things away." in results[0]
    assert "no skill" in results[1]
    assert results[2] == "Socks first."
    assert "no file" in results[3]


async def test_the_model_can_be_changed_between_runs(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    script = scripted_model([Say("from the script")])
    async with opened(tmp_path, script) as session:
        session.update_config({"agent_config": {"model": "demo", "temperature": 0.5}})
        run, _ = await finish(session)
        assert "demonstration" in run.text.lower()
        assert script.turns_left == 1
        for bad in ({"agent_config": {"model": 5}}, {"agent_config": {"model": "nope:x"}}):
            session.update_config(bad)
            run, _ = await finish(session)
            assert run.outcome == "failed"
        run, _ = await finish(session)
        assert run.outcome == "completed"


async def test_a_payload_configures_the_agent_and_a_bad_one_is_refused(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    script = scripted_model([Say("ok")])
    async with open_session(
        GraphAgent(script),
        workspace=tmp_path,
        ports=simulated_ports(),
        payload={
            "agent_config": {"system_prompt": "Be a pirate.", "temperature": 0.1, "max_tokens": 9}
        },
    ) as session:
        await finish(session)
    request = script.requests[0]
    assert request.messages[0].content.startswith("Be a pirate.")
    assert (request.temperature, request.max_tokens) == (0.1, 9)
    with pytest.raises(UsageError, match="agent_config"):
        async with open_session(
            GraphAgent(script),
            workspace=tmp_path,
            ports=simulated_ports(),
            payload={"agent_config": {"temperature": "hot"}},
        ):
            raise AssertionError("not reached")


async def test_reasoning_of_the_model_is_shown_as_thinking(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with opened(tmp_path, scripted_model([Say("4", reasoning="2 and 2")])) as session:
        run, events = await finish(session)
    assert Thinking(content="2 and 2", stage="reasoning") in events
    assert run.text == "4"


async def test_an_unusual_end_of_the_reply_is_passed_on(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    script = scripted_model([Say("cut of", finish_reason="length")])
    async with opened(tmp_path, script) as session:
        run, _ = await finish(session)
    assert isinstance(run.terminal, ExecutionComplete)
    assert run.terminal.termination_reason == "length"


async def test_decisions_are_in_the_audit_file_before_their_effects(
    autojump_clock: MockClock, tmp_path: Path, bench: Bench
) -> None:
    script = scripted_model([Call(tool_request("c", "effect", {"name": "x"})), Say("ok")])
    async with opened(tmp_path, script, bench.tools()) as session:
        await finish(session)
    lines = (tmp_path / ".semibot/sessions/s/audit.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert '"kind":"decision"' in lines[0]
    assert '"kind":"call_ended"' in lines[1]
