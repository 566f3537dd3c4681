"""Test an adapter of your own under simulation: this one has a bug, and a few seeds find it."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

import semibot
from semibot.testing import simulate


class Echo(semibot.Adapter):
    """Says what it hears, after some thought."""

    def __init__(self) -> None:
        self.words: list[str] = []

    async def handle(self, run: semibot.ActiveRun) -> None:
        """Repeat the message, word by word."""
        for word in run.message.split():
            await trio.sleep(0.2)
            self.words.append(word)
        await run.emit(semibot.TextChunk(content=" ".join(self.words)))
        self.words.clear()  # the bug: a run that is cancelled above never comes here
        await run.complete()


@asynccontextmanager
async def open_echo(_: semibot.AdapterContext) -> AsyncIterator[semibot.Adapter]:
    yield Echo()


def message(draw: random.Random) -> str:
    return " ".join(draw.choices(["ham", "and", "eggs"], k=draw.randint(1, 20)))


def check(question: str, answer: str) -> str | None:
    return None if question == answer else f"{question!r} was answered with {answer!r}"


def main() -> None:
    for seed in range(1, 21):
        report = simulate(seed, minutes=1, adapter=open_echo, message=message, check=check)
        if report.violations:
            print("seed", seed, report.violations[0].text)
            break


if __name__ == "__main__":
    main()
