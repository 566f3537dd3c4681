"""Run an agent that is a program of its own: ``bridge_child.py``, over its pipes."""

from __future__ import annotations

import sys
from pathlib import Path

import trio

import semibot

CHILD = Path(__file__).with_name("bridge_child.py")


async def main() -> None:
    agent = semibot.BridgeAgent([sys.executable, str(CHILD)])
    async with semibot.open_session(agent) as session:
        async with session.run("hello from the other side") as run:
            async for event in run.events:
                match event:
                    case semibot.TextChunk(content=text):
                        print(text, end="", flush=True)
                    case _:
                        pass
        print(f"\n{run.outcome}")

        async with session.run("a long story that nobody wants to hear to its end") as run:
            async for event in run.events:
                if isinstance(event, semibot.TextChunk):
                    break  # leaving the block early cancels the run
        print(f"said {run.text!r}, then {run.outcome}")


if __name__ == "__main__":
    trio.run(main)
