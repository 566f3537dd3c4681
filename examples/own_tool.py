"""A tool of your own: any typed function; its docstring is what the model reads.

The model here is scripted, so that the example runs without a key.
"""

from __future__ import annotations

from typing import Literal

import trio

import semibot
from semibot.models import Call, Say, scripted_model, tool_request


@semibot.tool(is_parallel_safe=True, limit=5)
async def weather(
    city: str, unit: Literal["celsius", "fahrenheit"] = "celsius"
) -> dict[str, object]:
    """Tell the weather of today.

    Args:
        city: Name of the city.
        unit: Unit of the temperature.
    """
    await trio.sleep(0.1)  # a real one would ask somebody; this is where a cancel arrives
    return {"city": city, "temperature": 12 if unit == "celsius" else 54, "rain": True}


async def main() -> None:
    model = scripted_model(
        [
            Call(
                [
                    tool_request("call-1", "weather", {"city": "Bergen"}),
                    tool_request("call-2", "weather", {"city": "Oslo", "unit": "kelvin"}),
                ]
            ),
            Say("Take an umbrella to Bergen. I do not know about Oslo.", chunk=8),
        ]
    )
    agent = semibot.GraphAgent(model, tools=[weather], has_builtin_tools=False)
    async with semibot.open_session(agent) as session, session.run("Umbrella?") as run:
        async for event in run.events:
            match event:
                case semibot.ToolCallComplete(tool_name=name, success=True, result=result):
                    print(f"[{name}: {result}]")
                case semibot.ToolCallComplete(tool_name=name, error=error):
                    print(f"[{name} did not work: {error}]")
                case semibot.TextChunk(content=text):
                    print(text, end="", flush=True)
                case _:
                    pass
    print()


if __name__ == "__main__":
    trio.run(main)
