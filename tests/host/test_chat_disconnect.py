"""What becomes of a run whose client goes away (protocol section 7, ``on_disconnect``)."""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import trio
from http_kit import ANN, BOB, Exchange, Host, event, store_error
from trio.testing import MockClock, wait_all_tasks_blocked

from semibot.errors import NotFound

START = "/api/v1/chat/start"
STREAM = "/api/v1/sessions/{}/stream"


async def begin(stack: AsyncExitStack, host: Host, **body: object) -> Exchange:
    exchange = await stack.enter_async_context(
        host.open("POST", START, {"message": "hello", **body})
    )
    await exchange.wait_for(lambda: exchange.body)
    return exchange


def the_cancel(exchange: Exchange) -> tuple[str, str, str, str]:
    return (
        "ann",
        exchange.headers["x-session-id"],
        exchange.headers["x-run-id"],
        "client_disconnected",
    )


async def test_a_client_that_closes_takes_its_run_along_once(autojump_clock: MockClock) -> None:
    host = Host()
    async with AsyncExitStack() as stack:
        exchange = await begin(stack, host)
        run_id = exchange.headers["x-run-id"]
        await host.say(exchange.headers["x-session-id"], event(1, "run_started", run_id=run_id))
        await trio.sleep(3)
        exchange.disconnect()
        exchange.disconnect()
        await exchange.wait_returned()
        await trio.sleep(60)
    assert host.dispatcher.cancelled == [the_cancel(exchange)]
    assert host.dispatcher.cancel_times[0] - 3 < 1
    assert not exchange.is_complete
    assert host.relay.reader_count == 0


async def test_a_send_that_fails_is_a_client_that_closed() -> None:
    host = Host()
    async with AsyncExitStack() as stack:
        exchange = await begin(stack, host)
        exchange.send_error = trio.BrokenResourceError("gone")
        run_id = exchange.headers["x-run-id"]
        await host.say(exchange.headers["x-session-id"], event(1, "run_started", run_id=run_id))
        await exchange.wait_returned()
        exchange.disconnect()
        await wait_all_tasks_blocked()
    assert host.dispatcher.cancelled == [the_cancel(exchange)]


async def test_a_client_that_closes_while_a_send_is_under_way_is_seen(
    autojump_clock: MockClock,
) -> None:
    host = Host()
    async with AsyncExitStack() as stack:
        exchange = await begin(stack, host)
        exchange.send_blocks = True
        run_id = exchange.headers["x-run-id"]
        await host.say(exchange.headers["x-session-id"], event(1, "run_started", run_id=run_id))
        await trio.sleep(1)
        exchange.disconnect()
        await exchange.wait_returned()
    assert host.dispatcher.cancelled == [the_cancel(exchange)]
    assert trio.current_time() == 1


async def test_a_client_that_closes_after_the_end_cancels_nothing() -> None:
    host = Host()
    async with AsyncExitStack() as stack:
        exchange = await begin(stack, host)
        run_id = exchange.headers["x-run-id"]
        await host.say(
            exchange.headers["x-session-id"],
            event(1, "run_started", run_id=run_id),
            event(2, "execution_complete", run_id=run_id, final_response=""),
        )
        await exchange.wait_returned()
        exchange.disconnect()
        await wait_all_tasks_blocked()
    assert exchange.is_complete
    assert host.dispatcher.cancelled == []


async def test_a_client_that_closes_while_the_end_is_being_sent_cancels_nothing() -> None:
    host = Host()
    async with AsyncExitStack() as stack:
        exchange = await begin(stack, host)
        exchange.send_blocks = True
        run_id = exchange.headers["x-run-id"]
        await host.say(
            exchange.headers["x-session-id"],
            event(1, "run_started", run_id=run_id),
            event(2, "execution_error", run_id=run_id, code="X", error="x"),
        )
        await wait_all_tasks_blocked()
        exchange.disconnect()
        await exchange.wait_returned()
    assert host.dispatcher.cancelled == []


async def test_continue_leaves_the_run_alone() -> None:
    host = Host()
    async with AsyncExitStack() as stack:
        exchange = await begin(stack, host, on_disconnect="continue")
        exchange.disconnect()
        await exchange.wait_returned()
    assert host.dispatcher.cancelled == []


async def test_a_run_that_somebody_else_watches_goes_on() -> None:
    host = Host()
    async with AsyncExitStack() as stack:
        exchange = await begin(stack, host)
        other = await stack.enter_async_context(
            host.open("GET", STREAM.format(exchange.headers["x-session-id"]))
        )
        await other.wait_for(lambda: other.body)
        exchange.disconnect()
        await exchange.wait_returned()
        assert host.dispatcher.cancelled == []
        other.disconnect()
        await other.wait_returned()
    assert host.dispatcher.cancelled == []  # a dropped GET never cancels


async def test_a_watcher_of_another_session_does_not_count() -> None:
    host = Host()
    host.store.add_session("s9")
    async with AsyncExitStack() as stack:
        exchange = await begin(stack, host)
        other = await stack.enter_async_context(host.open("GET", STREAM.format("s9")))
        await other.wait_for(lambda: other.body)
        exchange.disconnect()
        await exchange.wait_returned()
    assert len(host.dispatcher.cancelled) == 1


async def test_a_stream_of_another_run_of_the_session_does_not_count() -> None:
    host = Host()
    async with AsyncExitStack() as stack:
        exchange = await begin(stack, host)
        path = "/api/v1/chat/sessions/" + exchange.headers["x-session-id"]
        other = await stack.enter_async_context(host.open("POST", path, {"message": "next"}))
        await other.wait_for(lambda: other.body)
        exchange.disconnect()
        await exchange.wait_returned()
    assert host.dispatcher.cancelled == [the_cancel(exchange)]


