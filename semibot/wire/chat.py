"""Messages of a conversation: what histories, checkpoints and models share."""

from __future__ import annotations

from typing import Literal, TypeAlias

import attrs

from semibot.wire.codec import JsonObject

Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
"""Who says a message."""


@attrs.frozen(kw_only=True)
class ToolCallRequest:
    """A tool call that the model asks for."""

    id: str
    """Identifier that the answer must repeat."""
    name: str
    """The tool."""
    arguments: str
    """The arguments as the model wrote them: JSON text, possibly malformed."""


@attrs.frozen(kw_only=True)
class Message:
    """One message of a conversation."""

    role: Role
    """Who says it."""
    content: str
    """What is said; may be empty beside tool calls."""
    tool_calls: tuple[ToolCallRequest, ...] = ()
    """Calls that an assistant message asks for."""
    tool_call_id: str | None = None
    """The call that a ``tool`` message answers."""
    name: str | None = None
    """Name of the tool or participant."""


@attrs.frozen(kw_only=True)
class ToolSpec:
    """What a model is told about a tool."""

    name: str
    """Name to call it by."""
    description: str
    """What it does and when to use it."""
    parameters: JsonObject
    """JSON schema of its arguments, an object schema."""
