"""The real SDK against the fake server: everything that can go wrong, as typed errors."""

from __future__ import annotations

import contextlib
import gzip
import json
import sys
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial

import attrs
import pytest
import trio

from semibot.config import Deadlines
from semibot.errors import ModelError, ModelNotConfigured
from semibot.models import Model, ModelRequest, TextDelta, openai_model
from semibot.models.openai.client import MAX_REFUSAL_BYTES
from semibot.models.openai.errors import retry_after
from semibot.testing import simulated_ports
from semibot.testing.model_answers import (
    Answer,
    Behaviour,
    Cut,
    Done,
    Finish,
    Gate,
    Raw,
    Refusal,
    Step,
    Text,
    ToolPiece,
    say,
)
from semibot.testing.model_server import ModelServer, open_model_server
from semibot.wire.chat import Message
from semibot.wire.sse import MAX_EVENT_BYTES

OpenModel = Callable[..., AbstractAsyncContextManager[Model]]
Ask = Callable[..., Awaitable["Outcome"]]

PROMPT = "the secret prompt"
HELLO = ModelRequest(messages=(Message(role="user", content=PROMPT),))
ECHO = {
    "message": f"Incorrect API key provided: sk-secret. You said: {PROMPT}",
    "type": "some_error",
    "code": "some_code",
}


@attrs.define
class Outcome:
    error: ModelError
    text: str
    server: ModelServer


@pytest.fixture
def ask(open_openai: OpenModel) -> Ask:
    async def ask(behaviour: Behaviour, heard: trio.Event | None = None) -> Outcome:
        """Ask, and return what was heard before the error. Every error keeps its secrets."""
        text = ""
        async with (
            open_model_server(behaviour) as server,
            open_openai(server.base_url) as model,
        ):
            with pytest.raises(ModelError) as caught:
                async with model.stream(HELLO) as stream:
                    async for item in stream:
                        assert isinstance(item, TextDelta)
                        text += item.text
                        if heard is not None:
                            heard.set()
        shown = "".join(traceback.format_exception(caught.value))
        assert "sk-secret" not in shown
        assert PROMPT not in shown
        return Outcome(caught.value, text, server)

    return ask


def answer(*steps: Step) -> Answer:
    return Answer(steps=steps)


@pytest.mark.parametrize(
    ("status", "code", "is_retryable", "words"),
    [
        (400, "MODEL_REFUSED", False, "400 (some_error, some_code)"),
        (401, "MODEL_REFUSED", False, "OPENAI_API_KEY"),
        (403, "MODEL_REFUSED", False, "OPENAI_API_KEY"),
        (404, "MODEL_REFUSED", False, "OPENAI_BASE_URL"),
        (422, "MODEL_REFUSED", False, "refuses the request"),
        (307, "MODEL_REFUSED", False, "redirect"),
        (429, "MODEL_RATE_LIMITED", True, "too many requests"),
        (500, "MODEL_SERVER_ERROR", True, "500"),
        (503, "MODEL_SERVER_ERROR", True, "503"),
    ],
)
async def test_a_status_becomes_a_typed_error(
    ask: Ask, status: int, code: str, is_retryable: bool, words: str
) -> None:
    headers = {"location": "http://127.0.0.1:1/elsewhere"} if status == 307 else {}
    outcome = await ask(Refusal(status=status, error=ECHO, headers=headers))
    assert (outcome.error.code, outcome.error.is_retryable) == (code, is_retryable)
    assert words in str(outcome.error)
    assert outcome.error.retry_after is None


async def test_the_sdk_does_not_try_again_by_itself(ask: Ask) -> None:
    outcome = await ask(Refusal(status=500))
    assert len(outcome.server.requests) == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.25"}, 0.25),
        ({"Retry-After": "3600"}, 60.0),
        ({"Retry-After": "-5"}, 0.0),
        ({"Retry-After-Ms": "1500", "Retry-After": "7"}, 1.5),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
    ],
)
async def test_a_busy_server_says_when_to_come_back(
    ask: Ask, headers: dict[str, str], seconds: float | None
) -> None:
    outcome = await ask(Refusal(status=429, headers=headers))
    assert outcome.error.retry_after == seconds


def test_a_date_to_come_back_is_compared_with_the_wall_clock() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    date = format_datetime(now + timedelta(seconds=30), usegmt=True)
    assert retry_after({"retry-after": date}, now) == 30.0
    assert retry_after({"retry-after": date.replace("GMT", "-0000")}, now) == 30.0


async def test_an_empty_account_is_not_asked_again(ask: Ask) -> None:
    outcome = await ask(Refusal(status=429, error={"code": "insufficient_quota"}))
    assert outcome.error.code == "MODEL_RATE_LIMITED"
    assert not outcome.error.is_retryable
    assert "credit" in str(outcome.error)


