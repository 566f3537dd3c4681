"""``GET /api/v1/sessions/{id}/stream``."""

from __future__ import annotations

import pytest
import trio
from http_kit import ANN, BOB, Exchange, Host, event, store_error
from trio.testing import MockClock, wait_all_tasks_blocked

STREAM = "/api/v1/sessions/s1/stream"


def make_host(last_seq: int = 0) -> Host:
    host = Host()
    host.store.add_session("s1", last_seq=last_seq)
    return host


async def test_a_stream_begins_with_the_state_and_goes_on_with_events() -> None:
    host = make_host()
    async with host.open("GET", STREAM) as exchange:
        await exchange.wait_for(lambda: b"resync" in exchange.body)
        await host.say(
            "s1", event(1, "run_started", run_id="r1"), event(2, run_id="r1", content="é")
        )
        await exchange.wait_for(lambda: b"id: 1-2\n" in exchange.body)
    assert exchange.status == 200
    assert exchange.headers["content-type"] == "text/event-stream"
    assert exchange.headers["cache-control"] == "no-cache, no-transform"
    assert exchange.headers["x-session-id"] == "s1"
    assert "content-length" not in exchange.headers
    assert exchange.body.startswith(b"retry: ")


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        ({"last-event-id": "1-1"}, ""),
        ({}, "?last_event_id=1-1"),
        ({"last-event-id": "1-1"}, "?last_event_id=1-0"),
        ({"last-event-id": "1-1"}, "?last_event_id=nonsense"),
    ],
)
async def test_a_stream_goes_on_after_an_id_and_the_header_wins(
    headers: dict[str, str], query: str
) -> None:
    host = make_host()
    await host.say("s1", *[event(seq, run_id="r1", content=str(seq)) for seq in (1, 2, 3)])
    async with host.open("GET", STREAM + query, headers={**ANN, **headers}) as exchange:
        await exchange.wait_for(lambda: b"id: 1-3\n" in exchange.body)
    assert b"id: 1-2\n" in exchange.body
    assert b"id: 1-1\n" not in exchange.body
    assert b"resync" not in exchange.body


@pytest.mark.parametrize(
    "text", ["x", "1", "1-", "-1", "1-2-3", "1-" + "9" * 19, "1 - 2", "\uff11-\uff12"]
)
async def test_what_is_no_event_id_is_refused(text: str) -> None:
    host = make_host()
    for target, headers in [
        (STREAM, {**ANN, "last-event-id": text.encode().decode("latin-1")}),
        (STREAM + "?last_event_id=" + text.encode().decode("latin-1").replace(" ", "+"), ANN),
    ]:
        async with host.open("GET", target, headers=headers) as exchange:
            await exchange.wait_returned()
        assert exchange.status == 400
        assert b"BAD_EVENT_ID" in exchange.body


async def test_an_empty_id_in_the_query_is_refused() -> None:
    answer = await make_host().ask("GET", STREAM + "?last_event_id=")
    assert (answer.status, answer.code) == (400, "BAD_EVENT_ID")


async def test_a_stream_is_for_its_owner() -> None:
    host = make_host()
    foreign = await host.ask("GET", STREAM, headers=BOB)
    unknown = await host.ask("GET", "/api/v1/sessions/nope/stream", headers=BOB)
    assert (foreign.status, foreign.code) == (404, "SESSION_NOT_FOUND")
    assert foreign.body == unknown.body
    nobody = await host.ask("GET", STREAM, headers={})
    assert (nobody.status, nobody.code) == (401, "AUTH_REQUIRED")
    assert nobody.headers["www-authenticate"] == "Bearer"


async def test_the_stream_of_a_deleted_session_says_so_for_good() -> None:
    host = make_host()
    assert (await host.ask("DELETE", "/api/v1/sessions/s1")).status == 200
    answer = await host.ask("GET", STREAM)
    assert (answer.status, answer.body) == (204, b"")
    assert "content-length" not in answer.headers
    assert (await host.ask("GET", STREAM, headers=BOB)).status == 404


async def test_a_session_that_is_deleted_ends_its_streams() -> None:
    host = make_host()
    async with host.open("GET", STREAM) as exchange:
        await exchange.wait_for(lambda: exchange.body)
        host.relay.forget("s1")
        await exchange.wait_returned()
    assert exchange.is_complete


async def test_a_session_deleted_while_its_stream_opens_is_not_found() -> None:
    host = make_host()
    row = host.store.sessions["s1"]

    async def vanish(user_id: str, session_id: str):
        host.store.sessions.clear()
        return row

    host.store.get_session = vanish
    assert (await host.ask("GET", STREAM)).status == 404


async def test_a_draining_host_closes_streams_and_refuses_none() -> None:
    host = make_host()
    host.status.is_draining = True
    for headers in (ANN, {**ANN, "last-event-id": "1-5"}):
        answer = await host.ask("GET", STREAM, headers=headers)
        assert answer.status == 200
        assert answer.headers["content-type"] == "text/event-stream"
        retry = answer.body.removeprefix(b"retry: ").removesuffix(b"\n\n")
        assert 1000 <= int(retry) <= 3000


@pytest.mark.parametrize("name", ["get_session", "tail_start"])
async def test_a_failing_store_closes_streams_and_refuses_none(name: str) -> None:
    host = make_host()
    host.store.fail[name] = store_error()
    answer = await host.ask("GET", STREAM)
    assert answer.status == 200
    assert answer.body.startswith(b"retry: ")


async def test_a_closing_host_ends_streams_in_order() -> None:
    host = make_host()
    async with host.open("GET", STREAM) as exchange:
        await exchange.wait_for(lambda: exchange.body)
        host.relay.close()
        await exchange.wait_returned()
    assert exchange.is_complete


async def test_a_client_that_goes_away_leaves_nothing_behind() -> None:
    host = make_host()
    async with host.open("GET", STREAM) as exchange:
        await exchange.wait_for(lambda: exchange.body)
        assert host.relay.reader_count == 1
        exchange.disconnect()
        await exchange.wait_returned()
    assert host.relay.reader_count == 0
    assert host.dispatcher.cancelled == []


async def test_a_send_that_fails_ends_the_stream() -> None:
    host, exchange = make_host(), Exchange()
    exchange.send_error = OSError("reset")
    async with host.open("GET", STREAM, exchange=exchange):
        await exchange.wait_returned()
    assert host.relay.reader_count == 0


async def test_idle_streams_say_that_they_live(autojump_clock: MockClock) -> None:
    host = make_host()
    async with host.open("GET", STREAM) as exchange:
        await exchange.wait_for(lambda: exchange.body.count(b": keepalive\n\n") == 2)
    assert trio.current_time() == pytest.approx(30, abs=1)


async def test_a_bug_in_a_stream_ends_it_unfinished(caplog: pytest.LogCaptureFixture) -> None:
    host = make_host()

    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    host.store.resync_view = fail
    async with host.open("GET", STREAM) as exchange:
        await exchange.wait_returned()
        await wait_all_tasks_blocked()
    assert not exchange.is_complete
    assert "an answer broke off" in caplog.text
    assert host.relay.reader_count == 0


@pytest.mark.parametrize("method", ["POST", "DELETE", "HEAD", "OPTIONS"])
async def test_a_stream_is_only_got(method: str) -> None:
    answer = await make_host().ask(method, STREAM)
    assert answer.status == 405
    assert answer.headers["allow"] == "GET"
