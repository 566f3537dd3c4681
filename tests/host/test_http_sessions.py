"""Sessions, messages, cancel and delete over HTTP."""

from __future__ import annotations

import pytest
import trio
from http_kit import ANN, BOB, Exchange, Host, store_error
from trio.testing import MockClock

from semibot.errors import NotFound
from semibot.store.base import CancelAsked, MessageRow

CANCEL = "/api/v1/chat/sessions/s1/cancel"
KEYED = {**ANN, "idempotency-key": "k1"}


def make_host(**deadlines: float) -> Host:
    host = Host(**deadlines)
    host.store.add_session("s1", last_seq=7)
    return host


# --- reading --------------------------------------------------------------------------


async def test_a_session_is_shown_without_what_is_the_hosts_business() -> None:
    answer = await make_host().ask("GET", "/api/v1/sessions/s1")
    assert answer.data == {
        "id": "s1",
        "agent_id": None,
        "title": "Hello",
        "runtime_type": "semigraph",
        "last_event_id": "1-7",
        "created_at": "1970-01-01T00:00:01.000Z",
        "updated_at": "1970-01-01T00:00:02.000Z",
    }


async def test_sessions_come_in_pages() -> None:
    host = make_host()
    host.store.add_session("s2")
    host.store.add_session("s3", user_id="bob")
    answer = await host.ask("GET", "/api/v1/sessions?limit=1")
    assert [row["id"] for row in answer.data["sessions"]] == ["s1"]
    assert answer.data["next_cursor"] == "c1"
    answer = await host.ask("GET", "/api/v1/sessions?cursor=c1&limit=200")
    assert answer.data["next_cursor"] is None
    answer = await host.ask("GET", "/api/v1/sessions", headers=BOB)
    assert [row["id"] for row in answer.data["sessions"]] == ["s3"]


async def test_messages_say_which_event_they_cover() -> None:
    host = make_host()
    row = MessageRow(
        id="m1", run_id="r1", role="user", content="hi", metadata={"a": 1}, created_at=1
    )
    host.store.messages = (row,)
    answer = await host.ask("GET", "/api/v1/sessions/s1/messages")
    assert answer.data == {
        "messages": [
            {
                "id": "m1",
                "run_id": "r1",
                "role": "user",
                "content": "hi",
                "metadata": {"a": 1},
                "created_at": "1970-01-01T00:00:00.001Z",
            }
        ],
        "next_cursor": None,
        "last_event_id": "1-7",
    }


@pytest.mark.parametrize("limit", ["0", "201", "-1", "x", "", "1.0", "\uff19"])
async def test_an_odd_limit_is_refused(limit: str) -> None:
    target = "/api/v1/sessions?limit=" + limit.encode().decode("latin-1")
    answer = await make_host().ask("GET", target)
    assert (answer.status, answer.code) == (400, "VALIDATION_FAILED")
    assert answer.json["error"]["details"][0]["path"] == "?limit"


async def test_a_foreign_cursor_is_refused() -> None:
    answer = await make_host().ask("GET", "/api/v1/sessions?cursor=other")
    assert (answer.status, answer.code) == (400, "BAD_CURSOR")


@pytest.mark.parametrize("query", ["limit=1&limit=2", "&".join(f"a{n}=1" for n in range(40))])
async def test_an_ambiguous_query_is_refused(query: str) -> None:
    answer = await make_host().ask("GET", "/api/v1/sessions?" + query)
    assert (answer.status, answer.code) == (400, "VALIDATION_FAILED")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/sessions/{}"),
        ("GET", "/api/v1/sessions/{}/messages"),
        ("GET", "/api/v1/sessions/{}/stream"),
        ("DELETE", "/api/v1/sessions/{}"),
        ("POST", "/api/v1/chat/sessions/{}/cancel"),
    ],
)
async def test_another_users_session_looks_like_none(method: str, path: str) -> None:
    host = make_host()
    foreign = await host.ask(method, path.format("s1"), headers=BOB)
    unknown = await host.ask(method, path.format("nope"), headers=BOB)
    assert (foreign.status, foreign.code) == (404, "SESSION_NOT_FOUND")
    assert foreign.body == unknown.body
    assert "s1" in host.store.sessions
    assert host.dispatcher.cancelled == []


async def test_a_failing_store_is_said() -> None:
    host = make_host()
    host.store.fail["get_session"] = store_error()
    answer = await host.ask("GET", "/api/v1/sessions/s1")
    assert (answer.status, answer.code) == (503, "STORE_FAILED")
    assert int(answer.headers["retry-after"]) > 0


# --- cancelling -----------------------------------------------------------------------


async def test_a_cancel_is_answered_with_its_receipt() -> None:
    host = make_host()
    answer = await host.ask("POST", CANCEL, {"run_id": "r1"})
    assert answer.status == 200
    assert answer.data == {"run_id": "r1", "outcome": "cancelled"}
    assert host.dispatcher.cancelled == [("ann", "s1", "r1", "user_cancelled")]


