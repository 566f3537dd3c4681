from __future__ import annotations

import json

import pytest
import trio
from http_kit import ANN, BOB, Exchange, Host, event, store_error
from trio.testing import MockClock, wait_all_tasks_blocked

from semibot.errors import NotFound, PlaneNotReady, SessionBusy
from semibot.store.base import AgentRow

START = "/api/v1/chat/start"
SAY = "/api/v1/chat/sessions/s1"


def with_key(key: str, user: dict[str, str] = ANN) -> dict[str, str]:
    return {**user, "idempotency-key": key}


async def stream_of(host: Host, exchange, *events_of) -> None:
    """Let the run end, and wait for the answer's end."""
    await exchange.wait_for(lambda: exchange.status is not None)
    session_id, run_id = exchange.headers["x-session-id"], exchange.headers["x-run-id"]
    await host.say(session_id, *[make(run_id) for make in events_of])


def started(run_id: str):
    return event(1, "run_started", run_id=run_id)


def text(run_id: str):
    return event(2, run_id=run_id, content="hi")


def ended(run_id: str):
    return event(3, "execution_complete", run_id=run_id, final_response="hi")


async def test_a_message_begins_a_session_and_its_run_is_streamed_to_its_end() -> None:
    host = Host()
    async with host.open("POST", START, {"message": "hello"}) as exchange:
        await stream_of(host, exchange, started, text, ended)
        await exchange.wait_returned()
    assert exchange.status == 200
    assert exchange.headers["content-type"] == "text/event-stream"
    assert exchange.headers["cache-control"] == "no-cache, no-transform"
    assert exchange.headers["x-accel-buffering"] == "no"
    assert exchange.is_complete
    assert exchange.body.startswith(b"retry: ")
    assert b"id: 1-3\nevent: execution_complete\n" in exchange.body
    (message,) = host.store.accepted
    assert message.user_id == "ann"
    assert message.run_id == exchange.headers["x-run-id"]
    assert message.session_id == exchange.headers["x-session-id"]
    assert message.on_busy == "interrupt"
    assert message.expires_at is None
    assert message.idempotency is None
    assert len(set(message.cancel_ids)) == len(message.cancel_ids) >= 17
    assert message.create.runtime_type == "semigraph"
    assert host.dispatcher.kicked == [message.session_id]
    assert host.store.users == ["ann"]
    assert host.dispatcher.cancelled == []
    assert host.relay.reader_count == 0


async def test_the_head_and_the_retry_line_go_out_before_anything_happens() -> None:
    host = Host()
    async with host.open("POST", START, {"message": "hello"}) as exchange:
        await exchange.wait_for(lambda: exchange.body)
        assert exchange.status == 200
        assert exchange.body.startswith(b"retry: ")
        assert not exchange.is_complete


async def test_keepalives_pass_through(autojump_clock: MockClock) -> None:
    host = Host()
    async with host.open("POST", START, {"message": "hello"}) as exchange:
        await exchange.wait_for(lambda: exchange.body.count(b": keepalive\n\n") == 3)
    assert trio.current_time() == pytest.approx(45, abs=1)


async def test_a_message_continues_a_session() -> None:
    host = Host()
    host.store.add_session("s1", last_seq=40)
    body = {"message": "more", "on_busy": "enqueue", "parentMessageId": "m0"}
    async with host.open("POST", SAY, body) as exchange:
        await exchange.wait_for(lambda: exchange.body)
    (message,) = host.store.accepted
    assert message.create is None
    assert message.session_id == "s1"
    assert message.on_busy == "enqueue"


async def test_a_session_with_an_agent_goes_on_while_there_is_that_agent() -> None:
    host = Host()
    host.store.add_session("s1", agent_id="a1")
    host.store.agents["org", "a1"] = AgentRow(
        id="a1", org_id="org", name="A", agent_config={}, runtime_type="graph", openclaw_config=None
    )
    async with host.open("POST", SAY, {"message": "more"}) as exchange:
        await exchange.wait_for(lambda: exchange.status)
    assert exchange.status == 200


