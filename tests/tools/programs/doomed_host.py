"""Open children that resist every polite request, and wait to be killed.

The argument is how: "settled" says "ready" once they run, "forked" too, but leaves a forked
copy of this process alive, and "starting" opens more and more of them.
"""
# What it prints is its answer.
# ruff: noqa: T201

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import structlog
import trio

from semibot.config import Deadlines
from semibot.live import live_ports
from semibot.tools.processes import open_child, run_child

how, mark = sys.argv[1:]
structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
PROGRAMS = Path(__file__).parent
PORTS = live_ports()
DEADLINES = Deadlines()
SLEEPER = "import time; time.sleep(1000)"


def python(*words):
    return [sys.executable, "-I", "-S", *words, mark]


async def hold(argv, task_status=trio.TASK_STATUS_IGNORED):
    async with open_child(argv, ports=PORTS, deadlines=DEADLINES, environment={}) as child:
        assert await child.receive_some() == b"up\n"
        task_status.started()
        await trio.sleep_forever()


async def main():
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            lambda: run_child(
                python("-c", SLEEPER), ports=PORTS, deadlines=DEADLINES, environment={}
            )
        )
        if how == "starting":
            print("ready", flush=True)
        while True:
            await nursery.start(hold, python(str(PROGRAMS / "rude.py")))
            await nursery.start(hold, python(str(PROGRAMS / "forker.py")))
            if how == "settled":
                print("ready", flush=True)
                await trio.sleep_forever()
            if how == "forked":
                copy = os.fork()
                if copy == 0:
                    while True:
                        signal.pause()
                print("ready", copy, flush=True)
                await trio.sleep_forever()


trio.run(main)
