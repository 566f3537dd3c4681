"""A plane inside a program of your own: a link to a host, and sessions driven by your adapter.

The host is in this program as well, so that the example needs nothing else. Elsewhere it is a
``semibot serve``, and the token comes from whoever runs that.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import trio

import semibot
from semibot.host.server import open_server
from semibot.live import live_ports


class Echo(semibot.Adapter):
    """Says every message back, a word at a time."""

    async def handle(self, run: semibot.ActiveRun) -> None:
        """Answer one message."""
        for word in run.message.split():
            await run.emit(semibot.TextChunk(content=f"{word}! "))
        await run.complete()


@asynccontextmanager
async def open_echo(context: semibot.AdapterContext) -> AsyncIterator[semibot.Adapter]:
    yield Echo()


async def run_plane(url: str, token: str, directory: Path, host: semibot.Host) -> None:
    async with (
        semibot.open_control_channel(
            url.replace("http", "ws", 1) + "/ws/vm",
            user_id="local",
            token=token,
            state_dir=directory / "plane",  # reports survive a crash here
        ) as channel,
        semibot.open_session_manager(channel, adapters={"graph": open_echo}, workspace=directory),
    ):
        await channel.wait_up()
        print(f"the link is {channel.status.state}, level {channel.status.level}")
        await host.announce(url)
        async with httpx2.AsyncClient(base_url=url, timeout=None, trust_env=False) as http:
            answer = await http.post("/api/v1/chat/start", json={"message": "hello from here"})
        print("\n".join(line for line in answer.text.splitlines() if line.startswith("data:")))


async def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        settings = semibot.HostSettings(data_dir=directory / "host")
        make_token = [sys.executable, "-m", "semibot", "admin", "vm-token"]
        made = await trio.run_process(
            [*make_token, "--data-dir", str(settings.data_dir)], capture_stdout=True
        )
        async with (
            semibot.open_host(settings) as host,
            open_server(
                host.asgi, settings.host, 0, deadlines=settings.deadlines, ports=live_ports()
            ) as server,
        ):
            url = f"http://127.0.0.1:{server.port}"
            await run_plane(url, made.stdout.decode().strip(), directory, host)


if __name__ == "__main__":
    trio.run(main)
