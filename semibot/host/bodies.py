"""What requests may say: their bodies, and the headers and queries that carry something.

Strict, because whoever mistypes a field wants to know: an unknown one is an error. What is
wrong is answered with its place.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Final, Literal, TypeAlias, TypeVar, cast
from urllib.parse import parse_qsl

import attrs

from semibot.config import Deadlines
from semibot.errors import RemoteProtocolError
from semibot.lifetimes import deadline
from semibot.store.base import OnBusy
from semibot.wire.codec import JsonObject, dump_json, load_json, structure, unstructure

from .answers import JSON, HttpError, invalid
from .server import Receive

MAX_BODY_BYTES: Final = 1024 * 1024
"""Largest body of a request."""

MAX_MESSAGE_BYTES: Final = 256 * 1024
"""Longest message, in bytes of UTF-8 (protocol section 7)."""

MAX_BUDGET_MS: Final = 86_400_000
"""Longest budget that a caller may give a run: a day."""

MAX_PAGE: Final = 200
"""Most rows of one page."""

DEFAULT_PAGE: Final = 50
"""Rows of a page if nobody says."""

RUNTIMES: Final[Mapping[str, str]] = {
    "semigraph": "semigraph",
    "graph": "semigraph",
    "openclaw": "openclaw",
}
"""The runtimes that a host knows, and what VMs are told for each (protocol section 4)."""

OnDisconnect: TypeAlias = Literal["cancel", "continue"]
"""What a reader that goes away does to the run it started."""

T = TypeVar("T")

_KEY: Final = re.compile(r"[!-~]{1,255}")
_DIGITS: Final = re.compile(r"[0-9]{1,9}")


# --- bodies ---------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class StartChat:
    """Body of ``POST /api/v1/chat/start``."""

    message: str = attrs.field(repr=False)
    """What the user says; 1 byte to 256 KiB."""
    agentId: str | None = None  # noqa: N815 - the wire calls it so
    """Agent to talk to; none means the default one."""
    runtime_type: str | None = None
    """``semigraph``, ``graph`` or ``openclaw``; the agent's if left out."""
    openclaw_config: JsonObject | None = attrs.field(default=None, repr=False)
    """Configuration of the bridge; the agent's if left out."""
    on_busy: OnBusy = "interrupt"
    """Without effect in a new session."""
    on_disconnect: OnDisconnect = "cancel"
    """Whether closing the stream cancels the run."""


@attrs.frozen(kw_only=True)
class ContinueChat:
    """Body of ``POST /api/v1/chat/sessions/{session_id}``."""

    message: str = attrs.field(repr=False)
    """What the user says; 1 byte to 256 KiB."""
    on_busy: OnBusy = "interrupt"
    """What happens to runs that have not ended."""
    on_disconnect: OnDisconnect = "cancel"
    """Whether closing the stream cancels the run."""
    parentMessageId: str | None = None  # noqa: N815 - the wire calls it so
    """Accepted and without effect: a session is one line of messages."""


@attrs.frozen(kw_only=True)
class CancelRun:
    """Body of ``POST /api/v1/chat/sessions/{session_id}/cancel``; may be left out."""

    run_id: str | None = None
    """The run; the current one if left out."""


@attrs.frozen(kw_only=True)
class NoFields:
    """A body that says nothing; may be left out."""


async def read_body(headers: Mapping[str, str], receive: Receive, deadlines: Deadlines) -> bytes:
    """Return the whole body of a request.

    Args:
        headers: The request's, with lower-case names.
        receive: Where the body comes from.
        deadlines: ``http.request_body``.

    Raises:
        HttpError: If it is larger than 1 MiB.
        DeadlineExceeded: If it takes too long.
        ConnectionAbortedError: If the client went away before it had said everything.
    """
    declared = headers.get("content-length", "0")
    if declared.isascii() and declared.isdigit() and int(declared[:18]) > MAX_BODY_BYTES:
        raise too_large()
    body = bytearray()
    with deadline("http.request_body", deadlines.http_request_body):
        while True:
            event = await receive()
            if event["type"] != "http.request":
                raise ConnectionAbortedError("the client went away before its request was complete")
            body += cast("bytes", event.get("body", b""))
            if len(body) > MAX_BODY_BYTES:
                raise too_large()
            if not event.get("more_body", False):
                return bytes(body)


