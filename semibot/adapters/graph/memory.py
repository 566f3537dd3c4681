"""What was said or learned earlier, for the model to search (``memory_search``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, final

from semibot.errors import RequestFailed, ToolError
from semibot.session import AdapterContext
from semibot.tools import Tool, tool
from semibot.wire.codec import JsonObject, JsonValue

SEARCH_MEMORY: Final = "search_memory"
"""Name of the tool that searches."""

MAX_HITS: Final = 20
"""Most memories that are returned."""

MAX_QUERY: Final = 4000
"""Longest query, in characters; a longer one is cut."""

MAX_CONTENT: Final = 2000
"""Most characters of one memory that the model is told."""


@final
class MemorySearch:
    """The tool ``search_memory`` of one session.

    The host answers it on a VM; in process the session's own short-term memory does.

    Args:
        context: The session's.
    """

    def __init__(self, context: AdapterContext) -> None:
        self._context = context
        self.is_supported = True
        """False once a control plane has said that it cannot search."""

    def tool(self) -> Tool:
        """Return the tool."""

        @tool(name=SEARCH_MEMORY, is_parallel_safe=True)
        async def search_memory(query: str, top_k: int = 5) -> list[JsonObject]:
            """Search what is remembered from earlier, best match first.

            Args:
                query: Words to look for.
                top_k: How many matches, 1 to 20.
            """
            if not query.strip():
                raise ToolError("what is to be looked for? the query is blank")
            params: JsonObject = {
                "query": query[:MAX_QUERY],
                "top_k": max(1, min(top_k, MAX_HITS)),
            }
            try:
                answer = await self._context.control_plane.request(
                    self._context.session_id, "memory_search", params
                )
            except RequestFailed as exc:
                if exc.code == "UNSUPPORTED_METHOD":
                    self.is_supported = False
                raise ToolError(f"the memory cannot be searched: {exc}") from exc
            return _hits(answer)

        return search_memory


def _hits(answer: JsonValue) -> list[JsonObject]:
    """Return what can be read of an answer."""
    results = answer.get("results") if isinstance(answer, Mapping) else None
    if isinstance(results, str) or not isinstance(results, Sequence):
        raise ToolError("the memory cannot be searched: the host's answer makes no sense")
    hits: list[JsonObject] = []
    for item in results[:MAX_HITS]:
        content = item.get("content") if isinstance(item, Mapping) else None
        if isinstance(item, Mapping) and isinstance(content, str):
            score = item.get("score")
            is_number = isinstance(score, (int, float)) and not isinstance(score, bool)
            said: JsonObject = {"content": content[:MAX_CONTENT]}
            hits.append({**said, "score": score} if is_number else said)
    return hits
