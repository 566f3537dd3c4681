"""A VM on a real socket that says exactly what a test wants."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import urlencode

import attrs
import pytest
import trio
import trio_websocket

Frame = dict[str, object]


@attrs.define(eq=False)
class ScriptedVm:
    """One link, from the VM's end."""

    socket: trio_websocket.WebSocketConnection
    began: float
    _queue: list[Frame] = attrs.field(factory=list[Frame], init=False)

    async def say(self, **frame: object) -> None:
        await self.socket.send_message(json.dumps(frame))

    async def hear(self, kind: str) -> Frame:
        """Return the next frame of a type; others are dropped."""
        while True:
            while not self._queue:
                value = json.loads(await self.socket.get_message())
                self._queue += value["frames"] if value["type"] == "batch" else [value]
            frame = self._queue.pop(0)
            if frame["type"] == kind:
                return frame

    async def resume(self, **sessions: object) -> Frame:
        await self.say(type="resume", pending_ids=[], sessions=sessions)
        return await self.hear("resume_response")

    async def close_code(self) -> tuple[int, str, float]:
        """Wait for the host to close; return code, reason, and when that was."""
        with pytest.raises(trio_websocket.ConnectionClosed) as caught:
            while True:
                await self.socket.get_message()
        ended = caught.value.reason
        assert ended is not None, "the connection was cut"
        return ended.code, ended.reason or "", trio.current_time()


@asynccontextmanager
async def open_link(
    port: int,
    token: str | None,
    *,
    boot_id: str = "a" * 32,
    dial: int = 1,
    user_id: str = "local",
    ticket: str | None = None,
) -> AsyncGenerator[ScriptedVm]:
    """Dial a host, and say ``auth`` unless *token* is None; leaving the block cuts the link."""
    query = {"user_id": user_id, **({} if ticket is None else {"ticket": ticket})}
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with trio.open_nursery() as nursery:
        socket = await trio_websocket.wrap_client_stream(
            nursery, stream, f"127.0.0.1:{port}", "/ws/vm?" + urlencode(query)
        )
        vm = ScriptedVm(socket, trio.current_time())
        if token is not None:
            await vm.say(
                type="auth",
                token=token,
                protocol={"min": 1, "max": 2},
                boot_id=boot_id,
                dial=dial,
                features=[],
            )
        yield vm
        nursery.cancel_scope.cancel()
    stream.socket.close()