async def test_a_server_that_is_not_there_is_unreachable(open_openai: OpenModel) -> None:
    async with open_model_server(say("x")) as server:
        base_url = server.base_url
    async with open_openai(base_url) as model:
        with pytest.raises(ModelError) as caught:
            async with model.stream(HELLO):
                raise AssertionError("the block must not begin")
    assert caught.value.code == "MODEL_UNREACHABLE"
    assert caught.value.is_retryable
    assert base_url.removeprefix("http://").removesuffix("/v1") in str(caught.value)


async def test_a_name_that_does_not_resolve_is_unreachable(open_openai: OpenModel) -> None:
    async with open_openai("http://user:sk-pass@model.invalid/v1") as model:
        with pytest.raises(ModelError) as caught:
            async with model.stream(HELLO):
                raise AssertionError("the block must not begin")
    assert caught.value.code == "MODEL_UNREACHABLE"
    assert "sk-pass" not in str(caught.value)


@pytest.mark.parametrize("is_reset", [False, True])
async def test_a_connection_closed_without_an_answer_is_broken(ask: Ask, is_reset: bool) -> None:
    outcome = await ask(Answer(before=(Cut(is_reset),), steps=()))
    assert (outcome.error.code, outcome.error.is_retryable) == ("MODEL_STREAM_BROKEN", True)


@pytest.mark.parametrize("is_reset", [False, True])
@pytest.mark.parametrize("framing", ["chunked", "close"])
async def test_an_answer_cut_in_the_middle_is_broken(
    ask: Ask, is_reset: bool, framing: str
) -> None:
    heard = trio.Event()  # a reset discards what was not read yet
    steps = (Text("Hi "), Gate(heard), Cut(is_reset))
    outcome = await ask(Answer(steps=steps, framing=framing), heard)
    assert (outcome.error.code, outcome.error.is_retryable) == ("MODEL_STREAM_BROKEN", True)
    assert outcome.text == "Hi "


async def test_an_answer_that_just_ends_is_broken(ask: Ask) -> None:
    outcome = await ask(answer(Text("Hi ")))
    assert outcome.error.code == "MODEL_STREAM_BROKEN"
    assert outcome.text == "Hi "


@asynccontextmanager
async def open_server(
    handler: Callable[[trio.SocketStream], Awaitable[None]],
) -> AsyncGenerator[str]:
    """Run a server; yield its base URL."""
    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}/v1"
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_raw_server(answer: bytes) -> AsyncGenerator[str]:
    """Run a server that says *answer* to everything and closes; yield its base URL."""

    async def answer_it(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        await stream.aclose()

    async with open_server(answer_it) as base_url:
        yield base_url


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "MODEL_REFUSED"), (429, "MODEL_RATE_LIMITED"), (307, "MODEL_REFUSED")],
)
async def test_an_endless_error_is_told_by_its_status_and_not_read(
    open_openai: OpenModel, status: int, code: str
) -> None:
    sent = 0
    closed = trio.Event()

    async def flood(stream: trio.SocketStream) -> None:
        nonlocal sent
        await stream.receive_some()
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(b"HTTP/1.1 %d No\r\ncontent-length: 99999999999\r\n\r\n" % status)
            while True:
                await stream.send_all(b"x" * MAX_REFUSAL_BYTES)
                sent += MAX_REFUSAL_BYTES
        closed.set()

    with trio.fail_after(5):
        async with open_server(flood) as base_url, open_openai(base_url) as model:
            with pytest.raises(ModelError) as caught:
                async with model.stream(HELLO):
                    raise AssertionError("the block must not begin")
            await closed.wait()
    assert caught.value.code == code
    assert sent < 128 * MAX_REFUSAL_BYTES  # what the buffers of two sockets hold


async def test_an_error_is_not_unpacked(open_openai: OpenModel) -> None:
    body = gzip.compress(json.dumps({"error": {"code": "packed"}}).encode())
    head = b"HTTP/1.1 401 No\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with open_raw_server(head + body) as base_url, open_openai(base_url) as model:
        with pytest.raises(ModelError) as caught:
            async with model.stream(HELLO):
                raise AssertionError("the block must not begin")
    assert caught.value.code == "MODEL_REFUSED"
    assert "packed" not in str(caught.value)


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(STREAM_HEAD + b"\r\nnot a length\r\n", id="framing"),
        pytest.param(STREAM_HEAD + b"content-encoding: gzip\r\n\r\n4\r\nabcd\r\n", id="encoding"),
        pytest.param(b"not HTTP at all\r\n\r\n", id="head"),
        pytest.param(b"HTTP/1.1 500 No\r\ncontent-length: 9\r\n\r\nshort", id="cut error"),
    ],
)
async def test_what_is_not_proper_http_is_a_broken_stream(
    open_openai: OpenModel, answer: bytes
) -> None:
    async with open_raw_server(answer) as base_url, open_openai(base_url) as model:
        with pytest.raises(ModelError) as caught:
            async with model.stream(HELLO) as stream:
                await anext(stream)
    assert (caught.value.code, caught.value.is_retryable) == ("MODEL_STREAM_BROKEN", True)


