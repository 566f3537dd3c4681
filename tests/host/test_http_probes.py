"""Probes, counts and information about the host."""

from __future__ import annotations

import pytest
import trio
from http_kit import ANN, BOB, Host, event, store_error
from trio.testing import MockClock

import semibot


async def test_a_host_that_answers_is_alive_whatever_else_it_is() -> None:
    host = Host()
    host.status.is_ready = False
    host.status.is_draining = True
    host.store.failure = "disk full"
    assert (await host.ask("GET", "/livez", headers={})).data == {"status": "alive"}


async def test_a_host_is_ready_between_start_and_drain() -> None:
    host = Host()
    assert (await host.ask("GET", "/readyz", headers={})).data == {"status": "ready"}
    host.status.is_ready = False
    host.status.is_draining = True
    answer = await host.ask("GET", "/readyz", headers={})
    assert (answer.status, answer.code) == (503, "NOT_READY")
    assert answer.json["error"]["details"] == {"reasons": ["starting", "draining"]}
    assert answer.headers["retry-after"]


async def test_a_host_that_cannot_store_is_not_ready_until_it_can() -> None:
    host = Host()
    host.store.failure = "disk full"
    host.store.fail["check"] = store_error()
    answer = await host.ask("GET", "/readyz")
    assert answer.json["error"]["details"] == {"reasons": ["store"]}
    assert b"disk" not in answer.body
    del host.store.fail["check"]
    assert (await host.ask("GET", "/readyz")).status == 200
    assert (await host.ask("GET", "/readyz")).status == 200
    assert host.store.checks == 2  # a store that works is not written to by probes


async def test_a_store_that_hangs_makes_a_host_not_ready(autojump_clock: MockClock) -> None:
    host = Host()
    host.store.failure = "hangs"
    host.store.check = trio.sleep_forever
    answer = await host.ask("GET", "/readyz")
    assert answer.status == 503
    assert trio.current_time() == host.deadlines.store_commit


@pytest.mark.parametrize(("is_local", "auth"), [(True, "local"), (False, "bearer")])
async def test_the_host_says_what_it_is(is_local: bool, auth: str) -> None:
    answer = await Host(is_local=is_local).ask("GET", "/api/v1/info", headers={})
    assert answer.data["name"] == "semibot"
    assert answer.data["version"] == semibot.__version__
    assert answer.data["mode"] == "development"
    assert answer.data["auth"] == auth
    assert answer.data["limits"]["message_bytes"] == 256 * 1024


async def test_counts_come_as_text() -> None:
    host = Host(is_local=True)
    host.store.add_session("s1", user_id="local")
    host.metrics.ws_sessions_per_connection.set(2, user_id="local")
    async with host.open("GET", "/api/v1/sessions/s1/stream", headers={}) as stream:
        await stream.wait_for(lambda: b"resync" in stream.body)
        await host.say("s1", event(1, run_id="r1"))
        await stream.wait_for(lambda: b"id: 1-1\n" in stream.body)
        answer = await host.ask("GET", "/metrics", headers={})
    text = answer.body.decode()
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert "# TYPE sse_events_forwarded_total counter\n" in text
    assert "sse_readers_active 1\n" in text
    assert 'sse_buffer_size{session_id="s1"} ' in text
    assert 'ws_sessions_per_connection{user_id="local"} 2\n' in text


async def test_users_do_not_see_each_other_in_the_counts() -> None:
    host = Host()
    gauge = host.metrics.ws_sessions_per_connection
    gauge.set(2, user_id="ann")
    gauge.set(3, user_id="bob")
    gauge.set(4, user_id="cyd")
    host.store.add_session("s1")
    await host.say("s1", event(1, run_id="r1"))
    seen = (await host.ask("GET", "/metrics", headers=BOB)).body.decode()
    assert 'user_id="bob"} 3\n' in seen
    assert 'user_id="others"} 6\n' in seen
    assert "ann" not in seen
    assert "s1" not in seen
    mine = (await host.ask("GET", "/metrics", headers=ANN)).body.decode()
    assert 'user_id="ann"} 2\n' in mine
