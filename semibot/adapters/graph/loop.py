"""Plan, act, observe, then replan or reflect, and respond: one run of a graph agent.

The model drives. Every request offers the tools; the tool calls of a reply are the next
plan, and a reply without any is the answer. What bounds it: at most ``max_iterations``
requests, and at most ``max_replans`` plans that follow a failure; at either bound the
model is asked once more, tools listed but not callable, for an answer in words.
"""

from __future__ import annotations

from typing import Final, final

import attrs

from semibot.models.base import Model, ModelRequest, ReasoningDelta, Reply, TextDelta, ToolChoice
from semibot.models.history import repair_history
from semibot.models.retry import stream_reply
from semibot.ports import Ports
from semibot.session import ActiveRun
from semibot.tools.calls import CallResult
from semibot.wire.chat import Message, ToolSpec
from semibot.wire.events import Stage, TextChunk, Thinking

from .acting import Actor, make_plan
from .settings import AgentConfig

NO_ANSWER: Final = "I stopped without an answer: the model kept asking for tools."
"""What is said when the model does not answer in words although it was asked to."""


@final
@attrs.define(eq=False, kw_only=True)
class GraphRun:
    """One run: the conversation with the model so far, and what was tried."""

    run: ActiveRun
    """The run."""
    model: Model
    """Who thinks."""
    actor: Actor
    """Who acts."""
    tools: tuple[ToolSpec, ...]
    """What the model may call."""
    config: AgentConfig
    """What it was told."""
    system_prompt: str
    """The whole system message."""
    ports: Ports
    """The seams."""
    max_iterations: int
    """Most requests to the model."""
    max_replans: int
    """Most plans that follow a failure."""
    _partial: list[str] = attrs.field(factory=list[str], init=False)

    async def respond(self) -> None:
        """Drive the run to its end."""
        await self._note("analyzing", "Reading the request.")
        replans = 0
        for iteration in range(1, self.max_iterations):
            reply = await self._ask("auto")
            calls = reply.message.tool_calls
            if not calls:
                await self._conclude(reply, None)
                return
            self.run.remember(reply.message)
            steps = make_plan(calls, iteration)
            await self._note("planning", f"Next: {'; '.join(step.title for step in steps)}.")
            results = await self.actor.act(steps)
            replans += await self._observe(results)
            if replans > self.max_replans:
                await self._conclude(await self._ask("none"), "max_replans")
                return
        await self._conclude(await self._ask("none"), "max_iterations")

    async def _ask(self, tool_choice: ToolChoice) -> Reply:
        """Send the conversation to the model and pass on what it says as it comes."""
        self._partial.clear()
        request = ModelRequest(
            messages=repair_history(
                (
                    Message(role="system", content=self.system_prompt),
                    *self.run.history,
                    Message(role="user", content=self.run.message),
                    *self.run.remembered,
                )
            ),
            tools=self.tools,
            tool_choice=tool_choice,
            temperature=self.config.temperature,
            max_tokens=self.config.max_tokens,
        )
        try:
            reply = await stream_reply(
                self.model,
                request,
                self._pass_on,
                ledger=self.run.ledger,
                call_id=self.ports.ids.new_id(),
                source=self.ports.random,
            )
        except BaseException:
            if self._partial:  # what was said was said, also if the rest never came
                self.run.remember(Message(role="assistant", content="".join(self._partial)))
            raise
        self.run.spend(reply.usage, model=self.model.name)
        return reply

    async def _pass_on(self, item: TextDelta | ReasoningDelta) -> None:
        match item:
            case TextDelta(text=text):
                if not self._partial and self.run.has_text:
                    await self._say("\n\n")  # what was said before an earlier plan ends here
                self._partial.append(text)
                await self._say(text)
            case ReasoningDelta(text=text):
                await self._think("reasoning", text)

    async def _observe(self, results: tuple[CallResult, ...]) -> bool:
        """Say what came of a plan; return whether any of it failed."""
        failed = [result for result in results if result.outcome != "ok"]
        if not failed:
            await self._note("reasoning", f"{len(results)} of {len(results)} steps worked.")
            return False
        names = ", ".join(f"{result.tool_name} ({result.outcome})" for result in failed)
        await self._note(
            "reasoning",
            f"{len(results) - len(failed)} of {len(results)} steps worked; not: {names}.",
        )
        return True

    async def _conclude(self, reply: Reply, reason: str | None) -> None:
        text = reply.message.content
        if not text:
            text = NO_ANSWER if reply.message.tool_calls else ""
            await self._pass_on(TextDelta(text=text))
        await self._note("concluding", "Done." if reason is None else f"Stopped: {reason}.")
        self.run.remember(Message(role="assistant", content=text))
        await self.run.complete(termination_reason=reason or _unusual(reply.finish_reason))

    async def _say(self, text: str) -> None:
        if text:
            await self.run.emit(TextChunk(content=text))

    async def _note(self, stage: Stage, text: str) -> None:
        """Say a line of our own between the model's thoughts."""
        await self._think(stage, f"{text}\n")

    async def _think(self, stage: Stage, text: str) -> None:
        await self.run.emit(Thinking(content=text, stage=stage))


def _unusual(finish_reason: str | None) -> str | None:
    return None if finish_reason in {None, "stop", "tool_calls"} else finish_reason
