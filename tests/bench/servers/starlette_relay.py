"""A relay as anybody would write it with Starlette, on uvicorn with all its accelerators.

Nothing is checked, acknowledged, kept or replayed. Prints ``listening on PORT``.
"""

from __future__ import annotations

import asyncio
import json
import socket

import uvicorn
from parent import end_with_parent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

readers: dict[str, list[asyncio.Queue]] = {}


async def vm(websocket: WebSocket) -> None:
    await websocket.accept()
    try:
        while True:
            frame = json.loads(await websocket.receive_text())
            for event in frame["frames"] if frame["type"] == "batch" else [frame]:
                for queue in readers.get(event["session_id"], ()):
                    queue.put_nowait(event)
    except WebSocketDisconnect:
        return


async def stream(request: Request) -> StreamingResponse:
    session_id = request.path_params["session_id"]
    queue: asyncio.Queue = asyncio.Queue()
    readers.setdefault(session_id, []).append(queue)

    async def events():
        try:
            yield b": hello\n\n"
            while True:
                event = await queue.get()
                lines = f"id: {event['term']}-{event['seq']}\nevent: message\ndata: "
                yield f"{lines}{event['data']}\n\n".encode()
        finally:
            readers[session_id].remove(queue)

    return StreamingResponse(events(), media_type="text/event-stream")


app = Starlette(routes=[WebSocketRoute("/ws/vm", vm), Route("/stream/{session_id}", stream)])

if __name__ == "__main__":
    end_with_parent()
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    print("listening on", listener.getsockname()[1], flush=True)
    # `auto` takes uvloop, httptools and websockets where they are installed.
    config = uvicorn.Config(app, log_level="error", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])
