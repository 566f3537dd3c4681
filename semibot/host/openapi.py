"""Describe the routes in OpenAPI 3.1, from the table that the dispatcher follows."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, Literal, cast

import attrs

from semibot.wire.codec import JsonObject, JsonValue

from .answers import JSON
from .bodies import DEFAULT_PAGE, MAX_BUDGET_MS, MAX_MESSAGE_BYTES, MAX_PAGE
from .liveness import STATES
from .routes import EVENT_STREAM, ROUTES, Route

_TEXT: Final[JsonObject] = {"type": "string"}
_MAYBE_TEXT: Final[JsonObject] = {"type": ["string", "null"]}
_TIME: Final[JsonObject] = {"type": "string", "format": "date-time"}
_MAYBE_TIME: Final[JsonObject] = {"type": ["string", "null"], "format": "date-time"}
_COUNT: Final[JsonObject] = {"type": "integer", "minimum": 0}
_OBJECT: Final[JsonObject] = {"type": "object"}


def _object(fields: Mapping[str, JsonObject], *optional: str) -> JsonObject:
    required = [name for name in fields if name not in optional]
    return {"type": "object", "properties": dict(fields), "required": required}


_LIVENESS: Final = _object(
    {
        "state": {"enum": list(STATES)},
        "heardMsAgo": _COUNT,
        "lagMs": {"type": ["integer", "null"], "minimum": 0},
        "block": {
            **_object(
                {
                    "seconds": {"type": "number", "minimum": 0},
                    "where": _TEXT,
                    "stack": {"type": "array", "items": _TEXT},
                    "toldMsAgo": _COUNT,
                }
            ),
            "type": ["object", "null"],
        },
    }
)


def _page(name: str, row: JsonObject, **more: JsonObject) -> JsonObject:
    rows: JsonObject = {"type": "array", "items": row}
    return _object({name: rows, **more, "next_cursor": _MAYBE_TEXT})


def _named(schema: str) -> JsonObject:
    return {"$ref": f"#/components/schemas/{schema}"}


SCHEMAS: Final[Mapping[str, JsonObject]] = {
    "Error": _object(
        {
            "success": {"const": False},
            "error": _object({"code": _TEXT, "message": _TEXT, "details": {}}, "details"),
        }
    ),
    "Session": _object(
        {
            "id": _TEXT,
            "agent_id": _MAYBE_TEXT,
            "title": _TEXT,
            "runtime_type": _TEXT,
            "last_event_id": _TEXT,
            "created_at": _TIME,
            "updated_at": _TIME,
        }
    ),
    "Message": _object(
        {
            "id": _TEXT,
            "run_id": _TEXT,
            "role": {"enum": ["user", "assistant"]},
            "content": _TEXT,
            "metadata": _OBJECT,
            "created_at": _TIME,
        }
    ),
    "VmStatus": _object(
        {
            "status": _TEXT,
            "instanceId": _TEXT,
            "mode": _TEXT,
            "bootstrapAttempts": _COUNT,
            "lastBootstrapAt": _MAYBE_TIME,
            "lastHeartbeatAt": _MAYBE_TIME,
            "disconnectedAt": _MAYBE_TIME,
            "lastError": _MAYBE_TEXT,
            "retryAfterMs": _COUNT,
            "liveness": _LIVENESS,
        },
        "instanceId",
        "mode",
        "bootstrapAttempts",
        "lastBootstrapAt",
        "lastHeartbeatAt",
        "disconnectedAt",
        "lastError",
        "retryAfterMs",
        "liveness",
    ),
    "Receipt": {
        "type": "object",
        "description": "What a cancel stopped and what it had to abandon.",
        "properties": {
            "run_id": _MAYBE_TEXT,
            "outcome": _TEXT,
            "already": {"type": "boolean"},
            "started": {"type": "boolean"},
            "stopped": {"type": "array", "items": _OBJECT},
            "abandoned": {"type": "array", "items": _OBJECT},
        },
    },
}
"""Schemas that the description refers to by name."""

DATA: Final[Mapping[str, JsonObject]] = {
    "cancel_run": _named("Receipt"),
    "list_sessions": _page("sessions", _named("Session")),
    "get_session": _named("Session"),
    "delete_session": _object({"session_id": _TEXT, "deleted": {"const": True}}),
    "list_messages": _page("messages", _named("Message"), last_event_id=_TEXT),
    "vm_status": _named("VmStatus"),
    "rebootstrap_vm": _object(
        {"ready": {"type": "boolean"}, "status": _TEXT, "instanceId": _MAYBE_TEXT}
    ),
    "list_audit": _page("audit", _OBJECT),
    "list_usage": _page("usage", _OBJECT, daily={"type": "array", "items": _OBJECT}),
    "host_info": _object(
        {
            "name": _TEXT,
            "version": _TEXT,
            "mode": {"enum": ["development", "production"]},
            "auth": {"enum": ["local", "bearer"]},
            "runtimes": {"type": "array", "items": _TEXT},
            "limits": _OBJECT,
        }
    ),
    "livez": _object({"status": {"const": "alive"}}),
    "readyz": _object({"status": {"const": "ready"}}),
}
"""What ``data`` of a success is, by the route's name; other routes have no envelope."""