async def test_a_stream_may_break_while_it_is_left(open_openai: OpenModel) -> None:
    chunk = b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n'
    answer = STREAM_HEAD + b"\r\n%x\r\n%s\r\nnot a length\r\n" % (len(chunk), chunk)
    async with open_raw_server(answer) as base_url, open_openai(base_url) as model:
        async with model.stream(HELLO) as stream:
            assert await anext(stream) == TextDelta(text="x")


async def test_a_request_that_cannot_be_encoded_is_an_error_that_shows_nothing(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Message(role="user", content=PROMPT + " \ud800")
    monkeypatch.setattr(sys.modules[__name__], "HELLO", ModelRequest(messages=(broken,)))
    outcome = await ask(say("x"))
    assert outcome.error.code == "MODEL_PROTOCOL"
    assert outcome.server.requests == []


@pytest.mark.parametrize(
    "data",
    [
        b"data: {oops\n\n",
        b"data: 5\n\n",
        b"data: null\n\n",
        b'data: {"choices": 5}\n\n',
        b'data: {"choices": [{"delta": {"content": 5}}]}\n\n',
        b"data: \xff\xfe\n\n",
        b"data: " + b"[" * 500 + b"\n\n",
    ],
)
async def test_a_malformed_chunk_is_a_protocol_error(ask: Ask, data: bytes) -> None:
    outcome = await ask(answer(Text("Hi "), Raw(data), Text("you"), Finish(), Done()))
    assert (outcome.error.code, outcome.error.is_retryable) == ("MODEL_PROTOCOL", False)
    assert outcome.text == "Hi "


async def test_an_endless_event_is_a_protocol_error(ask: Ask) -> None:
    outcome = await ask(answer(Text("Hi "), Raw(b"data: " + b"x" * (MAX_EVENT_BYTES + 1))))
    assert outcome.error.code == "MODEL_PROTOCOL"


async def test_a_call_without_a_name_is_a_protocol_error(ask: Ask) -> None:
    outcome = await ask(answer(ToolPiece("{}", id="c"), Finish("tool_calls"), Done()))
    assert outcome.error.code == "MODEL_PROTOCOL"


async def test_an_answer_that_is_no_stream_says_what_to_check(ask: Ask) -> None:
    page = Answer(steps=(Raw(b"<html>Welcome</html>\n\n"),), content_type="text/html")
    outcome = await ask(page)
    assert outcome.error.code == "MODEL_PROTOCOL"
    assert "OPENAI_BASE_URL" in str(outcome.error)


@pytest.mark.parametrize(
    "data",
    [
        b'data: {"error": {"message": "the secret prompt", "code": 502}}\n\n',
        b'event: error\ndata: {"message": "the secret prompt", "type": "overloaded"}\n\n',
    ],
)
async def test_an_error_reported_in_the_stream_is_the_servers(ask: Ask, data: bytes) -> None:
    outcome = await ask(answer(Text("Hi "), Raw(data)))
    assert (outcome.error.code, outcome.error.is_retryable) == ("MODEL_SERVER_ERROR", True)
    assert outcome.text == "Hi "


@pytest.mark.parametrize(
    "environment",
    [
        {"OPENAI_BASE_URL": "localhost:8000/v1"},
        {"OPENAI_BASE_URL": "http://"},
        {"OPENAI_BASE_URL": "http://host:port/v1"},
        {"OPENAI_BASE_URL": "http://[::1/v1"},
        {"OPENAI_API_KEY": "sk-line\nbreak"},
        {"OPENAI_API_KEY": "sk-“quoted”"},
        {"OPENAI_API_KEY": "sk-x", "HTTPS_PROXY": "socks5://localhost:1080"},
        {"OPENAI_API_KEY": "sk-x", "SSL_CERT_FILE": "/nowhere/sk-file.pem"},
    ],
)
async def test_a_setting_that_cannot_be_is_named_and_not_quoted(
    environment: dict[str, str],
) -> None:
    ports = simulated_ports(environment=environment)
    async with openai_model()(ports, Deadlines()) as model:
        for _ in range(2):
            with pytest.raises(ModelNotConfigured) as caught:
                async with model.stream(HELLO):
                    raise AssertionError("the block must not begin")
            assert list(environment)[-1] in str(caught.value)
            assert "sk-" not in str(caught.value)
