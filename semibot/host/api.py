"""Serve the routes that answer as a whole, on Quart.

Quart routes, reads bodies and writes answers. What it is told of a request is only what that
takes: guards, who asks, and every header that means something have been dealt with before,
in :mod:`semibot.host.app`, so nothing here depends on how a framework reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, Protocol, cast, final

import quart
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException, MethodNotAllowed, RequestEntityTooLarge

from semibot.config import Deadlines
from semibot.lifetimes import deadline
from semibot.security.principals import Principal

from .answers import Answer, HttpError, failure
from .asgi import Asked, Handler, Request, method_not_allowed, route_not_found
from .bodies import MAX_BODY_BYTES, parse_body, too_large
from .routes import Route
from .server import App, Receive, Scope, Send

_FOR_QUART: Final = (b"content-length", b"transfer-encoding")


class _View(Protocol):
    """What Quart calls."""

    async def __call__(self, **params: str) -> quart.Response:
        """Answer, for the values of the path's parameters."""
        ...


@final
class Api:
    """The routes that answer as a whole, as one ASGI app for http.

    Args:
        routes: The routes.
        handlers: What answers each, by its name.
        identify: Says who asks.
        deadlines: ``http.request_body``.
    """

    def __init__(
        self,
        routes: tuple[Route, ...],
        handlers: Mapping[str, Handler],
        identify: Callable[[Request], Principal],
        deadlines: Deadlines,
    ) -> None:
        self._identify = identify
        self._deadlines = deadlines
        app = QuartTrio("semibot.host", static_folder=None, template_folder=None)
        app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
        app.config["BODY_TIMEOUT"] = None  # bounded here, by name
        app.config["RESPONSE_TIMEOUT"] = None  # bounded by the server, per piece
        app.url_map.merge_slashes = False
        for route in routes:
            app.add_url_rule(
                route.path.replace("{", "<").replace("}", ">"),
                route.name,
                self._view(route, handlers[route.name]),
                methods=[route.method],
                provide_automatic_options=False,
            )
        app.register_error_handler(HTTPException, _refuse)
        self._app: App = cast("App", app)

    async def __call__(self, scope: Scope, receive: Receive, send: Send, request: Request) -> None:
        """Answer one request."""
        kept = [(name, value) for name, value in scope["headers"] if name.lower() in _FOR_QUART]
        inner = {
            **scope,
            "headers": [(b"host", b"localhost"), *kept],
            "query_string": b"",
            "root_path": "",
            "semibot.request": request,
        }
        await self._app(inner, receive, send)

    def _view(self, route: Route, handler: Handler) -> _View:
        async def view(**params: str) -> quart.Response:
            scope = cast("Scope", quart.request.scope)
            request = cast("Request", scope["semibot.request"])
            try:
                principal = None if route.is_public else self._identify(request)
                body = None if route.body is None else await self._body(request, route, route.body)
                asked = Asked(
                    request=request, route=route, params=params, principal=principal, body=body
                )
                answer = await handler(asked)
            except Exception as exc:  # noqa: BLE001 - every failure has its answer
                answer = failure(exc)
            return _respond(answer)

        return view

    async def _body(self, request: Request, route: Route, as_type: type[object]) -> object:
        with deadline("http.request_body", self._deadlines.http_request_body):
            try:
                data = cast("bytes", await quart.request.get_data(cache=False))
            except RequestEntityTooLarge:
                raise too_large() from None
        return parse_body(request.headers, data, as_type, may_lack=not route.must_have_body)


def _respond(answer: Answer) -> quart.Response:
    response = quart.Response(answer.body, status=answer.status, headers=dict(answer.headers))
    if answer.body:
        response.headers["Content-Type"] = answer.content_type
    else:
        del response.headers["Content-Type"]
    if answer.status == HTTPStatus.NOT_MODIFIED:
        del response.headers["Content-Length"]  # it would be the length of what is not sent
    response.timeout = None
    return response


async def _refuse(error: HTTPException) -> quart.Response:  # noqa: ASYNC124 - Quart may await it
    """Answer what Quart refuses by itself."""
    refusal: HttpError
    if isinstance(error, MethodNotAllowed):
        refusal = method_not_allowed(", ".join(sorted(error.valid_methods or ())))
    else:
        refusal = route_not_found()
    return _respond(failure(refusal))