@pytest.mark.parametrize(
    ("asked", "agent", "runtime"),
    [
        (None, None, "semigraph"),
        ("graph", None, "semigraph"),
        ("semigraph", "openclaw", "semigraph"),
        ("openclaw", None, "openclaw"),
        (None, "openclaw", "openclaw"),
        (None, "graph", "semigraph"),
    ],
)
async def test_the_session_decides_over_the_agent_and_the_agent_over_the_default(
    asked: str | None, agent: str | None, runtime: str
) -> None:
    host = Host()
    body: dict[str, object] = {"message": "hello"}
    if asked:
        body["runtime_type"] = asked
    if agent:
        body["agentId"] = "a1"
        host.store.agents["org", "a1"] = AgentRow(
            id="a1", org_id="org", name="A", agent_config={}, runtime_type=agent,
            openclaw_config=None,
        )  # fmt: skip
    async with host.open("POST", START, body) as exchange:
        await exchange.wait_for(lambda: exchange.status)
    (message,) = host.store.accepted
    assert message.create.runtime_type == runtime
    assert message.create.agent_id == ("a1" if agent else None)


async def test_what_is_left_of_the_callers_time_is_stored(autojump_clock: MockClock) -> None:
    host = Host()
    host.scheduler.seconds = 2
    before = host.ports.wall_clock.now().timestamp() * 1000
    headers = {**ANN, "x-deadline-ms": "60000"}
    async with host.open("POST", START, {"message": "hello"}, headers) as exchange:
        await exchange.wait_for(lambda: exchange.status)
    assert host.store.accepted[0].expires_at == pytest.approx(before + 60_000, abs=1)


async def test_no_time_left_before_the_vm_is_up_stores_nothing(
    autojump_clock: MockClock,
) -> None:
    host = Host()
    host.scheduler.seconds = 2
    answer = await host.ask("POST", START, {"message": "x"}, {**ANN, "x-deadline-ms": "1500"})
    assert (answer.status, answer.code) == (504, "DEADLINE_EXCEEDED")
    assert host.store.accepted == []


# --- refusals store nothing -----------------------------------------------------------


def nested(depth: int) -> bytes:
    return b'{"message":' + b"[" * depth + b"]" * depth + b"}"


BAD_BODIES = [
    (b"", 415, "UNSUPPORTED_MEDIA_TYPE"),
    (b"{", 400, "MALFORMED_JSON"),
    (b"nonsense", 400, "MALFORMED_JSON"),
    (b"\xff\xfe", 400, "MALFORMED_JSON"),
    (b'{"message":"a","message":"b"}', 400, "MALFORMED_JSON"),
    (b'{"message":NaN}', 400, "MALFORMED_JSON"),
    (b'{"message":"\\ud800"}', 400, "MALFORMED_JSON"),
    (nested(100_000), 400, "MALFORMED_JSON"),
    (b"[]", 400, "VALIDATION_FAILED"),
    (b'"text"', 400, "VALIDATION_FAILED"),
    (b"{}", 400, "VALIDATION_FAILED"),
    (b'{"message":5}', 400, "VALIDATION_FAILED"),
    (b'{"message":null}', 400, "VALIDATION_FAILED"),
    (b'{"message":" \\n\\t "}', 400, "VALIDATION_FAILED"),
    (b'{"message":""}', 400, "VALIDATION_FAILED"),
    (b'{"message":"a","massage":"b"}', 400, "VALIDATION_FAILED"),
    (b'{"message":"a","on_busy":"wait"}', 400, "VALIDATION_FAILED"),
    (b'{"message":"a","on_disconnect":true}', 400, "VALIDATION_FAILED"),
    (json.dumps({"message": "x" * (256 * 1024 + 1)}).encode(), 413, "MESSAGE_TOO_LARGE"),
    (json.dumps({"message": "é" * 131_073}, ensure_ascii=False).encode(), 413, "MESSAGE_TOO_LARGE"),
    (b" " * (1024 * 1024 + 1), 413, "BODY_TOO_LARGE"),
]


@pytest.mark.parametrize("path", [START, SAY])
@pytest.mark.parametrize(("body", "status", "code"), BAD_BODIES, ids=range(len(BAD_BODIES)))
async def test_a_bad_body_is_refused_and_nothing_is_stored(
    body: bytes, status: int, code: str, path: str
) -> None:
    host = Host()
    host.store.add_session("s1")
    headers = {**ANN, "content-type": "application/json"} if body else ANN
    answer = await host.ask("POST", path, body or None, headers)
    assert (answer.status, answer.code) == (status, code)
    assert host.store.accepted == []
    assert host.store.users == []
    assert host.scheduler.asked == 0


async def test_the_longest_message_is_taken() -> None:
    host = Host()
    async with host.open("POST", START, {"message": "x" * 256 * 1024}) as exchange:
        await exchange.wait_for(lambda: exchange.status)
    assert exchange.status == 200


