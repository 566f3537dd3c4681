"""Messages in and events out: the three routes that answer with a stream (protocol section 7).

They are ASGI of their own and do not go through the framework, because an event stream has
to learn that its client went away, and must not be timed or buffered by anybody else.

Theory of operation of a POST. Until the message is stored, a client that goes away undoes
everything: the work for it is cancelled and nothing is stored. From the transaction that
stores the message to the reader that streams the run nothing can be cancelled, so that there
is never a run whose client nobody watches. From then on the run is the client's: if *it*
closes the stream before the run has ended, the run is cancelled, once, unless the client
asked for something else or somebody else is watching. A stream that the host closes, because
it ends, because the store failed or because the client accepts nothing, cancels nothing.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final, final

import attrs
import trio

from semibot.errors import (
    DeadlineExceeded,
    NotFound,
    PlaneNotReady,
    RemoteProtocolError,
    StoreError,
)
from semibot.lifetimes import deadline, grace
from semibot.logs import get_logger
from semibot.store.base import MessageAccepted, NewMessage, NewSession, OnBusy
from semibot.wire.sse import EventId, retry_line

from .answers import Answer, HttpError, draining, failure, session_not_found
from .asgi import (
    CLIENT_GONE,
    Asked,
    StreamHandler,
    send_answer,
    send_body,
    send_head,
)
from .bodies import (
    ContinueChat,
    OnDisconnect,
    StartChat,
    budget_of,
    check_message,
    idempotency_of,
    parse_body,
    read_body,
    runtime_of,
)
from .core import HostCore
from .relay import Reader
from .routes import EVENT_STREAM
from .server import Receive, Send

log: Final = get_logger(__name__)

CANCEL_IDS: Final = 20
"""Fresh ids for the cancels that one message can cause; the store wants 17."""

STREAM_HEADERS: Final = {
    "Content-Type": EVENT_STREAM,
    "Cache-Control": "no-cache, no-transform",
    "X-Accel-Buffering": "no",
}


@final
@attrs.define(eq=False)
class _Client:
    """Whether the other side of a connection is still there."""

    is_gone: bool = False

    async def watch(self, receive: Receive, scope: trio.CancelScope) -> None:
        """Wait until the connection ends, however long that takes, and cancel *scope* then."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.is_gone = True
        scope.cancel("the client went away")


@attrs.frozen(kw_only=True)
class _Ask:
    """A message that is good to be stored, if there is a VM for it."""

    session_id: str
    create: NewSession | None
    message: str = attrs.field(repr=False)
    on_busy: OnBusy
    on_disconnect: OnDisconnect
    budget_ms: int | None
    idempotency: tuple[str, str] | None


