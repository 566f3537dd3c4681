"""An agent in ten lines: it looks at a file in this directory and streams its answer.

Without OPENAI_API_KEY or OPENAI_BASE_URL a demonstration answers instead of a model.
"""

from __future__ import annotations

import trio

import semibot


async def main() -> None:
    async with semibot.open_session(semibot.GraphAgent(), workspace=".") as session:
        with trio.move_on_after(30):
            async with session.run("What is in README.md?") as run:
                async for event in run.events:
                    match event:
                        case semibot.TextChunk(content=text):
                            print(text, end="", flush=True)
        print(f"\n{session.last_run.outcome}")


if __name__ == "__main__":
    trio.run(main)
