"""Answer an adapter's requests where there is no control plane (protocol section 8)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, final

from semibot.errors import RequestFailed
from semibot.logs import get_logger
from semibot.ports import Threads
from semibot.wire.codec import JsonObject, JsonValue

from .memory import ShortTermMemory
from .skills import CURRENT_VERSION, Skill, read_package

log: Final = get_logger(__name__)

DEFAULT_TOP_K: Final = 5
"""How many memories are returned if nobody says."""

MAX_TOP_K: Final = 20
"""Most memories that may be asked for."""


@final
class LocalControlPlane:
    """A control plane made of the session's own memory and skills.

    Args:
        memory: The session's short-term memory.
        skills: The skills on offer.
        threads: Where files are read.
    """

    def __init__(self, memory: ShortTermMemory, skills: Sequence[Skill], threads: Threads) -> None:
        self._memory = memory
        self._skills = {skill.id: skill for skill in skills}
        self._threads = threads

    async def request(self, session_id: str, method: str, params: JsonObject) -> JsonValue:
        """Answer ``memory_search`` and ``get_skill_package``.

        Args:
            session_id: The session.
            method: What is asked.
            params: The details.

        Raises:
            RequestFailed: ``UNSUPPORTED_METHOD`` for other methods, ``BAD_PARAMS``, or
                ``REQUEST_FAILED`` if a file cannot be read.
        """
        try:
            match method:
                case "memory_search":
                    return await self._memory_search(params)
                case "get_skill_package":
                    return await self._get_skill_package(params)
                case _:
                    raise RequestFailed(
                        "UNSUPPORTED_METHOD", f"{method} needs a control plane, and there is none"
                    )
        except OSError as exc:
            log.warning("request failed", session_id=session_id, method=method, error=repr(exc))
            raise RequestFailed("REQUEST_FAILED", f"{method}: {exc.strerror}") from exc

    async def fire_and_forget(self, session_id: str, method: str, params: JsonObject) -> None:
        """Log that something was reported; nobody is there to take it.

        Args:
            session_id: The session.
            method: What is reported.
            params: The details; they may be private, so they are not logged.
        """
        log.info("report without a control plane", session_id=session_id, method=method)

    async def _memory_search(self, params: JsonObject) -> JsonObject:
        query = params.get("query")
        if not isinstance(query, str):
            raise RequestFailed("BAD_PARAMS", "query must be a string")
        top_k = params.get("top_k", DEFAULT_TOP_K)
        if type(top_k) is not int or not 1 <= top_k <= MAX_TOP_K:
            raise RequestFailed("BAD_PARAMS", f"top_k must be an integer from 1 to {MAX_TOP_K}")
        hits = await self._threads.run_sync(
            self._memory.search, query, top_k, limiter="files", abandon_on_cancel=True
        )
        return {
            "results": [
                {
                    "content": hit.entry.text,
                    "score": hit.score,
                    "metadata": {"role": hit.entry.role, "created_at": hit.entry.when},
                }
                for hit in hits
            ]
        }

    async def _get_skill_package(self, params: JsonObject) -> JsonObject:
        skill_id = params.get("skill_id")
        if not isinstance(skill_id, str):
            raise RequestFailed("BAD_PARAMS", "skill_id must be a string")
        version = params.get("version")
        if version is not None and not isinstance(version, str):
            raise RequestFailed("BAD_PARAMS", "version must be a string")
        skill = self._skills.get(skill_id)
        if skill is None or version not in {None, "latest", CURRENT_VERSION, skill.version}:
            return {"package": None}
        package = await self._threads.run_sync(
            read_package, skill, limiter="files", abandon_on_cancel=True
        )
        return {"package": package}