PARAMETERS: Final[Mapping[str, tuple[str, JsonObject]]] = {
    "session_id": ("The session.", _TEXT),
    "file": ("Name of a file of the page.", _TEXT),
    "cursor": ("Where to go on: next_cursor of the page before.", _TEXT),
    "limit": (
        "Most rows of the page.",
        {"type": "integer", "minimum": 1, "maximum": MAX_PAGE, "default": DEFAULT_PAGE},
    ),
    "days": ("Days of daily totals.", {"type": "integer", "minimum": 1, "maximum": 366}),
    "last_event_id": (
        "Go on after this event; Last-Event-ID wins.",
        {"type": "string", "pattern": "^[0-9]{1,9}-[0-9]{1,18}$"},
    ),
    "Last-Event-ID": (
        "Go on after this event; browsers send it when they reconnect.",
        {"type": "string", "pattern": "^[0-9]{1,9}-[0-9]{1,18}$"},
    ),
    "Idempotency-Key": (
        "A repeat under this key within 24 h attaches to what the first request did.",
        {"type": "string", "pattern": "^[!-~]{1,255}$"},
    ),
    "X-Deadline-Ms": (
        "What is left of the caller's time, in milliseconds; the run ends with it.",
        {"type": "integer", "minimum": 1, "maximum": MAX_BUDGET_MS},
    ),
}
"""Parameters of paths, queries and headers, by name."""

_LIMITED: Final[Mapping[str, JsonObject]] = {
    "message": {"minLength": 1, "description": f"At most {MAX_MESSAGE_BYTES} bytes of UTF-8."}
}


def describe(version: str) -> JsonObject:
    """Return the OpenAPI document.

    Args:
        version: Of semibot.
    """
    paths: dict[str, dict[str, JsonValue]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "semibot",
            "version": version,
            "description": "Talk to agents: messages in, event streams out.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "security": [{"bearer": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "Not needed on a host with one local user.",
                }
            },
            "schemas": SCHEMAS,
        },
    }


def _operation(route: Route) -> JsonObject:
    in_path = [part[1:-1] for part in route.path.split("/") if part.startswith("{")]
    places = (("path", in_path), ("query", route.query), ("header", route.headers))
    operation: dict[str, JsonValue] = {
        "operationId": route.name,
        "summary": route.summary,
        "parameters": [_parameter(place, name) for place, names in places for name in names],
        "responses": _responses(route),
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": route.must_have_body,
            "content": {JSON: {"schema": body_schema(route.body)}},
        }
    if route.is_public:
        operation["security"] = []
    return operation


def _parameter(place: str, name: str) -> JsonObject:
    description, schema = PARAMETERS[name]
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "description": description,
        "schema": schema,
    }


def _responses(route: Route) -> JsonObject:
    success: dict[str, JsonValue] = {"description": HTTPStatus.OK.phrase}
    content: JsonObject
    if route.name in DATA:
        schema = _object({"success": {"const": True}, "data": DATA[route.name]})
        content = {JSON: {"schema": schema}}
    elif route.is_stream:
        content = {EVENT_STREAM: {"schema": _TEXT}}
        names = ("X-Session-ID",) if route.method == "GET" else ("X-Session-ID", "X-Run-ID")
        success["headers"] = {name: {"schema": _TEXT} for name in names}
    else:
        content = {route.media: {"schema": _OBJECT if route.media == JSON else {}}}
    success["content"] = content
    found: dict[str, JsonValue] = {"200": success}
    always = (400, 403, 500) if route.is_public else (400, 401, 403, 500)
    for status in sorted({*route.statuses, *always}):
        answer: dict[str, JsonValue] = {"description": HTTPStatus(status).phrase}
        if status == HTTPStatus.ACCEPTED:
            pending = _object({"pending": {"const": True}, "run_id": _MAYBE_TEXT})
            answer["content"] = {
                JSON: {"schema": _object({"success": {"const": True}, "data": pending})}
            }
        elif status >= HTTPStatus.BAD_REQUEST:
            answer["content"] = {JSON: {"schema": _named("Error")}}
        found[str(status)] = answer
    return found


def body_schema(as_type: type[object]) -> JsonObject:
    """Return the schema of a body, from the class that it is read into."""
    hints = typing.get_type_hints(as_type)
    fields: dict[str, JsonObject] = {}
    optional: list[str] = []
    for field in attrs.fields(cast("type[attrs.AttrsInstance]", as_type)):
        fields[field.name] = {**_schema(hints[field.name]), **_LIMITED.get(field.name, {})}
        if field.default is not attrs.NOTHING:
            optional.append(field.name)
    return {**_object(fields, *optional), "additionalProperties": False}


def _schema(hint: object) -> JsonObject:
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        return {"enum": list(arguments)}
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        inner = next(each for each in arguments if each is not type(None))
        return {**_schema(inner), "type": ["null", _schema(inner)["type"]]}
    return _TEXT if hint is str else _OBJECT