@pytest.mark.parametrize(
    ("body", "path"),
    [
        ({"message": "a", "nonsense": 1}, "$.nonsense"),
        ({"message": "a", "openclaw_config": []}, "$.openclaw_config"),
        ({"message": [1]}, "$.message"),
        ({"message": "a", "agentId": 7}, "$.agentId"),
    ],
)
async def test_a_validation_error_says_where(body: object, path: str) -> None:
    answer = await Host().ask("POST", START, body)
    (detail,) = answer.json["error"]["details"]
    assert detail["path"] == path
    assert detail["message"]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/jsonp", "", "application/json, text/x"]
)
async def test_a_body_of_another_type_is_refused(kind: str) -> None:
    host = Host()
    answer = await host.ask("POST", START, {"message": "a"}, {**ANN, "content-type": kind})
    assert (answer.status, answer.code) == (415, "UNSUPPORTED_MEDIA_TYPE")


async def test_a_charset_is_no_other_type() -> None:
    host = Host()
    headers = {**ANN, "content-type": "Application/JSON; charset=utf-8"}
    async with host.open("POST", START, {"message": "a"}, headers) as exchange:
        await exchange.wait_for(lambda: exchange.status)
    assert exchange.status == 200


async def test_a_declared_length_above_the_limit_is_refused_without_reading() -> None:
    host = Host()
    headers = {**ANN, "content-length": "1048577"}
    answer = await host.ask("POST", START, {"message": "a"}, headers)
    assert (answer.status, answer.code) == (413, "BODY_TOO_LARGE")


async def test_an_unknown_runtime_is_refused_before_there_is_a_session() -> None:
    host = Host()
    answer = await host.ask("POST", START, {"message": "a", "runtime_type": "magic"})
    assert (answer.status, answer.code) == (400, "UNKNOWN_RUNTIME")
    host.store.agents["org", "a1"] = AgentRow(
        id="a1", org_id="org", name="A", agent_config={}, runtime_type="odd", openclaw_config=None
    )
    answer = await host.ask("POST", START, {"message": "a", "agentId": "a1"})
    assert (answer.status, answer.code) == (400, "UNKNOWN_RUNTIME")
    assert host.store.sessions == {}
    assert host.scheduler.asked == 0


@pytest.mark.parametrize("value", ["", "0", "-1", "1.5", "x", "86400001", "9" * 20])
async def test_an_odd_budget_is_refused(value: str) -> None:
    host = Host()
    answer = await host.ask("POST", START, {"message": "a"}, {**ANN, "x-deadline-ms": value})
    assert (answer.status, answer.code) == (400, "VALIDATION_FAILED")
    assert host.store.accepted == []


@pytest.mark.parametrize("key", ["", "a b", "ü", "k" * 256, "tab\t"])
async def test_an_odd_idempotency_key_is_refused(key: str) -> None:
    host = Host()
    answer = await host.ask("POST", START, {"message": "a"}, with_key(key))
    assert (answer.status, answer.code) == (400, "VALIDATION_FAILED")
    assert host.store.accepted == []


async def test_a_body_that_does_not_end_is_given_up(autojump_clock: MockClock) -> None:
    host, exchange = Host(), Exchange()
    exchange.feed(b'{"mess', more=True)
    headers = {"host": "h", "content-type": "application/json", **ANN}
    scope = host.scope("POST", START, headers, exchange)
    await host.app(scope, exchange.receive, exchange.send)
    assert exchange.status == 408
    assert json.loads(exchange.body)["error"]["code"] == "DEADLINE_EXCEEDED"
    assert trio.current_time() == 30


async def test_a_client_that_goes_away_inside_its_body_gets_nothing() -> None:
    host, exchange = Host(), Exchange()
    exchange.feed(b'{"mess', more=True)
    exchange.disconnect()
    scope = host.scope("POST", START, {"host": "h", **ANN}, exchange)
    await host.app(scope, exchange.receive, exchange.send)
    assert exchange.status is None


async def test_a_draining_host_refuses_messages() -> None:
    host = Host()
    host.store.add_session("s1")
    host.status.is_draining = True
    for path in (START, SAY):
        answer = await host.ask("POST", path, {"message": "a"})
        assert (answer.status, answer.code) == (503, "HOST_DRAINING")
        assert int(answer.headers["retry-after"]) > 0
    assert host.store.accepted == []
    assert host.scheduler.asked == 0


async def test_a_host_that_begins_to_drain_while_a_vm_starts_stores_nothing(
    autojump_clock: MockClock,
) -> None:
    host = Host()
    host.scheduler.seconds = 3
    async with host.open("POST", START, {"message": "a"}) as exchange:
        await trio.sleep(1)
        host.status.is_draining = True
        await exchange.wait_returned()
    assert exchange.status == 503
    assert host.store.accepted == []


