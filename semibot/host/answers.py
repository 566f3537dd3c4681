"""What a request is answered with: one envelope for success, one for failure (protocol 7)."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final, final

import attrs

from semibot.errors import (
    BadCursor,
    DeadlineExceeded,
    IdempotencyConflict,
    NotFound,
    PlaneNotReady,
    RemoteProtocolError,
    SecurityError,
    SemibotError,
    SessionBusy,
    StoreError,
    Unauthenticated,
)
from semibot.logs import get_logger
from semibot.wire.codec import JsonValue, dump_json, scrub

log: Final = get_logger(__name__)

JSON: Final = "application/json"

RETRY_AFTER: Final = 2
"""What ``Retry-After`` says, in seconds, where nothing better is known."""


@attrs.frozen(kw_only=True)
class Answer:
    """A whole answer."""

    status: int = 200
    """HTTP status."""
    body: bytes = attrs.field(default=b"", repr=False)
    """What is said; empty for 204 and 304."""
    content_type: str = JSON
    """What *body* is."""
    headers: Mapping[str, str] = attrs.field(factory=dict[str, str])
    """More headers."""


@final
class HttpError(SemibotError):
    """Raised by a handler that refuses a request.

    Args:
        status: HTTP status, 400 or higher.
        code: Stable name of the reason.
        message: What is wrong and what to do.
        details: More, for programs.
        headers: Headers of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        details: JsonValue = None,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(status, code, message)
        self.status = status
        self.code = code
        self.message = message
        self.details = details
        self.headers = headers

    def __str__(self) -> str:
        return self.message


def invalid(path: str, message: str) -> HttpError:
    """Return the refusal of a request that is not what the route takes.

    Args:
        path: Where it is wrong: ``$.field`` of the body, ``?name`` of the query, or the name
            of a header.
        message: What is wrong there.
    """
    return HttpError(
        400,
        "VALIDATION_FAILED",
        f"{path}: {message}",
        details=[{"path": path, "message": message}],
    )


def session_not_found() -> HttpError:
    """Return the refusal for a session that does not exist, or is another user's."""
    return HttpError(404, "SESSION_NOT_FOUND", "there is no such session")


def success(data: JsonValue, status: int = 200) -> Answer:
    """Return ``{success: true, data}``."""
    return Answer(status=status, body=dump_json({"success": True, "data": data}).encode())


def failure(error: Exception) -> Answer:
    """Return ``{success: false, error: {code, message, details?}}`` for what was raised.

    An exception that is nobody's fault but ours is logged, and answered without its text.
    """
    refusal = _refusal_for(error)
    if refusal is None:
        log.error("a request failed", exc_info=error)
        refusal = HttpError(500, "INTERNAL_ERROR", "the host failed; its log says how")
    said: dict[str, JsonValue] = {"code": refusal.code, "message": scrub(refusal.message)}
    if refusal.details is not None:
        said["details"] = refusal.details
    body = dump_json({"success": False, "error": said}).encode()
    return Answer(status=refusal.status, body=body, headers=refusal.headers)


def _refusal_for(error: Exception) -> HttpError | None:
    """The one table from exceptions to statuses."""
    match error:
        case HttpError():
            return error
        case PlaneNotReady():
            return _plane_not_ready(error)
        case RemoteProtocolError():
            return invalid(error.path, error.reason)
        case BadCursor():
            return HttpError(400, error.code, "this cursor was not made here; begin without one")
        case NotFound():
            return HttpError(404, error.code, "there is no such thing")
        case SessionBusy():
            return HttpError(409, error.code, str(error), details={"waiting": error.waiting})
        case IdempotencyConflict():
            text = "this Idempotency-Key came with another request before; use a new one"
            return HttpError(422, error.code, text)
        case Unauthenticated():
            challenge = {"WWW-Authenticate": "Bearer"}
            return HttpError(401, error.code, str(error), headers=challenge)
        case SecurityError():
            return HttpError(403, error.code, str(error))
        case StoreError() | DeadlineExceeded(deadline="store.commit"):
            log.warning("a request needs the store, which fails", error=str(error))
            text = "the host cannot store anything at the moment; try again"
            return HttpError(503, StoreError.code, text, headers={"Retry-After": str(RETRY_AFTER)})
        case DeadlineExceeded():
            status = 408 if error.deadline == "http.request_body" else 504
            return HttpError(status, error.code, str(error))
        case _:
            return None


def _plane_not_ready(error: PlaneNotReady) -> HttpError:
    seconds = max(1, (error.retry_after_ms + 999) // 1000)
    return HttpError(
        503,
        error.code,
        str(error),
        details={
            "status": error.status,
            "lastError": None if error.last_error is None else scrub(error.last_error),
            "retryAfterMs": error.retry_after_ms,
        },
        headers={"Retry-After": str(seconds)},
    )


def draining() -> HttpError:
    """Return the refusal of new work by a host that ends."""
    return HttpError(
        503,
        "HOST_DRAINING",
        f"the host is ending; try again in {RETRY_AFTER} s",
        headers={"Retry-After": str(RETRY_AFTER)},
    )


def as_iso(milliseconds: int) -> str:
    """Return a time of the store, milliseconds since 1970, as ISO 8601 in UTC."""
    moment = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
