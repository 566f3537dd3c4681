"""Act: run the tool calls of one reply through the gate, and say so in events.

The calls of a reply are the steps of a plan. They start in the model's order. Neighbours
that are declared safe to overlap run together; every other call has the floor to itself.
A call that fails leaves its siblings' results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import attrs
import trio

from semibot.config import Deadlines
from semibot.errors import RemoteProtocolError
from semibot.lifetimes import grace
from semibot.session import ActiveRun
from semibot.tools.calls import CallRequest, CallResult
from semibot.tools.endings import is_cancellation
from semibot.tools.gate import Gate
from semibot.wire.chat import Message, ToolCallRequest
from semibot.wire.codec import JsonObject, load_json
from semibot.wire.events import (
    FileCreated,
    PlanCreated,
    PlanStep,
    PlanStepComplete,
    PlanStepFailed,
    PlanStepStart,
    SkillCallComplete,
    SkillCallStart,
    ToolAuthDenied,
    ToolCallComplete,
    ToolCallStart,
)


@attrs.frozen
class Step:
    """One tool call as a step of a plan."""

    id: str
    """Identifier within the run."""
    title: str
    """What it does, for people."""
    call: ToolCallRequest
    """The call."""
    arguments: JsonObject
    """Its arguments; empty if the model's text is no JSON object."""


def make_plan(calls: Sequence[ToolCallRequest], iteration: int) -> tuple[Step, ...]:
    """Return the steps of a plan, one for each call.

    Args:
        calls: The tool calls of one reply.
        iteration: Which reply of the run it is, from 1; part of the step ids.
    """
    return tuple(
        Step(f"{iteration}.{number}", _title(call), call, _arguments_of(call))
        for number, call in enumerate(calls, 1)
    )


def _title(call: ToolCallRequest) -> str:
    preview = " ".join(call.arguments.split())
    return call.name if preview in {"", "{}"} else f"{call.name} {preview[:80]}"


def _arguments_of(call: ToolCallRequest) -> JsonObject:
    try:
        value = load_json(call.arguments or "{}")
    except RemoteProtocolError:
        return {}
    return value if isinstance(value, dict) else {}


@final
@attrs.define(eq=False)
class Actor:
    """Runs the steps of one run's plans."""

    run: ActiveRun
    """The run."""
    gate: Gate
    """The only way to run a tool."""
    deadlines: Deadlines
    """The bounds."""
    max_parallel: int
    """Most calls at once."""
    skill_names: Mapping[str, str]
    """Names of skills by their id."""
    workspace: Path
    """Where created files lie."""

    async def act(self, steps: Sequence[Step]) -> tuple[CallResult, ...]:
        """Run all *steps* and return their results in order.

        Every result that there is goes into the conversation, also if the run is
        cancelled on the way; steps that never started are not mentioned there.

        Args:
            steps: The plan.
        """
        await self.run.emit(
            PlanCreated(steps=tuple(PlanStep(id=step.id, title=step.title) for step in steps))
        )
        results: dict[str, CallResult] = {}
        try:
            for batch in self._batches(steps):
                limiter = trio.CapacityLimiter(self.max_parallel)
                async with trio.open_nursery() as nursery:
                    for step in batch:
                        # Here and not in the task, so that steps start in order.
                        await limiter.acquire_on_behalf_of(step.id)
                        await self._say_start(step)
                        nursery.start_soon(self._take, step, limiter, results)
        finally:
            self.run.remember(
                *(
                    Message(
                        role="tool",
                        content=results[step.id].content,
                        tool_call_id=step.call.id,
                        name=step.call.name,
                    )
                    for step in steps
                    if step.id in results
                )
            )
        return tuple(results[step.id] for step in steps)

    def _batches(self, steps: Sequence[Step]) -> list[list[Step]]:
        batches: list[list[Step]] = []
        was_safe = False
        for step in steps:
            tool = self.gate.get(step.call.name)
            is_safe = tool is not None and tool.is_parallel_safe
            if is_safe and was_safe:
                batches[-1].append(step)
            else:
                batches.append([step])
            was_safe = is_safe
        return batches

    async def _take(
        self, step: Step, limiter: trio.CapacityLimiter, results: dict[str, CallResult]
    ) -> None:
        started = trio.current_time()
        try:
            result = await self.gate.call(
                CallRequest(id=step.call.id, name=step.call.name, arguments=step.call.arguments),
                run_id=self.run.id,
                ledger=self.run.ledger,
            )
        except BaseException as exc:
            if is_cancellation(exc):  # a tool with a nursery raises a group of them
                with grace("run.cancel_grace", self.deadlines.run_cancel_grace):
                    await self._say_cancelled(step, started)
            raise
        finally:
            limiter.release_on_behalf_of(step.id)
        results[step.id] = result
        await self._say_end(step, result)

    # --- events -----------------------------------------------------------------------

    def _is_skill(self, step: Step) -> bool:
        tool = self.gate.get(step.call.name)
        return tool is not None and tool.kind == "skill"

    def _skill_of(self, step: Step) -> tuple[str, str]:
        skill_id = str(step.arguments.get("skill_id", ""))
        return skill_id, self.skill_names.get(skill_id, skill_id)

    async def _say_start(self, step: Step) -> None:
        emit = self.run.emit
        await emit(
            PlanStepStart(
                step_id=step.id, title=step.title, tool=step.call.name, params=step.arguments
            )
        )
        if self._is_skill(step):
            skill_id, name = self._skill_of(step)
            await emit(SkillCallStart(skill_id=skill_id, skill_name=name, arguments=step.arguments))
        else:
            await emit(
                ToolCallStart(
                    call_id=step.call.id, tool_name=step.call.name, arguments=step.arguments
                )
            )

    async def _say_end(self, step: Step, result: CallResult) -> None:
        emit = self.run.emit
        success = result.outcome == "ok"
        error = result.event_error
        if result.outcome == "denied":
            await emit(
                ToolAuthDenied(
                    ask_id=result.decision_id or step.call.id,
                    tool_name=step.call.name,
                    reason=result.error or "denied",
                )
            )
        if self._is_skill(step):
            skill_id, name = self._skill_of(step)
            await emit(
                SkillCallComplete(
                    skill_id=skill_id,
                    skill_name=name,
                    result=result.result,
                    success=success,
                    error=error,
                    duration=result.duration_ms,
                )
            )
        else:
            await emit(
                ToolCallComplete(
                    call_id=step.call.id,
                    tool_name=step.call.name,
                    result=result.result,
                    success=success,
                    error=error,
                    duration=result.duration_ms,
                )
            )
        if success:
            await emit(
                PlanStepComplete(
                    step_id=step.id,
                    title=step.title,
                    result=result.result,
                    duration_ms=result.duration_ms,
                )
            )
        else:
            words = result.error or result.outcome
            await emit(PlanStepFailed(step_id=step.id, title=step.title, error=words))
        for file in result.files:
            await emit(
                FileCreated(
                    file_id=f"{self.run.id}:{file.path}",
                    filename=file.path,
                    mime_type=file.mime_type,
                    size=file.size,
                    url=(self.workspace / file.path).as_uri(),
                )
            )

    async def _say_cancelled(self, step: Step, started: float) -> None:
        duration = round((trio.current_time() - started) * 1000)
        await self._say_end(
            step,
            CallResult(
                call_id=step.call.id,
                tool_name=step.call.name,
                outcome="cancelled",
                result=None,
                content="",
                error="the run was cancelled",
                duration_ms=duration,
            ),
        )
