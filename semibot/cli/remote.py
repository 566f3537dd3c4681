"""Chat with an agent on a host: messages over HTTP, answers as an event stream.

An answer goes on without us: if the stream breaks, it is taken up again after the last event
that was shown. Only Ctrl-C stops it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final, cast, final
from urllib.parse import quote, urlsplit

import httpx2
import trio

from semibot.config import Deadlines
from semibot.config.settings import DEFAULT_PORT
from semibot.errors import (
    DeadlineExceeded,
    HostRefused,
    HostUnreachable,
    RemoteProtocolError,
    UsageError,
)
from semibot.lifetimes import deadline
from semibot.ports import Ports
from semibot.session import JournalEntry
from semibot.wire.codec import JsonObject, JsonValue, dump_json, load_json, structure
from semibot.wire.events import (
    ExecutionComplete,
    ExecutionError,
    TextChunk,
    decode_event,
)
from semibot.wire.receipts import Receipt
from semibot.wire.sse import EventId, SseDecoder, SseMessage

from .talk import ChatOptions

MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
"""Largest answer, other than a stream, that is read."""

MAX_PAUSE: Final = 10.0
"""Longest pause before a broken stream is taken up again, in seconds."""

GIVE_UP_AFTER: Final = 120.0
"""After how long without the host an answer is given up, in seconds."""


@asynccontextmanager
async def open_remote_partner(options: ChatOptions, ports: Ports) -> AsyncGenerator[RemotePartner]:
    """Talk to a host for the length of the block; nothing is started there or here.

    Args:
        options: What the user asked for.
        ports: The seams.

    Raises:
        UsageError: If the address is none.
        HostUnreachable: If no host answers there.
    """
    url = options.url or ports.environment.get("SEMIBOT_URL") or f"http://127.0.0.1:{DEFAULT_PORT}"
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UsageError(f"{url!r} is no address of a host; one looks like http://127.0.0.1:8080")
    token = ports.environment.get("SEMIBOT_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    is_near = parts.hostname in {"127.0.0.1", "::1", "localhost"}
    async with httpx2.AsyncClient(
        base_url=url.rstrip("/"), headers=headers, timeout=None, trust_env=not is_near
    ) as http:
        partner = RemotePartner(http, url.rstrip("/"), ports, options)
        await partner.greet()
        yield partner


@final
class RemotePartner:
    """A session on a host; the first message makes it, unless it is one to continue.

    Args:
        http: The client.
        url: The host.
        ports: The seams.
        options: What the user asked for.
    """

    def __init__(
        self, http: httpx2.AsyncClient, url: str, ports: Ports, options: ChatOptions
    ) -> None:
        self._http = http
        self._url = url
        self._ports = ports
        self._runtime = options.runtime
        self._deadlines = Deadlines()
        self.session_id = options.session_id

    def introduction(self) -> str:
        """Return who it is."""
        return f"host {self._url}, session {self.session_id or 'new'}"

    async def greet(self) -> None:
        """Ask the host whether it is there.

        Raises:
            HostUnreachable: If not.
            HostRefused: If it does not like us.
        """
        await self._call("GET", "/api/v1/info")

    @asynccontextmanager
    async def ask(self, message: str) -> AsyncGenerator[RemoteAnswer]:
        """Send a message and hold its answer."""
        body: dict[str, JsonValue] = {"message": message, "on_disconnect": "continue"}
        if self.session_id is None:
            path = "/api/v1/chat/start"
            body["runtime_type"] = self._runtime
        else:
            path = f"/api/v1/chat/sessions/{quote(self.session_id, safe='')}"
        headers = {"Idempotency-Key": self._ports.ids.new_id()}
        async with AsyncExitStack() as streams:
            response = await self._open(streams, "POST", path, json_body=body, headers=headers)
            self.session_id = response.headers.get("X-Session-ID", self.session_id)
            yield RemoteAnswer(self, streams, response, response.headers.get("X-Run-ID", ""))

    async def stream_after(self, streams: AsyncExitStack, last_id: str | None) -> httpx2.Response:
        """Open the session's stream after an event."""
        path = f"/api/v1/sessions/{quote(self.session_id or '', safe='')}/stream"
        headers = {} if last_id is None else {"Last-Event-ID": last_id}
        return await self._open(streams, "GET", path, headers=headers)

    async def cancel(self, run_id: str) -> JsonObject:
        """Cancel a run and return the receipt, or ``{pending: true}``."""
        path = f"/api/v1/chat/sessions/{quote(self.session_id or '', safe='')}/cancel"
        answer = await self._call("POST", path, {"run_id": run_id})
        return answer if isinstance(answer, Mapping) else {}

    async def pause(self, failures: int) -> None:
        """Wait before a broken stream is taken up again."""
        longest = min(MAX_PAUSE, 0.25 * 2.0 ** min(failures, 10))
        await trio.sleep(self._ports.random.uniform(0, longest))

    @property
    def silence(self) -> float:
        """After how long without a byte a stream is broken, in seconds."""
        return 3 * self._deadlines.http_keepalive

    async def _call(
        self, method: str, path: str, json_body: Mapping[str, JsonValue] | None = None
    ) -> JsonValue:
        async with AsyncExitStack() as streams:
            response = await self._open(streams, method, path, json_body=json_body)
            content = await _read_all(response, self._deadlines)
            answer = load_json(content)
            return answer.get("data") if isinstance(answer, Mapping) else None

    async def _open(
        self,
        streams: AsyncExitStack,
        method: str,
        path: str,
        *,
        json_body: Mapping[str, JsonValue] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        """Send a request and return its answer, whose body is still to be read."""
        content = None if json_body is None else dump_json(json_body).encode()
        fields = dict(headers or {})
        if content is not None:
            fields["Content-Type"] = "application/json"
        # A message may wait for a VM, and a cancel for its receipt.
        wait = self._deadlines.vm_ready + self._deadlines.http_cancel_wait
        try:
            with deadline("http.answer", wait):
                response = await streams.enter_async_context(
                    self._http.stream(method, path, content=content, headers=fields)
                )
        except (httpx2.HTTPError, DeadlineExceeded) as exc:
            raise HostUnreachable(self._url, str(exc) or type(exc).__name__) from exc
        if response.is_success:
            return response
        raise await _refusal(response, self._deadlines)


@final
class RemoteAnswer:
    """A run on the host, as its events arrive. Made by :meth:`RemotePartner.ask`."""

    def __init__(
        self,
        partner: RemotePartner,
        streams: AsyncExitStack,
        response: httpx2.Response,
        run_id: str,
    ) -> None:
        self._partner = partner
        self._streams = streams
        self._run_id = run_id
        self._body = response.aiter_bytes()
        self._decoder = SseDecoder()
        self._entries: deque[JournalEntry] = deque()
        self._last_id: str | None = None
        self._shown = 0
        self._failures = 0
        self._broken_since: float | None = None
        self._leaves_it = False
        self.receipt: Receipt | None = None

    async def next_entry(self) -> JournalEntry:
        """Return the next event of the run, taking a broken stream up again.

        Raises:
            HostUnreachable: If that does not work for two minutes.
        """
        while not self._entries:
            data = await self._read()
            if data:
                self._broken_since = None
                self._failures = 0
                for message in self._decoder.feed(data):
                    self._take(message)
            else:
                await self._reconnect()
        return self._entries.popleft()

    async def cancel(self, reason: str = "user_cancelled") -> object:
        """Stop the run on the host, unless it is only this program that ends."""
        if self._leaves_it:
            return None
        answer = await self._partner.cancel(self._run_id)
        if not answer.get("pending") and not answer.get("vm_lost"):
            self.receipt = structure(answer, Receipt)
        return self.receipt

    def interrupt(self, reason: str) -> None:
        """Leave the run alone: it goes on on the host."""
        self._leaves_it = True

    async def _read(self) -> bytes:
        """Return the next bytes of the stream, or nothing once it is broken."""
        with trio.move_on_after(self._partner.silence):
            try:
                return await self._body.__anext__()
            except (StopAsyncIteration, httpx2.HTTPError):
                return b""
        return b""

    async def _reconnect(self) -> None:
        now = trio.current_time()
        if self._broken_since is None:
            self._broken_since = now
        await self._streams.aclose()
        await self._partner.pause(self._failures)
        self._failures += 1
        try:
            response = await self._partner.stream_after(self._streams, self._last_id)
        except HostUnreachable:
            if trio.current_time() - self._broken_since > GIVE_UP_AFTER:
                raise
            return
        self._body = response.aiter_bytes()
        self._decoder = SseDecoder()

    def _take(self, message: SseMessage) -> None:
        """Keep what a message of the stream says, if it is the run's."""
        data = message.data.decode("utf-8", "replace")
        value = load_json(data)
        if isinstance(value, Mapping) and value.get("type") == "resync":
            self._resync(value, message.id)
            return
        try:
            event = decode_event(cast("JsonObject", value))
        except RemoteProtocolError:
            return  # a newer host says things that this program does not know
        self._last_id = message.id or self._last_id
        if isinstance(event, TextChunk):
            self._shown += len(event.content)
        self._add(message.id, event, data)

    def _resync(self, view: JsonObject, event_id: str) -> None:
        """Make up for what is no longer kept: the rest of the text, and the end."""
        self._last_id = event_id or self._last_id
        run = view.get("run")
        if isinstance(run, Mapping) and run.get("run_id") == self._run_id:
            self._catch_up(run.get("text"), event_id)
            return
        messages = view.get("messages")
        for message in messages if isinstance(messages, list) else ():
            if not isinstance(message, Mapping) or message.get("run_id") != self._run_id:
                continue
            if message.get("role") == "assistant":
                self._catch_up(message.get("content"), event_id)
                self._end(message.get("metadata"), event_id)

    def _catch_up(self, text: JsonValue, event_id: str) -> None:
        if isinstance(text, str) and len(text) > self._shown:
            chunk = TextChunk(content=text[self._shown :])
            self._shown = len(text)
            self._add(event_id, chunk, dump_json({"type": chunk.type, "content": chunk.content}))

    def _end(self, metadata: JsonValue, event_id: str) -> None:
        outcome = metadata.get("outcome") if isinstance(metadata, Mapping) else None
        event: ExecutionComplete | ExecutionError
        if outcome == "completed":
            event = ExecutionComplete(run_id=self._run_id)
        elif outcome == "cancelled":
            event = ExecutionComplete(run_id=self._run_id, cancelled=True)
        else:
            event = ExecutionError(
                run_id=self._run_id, code="FAILED", error=f"the answer was {outcome}"
            )
        self._add(event_id, event, dump_json({"type": event.type, "run_id": self._run_id}))

    def _add(self, event_id: str, event: object, data: str) -> None:
        at = EventId.parse(event_id or self._last_id or "1-0")
        self._entries.append(
            JournalEntry(
                term=at.term,
                seq=at.seq,
                run_id=self._run_id,
                event=cast("TextChunk", event),
                data=data,
                size=len(data.encode()),
            )
        )


async def _read_all(response: httpx2.Response, deadlines: Deadlines) -> bytes:
    content = bytearray()
    with deadline("http.stall_timeout", deadlines.http_stall_timeout):
        async for piece in response.aiter_bytes():
            content += piece
            if len(content) > MAX_ANSWER_BYTES:
                raise RemoteProtocolError("the host's answer is too large")
    return bytes(content)


async def _refusal(response: httpx2.Response, deadlines: Deadlines) -> HostRefused:
    """Return what the host said instead of an answer."""
    code, text = f"HTTP_{response.status_code}", f"the host answered {response.status_code}"
    try:
        answer = load_json(await _read_all(response, deadlines))
    except (RemoteProtocolError, DeadlineExceeded, httpx2.HTTPError):
        answer = None
    error = answer.get("error") if isinstance(answer, Mapping) else None
    if isinstance(error, Mapping):
        code = str(error.get("code", code))
        text = str(error.get("message", text))
    return HostRefused(response.status_code, code, text)
