"""What a graph agent can be told: by its maker, by a session's payload, by a patch."""

from __future__ import annotations

import attrs

from semibot.errors import RemoteProtocolError, UsageError
from semibot.wire.codec import JsonObject, structure

DEFAULT_PROMPT = (
    "You are a careful assistant working in one directory of the user's machine. "
    "Use the tools when they help; never claim to have read, changed or run anything that "
    "a tool result does not show. If a tool is denied, tell the user what it would take to "
    "allow it. Answer in the user's language, briefly."
)
"""System prompt of an agent that was given none."""


@attrs.frozen(kw_only=True)
class AgentConfig:
    """The part of a configuration that may change between two runs; None keeps what was."""

    system_prompt: str | None = None
    """What the model is told first."""
    model: str | None = None
    """Model to use, such as ``openai:gpt-5``."""
    temperature: float | None = None
    """Sampling temperature, 0 to 2."""
    max_tokens: int | None = None
    """Most tokens of one reply."""

    def changed_by(self, source: JsonObject) -> AgentConfig:
        """Return this configuration with the ``agent_config`` of *source* on top.

        Args:
            source: A session's payload or a patch.

        Raises:
            UsageError: If a field is of the wrong type; nothing changes then.
        """
        given = source.get("agent_config")
        if given is None:
            return self
        try:
            new = structure(given, AgentConfig)
        except RemoteProtocolError as exc:
            raise UsageError(f"agent_config is refused: {exc}") from exc
        changes = attrs.asdict(new, filter=lambda _, value: value is not None)
        return attrs.evolve(self, **changes)