def too_large() -> HttpError:
    """Return the refusal of a body above the limit."""
    return HttpError(413, "BODY_TOO_LARGE", f"a body has at most {MAX_BODY_BYTES} bytes")


def parse_body(headers: Mapping[str, str], body: bytes, as_type: type[T], *, may_lack: bool) -> T:
    """Return a body as what the route takes.

    Args:
        headers: The request's, with lower-case names.
        body: The bytes.
        as_type: One of the classes above.
        may_lack: Whether no body at all means one without fields.

    Raises:
        HttpError: If it is no JSON, or not the JSON that the route takes.
    """
    if may_lack and not body:
        return structure({}, as_type)
    if headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
        raise HttpError(415, "UNSUPPORTED_MEDIA_TYPE", f"the body has to be {JSON}")
    try:
        value = load_json(body)
    except RemoteProtocolError as exc:
        raise HttpError(400, "MALFORMED_JSON", f"the body is {exc.reason}") from None
    if isinstance(value, Mapping):
        known = {field.name for field in attrs.fields(cast("type[attrs.AttrsInstance]", as_type))}
        for name in value:
            if name not in known:
                raise invalid(f"$.{name[:64]}", "this field is not known")
    return structure(value, as_type)


def check_message(message: str) -> None:
    """Check that *message* says something, and not too much.

    Raises:
        HttpError: If not.
    """
    if not message.strip():
        raise invalid("$.message", "a message says something")
    if len(message.encode()) > MAX_MESSAGE_BYTES:
        text = f"a message has at most {MAX_MESSAGE_BYTES} bytes"
        raise HttpError(413, "MESSAGE_TOO_LARGE", text)


def runtime_of(asked: str | None, agent: str | None) -> str:
    """Return the runtime of a new session, as VMs are told: its own, the agent's, the default.

    Raises:
        HttpError: If there is none of that name.
    """
    name = asked if asked is not None else agent if agent is not None else "semigraph"
    runtime = RUNTIMES.get(name)
    if runtime is None:
        text = f"there is no runtime {name[:64]!r}; there are {', '.join(RUNTIMES)}"
        raise HttpError(400, "UNKNOWN_RUNTIME", text, details={"known": list(RUNTIMES)})
    return runtime


# --- headers and queries --------------------------------------------------------------


def idempotency_of(
    headers: Mapping[str, str], route: str, subject: str, body: object
) -> tuple[str, str] | None:
    """Return the ``Idempotency-Key`` and a hash of what it stands for, if there is one.

    Args:
        headers: The request's, with lower-case names.
        route: Name of the route.
        subject: The session; empty if there is none.
        body: The typed body.

    Raises:
        HttpError: If the key is not 1 to 255 visible ASCII characters.
    """
    key = headers.get("idempotency-key")
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise invalid("Idempotency-Key", "it is 1 to 255 visible ASCII characters")
    said = dump_json([route, subject, unstructure(body)])
    return key, hashlib.sha256(said.encode()).hexdigest()


def budget_of(headers: Mapping[str, str]) -> int | None:
    """Return what ``X-Deadline-Ms`` leaves for the run, in milliseconds, or None.

    Raises:
        HttpError: If it is not an integer from 1 to a day.
    """
    text = headers.get("x-deadline-ms")
    return None if text is None else _integer("X-Deadline-Ms", text, MAX_BUDGET_MS)


def parse_query(query: str) -> Mapping[str, str]:
    """Return a query's parameters.

    Raises:
        HttpError: If one is repeated, or there are very many.
    """
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=32)
    except ValueError:
        raise invalid("?", "too many parameters") from None
    found = dict(pairs)
    if len(found) != len(pairs):
        raise invalid("?", "a parameter is repeated")
    return found


def page_asked(query: Mapping[str, str]) -> tuple[str | None, int]:
    """Return the cursor and the limit of a page.

    Raises:
        HttpError: If the limit is not 1 to 200.
    """
    return query.get("cursor"), number_asked(query, "limit", DEFAULT_PAGE, MAX_PAGE)


def number_asked(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    """Return an integer parameter from 1 to *most*.

    Raises:
        HttpError: If it is something else.
    """
    text = query.get(name)
    return default if text is None else _integer(f"?{name}", text, most)


def _integer(path: str, text: str, most: int) -> int:
    number = int(text) if _DIGITS.fullmatch(text) else 0
    if not 1 <= number <= most:
        raise invalid(path, f"it is an integer from 1 to {most}")
    return number
