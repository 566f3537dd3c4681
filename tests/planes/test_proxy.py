"""What networks do, between VM and host and between reader and host."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from audit import audit_events, audit_replay, audit_runs, audit_text
from fault_proxy import BROKEN, FaultProxy, obey, open_fault_proxy
from following import Follower
from harness import Plane, open_external_vm, open_plane, seconds_until

DEAD_AFTER = 2.0
QUICK = {"link_heartbeat": 0.3, "link_dead_after": DEAD_AFTER}

LATE = 5.0
"""What a look that is due every second, and a busy machine, add to a bound, in seconds."""


def backoff(failures: int) -> float:
    """Return the longest that a VM waits before it dials again, after so many failures."""
    return 2.0 ** (failures - 1)


@asynccontextmanager
async def open_proxied(
    tmp_path, deadlines: dict[str, float] | None = None
) -> AsyncGenerator[tuple[Plane, FaultProxy]]:
    """Run a host, and a VM whose link goes through a proxy."""
    async with (
        open_plane(tmp_path / "plane", deadlines=deadlines, is_external=True) as plane,
        open_fault_proxy(plane.port) as proxy,
        open_external_vm(plane, url=f"http://127.0.0.1:{proxy.port}"),
    ):
        yield plane, proxy


def stream(count: int) -> dict[str, object]:
    return {"message": f"stream {count} 0.01"}


ENDLESS = 100_000
"""Pieces of an answer that is cancelled in the end."""


async def check(plane: Plane, asker: Follower, count: int, *readers: Follower) -> None:
    """Assert that the run said everything once, to everybody, and ended once."""
    for follower in (asker, *readers):
        await follower.wait(lambda f: f.terminals)
        assert follower.terminals[0]["type"] == "execution_complete"
        assert ("cancelled" in follower.terminals[0]) == (count == ENDLESS)
        assert "resync" not in follower.types[1:]
    stored = plane.stored(asker.session_id)
    audit = audit_events(stored, [asker, *readers])
    audit += audit_text(stored, {asker.run_id: "".join(f"{index} " for index in range(count))})
    audit += await audit_replay(plane, asker.session_id, stored)
    audit += audit_runs(plane)
    assert audit.problems == []


async def cancel(plane: Plane, asker: Follower) -> float:
    """Cancel a run, and return how long its receipt took."""
    start = trio.current_time()
    answer = await plane.ask("POST", f"/api/v1/chat/sessions/{asker.session_id}/cancel", {})
    assert (answer.status, answer.data["outcome"]) == (200, "cancelled")
    return trio.current_time() - start


async def wait_more(follower: Follower, count: int = 3) -> None:
    """Wait until some more of the answer has come."""
    await follower.wait_types("text_chunk", follower.types.count("text_chunk") + count)


async def test_a_blackhole_is_noticed_by_both_ends_and_costs_nothing(tmp_path):
    async with open_proxied(tmp_path, QUICK) as (plane, proxy), trio.open_nursery() as nursery:
        asker, reader = Follower(), Follower()
        nursery.start_soon(plane.start, asker, f"stream {ENDLESS} 0.02")
        await asker.wait(lambda f: f.session_id)
        nursery.start_soon(plane.follow, reader, asker.session_id)
        for failures, ways in enumerate([("up",), ("down",), ("up", "down")], start=1):
            await wait_more(reader)
            connection = proxy.open_connections[-1]
            port = connection.up.target.socket.getsockname()[1]
            count = len(proxy.connections)
            proxy.blackhole(*ways)
            with trio.fail_after(DEAD_AFTER + LATE + backoff(failures)):
                await proxy.wait_connection(count + 1)
                # The host has given the old one up too, by itself if it must.
                assert await seconds_until(lambda port=port: not has_peer(plane, port)) is not None
            # What is held comes through late, and changes nothing.
            proxy.heal()
            await wait_more(reader)
        await cancel(plane, asker)
        await check(plane, asker, ENDLESS, reader)
        nursery.cancel_scope.cancel()


def has_peer(plane: Plane, port: int) -> bool:
    """Return whether the host has an established connection from *port*."""
    return any(remote.endswith(f":{port:04X}") for remote in plane.connections())


async def test_slow_networks_cut_links_and_readers_in_blackholes_cost_nothing(tmp_path):
    async with open_proxied(tmp_path) as (plane, link), open_fault_proxy(plane.port) as browser:
        await talk_over_a_slow_network(plane, link, browser)
        assert len(link.connections) == 1
        await follow_through_blackholes(plane, link, browser)


async def talk_over_a_slow_network(plane: Plane, link: FaultProxy, browser: FaultProxy) -> None:
    async with trio.open_nursery() as nursery:
        for proxy in (link, browser):
            proxy.delay(latency=0.1, jitter=0.02)
        asker, reader = Follower(), Follower()
        start = trio.current_time()
        nursery.start_soon(asker.post, browser.port, "/api/v1/chat/start", stream(30))
        await asker.wait_types("text_chunk", 1)
        assert trio.current_time() - start > 0.35  # the latency was real: two ways on each
        path = f"/api/v1/sessions/{asker.session_id}/stream"
        nursery.start_soon(reader.get, browser.port, path)
        await check(plane, asker, 30, reader)
        # A cancel goes there, and its receipt comes back.
        stopped = Follower()
        chat = f"/api/v1/chat/sessions/{asker.session_id}"
        nursery.start_soon(stopped.post, browser.port, chat, stream(ENDLESS))
        await stopped.wait_types("text_chunk", 2)
        assert 0.2 < await cancel(plane, stopped) < LATE
        await stopped.wait(lambda f: f.terminals)
        # Twenty kilobytes a second are enough for talk and heartbeats.
        for proxy, chunk in ((link, 400), (browser, 100)):
            proxy.heal()
            proxy.drip(chunk=chunk, gap=0.01)
        again, late = Follower(), Follower()
        nursery.start_soon(again.post, browser.port, "/api/v1/chat/start", stream(60))
        await again.wait(lambda f: f.session_id)
        path = f"/api/v1/sessions/{again.session_id}/stream"
        nursery.start_soon(late.get, browser.port, path)
        await check(plane, again, 60, late)
        nursery.cancel_scope.cancel()
    for proxy in (link, browser):
        proxy.heal()


async def follow_through_blackholes(plane: Plane, link: FaultProxy, browser: FaultProxy) -> None:
    rng = random.Random(4)
    async with trio.open_nursery() as nursery:
        asker, reader = Follower(), Follower()
        nursery.start_soon(plane.start, asker, f"stream {ENDLESS} 0.02")
        await asker.wait(lambda f: f.session_id)
        path = f"/api/v1/sessions/{asker.session_id}/stream"
        nursery.start_soon(reader.get, browser.port, path)
        for ways in (("down",), ("up", "down")):
            await wait_more(reader)
            browser.blackhole(*ways)
            await wait_more(asker)
            reader.scope.cancel()  # as a client does that has heard nothing for a while
            await reader.wait(lambda f: f.is_over)
            nursery.start_soon(reader.get, browser.port, path)
        # Then readers and link are cut in the middle of an event or a frame.
        for failures, way in enumerate(("up", "down"), start=1):
            await wait_more(reader)
            browser.reset_after("down", rng.randrange(1, 300))
            await reader.wait(lambda f: f.is_over)
            nursery.start_soon(reader.get, browser.port, path)
            count = len(link.connections)
            link.reset_after(way, rng.randrange(20, 400))
            with trio.fail_after(LATE + backoff(failures)):
                await link.wait_connection(count + 1)
            await wait_more(reader)
        await cancel(plane, asker)
        await check(plane, asker, ENDLESS, reader)
        nursery.cancel_scope.cancel()


# --- the proxy itself -----------------------------------------------------------------


@asynccontextmanager
async def open_echo() -> AsyncGenerator[tuple[FaultProxy, trio.SocketStream]]:
    """Run something that echoes, and connect to it through a proxy."""

    async def echo(stream: trio.SocketStream) -> None:
        try:
            async for data in stream:
                await stream.send_all(data)
        except BROKEN:
            pass

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
        async with open_fault_proxy(listener.socket.getsockname()[1]) as proxy:
            async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as stream:
                yield proxy, stream
            nursery.cancel_scope.cancel()


async def test_the_proxy_does_what_it_is_told():
    async with open_echo() as (proxy, stream):
        with trio.fail_after(10):
            await stream.send_all(b"plain")
            assert await stream.receive_some() == b"plain"
            obey(proxy, "delay both 0.05")
            start = time.monotonic()
            await stream.send_all(b"late")
            assert await stream.receive_some() == b"late"
            assert time.monotonic() - start > 0.09
            obey(proxy, "heal")
            obey(proxy, "drip down 2 0.01")
            await stream.send_all(b"dripping")
            pieces = [await stream.receive_some()]
            while sum(map(len, pieces)) < 8:
                pieces.append(await stream.receive_some())
            assert b"".join(pieces) == b"dripping"
            assert len(pieces) > 1
            obey(proxy, "heal")
            for way in ("up", "down", "both"):
                obey(proxy, f"blackhole {way}")
                await stream.send_all(b"held")
                with trio.move_on_after(0.05) as scope:
                    await stream.receive_some()
                assert scope.cancelled_caught
                obey(proxy, "heal")
                assert await stream.receive_some() == b"held"
            obey(proxy, "reset up 3")
            await stream.send_all(b"abcdef")
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    assert await stream.receive_some() != b""
            while proxy.open_connections:
                await proxy.wait_news()
            obey(proxy, "refuse")
            async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as refused:
                with pytest.raises(trio.BrokenResourceError):
                    await refused.receive_some()
            obey(proxy, "heal")
            async with await trio.open_tcp_stream("127.0.0.1", proxy.port) as closed:
                await proxy.wait_connection(2)
                obey(proxy, "close")
                assert await closed.receive_some() == b""
    for line in ("blackhole sideways", "explode", "delay up much"):
        with pytest.raises(ValueError):  # noqa: PT011 - the text is float's, once
            obey(proxy, line)


async def test_the_end_of_one_side_passes_through_the_proxy():
    async with open_echo() as (_, stream):
        with trio.fail_after(10):
            await stream.send_all(b"x" * 300_000)
            await stream.send_eof()
            size = 0
            while data := await stream.receive_some(65536):
                size += len(data)
            assert size == 300_000