@pytest.mark.parametrize("body", [None, {}, {"run_id": None}])
async def test_a_cancel_without_a_run_means_the_current_one(body: object) -> None:
    host = make_host()
    assert (await host.ask("POST", CANCEL, body)).status == 200
    assert host.dispatcher.cancelled == [("ann", "s1", None, "user_cancelled")]


@pytest.mark.parametrize(
    ("state", "receipt"),
    [
        ("idle", {"run_id": None, "already": True}),
        ("ended", {"run_id": "r1", "outcome": "completed", "already": True}),
        ("not_started", {"run_id": "r1", "started": False}),
    ],
)
async def test_a_cancel_with_nothing_to_wait_for_is_answered_at_once(
    state: str, receipt: dict[str, object]
) -> None:
    host = make_host()
    host.dispatcher.answer = CancelAsked(
        state=state, run_id=receipt["run_id"], receipt=receipt, command_id=None
    )
    answer = await host.ask("POST", CANCEL)
    assert (answer.status, answer.data) == (200, receipt)


async def test_a_receipt_that_does_not_come_in_time_is_pending(autojump_clock: MockClock) -> None:
    host = make_host()
    host.dispatcher.receipt = None
    answer = await host.ask("POST", CANCEL)
    assert (answer.status, answer.data) == (202, {"pending": True, "run_id": "r1"})
    assert trio.current_time() == 15


async def test_a_run_of_another_session_is_not_found() -> None:
    host = make_host()
    host.dispatcher.fail = NotFound("there is no run")
    answer = await host.ask("POST", CANCEL, {"run_id": "other"})
    assert (answer.status, answer.code) == (404, "RUN_NOT_FOUND")


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b'{"run_id":5}', "application/json", 400),
        (b'{"reason":"x"}', "application/json", 400),
        (b"{", "application/json", 400),
        (b"{}", "text/plain", 415),
        (b" " * (1024 * 1024 + 1), "application/json", 413),
    ],
)
async def test_a_bad_cancel_is_refused(body: bytes, kind: str, status: int) -> None:
    host = make_host()
    answer = await host.ask("POST", CANCEL, body, {**ANN, "content-type": kind})
    assert answer.status == status
    assert host.dispatcher.cancelled == []


async def test_a_declared_length_above_the_limit_is_refused() -> None:
    answer = await make_host().ask("POST", CANCEL, {}, {**ANN, "content-length": "1048577"})
    assert (answer.status, answer.code) == (413, "BODY_TOO_LARGE")


async def test_a_body_that_does_not_end_is_given_up(autojump_clock: MockClock) -> None:
    host, exchange = make_host(), Exchange()
    exchange.feed(b"{", more=True)
    scope = host.scope("POST", CANCEL, {"host": "h", **ANN}, exchange)
    await host.app(scope, exchange.receive, exchange.send)
    assert exchange.status == 408
    assert trio.current_time() == 30


async def test_a_repeated_cancel_means_the_run_that_the_first_one_meant() -> None:
    host = make_host()
    host.store.open_runs = ["r1"]
    await host.ask("POST", CANCEL, headers=KEYED)
    host.store.open_runs = ["r2"]
    await host.ask("POST", CANCEL, headers=KEYED)
    assert [each[2] for each in host.dispatcher.cancelled] == ["r1", "r1"]
    answer = await host.ask("POST", CANCEL, {"run_id": "r2"}, KEYED)
    assert (answer.status, answer.code) == (422, "IDEMPOTENCY_CONFLICT")


async def test_a_repeated_cancel_of_nothing_stays_without_effect() -> None:
    host = make_host()
    first = await host.ask("POST", CANCEL, headers=KEYED)
    host.store.open_runs = ["r2"]
    second = await host.ask("POST", CANCEL, headers=KEYED)
    assert first.data == second.data == {"run_id": None, "already": True}
    assert host.dispatcher.cancelled == []


async def test_a_client_that_does_not_wait_for_the_receipt_has_cancelled(
    autojump_clock: MockClock,
) -> None:
    host = make_host()
    host.dispatcher.receipt = None
    async with host.open("POST", CANCEL) as exchange:
        await trio.sleep(1)
        exchange.disconnect()
        await exchange.wait_returned()
    assert len(host.dispatcher.cancelled) == 1
    assert exchange.status is None
    assert trio.current_time() == 1


# --- deleting -------------------------------------------------------------------------


async def test_a_deleted_session_is_gone() -> None:
    host = make_host()
    answer = await host.ask("DELETE", "/api/v1/sessions/s1")
    assert answer.data == {"session_id": "s1", "deleted": True}
    again = await host.ask("DELETE", "/api/v1/sessions/s1")
    assert (again.status, again.code) == (404, "SESSION_NOT_FOUND")


async def test_a_repeated_delete_is_answered_alike_under_its_key() -> None:
    host = make_host()
    first = await host.ask("DELETE", "/api/v1/sessions/s1", headers=KEYED)
    again = await host.ask("DELETE", "/api/v1/sessions/s1", headers=KEYED)
    assert first.body == again.body
    never = await host.ask("DELETE", "/api/v1/sessions/nope", headers=KEYED)
    assert (never.status, never.code) == (404, "SESSION_NOT_FOUND")
    other = await host.ask("POST", CANCEL, headers=KEYED)
    assert other.status == 404
