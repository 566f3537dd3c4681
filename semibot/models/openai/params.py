"""Say a request in the words of the chat-completions API. Pure; imports only types."""

from __future__ import annotations

from typing import TYPE_CHECKING

from semibot.wire.chat import Message, ToolCallRequest, ToolSpec

if TYPE_CHECKING:
    from openai.types.chat import (
        ChatCompletionFunctionToolParam,
        ChatCompletionMessageFunctionToolCallParam,
        ChatCompletionMessageParam,
    )


def message_param(message: Message) -> ChatCompletionMessageParam:
    """Return *message* as the API wants it. Names of participants are left out."""
    match message.role:
        case "system":
            return {"role": "system", "content": message.content}
        case "user":
            return {"role": "user", "content": message.content}
        case "tool":
            return {
                "role": "tool",
                "tool_call_id": message.tool_call_id or "",
                "content": message.content,
            }
        case _:
            if not message.tool_calls:
                return {"role": "assistant", "content": message.content}
            return {
                "role": "assistant",
                "content": message.content or None,
                "tool_calls": [_call_param(call) for call in message.tool_calls],
            }


def tool_param(tool: ToolSpec) -> ChatCompletionFunctionToolParam:
    """Return *tool* as the API wants it."""
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": dict(tool.parameters),
        },
    }


def _call_param(call: ToolCallRequest) -> ChatCompletionMessageFunctionToolCallParam:
    return {
        "id": call.id,
        "type": "function",
        "function": {"name": call.name, "arguments": call.arguments},
    }