@pytest.mark.parametrize("at_once", [True, False])
async def test_of_two_streams_of_one_run_the_last_to_close_takes_it_along(at_once: bool) -> None:
    host = Host()
    headers = {**ANN, "idempotency-key": "k"}
    async with (
        host.open("POST", START, {"message": "x"}, headers) as first,
        host.open("POST", START, {"message": "x"}, headers) as second,
    ):
        await first.wait_for(lambda: first.body)
        await second.wait_for(lambda: second.body)
        first.disconnect()
        if not at_once:
            await first.wait_returned()
            assert host.dispatcher.cancelled == []
        second.disconnect()
        await first.wait_returned()
        await second.wait_returned()
    assert host.dispatcher.cancelled == [the_cancel(second)]


async def test_a_client_that_accepts_nothing_is_cut_off_without_its_run() -> None:
    host = Host()
    async with AsyncExitStack() as stack:
        exchange = await begin(stack, host)
        exchange.is_stalled = True
        exchange.disconnect()
        await exchange.wait_returned()
    assert host.dispatcher.cancelled == []


async def test_a_stall_that_shows_as_a_failed_send_spares_the_run() -> None:
    host = Host()
    async with AsyncExitStack() as stack:
        exchange = await begin(stack, host)
        exchange.is_stalled = True
        exchange.send_error = trio.BrokenResourceError("the peer accepts nothing")
        run_id = exchange.headers["x-run-id"]
        await host.say(exchange.headers["x-session-id"], event(1, "run_started", run_id=run_id))
        await exchange.wait_returned()
    assert host.dispatcher.cancelled == []


async def test_a_host_that_ends_closes_streams_and_spares_their_runs() -> None:
    host = Host()
    async with AsyncExitStack() as stack:
        exchange = await begin(stack, host)
        host.status.is_draining = True
        host.relay.close()
        await exchange.wait_returned()
        exchange.disconnect()
        await wait_all_tasks_blocked()
    assert exchange.is_complete
    assert host.dispatcher.cancelled == []


async def test_a_client_that_closes_while_the_host_drains_cancels_nothing() -> None:
    host = Host()
    async with AsyncExitStack() as stack:
        exchange = await begin(stack, host)
        host.status.is_draining = True
        exchange.disconnect()
        await exchange.wait_returned()
    assert host.dispatcher.cancelled == []


@pytest.mark.parametrize("how", ["store_failed", "deleted"])
async def test_a_stream_that_the_host_breaks_off_spares_its_run(how: str) -> None:
    host = Host()
    async with AsyncExitStack() as stack:
        exchange = await begin(stack, host)
        session_id = exchange.headers["x-session-id"]
        if how == "deleted":
            host.relay.forget(session_id)
        else:
            host.relay.break_off([session_id])
        exchange.disconnect()
        await exchange.wait_returned()
    assert host.dispatcher.cancelled == []


async def test_a_server_that_cancels_the_request_spares_its_run() -> None:
    host = Host()
    async with AsyncExitStack() as stack:
        await begin(stack, host)
    assert host.dispatcher.cancelled == []
    assert host.relay.reader_count == 0


async def test_the_cancel_is_stored_although_the_request_is_cancelled(
    autojump_clock: MockClock,
) -> None:
    host = Host()
    host.dispatcher.seconds = 2
    async with AsyncExitStack() as stack:
        exchange = await begin(stack, host)
        exchange.disconnect()
        await wait_all_tasks_blocked()  # and now the server ends the request
    assert host.dispatcher.cancelled == [the_cancel(exchange)]


async def test_a_cancel_that_hangs_is_given_up(autojump_clock: MockClock) -> None:
    host = Host()
    host.dispatcher.seconds = float("inf")
    async with AsyncExitStack() as stack:
        exchange = await begin(stack, host)
        exchange.disconnect()
        await exchange.wait_returned()
    assert trio.current_time() == host.deadlines.store_commit


async def test_a_client_that_closes_while_its_message_is_stored_takes_the_run_along() -> None:
    host = Host()
    host.store.gate = trio.Event()
    async with host.open("POST", START, {"message": "x"}) as exchange:
        await wait_all_tasks_blocked()
        exchange.disconnect()
        await wait_all_tasks_blocked()
        assert not exchange.has_returned
        host.store.gate.set()
        await exchange.wait_returned()
    (message,) = host.store.accepted
    expected = ("ann", message.session_id, message.run_id, "client_disconnected")
    assert host.dispatcher.cancelled == [expected]
    assert host.relay.reader_count == 0


@pytest.mark.parametrize("error", [NotFound("deleted"), store_error()])
async def test_a_cancel_that_fails_ends_the_request_all_the_same(error: Exception) -> None:
    host = Host()
    host.dispatcher.fail = error
    async with AsyncExitStack() as stack:
        exchange = await begin(stack, host)
        exchange.disconnect()
        await exchange.wait_returned()
    assert host.dispatcher.cancelled == []


async def test_users_do_not_watch_each_others_runs() -> None:
    host = Host()
    async with AsyncExitStack() as stack:
        exchange = await begin(stack, host)
        path = STREAM.format(exchange.headers["x-session-id"])
        assert (await host.ask("GET", path, headers=BOB)).status == 404
        exchange.disconnect()
        await exchange.wait_returned()
    assert len(host.dispatcher.cancelled) == 1
