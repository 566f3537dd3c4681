"""Say in semibot's errors what went wrong between us and a chat-completions server."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, cast

import httpx2

from semibot.errors import ModelError
from semibot.models.chat_chunks import error_words

if TYPE_CHECKING:
    import openai

    from semibot.wire.codec import JsonValue

RETRY_AFTER_CAP: Final = 60.0
"""Longest wait that a server can make us take over, in seconds."""

_NO_MONEY: Final = "insufficient_quota"


def status_error(error: openai.APIStatusError, now: datetime) -> ModelError:
    """Return the error for an answer with a status of 300 or more.

    Args:
        error: What the SDK raised.
        now: The current time, which a ``Retry-After`` date is compared with.
    """
    status = error.status_code
    words = error_words(cast("JsonValue", error.body))
    said = f"the model server answered {status}{words}"
    headers = error.response.headers
    if status == HTTPStatus.TOO_MANY_REQUESTS:
        has_money = _NO_MONEY not in words
        return ModelError(
            f"{said}: " + ("too many requests" if has_money else "the account has no credit left"),
            code="MODEL_RATE_LIMITED",
            is_retryable=has_money,
            retry_after=retry_after(headers, now),
        )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return ModelError(
            said,
            code="MODEL_SERVER_ERROR",
            is_retryable=True,
            retry_after=retry_after(headers, now),
        )
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        advice = "it does not accept OPENAI_API_KEY"
    elif status == HTTPStatus.NOT_FOUND:
        advice = "check the model's name and OPENAI_BASE_URL"
    elif status < HTTPStatus.BAD_REQUEST:
        advice = "it wants to redirect us; check OPENAI_BASE_URL"
    else:
        advice = "it refuses the request"
    return ModelError(f"{said}: {advice}", code="MODEL_REFUSED")


def connection_error(error: openai.APIConnectionError, host: str) -> ModelError:
    """Return the error for a request that got no answer.

    Args:
        error: What the SDK raised.
        host: The server, for the message.
    """
    if isinstance(error.__cause__, httpx2.ConnectError | httpx2.ProxyError):
        return ModelError(
            f"cannot reach the model server at {host}; check OPENAI_BASE_URL and the network",
            code="MODEL_UNREACHABLE",
            is_retryable=True,
        )
    return ModelError(
        f"the model server at {host} closed the connection without an answer",
        code="MODEL_STREAM_BROKEN",
        is_retryable=True,
    )


def broken_error() -> ModelError:
    """Return the error for an answer that was cut off."""
    return ModelError(
        "the model server broke off in the middle of its answer",
        code="MODEL_STREAM_BROKEN",
        is_retryable=True,
    )


def retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return how long the server asks us to wait, in seconds, 0 to 60.

    Args:
        headers: The answer's headers, by lower-case name.
        now: The current time, which a date is compared with.

    Returns:
        The seconds; None if the server does not say, or not so that it makes sense.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return _capped(milliseconds / 1000)
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None or text is None:
        return None if seconds is None else _capped(seconds)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return _capped((date - now).total_seconds())


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _capped(seconds: float) -> float:
    return min(max(seconds, 0.0), RETRY_AFTER_CAP)
