"""The routes of a host: one table, which the dispatcher follows and ``/openapi.json`` describes."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import attrs

from .answers import JSON
from .bodies import CancelRun, ContinueChat, NoFields, StartChat

Method: TypeAlias = Literal["GET", "POST", "DELETE"]

EVENT_STREAM: Final = "text/event-stream"

PAGING: Final = ("cursor", "limit")


@attrs.frozen(kw_only=True)
class Route:
    """One thing that can be asked."""

    method: Method
    """GET answers HEAD as well, except for streams."""
    path: str
    """With ``{parameters}``, each one segment."""
    name: str
    """Unique name; the operation's id."""
    summary: str
    """One line for people."""
    body: type[object] | None = None
    """What a request says."""
    must_have_body: bool = False
    """Whether it has to say it."""
    query: tuple[str, ...] = ()
    """Parameters of the query, all optional."""
    headers: tuple[str, ...] = ()
    """Headers that mean something, all optional."""
    media: str = JSON
    """What a success is."""
    is_public: bool = False
    """Whether anybody may ask, without saying who they are."""
    statuses: tuple[int, ...] = ()
    """What else may be answered, besides 200 and what every route may answer."""

    @property
    def is_stream(self) -> bool:
        """Whether it answers with events, one after the other."""
        return self.media == EVENT_STREAM


ROUTES: Final[tuple[Route, ...]] = (
    Route(
        method="POST",
        path="/api/v1/chat/start",
        name="start_chat",
        summary="Begin a session with a message, and stream that run.",
        body=StartChat,
        must_have_body=True,
        headers=("Idempotency-Key", "X-Deadline-Ms"),
        media=EVENT_STREAM,
        statuses=(404, 408, 413, 415, 422, 503, 504),
    ),
    Route(
        method="POST",
        path="/api/v1/chat/sessions/{session_id}",
        name="continue_chat",
        summary="Say something in a session, and stream that run only.",
        body=ContinueChat,
        must_have_body=True,
        headers=("Idempotency-Key", "X-Deadline-Ms"),
        media=EVENT_STREAM,
        statuses=(404, 408, 409, 413, 415, 422, 503, 504),
    ),
    Route(
        method="POST",
        path="/api/v1/chat/sessions/{session_id}/cancel",
        name="cancel_run",
        summary="Cancel the named run, or the current one, and return its receipt.",
        body=CancelRun,
        headers=("Idempotency-Key",),
        statuses=(202, 404, 408, 413, 415, 422, 503),
    ),
    Route(
        method="GET",
        path="/api/v1/sessions/{session_id}/stream",
        name="stream_session",
        summary="Follow a session's events, from an event id or from now.",
        query=("last_event_id",),
        headers=("Last-Event-ID",),
        media=EVENT_STREAM,
        statuses=(204, 404),
    ),
    Route(
        method="GET",
        path="/api/v1/sessions",
        name="list_sessions",
        summary="List your sessions, newest first.",
        query=PAGING,
        statuses=(503,),
    ),
    Route(
        method="GET",
        path="/api/v1/sessions/{session_id}",
        name="get_session",
        summary="Return a session.",
        statuses=(404, 503),
    ),
    Route(
        method="DELETE",
        path="/api/v1/sessions/{session_id}",
        name="delete_session",
        summary="Stop a session and delete what it said.",
        body=NoFields,
        headers=("Idempotency-Key",),
        statuses=(404, 408, 413, 415, 422, 503),
    ),
    Route(
        method="GET",
        path="/api/v1/sessions/{session_id}/messages",
        name="list_messages",
        summary="List a session's newest messages, and the event id that they cover.",
        query=PAGING,
        statuses=(404, 503),
    ),
    Route(
        method="GET",
        path="/api/v1/vm/status",
        name="vm_status",
        summary="Return the state of your execution plane.",
        statuses=(503,),
    ),
    Route(
        method="POST",
        path="/api/v1/vm/rebootstrap",
        name="rebootstrap_vm",
        summary="Start your execution plane anew.",
        body=NoFields,
        headers=("Idempotency-Key",),
        statuses=(408, 413, 415, 422, 503),
    ),
    Route(
        method="GET",
        path="/api/v1/audit",
        name="list_audit",
        summary="List what your execution plane put into the audit log, newest first.",
        query=PAGING,
        statuses=(503,),
    ),
    Route(
        method="GET",
        path="/api/v1/usage",
        name="list_usage",
        summary="List the tokens that your runs spent: reports, newest first, and daily totals.",
        query=(*PAGING, "days"),
        statuses=(503,),
    ),
    Route(
        method="GET",
        path="/api/v1/info",
        name="host_info",
        summary="Return the host's version, limits and kind of authentication.",
        is_public=True,
    ),
    Route(
        method="GET",
        path="/livez",
        name="livez",
        summary="Say that the process answers.",
        is_public=True,
    ),
    Route(
        method="GET",
        path="/readyz",
        name="readyz",
        summary="Say whether the host takes work; 503 while it starts, drains or cannot store.",
        is_public=True,
        statuses=(503,),
    ),
    Route(
        method="GET",
        path="/metrics",
        name="metrics",
        summary="Return the host's counts in the text format of Prometheus.",
        media="text/plain",
    ),
    Route(
        method="GET",
        path="/openapi.json",
        name="openapi",
        summary="Return this description.",
        is_public=True,
    ),
    Route(
        method="GET",
        path="/",
        name="page",
        summary="Return the chat page.",
        media="text/html",
        is_public=True,
        statuses=(304,),
    ),
    Route(
        method="GET",
        path="/{file}",
        name="page_file",
        summary="Return a file of the chat page.",
        media="*/*",
        is_public=True,
        statuses=(304, 404, 405),
    ),
)
"""Every route over HTTP. ``/ws/vm`` is a WebSocket and has no place in OpenAPI."""
