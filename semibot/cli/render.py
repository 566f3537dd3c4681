"""Show one run: its events as they come, and how it ended."""

from __future__ import annotations

from typing import Final, assert_never, final

import attrs

from semibot.session import JournalEntry
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
    Stage,
    TerminalEvent,
    TextChunk,
    Thinking,
    ToolAuthDenied,
    ToolAuthRequired,
    ToolCallComplete,
    ToolCallStart,
    Usage,
)
from semibot.wire.receipts import Receipt

from .describe import describe_arguments, describe_duration, describe_receipt, describe_usage
from .screen import BAD, CALL, DIM, GOOD, ODD, Screen

_MAX_JOINED: Final = 78
"""Longest line that a call shares with its error, in characters."""


@final
@attrs.frozen
class JsonView:
    """One event a line on standard output, as it was encoded."""

    screen: Screen
    """Where to show it."""

    async def show(self, entry: JournalEntry) -> None:
        """Show an event."""
        await self.screen.json(entry.data)


@final
@attrs.define(eq=False)
class TextView:
    """The answer on standard output; thoughts, tools and files on standard error."""

    screen: Screen
    """Where to show it."""
    is_verbose: bool = attrs.field(default=False, kw_only=True)
    """Whether to show also an agent's notes on its own progress."""
    _plan: tuple[PlanStep, ...] = attrs.field(default=(), init=False)
    _stage: Stage | None = attrs.field(default=None, init=False)
    _last_call: str | None = attrs.field(default=None, init=False)
    _calls: dict[str, str] = attrs.field(factory=dict[str, str], init=False)
    _denied: set[str] = attrs.field(factory=set[str], init=False)
    _steps: set[str] = attrs.field(factory=set[str], init=False)
    _is_after_step: bool = attrs.field(default=False, init=False)

    async def show(self, entry: JournalEntry) -> None:
        """Show an event."""
        event = entry.event
        note = self.screen.note
        if self._plan:
            await self._show_plan(event)
        if isinstance(event, Thinking):
            await self._think(event)
            return
        self._stage = None
        self._is_after_step = isinstance(event, PlanStepComplete | PlanStepFailed | FileCreated)
        match event:
            case RunStarted():
                pass
            case TextChunk(content=text):
                self._last_call = None
                await self.screen.answer(text)
            case PlanCreated(steps=steps):
                self._plan = steps
            case PlanStepStart():
                if event.tool is None:  # else its call says it all
                    self._steps.add(event.step_id)
                    await self._begin(event.step_id, event.title)
            case PlanStepComplete():
                if event.step_id in self._steps:
                    await self._end(event.step_id, event.title, None, event.duration_ms)
            case PlanStepFailed():
                if event.step_id in self._steps:
                    await self._end(event.step_id, event.title, event.error, None)
            case ToolCallStart():
                arguments = describe_arguments(event.arguments)
                await self._begin(event.call_id, f"{event.tool_name} {arguments}")
            case ToolCallComplete():
                await self._end_call(event)
            case SkillCallStart():
                await self._begin(f"skill {event.skill_id}", f"skill {event.skill_name}")
            case SkillCallComplete():
                await self._end(
                    f"skill {event.skill_id}", event.skill_name, event.error, event.duration
                )
            case McpCallStart():
                arguments = describe_arguments(event.arguments)
                call = f"{event.server_id} {event.tool_name}"
                await self._begin(call, f"{event.server_id}: {event.tool_name} {arguments}")
            case McpCallComplete():
                call = f"{event.server_id} {event.tool_name}"
                await self._end(call, call, event.error, event.duration)
            case ToolAuthRequired():
                await note(f"? {event.tool_name} {event.arguments_preview}: {event.reason}", ODD)
            case ToolAuthDenied():
                self._denied.add(event.tool_name)
                await note(f"  denied: {event.reason}", ODD)
            case FileCreated():
                await note(f"  file {event.filename} ({event.size} bytes)", GOOD)
            case Notify():
                await note(f"{event.title}\n  {event.summary}", ODD)
            case ExecutionComplete() | ExecutionError():
                pass  # show_end() has more to say
            case _:
                assert_never(event)

    async def _show_plan(self, following: SessionEvent) -> None:
        """Show a plan, unless its steps are tool calls, which show themselves."""
        if not isinstance(following, PlanStepStart) or following.tool is None:
            titles = "".join(f"\n  {_one_line(step.title)}" for step in self._plan)
            await self.screen.note(f"plan:{titles}", DIM)
        self._plan = ()

    async def _think(self, event: Thinking) -> None:
        is_note = self._is_note(event)
        self._is_after_step = False
        if is_note and not self.is_verbose:
            self._stage = None
            return
        if event.stage != self._stage:
            await self.screen.end_line()
        self._stage = event.stage
        self._last_call = None
        await self.screen.think(event.content)

    def _is_note(self, event: Thinking) -> bool:
        """Return whether an agent says this of its progress, which can be seen anyway.

        A note is a whole line. In the reasoning, which is the model's, only the line that
        sums up the steps right before it is one.
        """
        if not event.content.endswith("\n") or event.content.count("\n") > 1:
            return False
        return self._is_after_step if event.stage == "reasoning" else event.stage != self._stage

    async def _begin(self, call: str, title: str) -> None:
        self._calls[call] = title = _one_line(title)
        self._last_call = call
        await self.screen.begin_call(f"* {title}", CALL)

    async def _end_call(self, event: ToolCallComplete) -> None:
        was_denied = event.tool_name in self._denied
        if was_denied and event.error is not None and event.error.startswith("denied"):
            self._denied.discard(event.tool_name)  # it was said, with the reason
            return
        error = None if event.success else event.error or "failed"
        await self._end(event.call_id, event.tool_name, error, event.duration)

    async def _end(self, call: str, name: str, error: str | None, duration: int | None) -> None:
        title = self._calls.pop(call, _one_line(name))
        # Right below its beginning the end need not repeat whose end it is.
        prefix = "" if call == self._last_call else f"{title}: "
        self._last_call = None
        took = "" if duration is None else f" {describe_duration(duration)}"
        is_long = error is not None and ("\n" in error or len(f"* {title}  {error}") > _MAX_JOINED)
        if prefix or is_long:
            await self.screen.end_line()
        if error is None:
            await self.screen.end_call(f"  {prefix}ok{took}", GOOD)
        else:
            await self.screen.end_call(f"  {prefix}{error}", BAD)


def _one_line(text: str) -> str:
    return " ".join(text.split())


async def show_end(
    screen: Screen, terminal: TerminalEvent, receipt: Receipt | None, *, is_verbose: bool
) -> None:
    """End the answer, and say how the run ended unless it simply answered.

    Args:
        screen: Where to say it.
        terminal: The run's last event.
        receipt: What was stopped, if the run was asked to stop.
        is_verbose: Whether the tokens of an answer are of interest.
    """
    await screen.end_answer()
    # The receipt says it, if the run was stopped; another failure is the error's to say.
    was_stopped = receipt is not None and receipt.outcome in {"timeout", "interrupted"}
    if isinstance(terminal, ExecutionError) and not was_stopped:
        again = "; the same message may succeed later" if terminal.retryable else ""
        await screen.note(f"failed: {terminal.code}: {terminal.error}{again}", BAD)
    if receipt is not None:
        await screen.note("\n".join(describe_receipt(receipt)), ODD)
    elif isinstance(terminal, ExecutionComplete) and terminal.termination_reason is not None:
        await screen.note(f"stopped early: {terminal.termination_reason}", ODD)
    elif is_verbose and isinstance(terminal, ExecutionComplete):
        await screen.note(describe_usage(terminal.usage or Usage()), DIM)
