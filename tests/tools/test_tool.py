from __future__ import annotations

import ast
import inspect
from pathlib import Path

import attrs
import pytest

import semibot
from semibot.errors import UsageError
from semibot.tools import Tool, ToolContext, tool


@tool
def weather(city: str, days: int = 1) -> str:
    """Look up the weather.

    Args:
        city: Where.
        days: How far ahead.
    """
    return f"{city}: {days}"


@tool(
    name="umbrella-check", is_parallel_safe=True, limit=2.5, is_allowed=False, description="Check."
)
async def umbrella(context: ToolContext) -> bool:
    """Never read."""
    return True


def test_a_typed_function_becomes_a_tool_with_name_schema_and_description():
    assert weather.name == "weather"
    assert weather.description == "Look up the weather."
    assert weather.spec.name == "weather"
    assert weather.spec.description == weather.description
    assert weather.spec.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Where."},
            "days": {"type": "integer", "description": "How far ahead.", "default": 1},
        },
        "required": ["city"],
        "additionalProperties": False,
    }
    assert (weather.is_parallel_safe, weather.limit) == (False, None)
    assert (weather.kind, weather.access) == ("tool", "allowed")


def test_the_decorator_takes_what_the_function_does_not_say():
    assert umbrella.name == "umbrella-check"
    assert umbrella.description == "Check."
    assert (umbrella.is_parallel_safe, umbrella.limit, umbrella.access) == (True, 2.5, "granted")
    assert umbrella.parameters["properties"] == {}  # the context is hidden


def test_a_skill_is_a_tool_of_another_kind():
    @tool(kind="skill")
    def read_skill(name: str) -> str:
        return name

    assert read_skill.kind == "skill"
    assert read_skill.description == "read skill"


def test_a_tool_cannot_be_called():
    with pytest.raises(TypeError, match=r"only a gate runs tools.*gate\.call"):
        weather("Rome", days=2)


def test_a_tool_cannot_be_changed():
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        weather.name = "other"


def test_a_bound_method_can_be_a_tool():
    class Counter:
        def count(self, by: int) -> int:
            return by

    made = tool(Counter().count)
    assert list(made.parameters["properties"]) == ["by"]


def generator():
    yield 1


async def async_generator():
    yield 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tool(lambda: 1), "<lambda>"),
        (lambda: tool(name="no spaces")(weather.spec.__init__), "no spaces"),
        (lambda: tool(name="x" * 65)(generator), "no name for a tool"),
        (lambda: tool(generator), "a generator has no result"),
        (lambda: tool(async_generator), "a generator has no result"),
        (lambda: tool(limit=0)(int_tool), "limit is a number of seconds"),
        (lambda: tool(limit=float("inf"))(int_tool), "limit is a number of seconds"),
        (lambda: tool(limit=float("nan"))(int_tool), "limit is a number of seconds"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_at_decoration(make, message):
    with pytest.raises(UsageError, match=message):
        make()


def int_tool() -> int:
    return 1


def test_the_public_side_of_a_tool_does_not_lead_to_its_function():
    reached: list[object] = [weather, umbrella]
    seen: set[int] = set()
    while reached:
        item = reached.pop()
        if id(item) in seen or isinstance(item, type | str | int | float):
            continue
        seen.add(id(item))
        assert not (inspect.isfunction(item) and item.__module__ == __name__), item
        if isinstance(item, dict):
            reached += item.values()
        elif isinstance(item, list | tuple):
            reached += item
        else:
            names = [name for name in dir(item) if not name.startswith("_")]
            reached += [getattr(item, name) for name in names]
    assert len(seen) > 5
    assert not hasattr(weather, "__wrapped__")


def test_only_the_gate_reaches_the_function_of_a_tool():
    tools = Path(semibot.__file__).parent / "tools"
    users = {
        path.name
        for path in tools.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr == "_body"
    }
    assert users == {"gate.py"}


def test_tools_show_themselves_without_their_function():
    assert "body" not in repr(weather)
    assert isinstance(weather, Tool)
