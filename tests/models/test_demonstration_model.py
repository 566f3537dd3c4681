from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from semibot.config import Deadlines
from semibot.models import (
    ModelRequest,
    Reply,
    TextDelta,
    ToolChoice,
    demonstration_model,
    mentioned_path,
    repair_history,
    strict_problems,
)
from semibot.models.demonstration import NOTICE
from semibot.testing import simulated_ports
from semibot.wire.chat import Message, ToolSpec

TOOLS = tuple(
    ToolSpec(name=name, description="", parameters={}) for name in ("read_file", "list_directory")
)


def user(text: str) -> Message:
    return Message(role="user", content=text)


async def ask(
    messages: Sequence[Message],
    tools: tuple[ToolSpec, ...] = TOOLS,
    tool_choice: ToolChoice = "auto",
) -> Reply:
    request = ModelRequest(messages=tuple(messages), tools=tools, tool_choice=tool_choice)
    async with (
        demonstration_model()(simulated_ports(), Deadlines()) as model,
        model.stream(request) as stream,
    ):
        items = [item async for item in stream]
    reply = items[-1]
    assert isinstance(reply, Reply)
    assert model.name == "demonstration"
    pieces = [item.text for item in items if isinstance(item, TextDelta)]
    assert "".join(pieces) == reply.message.content
    assert all(len(piece) <= 12 for piece in pieces)
    return reply


async def converse(question: str, result: str) -> tuple[Reply, Reply]:
    asked = await ask([user(question)])
    (call,) = asked.message.tool_calls
    answer = Message(role="tool", content=result, tool_call_id=call.id)
    return asked, await ask([user(question), asked.message, answer])


async def test_a_named_file_is_read_and_its_first_lines_are_shown() -> None:
    text = "\n".join(f"line {number}" for number in range(1, 9))
    asked, answered = await converse("What does 'notes.txt' say?", text)
    (call,) = asked.message.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("read_file", {"path": "notes.txt"})
    assert NOTICE in answered.message.content
    assert "OPENAI_API_KEY" in answered.message.content
    assert "OPENAI_BASE_URL" in answered.message.content
    assert "read_file on 'notes.txt'" in answered.message.content
    assert "8 lines, of which" in answered.message.content
    assert "line 5" in answered.message.content
    assert "line 6" not in answered.message.content


async def test_without_a_file_the_directory_is_listed_and_counted() -> None:
    asked, answered = await converse("Hello there!", '["a.txt", {"name": "b"}, {"path": "c"}, 4]')
    (call,) = asked.message.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("list_directory", {"path": "."})
    assert "4 entries:\n\na.txt\nb\nc\n4" in answered.message.content


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ('{"path": "x", "entries": ["a", "b"]}', "2 entries:\n\na\nb"),
        ('["a"]', "1 entry:\n\na"),
        ('{"path": "x", "text": "one\\ntwo"}', "2 lines:\n\none\ntwo"),
        ('{"path": "x", "size": 5}', "2 values:\n\npath: x\nsize: 5"),
        ("17", "1 value:\n\n17"),
        ("error: no such file", "1 line:\n\nerror: no such file"),
        ("x" * 900, "x" * 400 + " [...]"),
        ("", "0 lines"),
    ],
)
async def test_results_of_every_shape_are_shown(result: str, shown: str) -> None:
    _, answered = await converse("Read a/b", result)
    assert shown in answered.message.content


@pytest.mark.parametrize("tools", [(), TOOLS])
async def test_without_a_tool_it_still_says_what_it_is(tools: tuple[ToolSpec, ...]) -> None:
    reply = await ask([user("Read a.txt")], tools, "none")
    assert reply.message.tool_calls == ()
    assert reply.message.content.startswith(NOTICE)


def test_the_notice_fits_a_terminal_of_80_columns() -> None:
    assert max(len(line) for line in NOTICE.splitlines()) < 80


async def test_with_only_read_file_it_needs_the_name_of_a_file() -> None:
    reply = await ask([user("Hello")], TOOLS[:1])
    assert reply.message.tool_calls == ()


async def test_a_conversation_of_many_turns_stays_acceptable() -> None:
    messages: list[Message] = []
    for turn in range(4):
        messages.append(user(f"Read file{turn}.txt"))
        asked = await ask(messages)
        (call,) = asked.message.tool_calls
        messages += [
            asked.message,
            Message(role="tool", content=f"text {turn}", tool_call_id=call.id),
        ]
        answered = await ask(messages)
        assert f"text {turn}" in answered.message.content
        assert f"file{turn}.txt" in answered.message.content
        messages.append(answered.message)
        assert strict_problems(messages) == []
    assert repair_history(messages)[-1] == messages[-1]


async def test_a_result_of_an_unknown_call_is_shown_all_the_same() -> None:
    stray = Message(role="tool", content="x", tool_call_id="none", name="other")
    reply = await ask([stray])
    assert "I called other on '.'" in reply.message.content
    assert (await ask([])).message.tool_calls[0].name == "list_directory"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("Read README.md.", "README.md"),
        ("what is in src/main?", "src/main"),
        ("look at `a-b/c_d.tar.gz`, please", "a-b/c_d.tar.gz"),
        ("(see ./x)", "./x"),
        ("my .gitignore", ".gitignore"),
        ("über/größe.txt", "über/größe.txt"),
        ("Hello there. How are you?", None),
        ("It costs 3.50 or 4.", None),
        ("e.g. this, i.e. that ...", None),
        ("see https://example.org/a.txt", None),
        ("and / or", None),
        ("../", None),
        ("", None),
    ],
)
def test_the_first_word_that_looks_like_a_path_is_found(text: str, path: str | None) -> None:
    assert mentioned_path(text) == path
