"""Chat with an agent on a host: messages over HTTP, answers as an event stream.

An answer goes on without us: if the stream breaks, it is taken up again after the last event
that was shown. Only Ctrl-C stops it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Final, final
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
from semibot.lifetimes import deadline, grace
from semibot.logs import get_logger
from semibot.ports import Ports
from semibot.session import JournalEntry
from semibot.wire.codec import JsonObject, JsonValue, dump_json, load_json, structure
from semibot.wire.events import ExecutionComplete, ExecutionError
from semibot.wire.receipts import Receipt
from semibot.wire.sse import SseDecoder

from .following import Following
from .talk import ChatOptions

log: Final = get_logger(__name__)

MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
"""Largest answer, other than a stream, that is read."""

MAX_PAUSE: Final = 10.0
"""Longest pause before a broken stream is taken up again, in seconds."""

GIVE_UP_AFTER: Final = 120.0
"""After how long without the host an answer is given up, in seconds."""

SEND_AGAIN: Final = 3
"""How often something is sent again if the host cannot be reached."""

KEEPALIVES: Final = 3
"""After how many keepalives that did not come a stream is broken."""


@asynccontextmanager
async def open_remote_partner(options: ChatOptions, ports: Ports) -> AsyncGenerator[RemotePartner]:
    """Talk to a host for the length of the block; nothing is started there or here.

    Args:
        options: What the user asked for.
        ports: The seams.

    Raises:
        UsageError: If the address is none.
        HostUnreachable: If no host answers there.
        HostRefused: If the host does not like us.
    """
    url = options.url or ports.environment.get("SEMIBOT_URL") or f"http://127.0.0.1:{DEFAULT_PORT}"
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UsageError(f"{url!r} is no address of a host; one looks like http://127.0.0.1:8080")
    token = ports.environment.get("SEMIBOT_TOKEN")
    headers = {"Accept-Encoding": "identity"}
    if token:
        headers["Authorization"] = f"Bearer {token}"
    is_near = parts.hostname in {"127.0.0.1", "::1", "localhost"}
    # Every wait has a deadline of its own, below.
    async with httpx2.AsyncClient(
        base_url=url.rstrip("/"), headers=headers, timeout=None, trust_env=not is_near
    ) as http:
        partner = RemotePartner(http, url.rstrip("/"), ports, options)
        await partner.greet()
        yield partner


async def ask_readiness(url: str, *, is_near: bool) -> tuple[int, JsonValue] | None:
    """Ask a host whether it takes work; the caller bounds it.

    Args:
        url: The host.
        is_near: Whether no proxy stands between.

    Returns:
        The HTTP status and what came with it, or None for what is no JSON; None if nobody
        listens there at all.

    Raises:
        HostUnreachable: If what listens there does not answer in HTTP.
    """
    try:
        async with httpx2.AsyncClient(timeout=None, trust_env=not is_near) as http:
            answer = await http.get(url.rstrip("/") + "/readyz")
    except httpx2.ConnectError:
        return None
    except (httpx2.HTTPError, httpx2.InvalidURL) as exc:
        raise HostUnreachable(url, str(exc) or type(exc).__name__) from exc
    try:
        return answer.status_code, load_json(answer.content)
    except RemoteProtocolError:
        return answer.status_code, None


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
        self.deadlines: Final = Deadlines()
        """How long the host may take."""
        self.session_id = options.session_id

    def introduction(self) -> str:
        """Return who it is."""
        return f"host {self._url}, session {self.session_id or 'new'}"

    async def greet(self) -> None:
        """Ask the host whether it is there, and whether it knows us.

        Raises:
            HostUnreachable: If nobody answers.
            HostRefused: If it does not like us.
        """
        async with AsyncExitStack() as streams:
            path = "/api/v1/sessions?limit=1"
            await self._read(await self._open(streams, "GET", path, wait=self._short))

    @asynccontextmanager
    async def ask(self, message: str) -> AsyncGenerator[RemoteAnswer]:
        """Send a message and hold its answer, which goes on if the block is left early."""
        body: dict[str, JsonValue] = {"message": message, "on_disconnect": "continue"}
        if self.session_id is None:
            path = "/api/v1/chat/start"
            body["runtime_type"] = self._runtime
        else:
            path = f"/api/v1/chat/sessions/{quote(self.session_id, safe='')}"
        key = self._ports.ids.new_id()
        async with AsyncExitStack() as streams:
            response = await self._send(streams, path, body, key)
            self.session_id = response.headers.get("X-Session-ID", self.session_id)
            answer = RemoteAnswer(self, streams, response.headers.get("X-Run-ID", ""))
            await answer.read_from(response)
            yield answer

    async def _send(
        self, streams: AsyncExitStack, path: str, body: JsonObject, key: str
    ) -> httpx2.Response:
        """Send a message, which takes effect once however often it has to be sent."""
        # A VM that ends just now is started again, which takes a second wait for it.
        wait = ("vm.ready", 2 * self.deadlines.vm_ready + self.deadlines.http_stall_timeout)
        for failures in range(SEND_AGAIN):
            try:
                return await self._open(streams, "POST", path, body, key=key, wait=wait)
            except HostUnreachable as exc:
                log.info("message is sent again", reason=str(exc))
            await self.pause(failures)
        return await self._open(streams, "POST", path, body, key=key, wait=wait)

    async def stream_after(self, streams: AsyncExitStack, last_id: str | None) -> httpx2.Response:
        """Open the session's stream after an event.

        Raises:
            HostUnreachable: If the host is away, starting or draining.
            HostRefused: If there is no such stream any more.
        """
        path = f"/api/v1/sessions/{quote(self.session_id or '', safe='')}/stream"
        try:
            response = await self._open(streams, "GET", path, last_id=last_id, wait=self._short)
        except HostRefused as exc:
            if exc.status < 500 and exc.status != 429:
                raise
            raise HostUnreachable(self._url, str(exc)) from exc
        if response.status_code == 204:
            raise HostRefused(204, "NOT_FOUND", "the session was deleted")
        return response

    async def cancel(self, run_id: str) -> JsonObject:
        """Cancel a run and return what became of it: a receipt, or ``{pending: true}``."""
        path = f"/api/v1/chat/sessions/{quote(self.session_id or '', safe='')}/cancel"
        wait = 2 * self.deadlines.http_cancel_wait
        async with AsyncExitStack() as streams:
            response = await self._open(
                streams, "POST", path, {"run_id": run_id}, wait=("http.cancel_wait", wait)
            )
            answer = load_json(await self._read(response))
        data = answer.get("data") if isinstance(answer, Mapping) else None
        return data if isinstance(data, Mapping) else {}

    async def pause(self, failures: int) -> None:
        """Wait before something is tried again."""
        longest = min(MAX_PAUSE, 0.25 * 2.0 ** min(failures, 10))
        await trio.sleep(self._ports.random.uniform(0, longest))

    @property
    def _short(self) -> tuple[str, float]:
        return "http.stall_timeout", self.deadlines.http_stall_timeout

    async def _open(
        self,
        streams: AsyncExitStack,
        method: str,
        path: str,
        body: JsonObject | None = None,
        *,
        wait: tuple[str, float],
        key: str | None = None,
        last_id: str | None = None,
    ) -> httpx2.Response:
        """Send a request and return its answer, whose body is still to be read."""
        fields: dict[str, str] = {}
        content: bytes | None = None
        if body is not None:
            content = dump_json(body).encode()
            fields["Content-Type"] = "application/json"
        if key is not None:
            fields["Idempotency-Key"] = key
        if last_id is not None:
            fields["Last-Event-ID"] = last_id
        try:
            with deadline(*wait):
                response = await streams.enter_async_context(
                    self._http.stream(method, path, content=content, headers=fields)
                )
            if not response.is_success:
                raise await self._refusal(response)
        except (httpx2.HTTPError, DeadlineExceeded) as exc:
            raise HostUnreachable(self._url, str(exc) or type(exc).__name__) from exc
        return response

    async def _read(self, response: httpx2.Response) -> bytes:
        content = bytearray()
        try:
            with deadline(*self._short):
                async with _reading(response, self.deadlines) as pieces:
                    async for piece in pieces:
                        content += piece
                        if len(content) > MAX_ANSWER_BYTES:
                            raise RemoteProtocolError("the host's answer is too large")
        except (httpx2.HTTPError, DeadlineExceeded) as exc:
            raise HostUnreachable(self._url, str(exc) or type(exc).__name__) from exc
        return bytes(content)

    async def _refusal(self, response: httpx2.Response) -> HostRefused:
        """Return what the host said instead of an answer."""
        status = response.status_code
        code, text = f"HTTP_{status}", f"the host answered {status}"
        try:
            answer = load_json(await self._read(response))
        except RemoteProtocolError:
            answer = None
        error = answer.get("error") if isinstance(answer, Mapping) else None
        if isinstance(error, Mapping):
            code = str(error.get("code", code))
            text = str(error.get("message", text))
        if status == 401:
            text += "; set SEMIBOT_TOKEN"
        return HostRefused(status, code, text)


@final
class RemoteAnswer:
    """A run on the host, as its events arrive. Made by :meth:`RemotePartner.ask`."""

    def __init__(self, partner: RemotePartner, streams: AsyncExitStack, run_id: str) -> None:
        self._partner = partner
        self._streams = streams
        self._following = Following(run_id)
        self._body: AsyncIterator[bytes] | None = None
        self._decoder = SseDecoder()
        self._failures = 0
        self._broken_since: float | None = None
        self._leaves_it = False
        self._cancels = 0
        self._cancelled = trio.Event()
        self.receipt: Receipt | None = None
        """What was stopped, once the host has said it."""

    async def read_from(self, response: httpx2.Response) -> None:
        """Take the events from the body of *response*, from now on."""
        reading = _reading(response, self._partner.deadlines)
        self._body = await self._streams.enter_async_context(reading)
        self._decoder = SseDecoder()

    async def next_entry(self) -> JournalEntry:
        """Return the next event of the run, taking a broken stream up again.

        Raises:
            HostUnreachable: If that does not work for two minutes.
            HostRefused: If the session is gone.
        """
        while (entry := self._following.next()) is None:
            data = await self._read()
            if data:
                self._broken_since = None
                self._failures = 0
                for message in self._decoder.feed(data):
                    self._following.take(message)
            else:
                await self._reconnect()
        if isinstance(entry.event, ExecutionComplete | ExecutionError) and self._cancels:
            # The receipt comes on another connection, at about the same time.
            with trio.move_on_after(self._partner.deadlines.http_cancel_wait):
                await self._cancelled.wait()
        return entry

    async def cancel(self, reason: str = "user_cancelled") -> object:
        """Stop the run on the host, unless it is only this program that ends.

        What goes wrong is logged: the answer goes on then, and can be stopped again.
        """
        if self._leaves_it:
            return None
        self._cancels += 1
        try:
            answer = await self._try_to_cancel()
            if not (answer.get("pending") or answer.get("vm_lost")):
                self.receipt = structure(answer, Receipt)
        except (HostUnreachable, HostRefused, RemoteProtocolError) as exc:
            log.warning("not stopped", reason=str(exc))
        finally:
            self._cancels -= 1
            if not self._cancels:
                self._cancelled.set()
                self._cancelled = trio.Event()
        return self.receipt

    async def _try_to_cancel(self) -> JsonObject:
        for failures in range(SEND_AGAIN):
            try:
                return await self._partner.cancel(self._following.run_id)
            except HostUnreachable:
                await self._partner.pause(failures)
        return await self._partner.cancel(self._following.run_id)

    def interrupt(self, reason: str) -> None:
        """Leave the run alone: it goes on on the host."""
        self._leaves_it = True

    async def _read(self) -> bytes:
        """Return the next bytes of the stream, or nothing once it is broken."""
        silence = KEEPALIVES * self._partner.deadlines.http_keepalive
        with trio.move_on_after(silence):  # noqa: ASYNC912 - no stream needs no wait
            try:
                return b"" if self._body is None else await anext(self._body)
            except (StopAsyncIteration, httpx2.HTTPError):
                return b""
        return b""

    async def _reconnect(self) -> None:
        now = trio.current_time()
        if self._broken_since is None:
            self._broken_since = now
        self._body = None
        await self._streams.aclose()
        await self._partner.pause(self._failures)
        self._failures += 1
        try:
            response = await self._partner.stream_after(self._streams, self._following.last_id)
        except HostUnreachable:
            if trio.current_time() - self._broken_since > GIVE_UP_AFTER:
                raise
            return
        await self.read_from(response)


@asynccontextmanager
async def _reading(
    response: httpx2.Response, deadlines: Deadlines
) -> AsyncGenerator[AsyncIterator[bytes]]:
    """Read the body of *response*, which may be left early.

    The HTTP library reads through nested generators, which end properly only at the end of
    the body, or by an exception from the innermost ``await``. So a body that is left early is
    read once more inside a cancelled scope, as in ``semibot.models.openai.client``.
    """
    body = response.aiter_raw()
    try:
        yield body
    finally:
        with grace("channel.close", deadlines.channel_close):
            await _end_reading(body)


async def _end_reading(body: AsyncIterator[bytes]) -> None:
    with trio.CancelScope() as scope:  # noqa: ASYNC912 - anext() has the cancel points
        scope.cancel("the body was left")
        with suppress(StopAsyncIteration, httpx2.HTTPError):
            while True:  # what is buffered comes first; then the cancellation hits
                await anext(body)
