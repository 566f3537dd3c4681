"""The skills of one session: directories of the workspace, and what the host offers.

The host says with ``start_session`` which skills there are; a package is asked for when the
model first wants to read it, and then kept for the session, in memory only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, final

import trio

from semibot.errors import RemoteProtocolError, RequestFailed, ToolError
from semibot.session import AdapterContext
from semibot.tools import Tool, ToolContext, tool
from semibot.wire.codec import JsonObject, JsonValue
from semibot.workspace.packages import SkillPackage, unpack
from semibot.workspace.skills import (
    CURRENT_VERSION,
    Skill,
    read_index,
    read_skill_file,
    usable_skills,
)

USE_SKILL: Final = "use_skill"
"""Name of the tool that reads skills."""

MAX_PACKAGES: Final = 32
"""How many packages of the host are kept; the oldest go first."""

MAX_LISTED: Final = 64
"""How many skills the model is told about in words; of others it is told the id."""

MAX_DESCRIPTION: Final = 500
"""Most characters of a description that the model is told."""


@final
class Skills:
    """What can be read with ``use_skill``.

    A skill of the workspace hides one of the host with the same id.

    Args:
        context: The session's; its ``skills`` are those of the workspace.
    """

    def __init__(self, context: AdapterContext) -> None:
        self._context = context
        self._skills: dict[str, Skill] = {skill.id: skill for skill in context.skills}
        self._packages: dict[str, SkillPackage] = {}
        self._fetching = trio.Lock()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._skills)

    @property
    def names(self) -> Mapping[str, str]:
        """Their names by id."""
        return {skill.id: skill.name for skill in self._skills.values()}

    async def offer(self, source: JsonObject) -> None:
        """Take the ``skill_index`` of a payload or patch, in place of an earlier one.

        Entries whose requirements are not met here are dropped, and so is what makes no
        sense.

        Args:
            source: The payload or patch; without an index nothing changes.
        """
        if "skill_index" not in source:
            return
        index = read_index(source["skill_index"])
        usable = await self._context.ports.threads.run_sync(
            self._usable, index, limiter="files", abandon_on_cancel=True
        )
        local = {skill.id: skill for skill in self._context.skills}
        self._skills = {**{skill.id: skill for skill in usable}, **local}
        self._packages.clear()

    def _usable(self, skills: tuple[Skill, ...]) -> tuple[Skill, ...]:
        return usable_skills(skills, environment=self._context.ports.environment)

    def describe(self) -> list[str]:
        """Return the lines that tell a model about them; none if there are none."""
        if not self._skills:
            return []
        listed = list(self._skills.values())
        lines = ["Skills, to be read with use_skill before you rely on them:"]
        lines += [
            f"- {skill.id}: {skill.name}. {skill.description[:MAX_DESCRIPTION]}"
            for skill in listed[:MAX_LISTED]
        ]
        if more := [skill.id for skill in listed[MAX_LISTED:]]:
            lines.append(f"- more: {', '.join(more)}")
        return lines

    def tool(self) -> Tool:
        """Return the tool that reads a skill's instructions and what lies beside them."""

        @tool(name=USE_SKILL, kind="skill", is_parallel_safe=True)
        async def use_skill(context: ToolContext, skill_id: str, file: str = "SKILL.md") -> str:
            """Read the instructions of a skill, or another file that they name.

            Args:
                context: The call.
                skill_id: Identifier from the list of skills.
                file: Path below the skill's directory.
            """
            skill = self._skills.get(skill_id)
            if skill is None:
                known = ", ".join(self._skills) or "none"
                raise ToolError(f"there is no skill {skill_id[:80]!r}; there are: {known}")
            if skill.directory is not None:
                return await context.run_blocking(read_skill_file, skill, file)
            return (await self._package(skill)).read(file)

        return use_skill

    async def _package(self, skill: Skill) -> SkillPackage:
        """Return a skill's files, from the host if need be; ``tool.limit`` bounds it."""
        async with self._fetching:  # so that each is asked for once
            if (known := self._packages.get(skill.id)) is not None:
                return known
            params: dict[str, JsonValue] = {"skill_id": skill.id}
            if skill.version != CURRENT_VERSION:
                params["version"] = skill.version
            try:
                answer = await self._context.control_plane.request(
                    self._context.session_id, "get_skill_package", params
                )
                package = unpack(answer, skill.id)
            except RequestFailed as exc:
                raise ToolError(f"the host does not hand out {skill.id}: {exc}") from exc
            except RemoteProtocolError as exc:
                raise ToolError(f"the host's answer for {skill.id} makes no sense") from exc
            if package is None:
                raise ToolError(f"the host does not have {skill.id} any more; go on without it")
            if self._skills.get(skill.id) is skill:  # else there is a new index meanwhile
                self._packages[skill.id] = package
                if len(self._packages) > MAX_PACKAGES:
                    del self._packages[next(iter(self._packages))]
            return package
