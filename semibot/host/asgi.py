"""A request as handlers see it, whichever way it came in, and how it is answered over ASGI."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeAlias, TypeVar

import attrs
import trio

from semibot.ports import IdSource
from semibot.security.principals import Principal

from .answers import Answer, HttpError
from .bodies import parse_query
from .routes import Route
from .server import Receive, Scope, Send

_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9._:\-]{1,128}")

CLIENT_GONE: Final = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
"""What sending raises when nobody is there any more."""

T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Request:
    """The head of a request."""

    method: str
    """``GET``, ``HEAD``, ``POST`` ..., as the client said it."""
    path: str
    """Decoded; begins with ``/``."""
    query_string: str = attrs.field(repr=False)
    """As the client said it."""
    headers: Mapping[str, str] = attrs.field(repr=False)
    """With lower-case names; those that were repeated are joined with commas."""
    id: str
    """``X-Request-ID``, the client's or made here."""
    stalled: Callable[[], bool] = attrs.field(repr=False)
    """Whether this host ended the connection because the client accepted nothing."""


@attrs.frozen(kw_only=True)
class Asked:
    """A request that has been let in."""

    request: Request
    """Its head."""
    route: Route
    """What is asked."""
    params: Mapping[str, str]
    """Values of the path's parameters."""
    principal: Principal | None
    """Who asks; None only for public routes."""
    body: object = None
    """The typed body, for routes that have one and let it be read beforehand."""

    @property
    def who(self) -> Principal:
        """Who asks, on a route that is not public."""
        if self.principal is None:
            message = f"{self.route.name} is public"
            raise AssertionError(message)
        return self.principal

    @property
    def session_id(self) -> str:
        """The session that the path names."""
        return self.params["session_id"]

    @property
    def query(self) -> Mapping[str, str]:
        """Parameters of the query.

        Raises:
            HttpError: If one is repeated.
        """
        return parse_query(self.request.query_string)

    def body_as(self, as_type: type[T]) -> T:
        """Return the body, which is of the class that the route names."""
        if not isinstance(self.body, as_type):
            message = f"{self.route.name} does not take {as_type.__name__}"
            raise AssertionError(message)  # noqa: TRY004 - a mistake in the table of routes
        return self.body


Handler: TypeAlias = Callable[[Asked], Awaitable[Answer]]
"""Answers a request as a whole."""

StreamHandler: TypeAlias = Callable[[Asked, Receive, Send], Awaitable[None]]
"""Answers a request over ASGI, bit by bit; reads the body itself."""


def request_from(scope: Scope, ids: IdSource) -> Request:
    """Return the head of an ASGI request.

    Args:
        scope: Of type ``http`` or ``websocket``.
        ids: Where ``X-Request-ID`` comes from, if the client's is missing or odd.
    """
    headers: dict[str, str] = {}
    for raw_name, raw_value in scope["headers"]:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    request_id = headers.get("x-request-id", "")
    ours = scope.get("extensions", {}).get("semibot", {})
    return Request(
        method=scope.get("method", "GET"),
        path=scope["path"],
        query_string=scope.get("query_string", b"").decode("latin-1"),
        headers=headers,
        id=request_id if _REQUEST_ID.fullmatch(request_id) else ids.new_id(),
        stalled=ours.get("stalled", _never),
    )


def _never() -> bool:
    return False


async def send_answer(send: Send, answer: Answer) -> None:
    """Answer a request as a whole; a client that is gone misses it."""
    headers = dict(answer.headers)
    if answer.body:
        headers["Content-Type"] = answer.content_type
    if answer.status not in {204, 304}:
        headers["Content-Length"] = str(len(answer.body))
    try:
        await send_head(send, answer.status, headers)
        await send_body(send, answer.body, is_last=True)
    except CLIENT_GONE:
        return


async def send_head(send: Send, status: int, headers: Mapping[str, str]) -> None:
    """Begin an answer."""
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def send_body(send: Send, data: bytes, *, is_last: bool = False) -> None:
    """Go on with an answer, or end it."""
    await send({"type": "http.response.body", "body": data, "more_body": not is_last})


def method_not_allowed(allowed: str) -> HttpError:
    """Return the refusal of a method that a path does not have."""
    text = f"this path takes {allowed}"
    return HttpError(405, "METHOD_NOT_ALLOWED", text, headers={"Allow": allowed})


def route_not_found() -> HttpError:
    """Return the refusal of a path that nothing is at."""
    text = "there is nothing at this path; /openapi.json says what there is"
    return HttpError(404, "ROUTE_NOT_FOUND", text)