async def test_another_users_session_looks_like_none() -> None:
    host = Host()
    host.store.add_session("s1")
    foreign = await host.ask("POST", SAY, {"message": "a"}, BOB)
    unknown = await host.ask("POST", "/api/v1/chat/sessions/nope", {"message": "a"}, BOB)
    assert (foreign.status, foreign.code) == (404, "SESSION_NOT_FOUND")
    assert foreign.body == unknown.body
    assert host.store.accepted == []
    assert host.scheduler.asked == 0


async def test_an_unknown_agent_is_said_before_a_vm_is_started() -> None:
    host = Host()
    answer = await host.ask("POST", START, {"message": "a", "agentId": "nope"})
    assert (answer.status, answer.code) == (404, "AGENT_NOT_FOUND")
    host.store.add_session("s1", agent_id="gone")
    answer = await host.ask("POST", SAY, {"message": "a"})
    assert (answer.status, answer.code) == (404, "AGENT_NOT_FOUND")
    assert host.scheduler.asked == 0
    assert host.store.accepted == []


async def test_a_vm_that_is_not_ready_is_said_with_when_to_come_back() -> None:
    host = Host()
    host.scheduler.error = PlaneNotReady("provisioning", "no image", 4200)
    answer = await host.ask("POST", START, {"message": "a"})
    assert (answer.status, answer.code) == (503, "EXECUTION_PLANE_NOT_READY")
    details = {"status": "provisioning", "lastError": "no image", "retryAfterMs": 4200}
    assert answer.json["error"]["details"] == details
    assert answer.headers["retry-after"] == "5"
    assert "provisioning" in answer.json["error"]["message"]
    assert "5 s" in answer.json["error"]["message"]
    assert host.store.accepted == []


async def test_a_busy_session_is_said() -> None:
    host = Host()
    host.store.add_session("s1")
    host.store.open_runs = ["r1"]
    answer = await host.ask("POST", SAY, {"message": "a", "on_busy": "reject"})
    assert (answer.status, answer.code) == (409, "SESSION_BUSY")
    host.store.fail["accept_message"] = SessionBusy("s1", 16)
    answer = await host.ask("POST", SAY, {"message": "a"})
    assert answer.json["error"]["details"] == {"waiting": 16}
    assert host.dispatcher.kicked == []


async def test_a_session_that_is_deleted_while_the_vm_starts_is_not_found() -> None:
    host = Host()
    host.store.add_session("s1")
    host.store.fail["accept_message"] = NotFound("there is no session s1")
    answer = await host.ask("POST", SAY, {"message": "a"})
    assert (answer.status, answer.code) == (404, "SESSION_NOT_FOUND")


async def test_a_store_that_fails_is_said_without_its_words() -> None:
    host = Host()
    host.store.fail["accept_message"] = store_error()
    answer = await host.ask("POST", START, {"message": "a"})
    assert (answer.status, answer.code) == (503, "STORE_FAILED")
    assert b"secret" not in answer.body
    assert host.store.accepted == []
    assert host.dispatcher.kicked == []


async def test_a_vm_that_cannot_be_let_in_because_the_store_fails_is_not_what_is_said() -> None:
    host = Host()
    host.scheduler.error = PlaneNotReady("disconnected", None, 1000)
    host.scheduler.on_asked = lambda: setattr(host.store, "failure", "disk full")
    answer = await host.ask("POST", START, {"message": "a"})
    assert (answer.status, answer.code) == (503, "STORE_FAILED")
    assert host.store.accepted == []


async def test_a_store_that_hangs_is_given_up(autojump_clock: MockClock) -> None:
    host = Host()
    host.store.gate = trio.Event()
    answer = await host.ask("POST", START, {"message": "a"})
    assert (answer.status, answer.code) == (503, "STORE_FAILED")
    assert trio.current_time() == host.deadlines.store_commit


async def test_a_bug_is_an_internal_error_without_its_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = Host()
    host.scheduler.error = ZeroDivisionError("secret")
    answer = await host.ask("POST", START, {"message": "a"})
    assert (answer.status, answer.code) == (500, "INTERNAL_ERROR")
    assert b"secret" not in answer.body
    assert "a request failed" in caplog.text


async def test_a_client_that_goes_away_while_the_vm_starts_stores_nothing(
    autojump_clock: MockClock,
) -> None:
    host = Host()
    host.scheduler.seconds = 5
    async with host.open("POST", START, {"message": "a"}) as exchange:
        await trio.sleep(1)
        exchange.disconnect()
        await exchange.wait_returned()
    assert exchange.status is None
    assert trio.current_time() == 1
    assert host.store.accepted == []
    assert host.dispatcher.cancelled == []


