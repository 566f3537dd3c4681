"""The host's ASGI app: guard every request, and bring it to what answers it.

Links of VMs and event streams are ASGI of their own; the framework sees the rest. Whatever
comes in, the first question is whether a browser was tricked into asking (a foreign ``Host``
or ``Origin``), and whatever goes out has the same security headers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, final

from semibot.errors import SemibotError
from semibot.logs import get_logger
from semibot.security.principals import Principal

from .answers import failure
from .api import Api
from .api_account import AccountRoutes
from .api_sessions import SessionRoutes
from .asgi import (
    Asked,
    Handler,
    Request,
    StreamHandler,
    method_not_allowed,
    request_from,
    route_not_found,
    send_answer,
)
from .chat import ChatRoutes
from .core import HostCore
from .pages import PageRoutes
from .probes import ProbeRoutes
from .routes import ROUTES, Route
from .server import App, Message, Receive, Scope, Send

log: Final = get_logger(__name__)

LINK_PATH: Final = "/ws/vm"
"""Where VMs dial."""

SECURITY_HEADERS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "Cache-Control": "no-store",
    }
)
"""What every answer says, unless it says something else under the same name."""

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"})


def make_app(core: HostCore) -> App:
    """Return the ASGI app of a host: http, websocket and lifespan.

    Args:
        core: The parts of the host.
    """
    return Front(core)


@final
class Front:
    """Guards every request and finds what answers it. Made by :func:`make_app`."""

    def __init__(self, core: HostCore) -> None:
        self._core = core
        self._streams = _StreamTable(ChatRoutes(core).handlers)
        handlers: dict[str, Handler] = {
            **SessionRoutes(core).handlers,
            **AccountRoutes(core).handlers,
            **ProbeRoutes(core).handlers,
            **PageRoutes(core.ports.threads).handlers,
        }
        whole = tuple(route for route in ROUTES if not route.is_stream)
        self._api = Api(whole, handlers, self._identify, core.deadlines)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection of ASGI."""
        match scope["type"]:
            case "http":
                await self._serve_http(scope, receive, send)
            case "websocket":
                await self._serve_websocket(scope, receive, send)
            case "lifespan":
                await _serve_lifespan(receive, send)
            case other:
                message = f"there is no ASGI scope {other!r} here"
                raise ValueError(message)

    def _identify(self, request: Request) -> Principal:
        return self._core.principals.authenticate(request.headers)

    # --- http -------------------------------------------------------------------------

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = request_from(scope, self._core.ports.ids)
        answering = _Answering(self._core, request, send)
        try:
            self._core.principals.check_origin(request.headers)
            if not request.path.startswith("/") or request.path.startswith("//"):
                raise route_not_found()
            found = self._streams.find(request)
            if found is None:
                await self._api(scope, receive, answering.send, request)
                return
            route, params, handler = found
            asked = Asked(
                request=request, route=route, params=params, principal=self._identify(request)
            )
            await handler(asked, receive, answering.send)
        except ConnectionAbortedError as exc:
            log.debug("a request was not finished", error=str(exc))
        except Exception as exc:
            if answering.has_begun:
                log.exception("an answer broke off", path=request.path)
                return
            await send_answer(answering.send, failure(exc))

    # --- websocket --------------------------------------------------------------------

    async def _serve_websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = request_from(scope, self._core.ports.ids)
        try:
            if request.path != LINK_PATH:
                raise route_not_found()
            self._core.principals.check_origin(request.headers)
        except SemibotError as exc:
            log.info("a websocket is refused", path=request.path[:200], error=str(exc))
            await receive()  # the server has said "websocket.connect" already
            await send({"type": "websocket.close", "code": 1008, "reason": ""})
            return
        await self._core.links.serve_socket(scope, receive, send)


@final
class _Answering:
    """Dresses one answer: the same headers on all, and a count."""

    def __init__(self, core: HostCore, request: Request, send: Send) -> None:
        self._core = core
        self._request = request
        self._send = send
        self.has_begun = False
        """Whether a status has been sent."""

    async def send(self, message: Message) -> None:
        """Pass on a part of the answer."""
        if message["type"] == "http.response.start":
            self.has_begun = True
            message = {**message, "headers": self._dressed(message["headers"])}
            method = self._request.method if self._request.method in _METHODS else "other"
            status = str(message["status"])
            self._core.metrics.http_requests_total.inc(method=method, status=status)
        elif message["type"] == "http.response.body" and self._request.method == "HEAD":
            message = {**message, "body": b""}
        await self._send(message)

    def _dressed(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        said = {bytes(name).lower() for name, _ in headers}
        more = {"X-Request-ID": self._request.id, **SECURITY_HEADERS}
        return [
            *headers,
            *(
                (name.encode(), value.encode())
                for name, value in more.items()
                if name.lower().encode() not in said
            ),
        ]


@final
class _StreamTable:
    """Finds the routes that answer with a stream."""

    def __init__(self, handlers: Mapping[str, StreamHandler]) -> None:
        self._rows = [
            (_pattern(route), route, handlers[route.name]) for route in ROUTES if route.is_stream
        ]

    def find(self, request: Request) -> tuple[Route, Mapping[str, str], StreamHandler] | None:
        """Return what answers *request*, or None if no stream is at its path.

        Raises:
            HttpError: If the path does not have the method.
        """
        for pattern, route, handler in self._rows:
            match = pattern.fullmatch(request.path)
            if match is not None:
                if request.method != route.method:
                    raise method_not_allowed(route.method)
                return route, match.groupdict(), handler
        return None


def _pattern(route: Route) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", route.path))


async def _serve_lifespan(receive: Receive, send: Send) -> None:
    """Say yes to a server that asks: the host's life is ``open_host``'s, not the server's."""
    while True:
        event = await receive()
        await send({"type": f"{event['type']}.complete"})
        if event["type"] == "lifespan.shutdown":
            return
