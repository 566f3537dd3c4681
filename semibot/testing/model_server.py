"""A fake OpenAI-compatible server on a loopback socket.

It plays behaviours (``model_answers.py``), one a request, records what was asked, refuses
histories that a strict provider would refuse, and sees when a peer closes its connection.
``python -m semibot.testing.model_server`` runs one to try things by hand.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from types import MappingProxyType
from typing import Final, TypeAlias, final
from urllib.parse import urlsplit

import attrs
import trio

from semibot.errors import RemoteProtocolError
from semibot.lifetimes import open_services
from semibot.models import mentioned_path, strict_problems
from semibot.testing.model_answers import (
    Answer,
    Behaviour,
    Cut,
    Gate,
    Hang,
    Pause,
    Refusal,
    Step,
    call_tools,
    encode_step,
    say,
)
from semibot.testing.model_http import Connection, HttpPeer, HttpRequest, open_http_peer
from semibot.wire.chat import Message, Role, ToolCallRequest
from semibot.wire.codec import JsonObject, JsonValue, dump_json, load_json

COMPLETIONS_PATH: Final = "/v1/chat/completions"
"""Where requests for answers go."""

_ROLES: Final[Mapping[str, Role]] = MappingProxyType(
    {"user": "user", "assistant": "assistant", "tool": "tool"}
)


@attrs.frozen(kw_only=True)
class RecordedRequest:
    """A request for an answer."""

    body: JsonObject
    """What was asked, as it came."""
    messages: tuple[Message, ...]
    """The conversation."""
    headers: Mapping[str, str] = attrs.field(repr=False)
    """The HTTP headers, by lower-case name."""
    connection: Connection
    """The connection that it came on."""

    @property
    def tools(self) -> tuple[str, ...]:
        """Names of the tools on offer."""
        names: list[str] = []
        for tool in _objects(self.body.get("tools")):
            name = _object(tool.get("function")).get("name")
            if isinstance(name, str):
                names.append(name)
        return tuple(names)


Chooser: TypeAlias = Callable[[RecordedRequest], Behaviour]
"""Says what to do with a request."""


@final
@attrs.define(eq=False)
class ModelServer:
    """A running fake server. Made by :func:`open_model_server`."""

    base_url: str
    """What to set ``OPENAI_BASE_URL`` to."""
    requests: list[RecordedRequest] = attrs.field(factory=list[RecordedRequest], init=False)
    """Every request for an answer so far, refused ones included."""
    connections: list[Connection] = attrs.field(factory=list[Connection], init=False)
    """Every connection so far."""
    problems: list[str] = attrs.field(factory=list[str], init=False)
    """Everything that a strict provider would have refused."""
    _has_news: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def wait_requests(self, count: int) -> None:
        """Wait until *count* requests have come in since the server was opened."""
        while len(self.requests) < count:
            await self._has_news.wait()

    def record(self, request: RecordedRequest, problems: Sequence[str]) -> None:
        """Note a request; the server does this itself."""
        self.requests.append(request)
        self.problems.extend(problems)
        self._has_news.set()
        self._has_news = trio.Event()


@asynccontextmanager
async def open_model_server(
    behaviour: Behaviour | Iterable[Behaviour] | Chooser,
    *,
    port: int = 0,
    is_strict: bool = True,
) -> AsyncGenerator[ModelServer]:
    """Run a fake server on 127.0.0.1. Leaving the block cuts its connections at once.

    Args:
        behaviour: What to do: with every request, with one request each in order (a
            request after the last gets status 400), or as a function says.
        port: Where to listen; 0 takes any free port.
        is_strict: Whether to refuse, with status 400 and the reasons, what a strict
            provider would refuse.

    Yields:
        The server.

    Raises:
        ExceptionGroup: If a chooser failed. The body's own exception comes out bare.
    """
    listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
    bound_port = listeners[0].socket.getsockname()[1]
    server = ModelServer(f"http://127.0.0.1:{bound_port}/v1")
    serve = partial(_serve, server, _chooser(behaviour), is_strict)
    # A service, so that the server still sees what the body does while it is cancelled.
    async with open_services() as services:
        services.start_soon(partial(trio.serve_listeners, serve, listeners), name="model server")
        yield server


def _chooser(behaviour: Behaviour | Iterable[Behaviour] | Chooser) -> Chooser:
    if isinstance(behaviour, Answer | Refusal):
        return lambda _: behaviour
    if callable(behaviour):
        return behaviour
    turns = deque(behaviour)
    exhausted = _bad_request(["the server was given no behaviour for this request"])
    return lambda _: turns.popleft() if turns else exhausted


# --- answering ------------------------------------------------------------------------


async def _serve(
    server: ModelServer, choose: Chooser, is_strict: bool, stream: trio.SocketStream
) -> None:
    connection = Connection(trio.current_time())
    server.connections.append(connection)
    async with open_http_peer(stream, connection) as peer:
        try:
            try:
                while (request := await peer.next_request()) is not None:
                    if not await _respond(server, choose, is_strict, peer, request):
                        return
            except RemoteProtocolError as exc:
                await _refuse(peer, _bad_request([str(exc)]))
        except trio.BrokenResourceError:
            # The peer went away while we wrote; the reading task notes when.
            await connection.peer_closed.wait()


async def _respond(
    server: ModelServer, choose: Chooser, is_strict: bool, peer: HttpPeer, request: HttpRequest
) -> bool:
    """Answer, and return whether the connection can be used again."""
    if request.method == "GET":
        models: JsonValue = {"object": "list", "data": [{"id": "fake", "object": "model"}]}
        return await _send_json(peer, 200, models, {})
    if urlsplit(request.path).path != COMPLETIONS_PATH:  # a proxy gets the whole address
        return await _refuse(peer, Refusal(status=404, error={"type": "not_found"}))
    recorded, problems = _read(request, peer.connection)
    server.record(recorded, problems)
    if problems and is_strict:
        return await _refuse(peer, _bad_request(problems))
    behaviour = choose(recorded)
    if isinstance(behaviour, Refusal):
        return await _refuse(peer, behaviour)
    return await _answer(peer, behaviour, str(recorded.body.get("model", "fake")))


async def _answer(peer: HttpPeer, answer: Answer, model: str) -> bool:
    if not await _play(peer, answer.before, encode=lambda _: b""):
        return False
    is_chunked = answer.framing == "chunked"
    framing = {"transfer-encoding": "chunked"} if is_chunked else {"connection": "close"}
    await peer.send_head(200, {"content-type": answer.content_type, **framing})

    def encode(step: Step) -> bytes:
        data = encode_step(step, model)
        return b"%x\r\n%s\r\n" % (len(data), data) if is_chunked and data else data

    if not await _play(peer, answer.steps, encode=encode):
        return False
    if is_chunked:
        await peer.send(b"0\r\n\r\n")
    return is_chunked


async def _play(peer: HttpPeer, steps: Sequence[Step], encode: Callable[[Step], bytes]) -> bool:
    for step in steps:
        match step:
            case Pause(seconds=seconds):
                await trio.sleep(seconds)
            case Gate(event=event):
                await event.wait()
            case Hang():
                # Unbounded on purpose: hanging until the peer has enough is the point.
                await peer.connection.peer_closed.wait()
                return False
            case Cut(is_reset=is_reset):
                await peer.cut(is_reset=is_reset)
                return False
            case _:
                await peer.send(encode(step))
    return True


async def _refuse(peer: HttpPeer, refusal: Refusal) -> bool:
    return await _send_json(peer, refusal.status, {"error": refusal.error}, refusal.headers)


async def _send_json(
    peer: HttpPeer, status: int, value: JsonValue, headers: Mapping[str, str]
) -> bool:
    body = dump_json(value).encode()
    await peer.send_head(status, {"content-type": "application/json", **headers}, length=len(body))
    await peer.send(body)
    return True


def _bad_request(problems: Sequence[str]) -> Refusal:
    return Refusal(
        status=400,
        error={"type": "invalid_request_error", "message": "; ".join(problems)},
    )


# --- reading requests -----------------------------------------------------------------


def _read(request: HttpRequest, connection: Connection) -> tuple[RecordedRequest, list[str]]:
    problems: list[str] = []
    body: JsonObject = {}
    try:
        body = _object(load_json(request.body))
    except RemoteProtocolError as exc:
        problems.append(f"the body is {exc.reason}")
    messages = tuple(_message(item) for item in _objects(body.get("messages")))
    if not messages:
        problems.append("there are no messages")
    if body.get("stream") is not True:
        problems.append("only streams are supported")
    problems.extend(strict_problems(messages))
    recorded = RecordedRequest(
        body=body, messages=messages, headers=request.headers, connection=connection
    )
    return recorded, problems


def _message(item: JsonObject) -> Message:
    call_id = item.get("tool_call_id")
    return Message(
        role=_role(item.get("role")),
        content=_text(item.get("content")),
        tool_calls=tuple(_call(call) for call in _objects(item.get("tool_calls"))),
        tool_call_id=call_id if isinstance(call_id, str) else None,
    )


def _role(role: JsonValue) -> Role:
    # What is unknown becomes what strict_problems() refuses anywhere but at the start.
    return _ROLES.get(role, "system") if isinstance(role, str) else "system"


def _call(call: JsonObject) -> ToolCallRequest:
    function = _object(call.get("function"))
    return ToolCallRequest(
        id=_text(call.get("id")),
        name=_text(function.get("name")),
        arguments=_text(function.get("arguments")),
    )


def _text(value: JsonValue) -> str:
    return value if isinstance(value, str) else ""


def _object(value: JsonValue) -> JsonObject:
    return value if isinstance(value, Mapping) else {}


def _objects(value: JsonValue) -> list[JsonObject]:
    items = value if isinstance(value, Sequence) and not isinstance(value, str) else ()
    return [_object(item) for item in items]


# --- by hand --------------------------------------------------------------------------


def reading_behaviour(delay: float = 0.05) -> Chooser:
    """Return a chooser that behaves like a helpful model, for trying things by hand.

    If the last user message names a file and ``read_file`` is on offer, it asks for that
    file and answers with its first line; else it just talks. Every answer is streamed
    word by word.

    Args:
        delay: Pause before each word, in seconds.
    """

    def choose(request: RecordedRequest) -> Behaviour:
        question, result = "", None
        for message in request.messages:
            if message.role == "user":
                question, result = message.content, None
            elif message.role == "tool":
                result = message.content
        path = mentioned_path(question)
        if result is not None:
            first_line = next(iter(result.splitlines()), "(it is empty)")
            return say(*_words(f"The first line of {path} is: {first_line}"), delay=delay)
        if path is not None and "read_file" in request.tools:
            calls = sum(len(message.tool_calls) for message in request.messages)
            return call_tools(("read_file", {"path": path}), prefix=f"call_{calls}")
        return say(
            *_words("I am a fake model. Name a file, and I will read you its first line."),
            delay=delay,
        )

    return choose


def _words(text: str) -> list[str]:
    return [word + " " for word in text.split(" ")]


async def _run(port: int, delay: float) -> None:
    # Told of Ctrl-C, not interrupted by it: an exception can be lost wherever it strikes.
    with trio.open_signal_receiver(signal.SIGINT) as interrupts:
        async with open_model_server(reading_behaviour(delay), port=port) as server:
            sys.stdout.write(server.base_url + "\n")
            sys.stdout.flush()
            await anext(interrupts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a server until Ctrl-C, and say where it is.

    Args:
        arguments: The command line without the program; None takes the real one.
    """
    parser = argparse.ArgumentParser(
        prog="python -m semibot.testing.model_server",
        description="Run a fake OpenAI-compatible server on 127.0.0.1 and print its base URL.",
    )
    parser.add_argument("--port", type=int, default=0, help="where to listen (any free port)")
    parser.add_argument("--delay", type=float, default=0.05, help="seconds between two words")
    options = parser.parse_args(arguments)
    trio.run(_run, options.port, options.delay)
    sys.stderr.write("stopped\n")


if __name__ == "__main__":
    main()