# --- idempotency ----------------------------------------------------------------------


async def test_a_repeat_under_the_same_key_attaches_to_the_same_run() -> None:
    host = Host()
    body = {"message": "once", "on_disconnect": "continue"}
    async with host.open("POST", START, body, with_key("k1")) as first:
        await first.wait_for(lambda: first.body)
        await host.say(first.headers["x-session-id"], started(first.headers["x-run-id"]))
        async with host.open("POST", START, body, with_key("k1")) as second:
            await stream_of(host, second, text, ended)
            await second.wait_returned()
            await first.wait_returned()
    for name in ("x-session-id", "x-run-id"):
        assert second.headers[name] == first.headers[name]
    assert len(host.store.accepted) == 1
    assert b"run_started" in second.body
    assert b"execution_complete" in second.body


async def test_a_repeat_attaches_although_the_vm_is_down() -> None:
    host = Host()
    async with host.open("POST", START, {"message": "once"}, with_key("k1")) as first:
        await stream_of(host, first, started, text, ended)
        await first.wait_returned()
    host.scheduler.error = PlaneNotReady("disconnected", None, 1000)
    second = await host.ask("POST", START, {"message": "once"}, with_key("k1"))
    assert second.status == 200
    assert b"run_started" in second.body
    assert b"execution_complete" in second.body


async def test_another_request_under_a_known_key_is_refused() -> None:
    host = Host()
    host.store.add_session("s1")
    async with host.open("POST", START, {"message": "once"}, with_key("k1")) as first:
        await first.wait_for(lambda: first.body)
    for path, body in [
        (START, {"message": "twice"}),
        (START, {"message": "once", "on_busy": "reject"}),
        (SAY, {"message": "once"}),
    ]:
        answer = await host.ask("POST", path, body, with_key("k1"))
        assert (answer.status, answer.code) == (422, "IDEMPOTENCY_CONFLICT")
    assert len(host.store.accepted) == 1


async def test_keys_of_two_users_are_strangers() -> None:
    host = Host()
    runs = set()
    for user in (ANN, BOB):
        async with host.open("POST", START, {"message": "x"}, with_key("k1", user)) as exchange:
            await exchange.wait_for(lambda exchange=exchange: exchange.body)
            runs.add(exchange.headers["x-run-id"])
    assert len(runs) == 2


async def test_a_repeat_of_a_message_whose_session_is_gone_is_not_found() -> None:
    host = Host()
    async with host.open("POST", START, {"message": "once"}, with_key("k1")) as first:
        await first.wait_for(lambda: first.body)
    host.store.sessions.clear()
    answer = await host.ask("POST", START, {"message": "once"}, with_key("k1"))
    assert (answer.status, answer.code) == (404, "SESSION_NOT_FOUND")


# --- once it is stored, there is no error any more ------------------------------------


async def test_a_stored_message_that_cannot_be_followed_is_an_empty_stream() -> None:
    host = Host()
    host.store.fail["tail_start"] = store_error()
    answer = await host.ask("POST", START, {"message": "a"})
    assert answer.status == 200
    assert answer.headers["x-run-id"] == host.store.accepted[0].run_id
    assert answer.body.startswith(b"retry: ")
    assert host.dispatcher.cancelled == []


async def test_streams_of_one_run_are_apart_from_other_runs() -> None:
    host = Host()
    host.store.add_session("s1")
    async with host.open("POST", SAY, {"message": "a"}) as first:
        await first.wait_for(lambda: first.body)
        async with host.open("POST", SAY, {"message": "b"}) as second:
            await second.wait_for(lambda: second.body)
            one, two = first.headers["x-run-id"], second.headers["x-run-id"]
            await host.say(
                "s1",
                event(1, "run_started", run_id=one),
                event(2, "execution_complete", run_id=one, cancelled=True),
                event(3, "run_started", run_id=two),
                event(4, run_id=two, content="for b"),
            )
            await first.wait_returned()
            await second.wait_for(lambda: b"for b" in second.body)
            assert not second.is_complete
    assert b"for b" not in first.body
    assert b"id: 1-2\n" not in second.body


async def test_nothing_is_left_when_the_server_ends_a_request() -> None:
    host = Host()
    async with host.open("POST", START, {"message": "a"}) as exchange:
        await exchange.wait_for(lambda: exchange.body)
        await wait_all_tasks_blocked()
    assert host.relay.reader_count == 0
    assert host.dispatcher.cancelled == []
