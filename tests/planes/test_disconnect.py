from __future__ import annotations

import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import trio
from following import Follower, check_reader, check_store
from harness import Plane, open_external_vm, open_plane, seconds_until, wait_vm
from http_client import Exchange, open_exchange

ENDLESS = "stream 100000 0.02"


def cancels(plane: Plane, run_id: str) -> int:
    return len(plane.rows("SELECT * FROM commands WHERE kind = 'cancel' AND run_id = ?", run_id))


async def wait_outcome(plane: Plane, run_id: str) -> object:
    def has_ended() -> bool:
        return plane.rows("SELECT outcome FROM runs WHERE id = ?", run_id) != [(None,)]

    assert await seconds_until(has_ended) is not None
    return plane.rows("SELECT outcome FROM runs WHERE id = ?", run_id)[0][0]


@asynccontextmanager
async def open_run(plane: Plane, message: str, **body: object) -> AsyncGenerator[Follower]:
    """Start a run in a new session, and follow it by its POST."""
    asker = Follower()
    async with trio.open_nursery() as nursery:

        async def post() -> None:
            await plane.start(asker, message, **body)

        nursery.start_soon(post)
        await asker.wait_types("text_chunk", 2)
        yield asker
        nursery.cancel_scope.cancel()


async def receive_until(exchange: Exchange, text: bytes) -> None:
    seen = b""
    while text not in seen:
        data = await exchange.receive()
        assert data, seen
        seen += data


async def test_closing_the_stream_of_a_post_cancels_its_run_once(tmp_path):
    async with open_plane(tmp_path / "plane") as plane:
        async with open_run(plane, ENDLESS) as asker:
            connection = plane.model.requests[-1].connection
            asker.scope.cancel()
            start = trio.current_time()
            asked = await seconds_until(lambda: cancels(plane, asker.run_id) > 0, 1.0)
            assert asked is not None, "no cancel within a second"
            with trio.fail_after(5):
                await connection.peer_closed.wait()
            assert connection.peer_closed_at - start < 2
            assert await wait_outcome(plane, asker.run_id) == "cancelled"
            stored = plane.stored(asker.session_id)
            check_store(stored)
            check_reader(asker.seen, stored)
            assert stored[-1][3]["cancelled"] is True
            # The next message is answered, and nothing was cancelled again.
            again = Follower()
            await plane.say(again, asker.session_id, "stream 2 0")
            assert again.types[-1] == "execution_complete"
            assert cancels(plane, asker.run_id) == 1
            assert cancels(plane, again.run_id) == 0


async def test_a_client_that_resets_the_connection_cancels_its_run_once(tmp_path):
    async with open_plane(tmp_path / "plane") as plane:
        await wait_vm(plane)
        body = {"message": ENDLESS}
        async with open_exchange(plane.port, "POST", "/api/v1/chat/start", body) as exchange:
            await receive_until(exchange, b"text_chunk")
            run_id = exchange.headers["x-run-id"]
            exchange.stream.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER of zero: a reset
        assert await wait_outcome(plane, run_id) == "cancelled"
        assert cancels(plane, run_id) == 1
        # So does one that ends only its own half of the connection: it is taken for gone.
        async with open_exchange(plane.port, "POST", "/api/v1/chat/start", body) as exchange:
            await receive_until(exchange, b"text_chunk")
            await exchange.stream.send_eof()
            run_id = exchange.headers["x-run-id"]
            assert await wait_outcome(plane, run_id) == "cancelled"
            assert cancels(plane, run_id) == 1


async def test_other_ends_of_streams_cancel_nothing(tmp_path):
    async with open_plane(tmp_path / "plane") as plane:
        finished = Follower()
        await plane.start(finished, "stream 2 0")
        continued = Follower()
        watched = Follower()
        async with open_run(plane, "stream 60 0.02", on_disconnect="continue") as asker:
            continued = asker
        async with open_run(plane, "stream 60 0.02") as asker, trio.open_nursery() as nursery:
            watched, reader = asker, Follower()
            nursery.start_soon(plane.follow, reader, asker.session_id)
            await reader.wait(lambda f: f.seen)
            asker.scope.cancel()
            await reader.wait(lambda f: f.terminals)
            nursery.cancel_scope.cancel()
        # The reader has left too, but a dropped GET never cancels.
        for follower in (finished, continued, watched):
            assert await wait_outcome(plane, follower.run_id) == "completed"
        shared = {"Idempotency-Key": "two-of-us"}
        body = {"message": "stream 60 0.02"}
        start = "/api/v1/chat/start"
        async with open_exchange(plane.port, "POST", start, body, shared) as second:
            async with open_exchange(plane.port, "POST", start, body, shared) as first:
                assert first.headers["x-run-id"] == second.headers["x-run-id"]
            while await second.receive():
                pass
        assert await wait_outcome(plane, second.headers["x-run-id"]) == "completed"
        assert plane.rows("SELECT * FROM commands WHERE kind = 'cancel'") == []


async def test_a_host_that_stops_cancels_nothing(tmp_path):
    async with open_plane(tmp_path / "plane", is_external=True) as plane, open_external_vm(plane):
        async with open_run(plane, "stream 300 0.02") as asker:
            plane.process.send_signal(signal.SIGTERM)
            with trio.fail_after(10):
                assert await plane.process.wait() == 0
            await asker.wait(lambda f: f.is_over)
            assert plane.rows("SELECT * FROM commands WHERE kind = 'cancel'") == []
            await plane.restart()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(plane.follow, asker, asker.session_id)
                await asker.wait(lambda f: f.terminals)
                assert asker.terminals[0]["type"] == "execution_complete"
                assert "cancelled" not in asker.terminals[0]
                check_reader(asker.seen, plane.stored(asker.session_id))
                nursery.cancel_scope.cancel()
