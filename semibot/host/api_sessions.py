"""Answer what is asked about sessions: list, read, cancel, delete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast, final

import trio

from semibot.errors import NotFound
from semibot.store.base import MessageRow, SessionRow
from semibot.wire.codec import JsonObject, JsonValue

from .answers import Answer, HttpError, as_iso, session_not_found, success
from .asgi import Asked, Handler
from .bodies import CancelRun, NoFields, idempotency_of, page_asked
from .core import HostCore


@final
class SessionRoutes:
    """Answers the routes about sessions.

    Args:
        core: The parts of the host.
    """

    def __init__(self, core: HostCore) -> None:
        self._core = core

    @property
    def handlers(self) -> Mapping[str, Handler]:
        """What answers each route, by its name."""
        return {
            "list_sessions": self.list_sessions,
            "get_session": self.get_session,
            "delete_session": self.delete_session,
            "list_messages": self.list_messages,
            "cancel_run": self.cancel_run,
        }

    # --- reading ----------------------------------------------------------------------

    async def list_sessions(self, asked: Asked) -> Answer:
        """Return one page of the user's sessions."""
        cursor, limit = page_asked(asked.query)
        page = await self._core.store.list_sessions(asked.who.user_id, cursor, limit)
        rows: list[JsonValue] = [_session_data(row) for row in page.sessions]
        return success({"sessions": rows, "next_cursor": page.next_cursor})

    async def get_session(self, asked: Asked) -> Answer:
        """Return a session.

        Raises:
            HttpError: If it is not the user's.
        """
        return success(_session_data(await self._session(asked)))

    async def list_messages(self, asked: Asked) -> Answer:
        """Return one page of a session's messages, and the event id that they cover.

        Raises:
            HttpError: If the session is not the user's.
        """
        cursor, limit = page_asked(asked.query)
        try:
            page = await self._core.store.list_messages(
                asked.who.user_id, asked.session_id, cursor, limit
            )
        except NotFound:
            raise session_not_found() from None
        return success(
            {
                "messages": [_message_data(row) for row in page.messages],
                "next_cursor": page.next_cursor,
                "last_event_id": page.last_event_id,
            }
        )

    async def _session(self, asked: Asked) -> SessionRow:
        row = await self._core.store.get_session(asked.who.user_id, asked.session_id)
        if row is None:
            raise session_not_found()
        return row

    # --- cancelling -------------------------------------------------------------------

    async def cancel_run(self, asked: Asked) -> Answer:
        """Cancel a run, and return its receipt if it comes within ``http.cancel_wait``.

        A repeat under the same ``Idempotency-Key`` means the run that the first one meant,
        also if another one is current by now.

        Raises:
            HttpError: If the session is not the user's, or the run not the session's.
        """
        body = asked.body_as(CancelRun)
        user_id, session_id = asked.who.user_id, asked.session_id
        await self._session(asked)
        run_id = body.run_id
        idempotency = idempotency_of(asked.request.headers, asked.route.name, session_id, body)
        if idempotency is not None:
            meant = await self._core.store.remember_answer(
                user_id, *idempotency, {"run_id": run_id or await self._current_run(session_id)}
            )
            run_id = cast("str | None", cast("JsonObject", meant)["run_id"])
            if run_id is None:
                return success({"run_id": None, "already": True})
        try:
            cancel = await self._core.dispatcher.cancel(
                user_id, session_id, run_id, reason="user_cancelled"
            )
        except NotFound:
            raise HttpError(404, "RUN_NOT_FOUND", "the session has no such run") from None
        if cancel.state != "pending":
            return success(cancel.receipt)
        if cancel.run_id is not None and cancel.command_id is not None:
            with trio.move_on_after(self._core.deadlines.http_cancel_wait):
                receipt = await self._core.dispatcher.wait_receipt(cancel.run_id, cancel.command_id)
                return success(receipt)
        return success({"pending": True, "run_id": cancel.run_id}, 202)

    async def _current_run(self, session_id: str) -> str | None:
        work = await self._core.store.session_work(session_id)
        return work.open_runs[0].id if work is not None and work.open_runs else None

    # --- deleting ---------------------------------------------------------------------

    async def delete_session(self, asked: Asked) -> Answer:
        """Stop a session and delete it.

        A repeat under the same ``Idempotency-Key`` is answered like the first; without one,
        a session that is gone does not exist.

        Raises:
            HttpError: If the session is not the user's.
        """
        user_id, session_id = asked.who.user_id, asked.session_id
        gone: JsonValue = {"session_id": session_id, "deleted": True}
        store = self._core.store
        idempotency = idempotency_of(
            asked.request.headers, asked.route.name, session_id, asked.body_as(NoFields)
        )
        if await store.get_session(user_id, session_id) is None:
            is_repeat = idempotency is not None and await store.was_deleted(user_id, session_id)
            if not is_repeat:
                raise session_not_found()
        if idempotency is not None:
            await store.remember_answer(user_id, *idempotency, gone)
        await self._core.dispatcher.delete_session(user_id, session_id)
        return success(gone)


def _session_data(row: SessionRow) -> JsonValue:
    return {
        "id": row.id,
        "agent_id": row.agent_id,
        "title": row.title,
        "runtime_type": row.runtime_type,
        "last_event_id": f"{row.term}-{row.last_seq}",
        "created_at": as_iso(row.created_at),
        "updated_at": as_iso(row.updated_at),
    }


def _message_data(row: MessageRow) -> JsonValue:
    return {
        "id": row.id,
        "run_id": row.run_id,
        "role": row.role,
        "content": row.content,
        "metadata": row.metadata,
        "created_at": as_iso(row.created_at),
    }
