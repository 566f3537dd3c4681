"""An adapter of your own: a scope, and a method that drives one run at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

import semibot
from semibot.wire.codec import JsonObject


class Counter(semibot.Adapter):
    """Counts, one number per tick, and remembers how far it got."""

    def __init__(self, start: int) -> None:
        self.number = start

    async def handle(self, run: semibot.ActiveRun) -> None:
        """Count as far as the message says."""
        for _ in range(int(run.message)):
            await trio.sleep(0.05)  # a cancel arrives here: no method to write
            self.number += 1
            await run.emit(semibot.TextChunk(content=f"{self.number} "))
        await run.complete()

    async def get_snapshot(self) -> JsonObject:
        """Return what the next opening of the session needs."""
        return {"number": self.number}  # back in context.snapshot at the next opening


@asynccontextmanager
async def open_counter(context: semibot.AdapterContext) -> AsyncIterator[semibot.Adapter]:
    start = (context.snapshot or {}).get("number", 0)
    yield Counter(start if isinstance(start, int) else 0)


async def main() -> None:
    async with semibot.open_session(open_counter) as session:
        for message in ("3", "2"):
            async with session.run(message) as run:
                await run.wait()
            print(run.text)
        async with session.run("not a number") as run:
            await run.wait()
        print(run.outcome, run.terminal)


if __name__ == "__main__":
    trio.run(main)
