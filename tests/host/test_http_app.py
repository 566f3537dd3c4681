"""What holds for every request: guards, envelopes, headers, methods, and where it goes."""

from __future__ import annotations

import json
import re

import pytest
import trio
from http_kit import ANN, Exchange, Host

from semibot.host.app import SECURITY_HEADERS, make_app
from semibot.host.routes import ROUTES

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; frame-ancestors 'none'; form-action 'none'"
)

# --- every answer ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing/here", 404, "ROUTE_NOT_FOUND"),
        ("GET", "/api/v1/sessions/", 404, "ROUTE_NOT_FOUND"),
        ("GET", "//livez", 404, "ROUTE_NOT_FOUND"),
        ("GET", "/api/v1/sessions/a/b", 404, "ROUTE_NOT_FOUND"),
        ("GET", "http://elsewhere/livez", 404, "ROUTE_NOT_FOUND"),
        ("OPTIONS", "*", 404, "ROUTE_NOT_FOUND"),
        ("GET", "", 404, "ROUTE_NOT_FOUND"),
        ("GET", "/api/v1/chat/start", 405, "METHOD_NOT_ALLOWED"),
        ("PUT", "/api/v1/sessions", 405, "METHOD_NOT_ALLOWED"),
        ("OPTIONS", "/api/v1/sessions", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/livez", 405, "METHOD_NOT_ALLOWED"),
        ("BREW", "/readyz", 405, "METHOD_NOT_ALLOWED"),
        ("GET", "/api/v1/sessions/s1", 404, "SESSION_NOT_FOUND"),
        ("GET", "/ws/vm", 404, "ROUTE_NOT_FOUND"),
    ],
)
async def test_errors_have_one_envelope(method: str, path: str, status: int, code: str) -> None:
    answer = await Host().ask(method, path)
    assert (answer.status, answer.code) == (status, code)
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert answer.json["error"]["message"]


async def test_a_method_that_is_not_allowed_says_which_are() -> None:
    host = Host()
    assert (await host.ask("PUT", "/api/v1/sessions")).headers["allow"] == "GET, HEAD"
    assert (await host.ask("PUT", "/api/v1/sessions/s1")).headers["allow"] == "DELETE, GET, HEAD"
    assert (await host.ask("PUT", "/api/v1/chat/start")).headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/livez"),
        ("GET", "/"),
        ("GET", "/nothing"),
        ("POST", "/api/v1/chat/start"),
        ("GET", "/api/v1/sessions/s1/stream"),
        ("GET", "/api/v1/sessions"),
    ],
)
async def test_every_answer_has_the_security_headers(method: str, path: str) -> None:
    host = Host()
    host.store.add_session("s1")
    async with host.open(method, path) as exchange:
        await exchange.wait_for(lambda: exchange.status)
    assert exchange.headers["x-content-type-options"] == "nosniff"
    assert exchange.headers["referrer-policy"] == "no-referrer"
    assert exchange.headers["cross-origin-opener-policy"] == "same-origin"
    assert exchange.headers["cross-origin-resource-policy"] == "same-origin"
    assert exchange.headers["content-security-policy"].startswith("default-src 'none'; ")
    assert "cache-control" in exchange.headers
    assert "x-request-id" in exchange.headers
    assert not any(name.startswith("access-control-") for name in exchange.headers)
    assert "server" not in exchange.headers
    assert "set-cookie" not in exchange.headers
    assert set(map(str.lower, SECURITY_HEADERS)) <= set(exchange.headers)


async def test_a_request_id_is_echoed() -> None:
    answer = await Host().ask("GET", "/livez", headers={"x-request-id": "a.b:c_d-9"})
    assert answer.headers["x-request-id"] == "a.b:c_d-9"


@pytest.mark.parametrize("odd", ["", "a b", "x" * 129, "é", "a\tb", "<script>"])
async def test_an_odd_request_id_is_replaced(odd: str) -> None:
    answer = await Host().ask("GET", "/livez", headers={"x-request-id": odd})
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])


@pytest.mark.parametrize("path", ["/", "/livez", "/openapi.json", "/api/v1/sessions", "/nothing"])
async def test_head_is_get_without_a_body(path: str) -> None:
    host = Host()
    got, head = await host.ask("GET", path), await host.ask("HEAD", path)
    assert head.body == b""
    assert head.status == got.status
    assert head.headers["content-length"] == got.headers["content-length"]
    assert head.headers.get("etag") == got.headers.get("etag")


async def test_answers_are_counted() -> None:
    host = Host()
    await host.ask("GET", "/livez")
    await host.ask("GET", "/nothing")
    await host.ask("BREW", "/livez")
    count = host.metrics.http_requests_total.value
    assert count(method="GET", status="200") == 1
    assert count(method="GET", status="404") == 1
    assert count(method="other", status="405") == 1


# --- who asks -------------------------------------------------------------------------


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
async def test_only_public_routes_answer_strangers(route) -> None:
    host = Host()
    path = re.sub(r"\{\w+\}", "app.js", route.path)
    body = {"message": "hi"} if route.method == "POST" else None
    answer = await host.ask(route.method, path, body, headers={})
    if route.is_public:
        assert answer.status != 401
    else:
        assert (answer.status, answer.code) == (401, "AUTH_REQUIRED")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert host.store.users == host.store.accepted == []


async def test_a_token_that_is_none_is_refused_before_the_body_is_read() -> None:
    host, exchange = Host(), Exchange()
    scope = host.scope(
        "POST", "/api/v1/chat/start", {"host": "h", "authorization": "Bearer x.y.z"}, exchange
    )
    await host.app(scope, exchange.receive, exchange.send)  # there is no body to be read
    assert exchange.status == 401
    assert json.loads(exchange.body)["error"]["code"] == "AUTH_INVALID"