@final
class ChatRoutes:
    """Answers the routes that stream.

    Args:
        core: The parts of the host.
    """

    def __init__(self, core: HostCore) -> None:
        self._core = core

    @property
    def handlers(self) -> dict[str, StreamHandler]:
        """What answers each route, by its name."""
        return {
            "start_chat": self.start_chat,
            "continue_chat": self.continue_chat,
            "stream_session": self.stream_session,
        }

    # --- POST -------------------------------------------------------------------------

    async def start_chat(self, asked: Asked, receive: Receive, send: Send) -> None:
        """Begin a session with a message, and stream that run.

        Raises:
            Exception: What :func:`~semibot.host.answers.failure` has an answer for; nothing
                was stored then.
        """
        headers = asked.request.headers
        data = await read_body(headers, receive, self._core.deadlines)
        body = parse_body(headers, data, StartChat, may_lack=False)
        check_message(body.message)
        runtime_of(body.runtime_type, None)
        budget_ms = budget_of(headers)
        idempotency = idempotency_of(headers, asked.route.name, "", body)
        self._refuse_while_draining()
        agent_runtime = None
        if body.agentId is not None:
            agent = await self._core.store.get_agent(asked.who.org_id, body.agentId)
            if agent is None:
                raise HttpError(404, "AGENT_NOT_FOUND", "there is no such agent")
            agent_runtime = agent.runtime_type
        create = NewSession(
            agent_id=body.agentId,
            runtime_type=runtime_of(body.runtime_type, agent_runtime),
            openclaw_config=body.openclaw_config,
        )
        ask = _Ask(
            session_id=self._core.ports.ids.new_id(),
            create=create,
            message=body.message,
            on_busy=body.on_busy,
            on_disconnect=body.on_disconnect,
            budget_ms=budget_ms,
            idempotency=idempotency,
        )
        await self._converse(asked, ask, receive, send)

    async def continue_chat(self, asked: Asked, receive: Receive, send: Send) -> None:
        """Say something in a session, and stream that run only.

        Raises:
            Exception: What :func:`~semibot.host.answers.failure` has an answer for; nothing
                was stored then.
        """
        headers = asked.request.headers
        data = await read_body(headers, receive, self._core.deadlines)
        body = parse_body(headers, data, ContinueChat, may_lack=False)
        check_message(body.message)
        budget_ms = budget_of(headers)
        idempotency = idempotency_of(headers, asked.route.name, asked.session_id, body)
        self._refuse_while_draining()
        session = await self._core.store.get_session(asked.who.user_id, asked.session_id)
        if session is None:
            raise session_not_found()
        if session.agent_id is not None:
            agent = await self._core.store.get_agent(session.org_id, session.agent_id)
            if agent is None:
                raise HttpError(404, "AGENT_NOT_FOUND", "the session's agent is gone")
        ask = _Ask(
            session_id=session.id,
            create=None,
            message=body.message,
            on_busy=body.on_busy,
            on_disconnect=body.on_disconnect,
            budget_ms=budget_ms,
            idempotency=idempotency,
        )
        await self._converse(asked, ask, receive, send)

    def _refuse_while_draining(self) -> None:
        if self._core.status.is_draining:
            raise draining()

    async def _converse(self, asked: Asked, ask: _Ask, receive: Receive, send: Send) -> None:
        client = _Client()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.watch, receive, nursery.cancel_scope)
            try:
                began = await self._begin(asked, ask)
            except NotFound:
                await send_answer(send, failure(session_not_found()))
            except Exception as exc:  # noqa: BLE001 - answered here, so that no group comes out
                await send_answer(send, failure(exc))
            else:
                await self._stream_run(asked, ask, client, began, send)
            nursery.cancel_scope.cancel("answered")

    async def _begin(self, asked: Asked, ask: _Ask) -> tuple[MessageAccepted, Reader | None]:
        """Store the message, once there is a VM for it, and open the reader of its run."""
        core, who = self._core, asked.who
        budget = float("inf") if ask.budget_ms is None else ask.budget_ms / 1000
        expires_at = None
        if ask.budget_ms is not None:
            ends = core.ports.wall_clock.now() + timedelta(milliseconds=ask.budget_ms)
            expires_at = int(ends.timestamp() * 1000)
        new_id = core.ports.ids.new_id
        message = NewMessage(
            user_id=who.user_id,
            session_id=ask.session_id,
            create=ask.create,
            message=ask.message,
            message_id=new_id(),
            run_id=new_id(),
            command_id=new_id(),
            cancel_ids=tuple(new_id() for _ in range(CANCEL_IDS)),
            on_busy=ask.on_busy,
            expires_at=expires_at,
            idempotency=ask.idempotency,
        )
        accepted: MessageAccepted | None = None
        reader: Reader | None = None
        if ask.idempotency is not None:  # what was stored needs no VM to be attached to
            accepted = await core.store.find_accepted(message)
        if accepted is None:
            with deadline("X-Deadline-Ms", budget):
                if core.store.failure is not None:  # no VM is let in meanwhile, which tells nobody
                    await core.store.check()
                await core.store.ensure_user(who.user_id, who.org_id, vm_mode=None)
                await self._ensure_vm(who.user_id)
            self._refuse_while_draining()  # waiting for the VM may have taken a while
        # Shielded, because a client that goes away now has a run already, or has none: to
        # cancel it, or not to, we have to learn which.
        with grace("store.commit", core.deadlines.store_commit):
            if accepted is None:
                accepted = await core.store.accept_message(message)
            core.dispatcher.kick(accepted.session_id, who.user_id)
            try:
                reader = await core.relay.open_run_reader(
                    accepted.session_id, accepted.run_id, accepted.after_seq
                )
            except (StoreError, NotFound, DeadlineExceeded) as exc:
                # The message is stored, so this is no error of the request any more.
                log.warning("a run cannot be followed", run_id=accepted.run_id, error=str(exc))
        if accepted is None:  # pyright: ignore[reportUnnecessaryComparison] - the grace ran out
            raise StoreError("storing a message takes too long")
        return accepted, reader

    async def _ensure_vm(self, user_id: str) -> None:
        try:
            await self._core.scheduler.ensure_ready(user_id)
        except PlaneNotReady as exc:
            failure = self._core.store.failure
            if failure is None:
                raise
            raise StoreError(failure) from exc  # which is why no VM could be let in

    async def _stream_run(
        self,
        asked: Asked,
        ask: _Ask,
        client: _Client,
        began: tuple[MessageAccepted, Reader | None],
        send: Send,
    ) -> None:
        accepted, reader = began
        headers = {"X-Session-ID": accepted.session_id, "X-Run-ID": accepted.run_id}
        try:
            await self._stream(reader, send, headers)
        except CLIENT_GONE:
            client.is_gone = True
        finally:
            takes_run_along = client.is_gone and self._should_cancel(asked, ask, accepted, reader)
            if reader is not None:  # at once, so that another client of the run sees it is alone
                reader.close()
            if takes_run_along:
                await self._cancel(asked, accepted)

    def _should_cancel(
        self, asked: Asked, ask: _Ask, accepted: MessageAccepted, reader: Reader | None
    ) -> bool:
        """Whether a client that is gone takes its run along."""
        if ask.on_disconnect == "continue" or reader is None or reader.end_reason is not None:
            return False
        if self._core.status.is_draining or asked.request.stalled():
            return False
        return not self._core.relay.is_watched(accepted.session_id, accepted.run_id, besides=reader)

    async def _cancel(self, asked: Asked, accepted: MessageAccepted) -> None:
        with grace("store.commit", self._core.deadlines.store_commit):
            try:
                await self._core.dispatcher.cancel(
                    asked.who.user_id,
                    accepted.session_id,
                    accepted.run_id,
                    reason="client_disconnected",
                )
            except NotFound:
                return  # the session was deleted
            except (StoreError, DeadlineExceeded) as exc:
                log.warning(
                    "a run goes on without its client", run_id=accepted.run_id, error=str(exc)
                )

    # --- GET --------------------------------------------------------------------------

    async def stream_session(self, asked: Asked, receive: Receive, send: Send) -> None:
        """Follow a session's events, from an event id or from now.

        While the host drains, and while its store fails, the stream is closed at once, and
        not refused: a browser would never come back.

        Raises:
            HttpError: If there is no such session, or the id is none.
        """
        last_event_id = _cursor_of(asked)
        try:
            reader = await self._open_reader(asked, last_event_id)
        except (StoreError, DeadlineExceeded) as exc:
            log.warning("a stream cannot be opened", error=str(exc))
            reader = None
        if isinstance(reader, Answer):
            await send_answer(send, reader)
            return
        headers = {"X-Session-ID": asked.session_id}
        client = _Client()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.watch, receive, nursery.cancel_scope)
                await self._follow(reader, send, headers)
                nursery.cancel_scope.cancel("the stream has ended")
        finally:
            if reader is not None:
                reader.close()

    async def _follow(self, reader: Reader | None, send: Send, headers: dict[str, str]) -> None:
        try:
            await self._stream(reader, send, headers)
        except CLIENT_GONE:
            return

    async def _open_reader(
        self, asked: Asked, last_event_id: EventId | None
    ) -> Reader | Answer | None:
        core = self._core
        if core.status.is_draining:
            return None
        user_id, session_id = asked.who.user_id, asked.session_id
        if await core.store.get_session(user_id, session_id) is not None:
            try:
                return await core.relay.open_reader(session_id, last_event_id=last_event_id)
            except NotFound:
                pass  # deleted at this very moment
        if await core.store.was_deleted(user_id, session_id):
            return Answer(status=204)
        raise session_not_found()

    # --- both -------------------------------------------------------------------------

    async def _stream(self, reader: Reader | None, send: Send, headers: dict[str, str]) -> None:
        """Write what *reader* says until it ends; without one, only when to come back."""
        await send_head(send, 200, {**STREAM_HEADERS, **headers})
        if reader is None:
            again = retry_line(self._core.ports.random.randint(1000, 3000))
            await send_body(send, again, is_last=True)
            return
        while (chunk := await reader.next_chunk()) is not None:
            await send_body(send, chunk)
        await send_body(send, b"", is_last=True)


def _cursor_of(asked: Asked) -> EventId | None:
    text = asked.request.headers.get("last-event-id") or asked.query.get("last_event_id")
    if text is None:
        return None
    try:
        return EventId.parse(text)
    except RemoteProtocolError:
        message = "an event id is <term>-<seq>, as the stream said it"
        raise HttpError(400, "BAD_EVENT_ID", message) from None
