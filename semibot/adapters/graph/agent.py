"""The graph agent: an adapter that thinks with a model and acts through the gate."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TypeAlias, final

import attrs

from semibot.errors import SemibotError
from semibot.models import Model, ModelFactory, resolve_model
from semibot.session import ActiveRun, Adapter, AdapterContext
from semibot.tools import Gate, Grant, Policy, Tool
from semibot.tools.builtin import builtin_tools
from semibot.wire.chat import ToolSpec
from semibot.wire.codec import JsonObject

from .acting import Actor
from .loop import GraphRun
from .memory import SEARCH_MEMORY, MemorySearch
from .settings import DEFAULT_PROMPT, AgentConfig
from .skills import USE_SKILL, Skills

ResolveModel: TypeAlias = Callable[[str | ModelFactory | None], ModelFactory]
"""Turns the name of a model into a factory; see :func:`semibot.models.resolve_model`."""


@final
@attrs.frozen
class GraphAgent:
    """An adapter factory: pass it to :func:`semibot.open_session`.

    Registering a tool of your own is the permission to run it. Of the built-in tools
    ``read_file``, ``list_directory`` and ``search_text`` work inside the workspace;
    ``write_file`` and ``run_command`` need a grant. ``search_memory`` asks the control
    plane, and ``use_skill`` reads the skills of the workspace and of the host. A tool of
    your own with one of these two names takes its place.
    """

    model: str | ModelFactory | None = None
    """``"openai:gpt-5"``, or a factory; None takes OpenAI if ``OPENAI_API_KEY`` or
    ``OPENAI_BASE_URL`` is set, and else a demonstration without a model."""
    tools: Sequence[Tool] = attrs.field(default=(), kw_only=True)
    """Your own tools, made with :func:`semibot.tool`."""
    grants: Sequence[str | Grant] = attrs.field(default=(), kw_only=True)
    """What else may be used: ``"write"``, ``"run"``, a tool's name, or a ``Grant``."""
    system_prompt: str = attrs.field(default=DEFAULT_PROMPT, kw_only=True)
    """What the model is told first."""
    has_builtin_tools: bool = attrs.field(default=True, kw_only=True)
    """Whether the built-in tools are on offer."""
    max_iterations: int = attrs.field(default=10, kw_only=True, validator=attrs.validators.ge(1))
    """Most requests to the model in one run, at least 1."""
    max_replans: int = attrs.field(default=3, kw_only=True, validator=attrs.validators.ge(0))
    """Most plans of one run that follow a failure."""
    max_parallel: int = attrs.field(default=8, kw_only=True, validator=attrs.validators.ge(1))
    """Most tool calls at once, of those that may overlap."""
    resolve: ResolveModel = attrs.field(default=resolve_model, kw_only=True, repr=False)
    """What turns the name of a model into a factory; a VM's also knows its host's keys."""

    def __call__(self, context: AdapterContext) -> AbstractAsyncContextManager[Adapter]:
        """Return the scope of the adapter; leaving it closes the model."""
        return _open_graph(self, context)


@asynccontextmanager
async def _open_graph(agent: GraphAgent, context: AdapterContext) -> AsyncGenerator[Adapter]:
    config = AgentConfig(system_prompt=agent.system_prompt).changed_by(context.payload)
    factory = agent.resolve(agent.model if config.model is None else config.model)
    skills, memory = Skills(context), MemorySearch(context)
    await skills.offer(context.payload)
    offered = (skills.tool(), memory.tool()) if agent.has_builtin_tools else (skills.tool(),)
    own = {tool.name for tool in agent.tools}
    tools = (
        *agent.tools,
        *(builtin_tools() if agent.has_builtin_tools else ()),
        *(tool for tool in offered if tool.name not in own),
    )
    gate = Gate(
        tools=tools,
        policy=Policy(agent.grants),
        recorder=context.record,
        ports=context.ports,
        deadlines=context.deadlines,
        files=context.files,
        session_id=context.session_id,
        keep_result=context.keep_result,
    )
    async with factory(context.ports, context.deadlines) as model:
        yield GraphAdapter(agent, context, gate, config, model, skills, memory)


@final
class GraphAdapter(Adapter):
    """The adapter of one session. Made by calling a :class:`GraphAgent`."""

    def __init__(
        self,
        agent: GraphAgent,
        context: AdapterContext,
        gate: Gate,
        config: AgentConfig,
        model: Model,
        skills: Skills,
        memory: MemorySearch,
    ) -> None:
        self._agent = agent
        self._context = context
        self._gate = gate
        self._config = config
        self._model = model
        self._opened_with = config.model
        self._skills = skills
        self._memory = memory

    async def handle(self, run: ActiveRun) -> None:
        """Drive one run."""
        try:
            if self._config.model == self._opened_with:
                await self._respond(run, self._model)
            else:  # changed since: opened for this run, so that no other run shares it
                factory = self._agent.resolve(self._config.model)
                async with factory(self._context.ports, self._context.deadlines) as model:
                    await self._respond(run, model)
        except SemibotError as exc:
            await run.fail(exc)

    async def update_config(self, patch: JsonObject) -> None:
        """Change model, prompt or sampling, or which skills the host offers.

        Args:
            patch: ``{"agent_config": {...}, "skill_index": [...]}``; either may be missing.
        """
        config = self._config.changed_by(patch)
        self._agent.resolve(config.model)
        await self._skills.offer(patch)
        self._config = config

    async def _respond(self, run: ActiveRun, model: Model) -> None:
        context = self._context
        actor = Actor(
            run=run,
            gate=self._gate,
            deadlines=context.deadlines,
            max_parallel=self._agent.max_parallel,
            skill_names=self._skills.names,
            workspace=context.workspace,
        )
        await GraphRun(
            run=run,
            model=model,
            actor=actor,
            tools=self._specs(),
            config=self._config,
            system_prompt=self._system_prompt(),
            ports=context.ports,
            max_iterations=self._agent.max_iterations,
            max_replans=self._agent.max_replans,
        ).respond()

    def _system_prompt(self) -> str:
        lines = [self._config.system_prompt or DEFAULT_PROMPT]
        today = self._context.ports.wall_clock.now().date().isoformat()
        lines.append(f"Today is {today} (UTC).")
        lines += self._skills.describe()
        return "\n".join(lines)

    def _specs(self) -> tuple[ToolSpec, ...]:
        """Return what the model may call; what could only fail is not among it."""
        own = {tool.name for tool in self._agent.tools}
        idle = {USE_SKILL} if not self._skills else set[str]()
        if not self._memory.is_supported:
            idle.add(SEARCH_MEMORY)
        return tuple(spec for spec in self._gate.specs() if spec.name not in idle - own)