async def test_on_loopback_everybody_is_the_local_user() -> None:
    host = Host(is_local=True)
    host.store.add_session("s1", user_id="local")
    assert (await host.ask("GET", "/api/v1/sessions/s1", headers={})).status == 200


@pytest.mark.parametrize(
    ("headers", "is_refused"),
    [
        ({"host": "localhost:80"}, False),
        ({"host": "[::1]:80"}, False),
        ({"host": "127.0.0.1:80", "origin": "http://127.0.0.1:80"}, False),
        ({"host": "evil.example"}, True),
        ({"host": ""}, True),
        ({"host": "127.0.0.1:80, evil.example"}, True),
        ({"host": "127.0.0.1:80", "origin": "http://evil.example"}, True),
        ({"host": "127.0.0.1:80", "origin": "null"}, True),
        ({"host": "127.0.0.1:80", "origin": "http://127.0.0.1:81"}, True),
    ],
)
@pytest.mark.parametrize("path", ["/", "/livez", "/api/v1/sessions", "/api/v1/sessions/s1/stream"])
async def test_other_names_and_other_pages_are_kept_out(
    path: str, headers: dict[str, str], is_refused: bool
) -> None:
    host = Host(is_local=True)
    host.store.add_session("s1", user_id="local")
    async with host.open("GET", path, headers=headers) as exchange:
        await exchange.wait_for(lambda: exchange.body)
    assert (exchange.status == 403) == is_refused
    if is_refused:
        assert json.loads(exchange.body)["error"]["code"] == "ORIGIN_REFUSED"


async def test_another_page_cannot_send_a_message() -> None:
    host = Host(is_local=True)
    headers = {"origin": "http://evil.example"}
    answer = await host.ask("POST", "/api/v1/chat/start", {"message": "hi"}, headers)
    assert answer.status == 403
    assert host.store.accepted == []


# --- websockets and lifespan ----------------------------------------------------------


async def knock(over: Host, path: str, **headers: str) -> list[dict]:
    sent: list[dict] = []
    events = iter([{"type": "websocket.connect"}])

    async def receive() -> dict:
        await trio.lowlevel.checkpoint()
        return next(events)

    async def send(message: dict) -> None:
        await trio.lowlevel.checkpoint()
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": path,
        "query_string": b"user_id=ann",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }
    await over.app(scope, receive, send)
    return sent


async def test_vms_come_in_at_their_path() -> None:
    host = Host(is_local=True)
    assert await knock(host, "/ws/vm", host="127.0.0.1:80") == []
    assert host.links.served == ["/ws/vm"]


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/ws", {"host": "127.0.0.1"}),
        ("/ws/vm/", {"host": "127.0.0.1"}),
        ("/api/v1/chat/start", {"host": "127.0.0.1"}),
        ("/ws/vm", {"host": "evil.example"}),
        ("/ws/vm", {"host": "127.0.0.1", "origin": "http://evil.example"}),
    ],
)
async def test_other_websockets_are_refused_before_they_open(
    path: str, headers: dict[str, str]
) -> None:
    host = Host(is_local=True)
    (said,) = await knock(host, path, **headers)
    assert said["type"] == "websocket.close"
    assert host.links.served == []


async def test_a_server_with_a_lifespan_hears_yes() -> None:
    said: list[dict] = []
    events = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

    async def receive() -> dict:
        await trio.lowlevel.checkpoint()
        return next(events)

    async def send(message: dict) -> None:
        await trio.lowlevel.checkpoint()
        said.append(message)

    await make_app(Host().core)({"type": "lifespan"}, receive, send)
    assert [each["type"] for each in said] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]


async def test_other_scopes_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="no ASGI scope 'udp'"):
        await Host().app({"type": "udp"}, None, None)


# --- the page -------------------------------------------------------------------------


async def test_the_page_may_only_talk_to_its_host() -> None:
    answer = await Host(is_local=True).ask("GET", "/", headers={})
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == PAGE_POLICY
    assert answer.headers["cache-control"] == "no-cache"
    assert b"<!doctype html>" in answer.body.lower()


async def test_everything_that_the_page_names_is_there() -> None:
    host = Host()
    page = (await host.ask("GET", "/", headers={})).body.decode()
    names = re.findall(r'(?:src|href)="/([^"/]+)"', page)
    assert "app.js" in names
    for name in names:
        answer = await host.ask("GET", "/" + name, headers={})
        assert answer.status == 200, name
        assert answer.body


@pytest.mark.parametrize("sent", ["{}", "W/{}", '"other", {}', "*"])
async def test_an_unchanged_file_is_not_sent_again(sent: str) -> None:
    host = Host()
    first = await host.ask("GET", "/style.css")
    again = await host.ask(
        "GET", "/style.css", headers={"if-none-match": sent.format(first.headers["etag"])}
    )
    assert (again.status, again.body) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    assert "content-type" not in again.headers
    assert "content-length" not in again.headers
    other = await host.ask("GET", "/style.css", headers={"if-none-match": '"other"'})
    assert other.status == 200


@pytest.mark.parametrize(
    "name", ["index.htm", "..", ".", "__init__.py", "web", "app.js.map", "%2e%2e", "a\0b", "..\\x"]
)
async def test_only_files_of_the_page_are_served(name: str) -> None:
    answer = await Host().ask("GET", "/" + name, headers=ANN)
    assert (answer.status, answer.code) == (404, "ROUTE_NOT_FOUND")


async def test_a_host_without_the_page_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr("semibot.host.pages.files", lambda _: tmp_path)
    answer = await Host().ask("GET", "/", headers={})
    assert answer.status == 404
