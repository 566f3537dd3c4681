"""A model for the first start without a key: no language model, but a real tool call.

It reads nothing into the question except the name of a file. It says so, says what to
set, and answers from what the tool really returned. It keeps no state: each reply
follows from the request's messages alone.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

from semibot.config import Deadlines
from semibot.errors import RemoteProtocolError
from semibot.models.base import Model, ModelFactory, ModelRequest
from semibot.models.scripted import Call, Say, ScriptedModel, Turn, tool_request
from semibot.ports import Ports
from semibot.wire.chat import Message
from semibot.wire.codec import JsonObject, JsonValue, dump_json, load_json

NAME: Final = "demonstration"
"""The model's name."""

NOTICE: Final = (
    "This is a demonstration: no language model is connected, so I do not\n"
    "understand your question. To connect one, set OPENAI_API_KEY, or\n"
    "OPENAI_BASE_URL for any compatible server (and SEMIBOT_MODEL to choose a\n"
    "model), then start again."
)
"""What every answer begins with; its lines fit a terminal of 80 columns."""

CHUNK: Final = 12
"""Length of the pieces of an answer, in characters."""

SHOWN_LINES: Final = 5
"""How many lines of a result are shown."""

SHOWN_CHARS: Final = 400
"""How many characters of a result are shown."""

_WORD: Final = re.compile(r"[\w./~\\-]+")
_HAS_SUFFIX: Final = re.compile(r"\w\.[A-Za-z]\w{0,9}$|^\.[A-Za-z]\w*$")
_ABBREVIATIONS: Final = frozenset({"e.g", "i.e", "a.m", "p.m", "z.b", "d.h"})


def demonstration_model() -> ModelFactory:
    """Return a factory for the demonstration model. It needs no key and no network."""

    @asynccontextmanager
    async def open_model(ports: Ports, deadlines: Deadlines) -> AsyncGenerator[Model]:
        yield ScriptedModel(NAME, _choose, deadlines)

    return open_model


def mentioned_path(text: str) -> str | None:
    """Return the first word of *text* that looks like a file's path, or None.

    A path has a slash in it, or ends like ``.txt``; addresses of pages are none.
    """
    for match in _WORD.finditer(text):
        word = match.group().rstrip(".")
        is_address = text[match.end() : match.end() + 3] == "://" or word.startswith("//")
        if is_address or word.lower() in _ABBREVIATIONS or word.strip("/.\\-") == "":
            continue
        if "/" in word or _HAS_SUFFIX.search(word):
            return word
    return None


def _choose(request: ModelRequest) -> Turn:
    question, results = _last_exchange(request.messages)
    if results:
        return _say(_report(request.messages, results[-1]))
    offered = {tool.name for tool in request.tools} if request.tool_choice != "none" else set[str]()
    # Unique in the conversation: the number of its messages has never been this high.
    call_id = f"demonstration_{len(request.messages)}"
    path = mentioned_path(question)
    if path is not None and "read_file" in offered:
        return Call(tool_request(call_id, "read_file", {"path": path}))
    if "list_directory" in offered:
        return Call(tool_request(call_id, "list_directory", {"path": "."}))
    return _say("I was offered no tool that I could show you.")


def _say(text: str) -> Say:
    return Say(f"{NOTICE}\n\n{text}", chunk=CHUNK)


def _last_exchange(messages: Sequence[Message]) -> tuple[str, list[Message]]:
    """Return the last user message's text and the tool results that came after it."""
    results: list[Message] = []
    for message in reversed(messages):
        if message.role == "user":
            return message.content, results[::-1]
        if message.role == "tool":
            results.append(message)
    return "", results[::-1]


def _report(messages: Sequence[Message], result: Message) -> str:
    name, arguments = _call_of(messages, result)
    unit, parts = _parts_of(_decoded(result.content))
    more = "" if len(parts) <= SHOWN_LINES else ", of which I show the first"
    shown = "\n".join(parts[:SHOWN_LINES])
    if len(shown) > SHOWN_CHARS:
        shown = shown[:SHOWN_CHARS] + " [...]"
    return (
        f"Tools do work, though. I called {name} on {arguments.get('path', '.')!r},\n"
        f"and it returned {_count(len(parts), unit)}{more}:\n\n{shown}"
    )


def _count(number: int, unit: str) -> str:
    plural = f"{unit.removesuffix('y')}ies" if unit.endswith("y") else f"{unit}s"
    return f"{number} {unit if number == 1 else plural}"


def _parts_of(value: JsonValue) -> tuple[str, list[str]]:
    """Cut a result into what can be counted, and say what one of it is called."""
    match value:
        case str():
            return "line", value.splitlines()
        case Mapping():
            for inner in value.values():
                if isinstance(inner, Sequence) and (not isinstance(inner, str) or "\n" in inner):
                    return _parts_of(inner)
            return "value", [f"{key}: {_short(inner)}" for key, inner in value.items()]
        case Sequence():
            return "entry", [_short(item) for item in value]
        case _:
            return "value", [_short(value)]


def _short(value: JsonValue) -> str:
    if isinstance(value, Mapping):
        value = value.get("name", value.get("path", value))
    return value if isinstance(value, str) else dump_json(value)


def _call_of(messages: Sequence[Message], result: Message) -> tuple[str, JsonObject]:
    for message in messages:
        for call in message.tool_calls:
            if call.id == result.tool_call_id:
                arguments = _decoded(call.arguments)
                return call.name, arguments if isinstance(arguments, Mapping) else {}
    return result.name or "the tool", {}


def _decoded(text: str) -> JsonValue:
    try:
        return load_json(text)
    except RemoteProtocolError:
        return text
