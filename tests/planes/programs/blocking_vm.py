"""A VM whose agent does what agents must not: ``block 20`` holds the event loop up for 20 s."""

from __future__ import annotations

import sys
import tempfile
import time

import trio

import semibot
from semibot.live import live_ports
from semibot.observe.watchdog import open_watchdog
from semibot.testing import adapter_from


async def careless(run: semibot.ActiveRun) -> None:
    word, seconds = run.message.split()
    assert word == "block"
    hold_up(float(seconds))
    await run.complete("done")


def hold_up(seconds: float) -> None:
    time.sleep(seconds)


async def main(url: str, token: str) -> None:
    ports = live_ports()
    async with (
        open_watchdog(ports) as watchdog,
        semibot.open_control_channel(
            url, user_id="local", token=token, ports=ports, watchdog=watchdog
        ) as channel,
        semibot.open_session_manager(
            channel,
            adapters={"graph": adapter_from(careless)},
            workspace=tempfile.gettempdir(),
            ports=ports,
        ),
    ):
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
