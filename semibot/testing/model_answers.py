"""What a fake model server does with a request: values, and their bytes. Does no I/O.

An :class:`Answer` is a list of steps, and each step is one thing on the connection: a
piece of text, a held gate, a cut. :func:`say` and :func:`call_tools` write the usual
lists; tests of faults write their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import attrs
import trio

from semibot.wire.codec import JsonObject, JsonValue, dump_json


@attrs.frozen
class Text:
    """Send a piece of the answer's text."""

    text: str
    """The piece."""


@attrs.frozen
class Reasoning:
    """Send a piece of reasoning."""

    text: str
    """The piece."""
    field: str = "reasoning_content"
    """Name of the field; other servers call it ``reasoning``."""


@attrs.frozen
class ToolPiece:
    """Send a piece of a tool call."""

    arguments: str = ""
    """Piece of the arguments' JSON text."""
    name: str | None = attrs.field(default=None, kw_only=True)
    """The tool, in a call's first piece."""
    id: str | None = attrs.field(default=None, kw_only=True)
    """The call's id, in its first piece."""
    index: int | None = attrs.field(default=0, kw_only=True)
    """Which call the piece belongs to, from 0; None leaves it out."""


@attrs.frozen
class Finish:
    """Say why the model stops."""

    reason: str = "stop"
    """The reason."""


@attrs.frozen
class Tokens:
    """Report usage, in a chunk of its own as OpenAI does."""

    prompt: int = 11
    """Tokens read."""
    completion: int = 7
    """Tokens written."""


@attrs.frozen
class Done:
    """Send the mark that ends the stream of events."""


@attrs.frozen
class Raw:
    """Send bytes as they are, such as a malformed chunk."""

    data: bytes
    """The bytes."""


@attrs.frozen
class Pause:
    """Wait."""

    seconds: float
    """How long, in seconds."""


@attrs.frozen
class Gate:
    """Wait for a test to go on."""

    event: trio.Event
    """What to wait for."""


@attrs.frozen
class Hang:
    """Wait until the peer closes the connection."""


@attrs.frozen
class Cut:
    """Close the connection here, without ending the body."""

    is_reset: bool = False
    """Whether the peer sees a reset (RST) and not an orderly end (FIN)."""


Step: TypeAlias = (
    Text | Reasoning | ToolPiece | Finish | Tokens | Done | Raw | Pause | Gate | Hang | Cut
)
"""One thing to do on the connection."""


@attrs.frozen(kw_only=True)
class Answer:
    """Answer with status 200 and a stream of events."""

    steps: tuple[Step, ...]
    """What to do after the head, in order."""
    before: tuple[Step, ...] = ()
    """What to do before the head: a pause, a gate, a hang or a cut."""
    framing: Literal["chunked", "close"] = "chunked"
    """How the body ends: by its framing, or by closing the connection."""
    content_type: str = "text/event-stream"
    """Type of the body."""


@attrs.frozen(kw_only=True)
class Refusal:
    """Answer with another status."""

    status: int
    """The status."""
    error: JsonValue = None
    """The ``error`` object of the body."""
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])
    """Additional headers, such as ``Retry-After``."""


Behaviour: TypeAlias = Answer | Refusal
"""What to do with one request."""


def say(*texts: str, delay: float = 0.0, reasoning: str = "") -> Answer:
    """Return the answer that says *texts*, each in a chunk of its own.

    Args:
        *texts: The pieces.
        delay: Pause before each piece, in seconds.
        reasoning: What the model thinks first.
    """
    steps: list[Step] = [Reasoning(reasoning)] if reasoning else []
    for text in texts:
        if delay:
            steps.append(Pause(delay))
        steps.append(Text(text))
    return Answer(steps=(*steps, Finish(), Tokens(completion=len(texts)), Done()))


def call_tools(
    *calls: tuple[str, JsonObject | str], text: str = "", prefix: str = "call"
) -> Answer:
    """Return the answer that asks for *calls*, each in two pieces as OpenAI does.

    Args:
        *calls: Tool and arguments; a string is sent as it is, malformed or not.
        text: What to say beside the calls.
        prefix: What the calls' ids begin with; they are counted from 0.
    """
    steps: list[Step] = [Text(text)] if text else []
    for index, (name, arguments) in enumerate(calls):
        whole = arguments if isinstance(arguments, str) else dump_json(arguments)
        steps.append(ToolPiece(name=name, id=f"{prefix}_{index}", index=index))
        steps.append(ToolPiece(whole, index=index))
    return Answer(steps=(*steps, Finish("tool_calls"), Tokens(), Done()))


# --- bytes ----------------------------------------------------------------------------

_DONE: Final = b"data: [DONE]\n\n"


def encode_step(step: Step, model: str) -> bytes:
    """Return what *step* puts into the stream of events; waits and cuts put nothing.

    Args:
        step: The step.
        model: Name of the model, which every chunk repeats.
    """
    match step:
        case Text(text=text):
            return _delta({"content": text}, model)
        case Reasoning(text=text, field=field):
            return _delta({field: text}, model)
        case ToolPiece():
            return _delta({"tool_calls": [_tool_piece(step)]}, model)
        case Finish(reason=reason):
            return _chunk([{"index": 0, "delta": {}, "finish_reason": reason}], model)
        case Tokens(prompt=prompt, completion=completion):
            total = prompt + completion
            return _chunk(
                [],
                model,
                usage={
                    "prompt_tokens": prompt,
                    "completion_tokens": completion,
                    "total_tokens": total,
                },
            )
        case Done():
            return _DONE
        case Raw(data=data):
            return data
        case Pause() | Gate() | Hang() | Cut():
            return b""


def _tool_piece(step: ToolPiece) -> JsonObject:
    function: dict[str, JsonValue] = {"arguments": step.arguments}
    if step.name is not None:
        function["name"] = step.name
    piece: dict[str, JsonValue] = {"function": function}
    if step.index is not None:
        piece["index"] = step.index
    if step.id is not None:
        piece |= {"id": step.id, "type": "function"}
    return piece


def _delta(delta: JsonObject, model: str) -> bytes:
    return _chunk([{"index": 0, "delta": delta, "finish_reason": None}], model)


def _chunk(choices: JsonValue, model: str, usage: JsonObject | None = None) -> bytes:
    chunk: dict[str, JsonValue] = {
        "id": "chatcmpl-fake",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": model,
        "choices": choices,
    }
    if usage is not None:
        chunk["usage"] = usage
    return b"data: " + dump_json(chunk).encode() + b"\n\n"
