"""A host inside a program of your own: it shares the program's tasks, and ends with its block.

The program here also is the host's one client: it sends a message over HTTP and prints the
answer. Without OPENAI_API_KEY or OPENAI_BASE_URL a demonstration answers.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import httpx2
import trio

import semibot
from semibot.host.server import open_server
from semibot.live import live_ports
from semibot.wire.codec import load_json
from semibot.wire.sse import SseDecoder


async def ask(url: str, message: str) -> None:
    """Send a message and print the answer as it comes."""
    decoder = SseDecoder()
    async with (
        httpx2.AsyncClient(base_url=url, timeout=None, trust_env=False) as http,
        http.stream("POST", "/api/v1/chat/start", json={"message": message}) as response,
    ):
        response.raise_for_status()
        async for data in response.aiter_bytes():
            for item in decoder.feed(data):
                match load_json(item.data):
                    case {"type": "text_chunk", "content": str(text)}:
                        print(text, end="", flush=True)
                    case {"type": "execution_complete"}:
                        print("\ncompleted")
                    case _:
                        pass


async def serve_the_rest() -> None:
    """Stand for what else your service does."""
    await trio.sleep_forever()


async def main() -> None:
    ports = live_ports()
    with tempfile.TemporaryDirectory() as directory:
        settings = semibot.HostSettings(
            data_dir=Path(directory) / "data",
            environment=dict(os.environ),  # VMs get an allow-listed part of it
        )
        async with trio.open_nursery() as nursery, semibot.open_host(settings) as host:
            nursery.start_soon(serve_the_rest)
            async with open_server(
                host.asgi, settings.host, 0, deadlines=settings.deadlines, ports=ports
            ) as server:
                url = f"http://127.0.0.1:{server.port}"
                await host.announce(url)  # starts the local user's VM, too
                await ask(url, "What is here?")
                await host.drain()
            nursery.cancel_scope.cancel("the service ends")


if __name__ == "__main__":
    trio.run(main)
