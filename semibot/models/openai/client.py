"""The seam to the ``openai`` SDK: one connection pool, one stream per request.

Theory of operation. The SDK builds, signs and sends the request, and maps the status.
Bodies are read here. The SDK's own stream leaves suspended async generators to the
garbage collector even after a complete answer, which Trio reports as leaks; it does not
tell a finished stream from one that was cut; and it has no bound on the size of an event,
nor on that of an error's body.

The HTTP library, too, reads through nested async generators, and closing the outermost
one abandons the inner ones. They end properly in two ways only: by being read to the end,
or by an exception from the innermost ``await``. So a stream that is left early is read
once more inside a cancelled scope (:func:`_end_reading`): the cancellation starts at the
socket, unwinds every generator and closes the connection, all without waiting.

No foreign exception leaves this file, and no provider's text either: servers echo
prompts and keys in their error messages. That is why errors about a status are raised
``from None``.
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, final

import attrs
import httpx2
import openai
import trio

from semibot.config import Deadlines
from semibot.errors import ModelError, ModelNotConfigured, RemoteProtocolError
from semibot.lifetimes import deadline, grace
from semibot.logs import get_logger
from semibot.models.base import ModelRequest, ModelStream, StreamItem
from semibot.models.chat_chunks import ReplyBuilder, protocol_error, reported_error
from semibot.models.openai.errors import broken_error, connection_error, status_error
from semibot.models.openai.params import message_param, tool_param
from semibot.models.openai.settings import OpenAISettings
from semibot.ports import Ports
from semibot.wire.codec import load_json
from semibot.wire.sse import SseDecoder, SseMessage

log: Final = get_logger(__name__)

USAGE_WAIT: Final = 2.0
"""How long to wait for the usage report after a complete answer, in seconds."""

END_WAIT: Final = 0.1
"""How long to wait for the end of the body, which frees the connection, in seconds."""

LIMITS: Final = httpx2.Limits(
    max_connections=64, max_keepalive_connections=8, keepalive_expiry=30.0
)
"""Bounds of the connection pool; one session rarely needs more than a few."""

MAX_REFUSAL_BYTES: Final = 64 * 1024
"""Most bytes that are read of the body of an answer that is an error."""

_HEADERS: Final = frozenset(
    {
        "accept",
        "connection",
        "content-length",
        "content-type",
        "host",
        "idempotency-key",
        "user-agent",
    }
)


@final
class OpenAIClient:
    """One pool of connections to one server. Making it does no network I/O.

    Args:
        settings: Where to ask.
        ports: For ids, and for the date that a ``Retry-After`` refers to.
        deadlines: For ``model_response``, ``model_idle`` and ``run_cancel_grace``.

    Raises:
        ModelNotConfigured: If the file of certificates cannot be read.
    """

    def __init__(self, settings: OpenAISettings, ports: Ports, deadlines: Deadlines) -> None:
        self._settings = settings
        self._ports = ports
        self._deadlines = deadlines
        # No timeouts here, because the named deadlines bound every wait; no redirects,
        # because a conversation goes where the configuration says; and no environment.
        self._http = httpx2.AsyncClient(
            verify=_trust(settings.ca_file),
            timeout=None,
            limits=LIMITS,
            follow_redirects=False,
            proxy=settings.proxy,
            trust_env=False,
            event_hooks={"request": [self._set_headers], "response": [self._read_refusal]},
        )
        # What has a default is given, so that the SDK does not look it up. What it looks up
        # all the same, custom headers and a webhook secret, reaches no request.
        self._sdk = openai.AsyncOpenAI(
            api_key=settings.api_key.reveal(),
            admin_api_key="",
            organization="",
            project="",
            base_url=settings.base_url,
            timeout=None,
            max_retries=0,
            http_client=self._http,
        )
        # It only says so in a header, and would find it out in a thread that no port knows of.
        vars(self._sdk)["_platform"] = "Unknown"

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    @asynccontextmanager
    async def stream(self, request: ModelRequest) -> AsyncGenerator[ModelStream]:
        """Send *request*; see :class:`semibot.models.Model`."""
        sent_at = trio.current_time()
        with deadline("model.response", self._deadlines.model_response):
            response = await self._send(request)
        body = response.aiter_raw()
        try:
            waited = trio.current_time() - sent_at
            builder = ReplyBuilder(self._ports.ids.new_id)
            yield _ChatStream(response, body, builder, self._deadlines, waited)
        finally:
            with grace("run.cancel_grace", self._deadlines.run_cancel_grace):
                await _end_reading(body)
                await response.aclose()

    async def _send(self, request: ModelRequest) -> httpx2.Response:
        messages = [message_param(message) for message in request.messages]
        tools = [tool_param(tool) for tool in request.tools]
        limit = openai.omit if request.max_tokens is None else request.max_tokens
        is_openai = self._settings.is_openai
        try:
            answer = await self._sdk.chat.completions.with_raw_response.create(
                model=self._settings.model,
                messages=messages,
                tools=tools or openai.omit,
                tool_choice=request.tool_choice if tools else openai.omit,
                temperature=openai.omit if request.temperature is None else request.temperature,
                # OpenAI refuses the old name for its newer models; most compatible
                # servers know only the old one.
                max_completion_tokens=limit if is_openai else openai.omit,
                max_tokens=openai.omit if is_openai else limit,
                stream=True,
                stream_options={"include_usage": True},
            )
        except openai.APIStatusError as exc:
            raise status_error(exc, self._ports.wall_clock.now()) from None
        except openai.APIConnectionError as exc:
            raise connection_error(exc, self._settings.host) from exc
        except (openai.OpenAIError, ValueError, TypeError) as exc:
            # From the text of such an error one could read the whole conversation.
            name = type(exc).__name__
            raise ModelError(
                f"the request cannot be sent ({name})", code="MODEL_PROTOCOL"
            ) from None
        return answer.http_response

    async def _read_refusal(self, response: httpx2.Response) -> None:
        """Read the beginning of an error's body, which the SDK would read without a bound."""
        source = response.stream
        if response.is_success or not isinstance(source, httpx2.AsyncByteStream):
            return
        body = aiter(source)
        start = bytearray()
        try:
            async for data in body:
                start += data
                if len(start) >= MAX_REFUSAL_BYTES:
                    break
        finally:
            with grace("run.cancel_grace", self._deadlines.run_cancel_grace):
                await _end_reading(body)
                await source.aclose()
        # Nobody asked for a coding, and a short body may decode to a very long one.
        response.headers.pop("content-encoding", None)
        response.stream = httpx2.ByteStream(bytes(start[:MAX_REFUSAL_BYTES]))

    async def _set_headers(self, request: httpx2.Request) -> None:
        # OPENAI_CUSTOM_HEADERS is read by the SDK whatever it is given; this undoes it.
        for name in tuple(request.headers):
            if name not in _HEADERS and not name.startswith("x-stainless-"):
                del request.headers[name]
        settings = self._settings
        # Compression delays the pieces of a stream, and decoding is one more layer whose
        # errors would strand the generators below it.
        request.headers["accept-encoding"] = "identity"
        request.headers["authorization"] = f"Bearer {settings.api_key.reveal()}"
        if settings.organization:
            request.headers["openai-organization"] = settings.organization
        if settings.project:
            request.headers["openai-project"] = settings.project


