from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from semibot.cli.render import JsonView, TextView, show_end
from semibot.cli.screen import Screen
from semibot.session.journal import Journal
from semibot.testing import simulated_ports
from semibot.wire.events import (
    ExecutionComplete,
    ExecutionError,
    FileCreated,
    McpCallComplete,
    McpCallStart,
    Notify,
    PlanCreated,
    PlanStep,
    PlanStepComplete,
    PlanStepFailed,
    PlanStepStart,
    RunStarted,
    SessionEvent,
    SkillCallComplete,
    SkillCallStart,
    TextChunk,
    Thinking,
    ToolAuthDenied,
    ToolAuthRequired,
    ToolCallComplete,
    ToolCallStart,
    Usage,
)
from semibot.wire.receipts import Receipt


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Screen]:
    """Show everything in one file, to see what comes after what."""
    with (tmp_path / "shown").open("w", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdout", file)
        monkeypatch.setattr(sys, "stderr", file)
        yield Screen(simulated_ports())
        monkeypatch.undo()


def shown(tmp_path: Path) -> str:
    return (tmp_path / "shown").read_text(encoding="utf-8")


async def show(view: TextView | JsonView, *events: SessionEvent) -> None:
    journal = Journal(term=1, next_seq=1)
    for event in events:
        await view.show(journal.append("r", event))


def call(call_id: str, name: str = "read_file", **arguments: str) -> ToolCallStart:
    return ToolCallStart(call_id=call_id, tool_name=name, arguments=arguments)


def end(call_id: str, name: str = "read_file", error: str | None = None) -> ToolCallComplete:
    return ToolCallComplete(
        call_id=call_id, tool_name=name, success=error is None, error=error, duration=12
    )


async def test_the_end_of_a_call_names_it_only_where_something_came_between(
    screen: Screen, tmp_path: Path
) -> None:
    await show(
        TextView(screen),
        call("1", path="a"),
        end("1"),
        call("2", path="b"),
        call("3", path="c"),
        end("3", error="it is a directory"),
        end("2"),
        call("4", "run_command"),
        end("4", "run_command", error=f"timeout: {'x' * 80}"),
        call("6", path="d"),
        call("7", path="e"),
        end("6"),
        end("7"),
        ToolCallComplete(call_id="5", tool_name="odd", success=False, duration=1),
    )
    assert shown(tmp_path).splitlines() == [
        "* read_file path=a  ok 12 ms",
        "* read_file path=b",
        "* read_file path=c  it is a directory",
        "  read_file path=b: ok 12 ms",
        "* run_command",
        f"  timeout: {'x' * 80}",
        "* read_file path=d",
        "* read_file path=e",
        "  read_file path=d: ok 12 ms",
        "  read_file path=e: ok 12 ms",
        "  odd: failed",
    ]


async def test_a_denial_is_said_once_with_the_way_to_allow_it(
    screen: Screen, tmp_path: Path
) -> None:
    await show(
        TextView(screen),
        call("1", "write_file", path="a"),
        ToolAuthDenied(ask_id="d", tool_name="write_file", reason="use --allow write"),
        end("1", "write_file", error="denied: use --allow write"),
        call("2", "write_file", path="b"),
        end("2", "write_file", error="denied: not again"),
    )
    assert shown(tmp_path).splitlines() == [
        "* write_file path=a",
        "  denied: use --allow write",
        "* write_file path=b  denied: not again",
    ]


async def test_thoughts_of_one_stage_are_one_thought(screen: Screen, tmp_path: Path) -> None:
    await show(
        TextView(screen, is_verbose=True),
        RunStarted(run_id="r", message_id="m", message="?"),
        Thinking(content=" Read", stage="analyzing"),
        Thinking(content="ing.\n", stage="analyzing"),
        Thinking(content="Slowly.\n\n", stage="analyzing"),
        Thinking(content="Next.", stage="planning"),
        TextChunk(content="Answer"),
        Thinking(content="Done.", stage="concluding"),
        ExecutionComplete(run_id="r", final_response="Answer"),
    )
    await show_end(screen, ExecutionComplete(run_id="r"), None, is_verbose=False)
    assert shown(tmp_path) == "~ Reading.\n  Slowly.\n~ Next.\nAnswer~ Done.\n\n"


async def test_notes_on_progress_are_left_out_and_the_models_reasoning_is_not(
    screen: Screen, tmp_path: Path
) -> None:
    await show(
        TextView(screen),
        Thinking(content="Reading the request.\n", stage="analyzing"),
        Thinking(content="I see:\n", stage="reasoning"),
        Thinking(content="a file.\n", stage="reasoning"),
        Thinking(content="Next: read_file.\n", stage="planning"),
        call("1"),
        end("1"),
        PlanStepComplete(step_id="1", title="one", duration_ms=12),
        FileCreated(file_id="f", filename="a.txt", mime_type="text/plain", size=3, url="file:a"),
        Thinking(content="1 of 1 steps worked.\n", stage="reasoning"),
        Thinking(content="It worked.\n", stage="reasoning"),
        TextChunk(content="Yes.\n"),
        Thinking(content="Done.\n", stage="concluding"),
    )
    assert shown(tmp_path).splitlines() == [
        "~ I see:",
        "  a file.",
        "* read_file  ok 12 ms",
        "  file a.txt (3 bytes)",
        "~ It worked.",
        "Yes.",
    ]


async def test_a_plan_is_shown_also_if_nothing_comes_of_it(screen: Screen, tmp_path: Path) -> None:
    await show(
        TextView(screen),
        PlanCreated(steps=(PlanStep(id="1", title="one"),)),
        TextChunk(content="Changed my mind."),
    )
    assert shown(tmp_path) == "plan:\n  one\nChanged my mind."


async def test_steps_are_shown_unless_their_call_says_it_all(
    screen: Screen, tmp_path: Path
) -> None:
    await show(
        TextView(screen),
        PlanCreated(steps=(PlanStep(id="0", title="alone"),)),
        PlanStepStart(step_id="0", title="alone", tool="read_file"),
        PlanCreated(steps=(PlanStep(id="1", title="one\nline"), PlanStep(id="2", title="two"))),
        PlanStepStart(step_id="1", title="one"),
        PlanStepComplete(step_id="1", title="one", duration_ms=1500),
        PlanStepStart(step_id="2", title="two", tool="read_file", params={}),
        call("2"),
        end("2"),
        PlanStepComplete(step_id="2", title="two", duration_ms=12),
        PlanStepStart(step_id="3", title="three"),
        PlanStepFailed(step_id="3", title="three", error="no luck"),
        PlanStepFailed(step_id="4", title="never begun", error="no luck"),
    )
    assert shown(tmp_path).splitlines() == [
        "plan:",
        "  one line",
        "  two",
        "* one  ok 1.5 s",
        "* read_file  ok 12 ms",
        "* three  no luck",
    ]


async def test_skills_servers_files_questions_and_notices_are_shown(
    screen: Screen, tmp_path: Path
) -> None:
    await show(
        TextView(screen),
        SkillCallStart(skill_id="s", skill_name="Maps", arguments={}),
        SkillCallComplete(skill_id="s", skill_name="Maps", success=True, duration=5),
        McpCallStart(server_id="web", tool_name="get", arguments={"url": "x"}),
        McpCallComplete(
            server_id="web", tool_name="get", success=False, error="404", duration=5
        ),
        FileCreated(file_id="f", filename="a.txt", mime_type="text/plain", size=3, url="file:a"),
        ToolAuthRequired(
            ask_id="a", tool_name="pay", arguments_preview="1 euro", reason="it costs",
            expires_at="2026-01-01T00:00:00Z",
        ),
        Notify(notice_id="n", kind="k", severity="low", title="Mail", summary="Two letters"),
    )  # fmt: skip
    assert shown(tmp_path).splitlines() == [
        "* skill Maps  ok 5 ms",
        "* web: get url=x  404",
        "  file a.txt (3 bytes)",
        "? pay 1 euro: it costs",
        "Mail",
        "  Two letters",
    ]


async def test_what_tools_and_models_say_cannot_steer_the_terminal(
    screen: Screen, tmp_path: Path
) -> None:
    evil = "\x1b]0;x\x07\x9b"
    await show(
        TextView(screen),
        TextChunk(content=f"a{evil}\n"),
        Thinking(content=f"b{evil}", stage="reasoning"),
        call("1", f"c{evil}", path=f"d{evil}"),
        end("1", f"c{evil}", error=f"e{evil}"),
    )
    text = shown(tmp_path)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\x9b" not in text
    assert all(letter in text for letter in "abcde")


@pytest.mark.parametrize(
    ("terminal", "receipt", "is_verbose", "lines"),
    [
        (ExecutionComplete(run_id="r"), None, False, []),
        (
            ExecutionComplete(run_id="r", usage=Usage(tokens_in=3, tokens_out=1)),
            None,
            True,
            ["3 tokens in, 1 out"],
        ),
        (ExecutionComplete(run_id="r"), None, True, ["0 tokens in, 0 out"]),
        (
            ExecutionComplete(run_id="r", termination_reason="max_iterations"),
            None,
            False,
            ["stopped early: max_iterations"],
        ),
        (
            ExecutionError(run_id="r", code="MODEL_ERROR", error="no", retryable=True),
            None,
            True,
            ["failed: MODEL_ERROR: no; the same message may succeed later"],
        ),
        (
            ExecutionError(run_id="r", code="DEADLINE_EXCEEDED", error="late"),
            Receipt(run_id="r", outcome="timeout", reason="run.limit"),
            True,
            [
                "stopped by its deadline run.limit, in 0.00 s; 0 tokens in, 0 out",
                "  nothing was under way",
            ],
        ),
        (
            ExecutionError(run_id="r", code="STORE_ERROR", error="disk full"),
            Receipt(run_id="r", outcome="failed", reason="user_cancelled"),
            False,
            [
                "failed: STORE_ERROR: disk full",
                "cancelled by you, in 0.00 s; 0 tokens in, 0 out",
                "  nothing was under way",
            ],
        ),
    ],
)
async def test_the_end_of_a_run_is_said_in_words(
    screen: Screen,
    tmp_path: Path,
    terminal: ExecutionComplete | ExecutionError,
    receipt: Receipt | None,
    is_verbose: bool,
    lines: list[str],
) -> None:
    await show_end(screen, terminal, receipt, is_verbose=is_verbose)
    assert shown(tmp_path).splitlines() == lines
