"""The channel on real sockets, threads and files."""

from __future__ import annotations

import json

import trio
import trio_websocket

from semibot.channel import open_control_channel


async def test_a_channel_works_on_a_real_socket(tmp_path):
    seen, is_over = [], trio.Event()

    async def serve(request):
        socket = await request.accept()
        auth = json.loads(await socket.get_message())
        data = {"user_id": "u1", "org_id": "o1", "api_keys": {}, "protocol": 2, "epoch": 1}
        await socket.send_message(json.dumps({"type": "init", "data": data}))
        await socket.get_message()
        answer = {"type": "resume_response", "results": {}, "sessions": {}}
        await socket.send_message(json.dumps(answer))
        seen.append((request.path, auth["token"]))
        try:
            while True:
                value = json.loads(await socket.get_message())
                for frame in value.get("frames", [value]):
                    await reply(socket, frame)
        except trio_websocket.ConnectionClosed as closed:
            seen.append(closed.reason.code)
            is_over.set()

    async def reply(socket, frame):
        if frame["type"] == "request":
            answer = {"type": "response", "id": frame["id"], "result": "yes", "error": None}
        elif frame["type"] == "sse_event":
            seen.append(frame["seq"])
            answer = {"type": "ack", "sessions": {frame["session_id"]: frame["seq"]}}
        elif frame["type"] == "fire_and_forget":
            answer = {"type": "ack", "sessions": {}, "ids": [frame["id"]]}
        else:
            answer = {"type": "heartbeat"}
        await socket.send_message(json.dumps(answer))

    async with trio.open_nursery() as nursery:
        server = await nursery.start(trio_websocket.serve_websocket, serve, "127.0.0.1", 0, None)
        url = f"ws://127.0.0.1:{server.port}/ws/vm"
        with trio.fail_after(30):
            async with open_control_channel(
                url, user_id="u1", token="t1", state_dir=tmp_path
            ) as channel:
                await channel.wait_up()
                assert await channel.request("s1", "get_config", {}) == "yes"
                await channel.fire_and_forget("s1", "audit_log", {"event": "x"})
                lane = channel.open_lane("s1", 1, 1)
                for number in range(1, 101):
                    lane.put_event(number, "r1", "{}")
            await is_over.wait()
        nursery.cancel_scope.cancel()
    assert seen == [("/ws/vm?user_id=u1", "t1"), *range(1, 101), 1000]
    assert (tmp_path / "outbox.jsonl").read_bytes() == b""
