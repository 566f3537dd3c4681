"""A relay as anybody would write it with quart-trio: a queue per reader, one send per event.

Nothing is checked, acknowledged, kept or replayed. Prints ``listening on PORT``.
"""

from __future__ import annotations

import json
import math
import socket

import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from parent import end_with_parent
from quart import Response, websocket
from quart_trio import QuartTrio

app = QuartTrio(__name__)
readers: dict[str, list[trio.MemorySendChannel]] = {}


@app.websocket("/ws/vm")
async def vm() -> None:
    await websocket.accept()
    while True:
        frame = json.loads(await websocket.receive())
        for event in frame["frames"] if frame["type"] == "batch" else [frame]:
            for queue in readers.get(event["session_id"], ()):
                queue.send_nowait(event)


@app.get("/stream/<session_id>")
async def stream(session_id: str) -> Response:
    send_channel, receive_channel = trio.open_memory_channel(math.inf)
    readers.setdefault(session_id, []).append(send_channel)

    async def events():
        try:
            yield b": hello\n\n"
            async for event in receive_channel:
                lines = f"id: {event['term']}-{event['seq']}\nevent: message\ndata: "
                yield f"{lines}{event['data']}\n\n".encode()
        finally:
            readers[session_id].remove(send_channel)

    response = Response(events(), content_type="text/event-stream")
    response.timeout = None
    return response


if __name__ == "__main__":
    end_with_parent()
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    print("listening on", listener.getsockname()[1], flush=True)
    config = Config()
    config.bind = [f"fd://{listener.fileno()}"]
    config.accesslog = config.errorlog = None
    trio.run(serve, app, config)
