"""A program with three agents at work: a command, a rude bridge, and one that forks twice.

Says ``ready`` once all of them run; then it waits to be killed.
"""

from __future__ import annotations

import sys

import trio
from causes import bridge

import semibot
from semibot.models import Call, scripted_model, tool_request
from semibot.session import Session

STUBBORN = (
    "import signal, time\n"
    "for number in (1, 2, 15): signal.signal(number, signal.SIG_IGN)\n"
    "open('command-runs', 'w').close()\n"
    "while True: time.sleep(60)\n"
)


async def main() -> None:
    """Start all three and wait."""
    argv = [sys.executable, "-I", "-S", "-c", STUBBORN]
    command = semibot.GraphAgent(
        scripted_model([Call(tool_request("c", "run_command", {"argv": argv}))]), grants=["run"]
    )
    async with (
        semibot.open_session(command, workspace=".") as commanding,
        semibot.open_session(bridge("rude"), workspace=".") as rude,
        semibot.open_session(bridge("forks"), workspace=".") as forking,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(hold, commanding)
        for session in (rude, forking):
            await nursery.start(hold_until_text, session)
        while not await trio.Path("command-runs").exists():  # noqa: ASYNC110 - the child's word
            await trio.sleep(0.01)
        sys.stdout.write("ready\n")
        sys.stdout.flush()


async def hold(session: Session) -> None:
    """Keep a run going."""
    async with session.run("go") as run:
        await run.wait()


async def hold_until_text(session: Session, *, task_status: trio.TaskStatus) -> None:
    """Keep a run going, and say when it has said something."""
    async with session.run("go") as run:
        async for event in run.events:
            if isinstance(event, semibot.TextChunk):
                task_status.started()


if __name__ == "__main__":
    trio.run(main)