def _trust(ca_file: str | None) -> ssl.SSLContext | bool:
    if ca_file is None:
        return True
    try:
        return ssl.create_default_context(cafile=ca_file)
    except OSError as exc:  # ssl.SSLError is one
        raise ModelNotConfigured("SSL_CERT_FILE names no readable file of certificates") from exc


async def _end_reading(body: AsyncIterator[bytes]) -> None:
    with trio.CancelScope() as scope:  # noqa: ASYNC912 - anext() has the cancel points
        scope.cancel("the model's stream was left")
        try:
            while True:  # what is buffered comes first; then the cancellation hits
                await anext(body)
        except StopAsyncIteration:
            return
        except Exception as exc:  # noqa: BLE001 - foreign, and nobody reads this stream any more
            log.debug("stream broke while it was left", error=type(exc).__name__)


@final
@attrs.define(eq=False)
class _ChatStream:
    _response: httpx2.Response
    _body: AsyncIterator[bytes]
    _builder: ReplyBuilder
    _deadlines: Deadlines
    _waited: float
    _limit: str = attrs.field(default="model.response", init=False)
    _events: SseDecoder = attrs.field(factory=SseDecoder, init=False)
    _ready: deque[StreamItem] = attrs.field(factory=deque[StreamItem], init=False)
    _has_chunk: bool = attrs.field(default=False, init=False)
    _has_done: bool = attrs.field(default=False, init=False)
    _is_over: bool = attrs.field(default=False, init=False)

    def __aiter__(self) -> ModelStream:
        return self

    async def __anext__(self) -> StreamItem:
        while not self._ready:
            if self._is_over:
                raise StopAsyncIteration
            await self._advance()
        return self._ready.popleft()

    async def _advance(self) -> None:
        """Read once; then read to the end if the reply is complete."""
        data = await self._read_in_time()
        if not data:
            raise self._cut_error()
        self._take(data)
        if self._is_complete:
            await self._read_tail()
            self._ready.append(self._builder.build())
            self._is_over = True

    @property
    def _is_complete(self) -> bool:
        return self._has_done or self._builder.finish_reason is not None

    async def _read_in_time(self) -> bytes:
        # Only the time spent waiting here counts, not the time that the caller takes
        # between two items; and only progress starts it anew, not a server's keep-alive.
        is_first = self._limit == "model.response"
        seconds = self._deadlines.model_response if is_first else self._deadlines.model_idle
        began_at = trio.current_time()
        with deadline(self._limit, seconds) as scope:
            scope.deadline = began_at + seconds - self._waited
            data = await self._read()
        self._waited += trio.current_time() - began_at
        return data

    async def _read(self) -> bytes:
        """Return the next bytes, or nothing at the end."""
        try:
            return await anext(self._body, b"")
        except Exception as exc:  # whatever the HTTP and TLS layers raise
            raise broken_error() from exc

    async def _read_tail(self) -> None:
        """Wait, for a moment, for the usage report and the end of the body."""
        try:
            with trio.move_on_after(USAGE_WAIT):  # noqa: ASYNC912 - maybe nothing to wait for
                while not self._has_done and self._builder.usage is None:
                    data = await self._read()
                    if not data:
                        return
                    self._take(data)
            with trio.move_on_after(END_WAIT):
                while await self._read():
                    pass
        except ModelError as exc:
            # The answer is complete; what breaks behind it costs the usage at most.
            log.debug("model stream broke after its answer", code=exc.code)

    def _take(self, data: bytes) -> None:
        try:
            events = self._events.feed(data)
        except RemoteProtocolError as exc:
            raise protocol_error(exc.reason) from exc
        for event in events:
            if event.data.strip() == b"[DONE]":
                self._has_done = True
            elif not self._has_done:
                self._take_event(event)

    def _take_event(self, event: SseMessage) -> None:
        try:
            chunk = load_json(event.data)
        except RemoteProtocolError as exc:
            raise protocol_error(f"a chunk is {exc.reason}") from exc
        if event.event == "error":
            raise reported_error(chunk)
        has_progress, deltas = self._builder.feed(chunk)
        self._has_chunk = True
        self._ready.extend(deltas)
        if has_progress:
            self._limit = "model.idle"
            self._waited = 0.0

    def _cut_error(self) -> ModelError:
        kind = self._response.headers.get("content-type", "")
        if not self._has_chunk and not kind.startswith("text/event-stream"):
            return protocol_error("it is not a stream of events; check OPENAI_BASE_URL")
        return broken_error()
