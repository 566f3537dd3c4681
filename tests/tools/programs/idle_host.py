"""Open a child, let every worker thread retire, and see whether the child still answers."""
# What it prints is its answer.
# ruff: noqa: T201

from __future__ import annotations

import os
import threading

import trio
from trio._core import _thread_cache

from semibot.config import Deadlines
from semibot.live import live_ports
from semibot.tools.processes import open_child

# Long enough for the thread to see the start of the child through, as it does in earnest.
assert _thread_cache.IDLE_TIMEOUT > 0.3
_thread_cache.IDLE_TIMEOUT = 0.3


async def main():
    environment = {"PATH": os.environ["PATH"]}
    async with open_child(
        ["cat"], ports=live_ports(), deadlines=Deadlines(), environment=environment
    ) as child:
        with trio.fail_after(5):
            while threading.active_count() > 1:  # noqa: ASYNC110 - threads end without an event
                await trio.sleep(0.005)
            await child.send(b"still here\n")
            print(await child.receive_some())


trio.run(main)
