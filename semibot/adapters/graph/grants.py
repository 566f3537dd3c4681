"""Read the grants that people write for the built-in tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from semibot.tools import Grant, Policy
from semibot.tools.builtin import builtin_tools
from semibot.wire.codec import JsonObject


def parse_grants(names: Sequence[str]) -> list[Grant]:
    """Return the grants that *names* mean, so that a mistyped one is refused early.

    Args:
        names: Such as ``write``, ``run:PROGRAM`` or ``write:DIRECTORY``.

    Raises:
        UsageError: If one makes no sense, or names no built-in tool.
    """
    parsed = [Grant.parse(name) for name in names]
    Policy(parsed).check({tool.name: _parameters(tool.parameters) for tool in builtin_tools()})
    return parsed


def _parameters(schema: JsonObject) -> frozenset[str]:
    properties = schema.get("properties")
    return frozenset(properties) if isinstance(properties, Mapping) else frozenset()
