"""Chatting with a host: against an ASGI app that plays one, over real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from semibot.cli import remote
from semibot.cli.remote import open_remote_partner
from semibot.cli.talk import ChatOptions
from semibot.config import Deadlines
from semibot.errors import HostRefused, HostUnreachable, RemoteProtocolError, UsageError
from semibot.host.server import open_server
from semibot.live import live_ports
from semibot.testing import capture_logs
from semibot.wire.events import TextChunk


def options(url: str | None, session_id: str | None = None) -> ChatOptions:
    return ChatOptions(
        runtime="graph", model=None, workspace=Path(), session_id=session_id, grants=(),
        is_json=False, is_verbose=False, message=None, url=url,
    )  # fmt: skip


def sse(id: str, **data: Any) -> bytes:
    return f"id: {id}\nevent: message\ndata: {json.dumps(data)}\n\n".encode()


STARTED = sse("1-1", type="run_started", run_id="r1", message_id="m", message="hello")
ONCE = sse("1-2", type="text_chunk", content="Once ")
UPON = sse("1-3", type="text_chunk", content="upon")
END = sse("1-4", type="execution_complete", run_id="r1", final_response="Once upon")
CANCELLED = sse("1-4", type="execution_complete", run_id="r1", cancelled=True)
RECEIPT = {"run_id": "r1", "outcome": "cancelled", "reason": "user_cancelled", "seconds": 0.1}


@attrs.define
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: Any
    send: Callable[[Any], Any]
    script: Any

    async def begin(self, status: int = 200, **headers: str) -> None:
        fields = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": fields})

    async def say(self, *pieces: bytes, ends: bool = False) -> None:
        for piece in pieces:
            await self.send({"type": "http.response.body", "body": piece, "more_body": True})
        if ends:
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    async def answer(self, data: Any, status: int = 200) -> None:
        await self.begin(status, content_type="application/json")
        await self.say(json.dumps(data).encode(), ends=True)

    async def stream(self, *pieces: bytes, ends: bool = True) -> None:
        await self.begin(x_session_id="s1", x_run_id="r1", content_type="text/event-stream")
        await self.say(b"retry: 1000\n\n", *pieces, ends=ends)


class Script:
    """A host that answers as the test says, one handler a route."""

    def __init__(self, **handlers: Any) -> None:
        self.handlers = handlers
        self.requests: list[Request] = []
        self.server: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = b""
        while True:
            part = await receive()
            body += part.get("body", b"")
            if not part.get("more_body"):
                break
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        request = Request(
            scope["method"], scope["path"], headers, json.loads(body) if body else None, send, self
        )
        self.requests.append(request)
        name = self.name_of(request)
        if name == "greet" and name not in self.handlers:
            await request.answer({"success": True, "data": {"sessions": []}})
            return
        count = sum(self.name_of(each) == name for each in self.requests) - 1
        handler = self.handlers[name]
        await (handler[min(count, len(handler) - 1)] if isinstance(handler, list) else handler)(
            request
        )

    def name_of(self, request: Request) -> str:
        if request.path == "/api/v1/sessions":
            return "greet"
        if request.path.endswith("/stream"):
            return "stream"
        return "cancel" if request.path.endswith("/cancel") else "ask"

    def asked(self, name: str) -> list[Request]:
        return [each for each in self.requests if self.name_of(each) == name]


@asynccontextmanager
async def play(**handlers: Any) -> AsyncGenerator[tuple[Script, str]]:
    script = Script(**handlers)
    ports = live_ports()
    async with open_server(script, "127.0.0.1", 0, deadlines=Deadlines(), ports=ports) as server:
        script.server = server
        with trio.fail_after(20):
            yield script, f"http://127.0.0.1:{server.port}"


@pytest.fixture(autouse=True)
def no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_PAUSE", 0.01)


async def read_all(answer: Any) -> tuple[str, Any]:
    text = ""
    while True:
        entry = await answer.next_entry()
        if isinstance(entry.event, TextChunk):
            text += entry.event.content
        if entry.event.type.startswith("execution_"):
            return text, entry.event


async def hang_up(request: Request) -> None:
    """Close the connection without an answer."""
    await request.script.server.abort_all()


def streaming(*pieces: bytes, ends: bool = True) -> Any:
    async def handler(request: Request) -> None:
        await request.stream(*pieces, ends=ends)

    return handler


def answering(data: Any, status: int = 200) -> Any:
    async def handler(request: Request) -> None:
        await request.answer(data, status)

    return handler


def refusing(status: int, code: str, text: str) -> Any:
    return answering({"success": False, "error": {"code": code, "message": text}}, status)


# --- asking ---------------------------------------------------------------------------


async def test_the_first_message_makes_the_session_and_the_next_goes_on_in_it() -> None:
    async with play(ask=streaming(STARTED, ONCE, UPON, END)) as (script, url):
        async with open_remote_partner(options(url + "/"), live_ports()) as partner:
            assert partner.introduction() == f"host {url}, session new"
            for _ in range(2):
                async with partner.ask("hello") as answer:
                    assert (await read_all(answer))[0] == "Once upon"
                    assert answer.receipt is None
            assert partner.introduction() == f"host {url}, session s1"
    first, second = script.asked("ask")
    assert (first.path, second.path) == ("/api/v1/chat/start", "/api/v1/chat/sessions/s1")
    assert first.body == {
        "message": "hello", "on_disconnect": "continue", "runtime_type": "graph",
    }  # fmt: skip
    assert second.body == {"message": "hello", "on_disconnect": "continue"}
    assert first.headers["idempotency-key"] != second.headers["idempotency-key"]
    assert "authorization" not in first.headers


async def test_a_session_that_is_named_is_continued_with_the_token_of_the_environment() -> None:
    ports = live_ports()
    async with play(ask=streaming(STARTED, END)) as (script, url):
        ports = attrs.evolve(ports, environment={"SEMIBOT_URL": url, "SEMIBOT_TOKEN": "secret"})
        async with (
            open_remote_partner(options("", "a b"), ports) as partner,
            partner.ask("hello") as answer,
        ):
            await read_all(answer)
    assert {each.headers["authorization"] for each in script.requests} == {"Bearer secret"}
    assert script.asked("ask")[0].path == "/api/v1/chat/sessions/a b"


async def test_a_message_that_got_no_answer_is_sent_again_under_its_key() -> None:
    async with play(ask=[hang_up, streaming(STARTED, END)]) as (script, url):
        async with (
            open_remote_partner(options(url), live_ports()) as partner,
            partner.ask("hello") as answer,
        ):
            await read_all(answer)
    first, second = script.asked("ask")
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]


# --- streams that break ---------------------------------------------------------------


async def test_a_broken_stream_is_taken_up_after_the_last_event_that_came() -> None:
    starting = refusing(503, "NOT_READY", "the host is starting")
    async with play(
        ask=streaming(STARTED, ONCE, UPON[:20]),
        stream=[starting, streaming(UPON), streaming(b": keepalive\n\n"), streaming(END)],
    ) as (script, url):
        async with (
            open_remote_partner(options(url), live_ports()) as partner,
            partner.ask("hello") as answer,
        ):
            text, end = await read_all(answer)
    assert (text, end.final_response) == ("Once upon", "Once upon")
    ids = [each.headers["last-event-id"] for each in script.asked("stream")]
    assert ids == ["1-2", "1-2", "1-3", "1-3"]


async def test_a_stream_that_never_began_is_joined_from_the_sessions_state() -> None:
    run = {"run_id": "r1", "message_id": "m", "text": "Once ", "open_calls": []}
    view = sse("1-2", type="resync", messages=[], run=run, truncated=False)
    async with play(ask=streaming(), stream=streaming(view, UPON, END)) as (script, url):
        async with (
            open_remote_partner(options(url), live_ports()) as partner,
            partner.ask("hello") as answer,
        ):
            assert (await read_all(answer))[0] == "Once upon"
    assert "last-event-id" not in script.asked("stream")[0].headers


async def test_a_session_that_was_deleted_has_no_more_answers() -> None:
    async def no_content(request: Request) -> None:
        await request.begin(204)
        await request.say(ends=True)

    for gone, words in (
        (no_content, "deleted"),
        (refusing(404, "NOT_FOUND", "no such"), "no such"),
    ):
        async with (
            play(ask=streaming(STARTED), stream=gone) as (_, url),
            open_remote_partner(options(url), live_ports()) as partner,
            partner.ask("hello") as answer,
        ):
            with pytest.raises(HostRefused, match=words):
                await read_all(answer)


async def test_a_host_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "GIVE_UP_AFTER", 0.1)
    away = refusing(503, "NOT_READY", "the host is draining")
    async with (
        play(ask=streaming(STARTED), stream=away) as (_, url),
        open_remote_partner(options(url), live_ports()) as partner,
        partner.ask("hello") as answer,
    ):
        with pytest.raises(HostUnreachable, match="draining"):
            await read_all(answer)


async def test_a_stream_that_falls_silent_is_broken() -> None:
    async def fall_silent(request: Request) -> None:
        await request.stream(STARTED, ends=False)
        await trio.sleep_forever()

    async with (
        play(ask=fall_silent, stream=streaming(END)) as (_, url),
        open_remote_partner(options(url), live_ports()) as partner,
        partner.ask("hello") as answer,
    ):
        partner.deadlines = Deadlines(http_keepalive=0.1)  # type: ignore[misc]
        assert (await read_all(answer))[1].type == "execution_complete"


# --- stopping -------------------------------------------------------------------------


async def test_a_cancel_shows_the_receipt_even_if_the_end_comes_first() -> None:
    shown = trio.Event()
    cancelling = trio.Event()

    async def ask(request: Request) -> None:
        await request.stream(STARTED, ONCE, ends=False)
        await cancelling.wait()
        await request.say(CANCELLED, ends=True)
        shown.set()

    async def cancel(request: Request) -> None:
        cancelling.set()
        await shown.wait()
        await request.answer({"success": True, "data": RECEIPT})

    async with (
        play(ask=ask, cancel=cancel) as (script, url),
        open_remote_partner(options(url), live_ports()) as partner,
        partner.ask("hello") as answer,
        trio.open_nursery() as nursery,
    ):
        await answer.next_entry()
        nursery.start_soon(answer.cancel)
        _, end = await read_all(answer)
        assert end.cancelled
        assert answer.receipt is not None
        assert answer.receipt.reason == "user_cancelled"
    assert script.asked("cancel")[0].body == {"run_id": "r1"}


@pytest.mark.parametrize(
    "data",
    [{"pending": True}, {"vm_lost": True}, {"run_id": 7}, None],
)
async def test_a_cancel_without_a_receipt_has_none(data: Any) -> None:
    async with (
        play(
            ask=streaming(STARTED, ONCE, CANCELLED),
            cancel=answering({"success": True, "data": data}),
        ) as (_, url),
        open_remote_partner(options(url), live_ports()) as partner,
        partner.ask("hello") as answer,
    ):
        with capture_logs():
            assert await answer.cancel() is None
        assert (await read_all(answer))[1].cancelled


async def test_a_cancel_that_fails_is_logged_and_the_answer_goes_on() -> None:
    refused = refusing(404, "NOT_FOUND", "no such run")
    async with (
        play(ask=streaming(STARTED, ONCE, END), cancel=refused) as (_, url),
        open_remote_partner(options(url), live_ports()) as partner,
        partner.ask("hello") as answer,
    ):
        with capture_logs() as logs:
            assert await answer.cancel() is None
        assert any(entry["event"] == "not stopped" for entry in logs)
        assert (await read_all(answer))[0] == "Once "


async def test_a_cancel_is_tried_again_when_the_host_does_not_answer() -> None:
    told = answering({"success": True, "data": RECEIPT})
    async with (
        play(ask=streaming(STARTED, CANCELLED), cancel=[hang_up, told]) as (_, url),
        open_remote_partner(options(url), live_ports()) as partner,
        partner.ask("hello") as answer,
    ):
        assert await answer.cancel() is not None
        answer.interrupt("the program ends")
        assert await answer.cancel() is None  # left alone from now on


async def test_a_host_that_never_answers_a_cancel_is_logged() -> None:
    async with (
        play(ask=streaming(STARTED, CANCELLED), cancel=hang_up) as (script, url),
        open_remote_partner(options(url), live_ports()) as partner,
        partner.ask("hello") as answer,
    ):
        with capture_logs():
            assert await answer.cancel() is None
    assert len(script.asked("cancel")) == remote.SEND_AGAIN + 1


# --- hosts that are not there, or do not like us --------------------------------------


@pytest.mark.parametrize("url", ["ftp://h", "http://", "nonsense"])
async def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is no address of a host"):
        async with open_remote_partner(options(url), live_ports()):
            raise AssertionError


async def test_a_host_that_is_not_there_is_named() -> None:
    with pytest.raises(HostUnreachable, match="semibot serve"):
        async with open_remote_partner(options("http://127.0.0.1:1"), live_ports()):
            raise AssertionError


async def test_a_message_to_a_host_that_has_gone_fails() -> None:
    async with play() as (_, url):
        pass
    async with play(ask=streaming()) as (_, other):
        async with open_remote_partner(options(other), live_ports()) as partner:
            partner._http.base_url = url
            with pytest.raises(HostUnreachable):
                async with partner.ask("hello"):
                    raise AssertionError


async def test_what_the_host_says_against_a_message_is_told() -> None:
    busy = refusing(409, "SESSION_BUSY", "wait for it")
    async with (
        play(ask=busy) as (_, url),
        open_remote_partner(options(url), live_ports()) as partner,
    ):
        with pytest.raises(HostRefused, match=r"wait for it \(SESSION_BUSY\)") as caught:
            async with partner.ask("hello"):
                raise AssertionError
    assert caught.value.status == 409


async def test_a_host_that_wants_a_token_is_told_so() -> None:
    async with play(greet=refusing(401, "AUTH_REQUIRED", "who are you?")) as (_, url):
        with pytest.raises(HostRefused, match="set SEMIBOT_TOKEN"):
            async with open_remote_partner(options(url), live_ports()):
                raise AssertionError


async def test_something_that_is_no_host_is_told_by_its_status() -> None:
    async def page(request: Request) -> None:
        await request.begin(404)
        await request.say(b"<h1>Not here</h1>", ends=True)

    async with play(greet=page) as (_, url):
        with pytest.raises(HostRefused, match="answered 404"):
            async with open_remote_partner(options(url), live_ports()):
                raise AssertionError


async def test_an_answer_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_ANSWER_BYTES", 10)
    async with play() as (_, url):
        with pytest.raises(RemoteProtocolError, match="too large"):
            async with open_remote_partner(options(url), live_ports()):
                raise AssertionError


async def test_an_answer_that_is_cut_off_is_no_answer() -> None:
    async def cut(request: Request) -> None:
        await request.begin(200, content_length="100")
        await request.say(b"{")
        raise OSError("gone")

    async with play(greet=cut) as (_, url):
        with pytest.raises(HostUnreachable):
            async with open_remote_partner(options(url), live_ports()):
                raise AssertionError
