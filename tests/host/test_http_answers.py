"""The table from exceptions to answers, and the few things that are mistakes of ours."""

from __future__ import annotations

import json

import pytest
from http_kit import FixedClock, Host

from semibot.errors import (
    BadCursor,
    DeadlineExceeded,
    IdempotencyConflict,
    NotFound,
    OriginRefused,
    PlaneNotReady,
    RemoteProtocolError,
    SessionBusy,
    StoreError,
    Unauthenticated,
)
from semibot.host.answers import HttpError, as_iso, failure, success
from semibot.host.asgi import Asked, request_from
from semibot.host.bodies import CancelRun, NoFields
from semibot.host.routes import ROUTES


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (HttpError(418, "TEAPOT", "no coffee"), 418, "TEAPOT"),
        (RemoteProtocolError("odd", "$.a"), 400, "VALIDATION_FAILED"),
        (BadCursor("x"), 400, "BAD_CURSOR"),
        (Unauthenticated("AUTH_EXPIRED"), 401, "AUTH_EXPIRED"),
        (OriginRefused("Host"), 403, "ORIGIN_REFUSED"),
        (NotFound("x"), 404, "NOT_FOUND"),
        (SessionBusy("s1", 3), 409, "SESSION_BUSY"),
        (IdempotencyConflict("x"), 422, "IDEMPOTENCY_CONFLICT"),
        (PlaneNotReady("missing", None, 0), 503, "EXECUTION_PLANE_NOT_READY"),
        (StoreError("x"), 503, "STORE_FAILED"),
        (DeadlineExceeded("http.request_body", 30), 408, "DEADLINE_EXCEEDED"),
        (DeadlineExceeded("store.commit", 10), 503, "STORE_FAILED"),
        (DeadlineExceeded("X-Deadline-Ms", 10), 504, "DEADLINE_EXCEEDED"),
        (KeyError("x"), 500, "INTERNAL_ERROR"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_each_error_has_its_status(error: Exception, status: int, code: str) -> None:
    answer = failure(error)
    said = json.loads(answer.body)
    assert (answer.status, said["error"]["code"]) == (status, code)
    assert said["success"] is False


def test_what_a_vm_said_last_is_made_fit_for_json() -> None:
    said = json.loads(failure(PlaneNotReady("failed", "odd \ud800", 1)).body)
    assert said["error"]["details"]["lastError"] == "odd \ufffd"
    assert "\ufffd" in said["error"]["message"]


def test_an_http_error_reads_as_its_message() -> None:
    assert str(HttpError(400, "X", "say it again")) == "say it again"


def test_a_success_has_its_envelope() -> None:
    assert json.loads(success([1], 202).body) == {"success": True, "data": [1]}


def test_times_are_utc_to_the_millisecond() -> None:
    now = int(FixedClock().now().timestamp() * 1000)
    assert as_iso(now + 7) == "2026-01-01T00:00:00.007Z"


def test_asking_a_route_for_what_it_does_not_have_is_a_mistake() -> None:
    request = request_from({"path": "/", "headers": []}, Host().ports.ids)
    assert request.stalled() is False
    asked = Asked(request=request, route=ROUTES[0], params={}, principal=None, body=NoFields())
    with pytest.raises(AssertionError, match="start_chat is public"):
        _ = asked.who
    with pytest.raises(AssertionError, match="does not take CancelRun"):
        asked.body_as(CancelRun)
