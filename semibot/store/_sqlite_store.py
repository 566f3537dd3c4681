"""The methods of a store, each one a function of the SQL modules run in a transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, final

import semibot.store._commands as commands
import semibot.store._intake as intake
import semibot.store._losses as losses
import semibot.store._reading as reading
import semibot.store._reports as reports
import semibot.store._sessions as sessions
import semibot.store._upkeep as upkeep
import semibot.store._vms as vms
from semibot.store._readers import Readers
from semibot.store._writer import GroupWriter
from semibot.store.base import (
    AgentRow,
    CancelAsked,
    IntakeOp,
    IntakeResult,
    LinkAccepted,
    LinkClaim,
    LinkRef,
    LinkRefused,
    MemoryHit,
    MessageAccepted,
    MessagesPage,
    NewMessage,
    Page,
    ResyncView,
    RunRow,
    SessionHeld,
    SessionLoss,
    SessionRow,
    SessionsPage,
    SessionWork,
    Store,
    StoredEvent,
    UserRow,
    VmMode,
    VmRow,
    VmStatus,
)
from semibot.wire.codec import JsonObject, JsonValue
from semibot.wire.frames import HeldSession


@final
class SqliteStore:
    """A :class:`~semibot.store.base.Store` in a database file.

    Made by :func:`~semibot.store.sqlite.open_sqlite_store`. Methods that write are grouped into
    commits: once a method's group has begun, a cancellation waits for its end, for at most
    ``store.commit``, and what was asked for may then be stored. Methods that read stop at once.
    After the block that opened the store, every method raises ``trio.ClosedResourceError``.
    """

    def __init__(self, writer: GroupWriter, readers: Readers) -> None:
        self._writer = writer
        self._readers = readers

    # --- health -----------------------------------------------------------------------

    @property
    def failure(self) -> str | None:
        """Why writing does not work at the moment, or None."""
        return self._writer.failure

    async def check(self) -> None:
        """See :meth:`~semibot.store.base.Store.check`."""
        await self._writer.write(upkeep.check)

    async def late_commits(self, known: int) -> int:
        """See :meth:`~semibot.store.base.Store.late_commits`."""
        return await self._writer.late_commits(known)

    # --- users, agents ------------------------------------------------------------------

    async def ensure_user(self, user_id: str, org_id: str, *, vm_mode: VmMode | None) -> UserRow:
        """See :meth:`~semibot.store.base.Store.ensure_user`."""
        return await self._writer.write(
            lambda db: vms.ensure_user(db, user_id, org_id, vm_mode=vm_mode)
        )

    async def get_user(self, user_id: str) -> UserRow | None:
        """See :meth:`~semibot.store.base.Store.get_user`."""
        return await self._readers.read(vms.get_user, user_id)

    async def put_agent(self, agent: AgentRow) -> None:
        """See :meth:`~semibot.store.base.Store.put_agent`."""
        await self._writer.write(vms.put_agent, agent)

    async def get_agent(self, org_id: str, agent_id: str) -> AgentRow | None:
        """See :meth:`~semibot.store.base.Store.get_agent`."""
        return await self._readers.read(vms.get_agent, org_id, agent_id)

    # --- VMs ----------------------------------------------------------------------------

    async def newest_vm(self, user_id: str) -> VmRow | None:
        """See :meth:`~semibot.store.base.Store.newest_vm`."""
        return await self._readers.read(vms.newest_vm, user_id)

    async def active_vms(self) -> tuple[VmRow, ...]:
        """See :meth:`~semibot.store.base.Store.active_vms`."""
        return await self._readers.read(vms.active_vms)

    async def ensure_vm(self, user_id: str, vm_id: str, mode: VmMode) -> VmRow:
        """See :meth:`~semibot.store.base.Store.ensure_vm`."""
        return await self._writer.write(vms.ensure_vm, user_id, vm_id, mode)

    async def begin_attempt(self, vm_id: str, ticket_hash: str, expires_at: int) -> VmRow:
        """See :meth:`~semibot.store.base.Store.begin_attempt`."""
        return await self._writer.write(vms.begin_attempt, vm_id, ticket_hash, expires_at)

    async def set_vm_status(
        self, vm_id: str, status: VmStatus, *, last_error: str | None = None
    ) -> VmRow | None:
        """See :meth:`~semibot.store.base.Store.set_vm_status`."""
        return await self._writer.write(
            lambda db: vms.set_vm_status(db, vm_id, status, last_error=last_error)
        )

    async def accept_link(self, claim: LinkClaim) -> LinkAccepted | LinkRefused:
        """See :meth:`~semibot.store.base.Store.accept_link`."""
        return await self._writer.write(vms.accept_link, claim)

    async def touch_vm(self, link: LinkRef) -> bool:
        """See :meth:`~semibot.store.base.Store.touch_vm`."""
        return await self._writer.write(vms.touch_vm, link)

    async def link_closed(self, link: LinkRef) -> bool:
        """See :meth:`~semibot.store.base.Store.link_closed`."""
        return await self._writer.write(vms.link_closed, link)

    async def lose_vm(
        self, vm_id: str, *, status: VmStatus, last_error: str | None, code: str, message: str
    ) -> tuple[SessionLoss, ...]:
        """See :meth:`~semibot.store.base.Store.lose_vm`."""
        return await self._writer.write(
            lambda db: losses.lose_vm(
                db, vm_id, status=status, last_error=last_error, code=code, message=message
            )
        )

    async def lose_session(self, session_id: str, *, code: str, message: str) -> SessionLoss | None:
        """See :meth:`~semibot.store.base.Store.lose_session`."""
        return await self._writer.write(
            lambda db: losses.lose_session(db, session_id, code=code, message=message)
        )

    async def held_sessions(self, link: LinkRef) -> Mapping[str, SessionRow]:
        """See :meth:`~semibot.store.base.Store.held_sessions`."""
        return await self._readers.read(vms.held_sessions, link)

    async def look_up_sessions(
        self, link: LinkRef, named: Mapping[str, HeldSession]
    ) -> Mapping[str, SessionRow | Literal["gone", "foreign"]]:
        """See :meth:`~semibot.store.base.Store.look_up_sessions`."""
        return await self._readers.read(vms.look_up_sessions, link, named)

    async def commit_intake(self, link: LinkRef, ops: Sequence[IntakeOp]) -> IntakeResult:
        """See :meth:`~semibot.store.base.Store.commit_intake`."""
        return await self._writer.write(intake.commit_intake, link, ops)

    # --- messages, commands -------------------------------------------------------------

    async def accept_message(self, message: NewMessage) -> MessageAccepted:
        """See :meth:`~semibot.store.base.Store.accept_message`."""
        return await self._writer.write(sessions.accept_message, message)

    async def find_accepted(self, message: NewMessage) -> MessageAccepted | None:
        """See :meth:`~semibot.store.base.Store.find_accepted`."""
        return await self._readers.read(sessions.find_accepted, message)

    async def ask_cancel(
        self, user_id: str, session_id: str, run_id: str | None, command_id: str, reason: str
    ) -> CancelAsked:
        """See :meth:`~semibot.store.base.Store.ask_cancel`."""
        return await self._writer.write(
            sessions.ask_cancel, user_id, session_id, run_id, command_id, reason
        )

    async def get_run(self, run_id: str) -> RunRow | None:
        """See :meth:`~semibot.store.base.Store.get_run`."""
        return await self._readers.read(commands.get_run, run_id)

    async def sessions_with_work(self, user_id: str) -> tuple[str, ...]:
        """See :meth:`~semibot.store.base.Store.sessions_with_work`."""
        return await self._readers.read(commands.sessions_with_work, user_id)

    async def session_work(self, session_id: str) -> SessionWork | None:
        """See :meth:`~semibot.store.base.Store.session_work`."""
        return await self._readers.read(commands.session_work, session_id)

    async def hold_session(self, session_id: str, link: LinkRef) -> SessionHeld:
        """See :meth:`~semibot.store.base.Store.hold_session`."""
        return await self._writer.write(commands.hold_session, session_id, link)

    async def mark_written(self, command_id: str, link: LinkRef) -> None:
        """See :meth:`~semibot.store.base.Store.mark_written`."""
        await self._writer.write(commands.mark_written, command_id, link)

    async def finish_commands(self, command_ids: Sequence[str]) -> None:
        """See :meth:`~semibot.store.base.Store.finish_commands`."""
        await self._writer.write(commands.finish_commands, command_ids)

    async def end_unwritten_runs(
        self, session_id: str, *, outcome: Literal["cancelled", "interrupted"]
    ) -> SessionLoss | None:
        """See :meth:`~semibot.store.base.Store.end_unwritten_runs`."""
        return await self._writer.write(
            lambda db: losses.end_unwritten_runs(db, session_id, outcome=outcome)
        )

    async def read_history(
        self, session_id: str, run_id: str, max_bytes: int
    ) -> tuple[JsonObject, ...]:
        """See :meth:`~semibot.store.base.Store.read_history`."""
        return await self._readers.read(reading.read_history, session_id, run_id, max_bytes)

    # --- sessions -----------------------------------------------------------------------

    async def get_session(self, user_id: str, session_id: str) -> SessionRow | None:
        """See :meth:`~semibot.store.base.Store.get_session`."""
        return await self._readers.read(sessions.get_session, user_id, session_id)

    async def list_sessions(self, user_id: str, cursor: str | None, limit: int) -> SessionsPage:
        """See :meth:`~semibot.store.base.Store.list_sessions`."""
        return await self._readers.read(reading.list_sessions, user_id, cursor, limit)

    async def list_messages(
        self, user_id: str, session_id: str, cursor: str | None, limit: int
    ) -> MessagesPage:
        """See :meth:`~semibot.store.base.Store.list_messages`."""
        return await self._readers.read(reading.list_messages, user_id, session_id, cursor, limit)

    async def was_deleted(self, user_id: str, session_id: str) -> bool:
        """See :meth:`~semibot.store.base.Store.was_deleted`."""
        return await self._readers.read(sessions.was_deleted, user_id, session_id)

    async def delete_session(
        self, user_id: str, session_id: str, command_id: str
    ) -> tuple[SessionRow, str | None] | None:
        """See :meth:`~semibot.store.base.Store.delete_session`."""
        return await self._writer.write(sessions.delete_session, user_id, session_id, command_id)

    # --- events -------------------------------------------------------------------------

    async def tail_start(self, session_id: str) -> tuple[int, int] | None:
        """See :meth:`~semibot.store.base.Store.tail_start`."""
        return await self._readers.read(reading.tail_start, session_id)

    async def read_events(
        self, session_id: str, after_seq: int, max_bytes: int
    ) -> tuple[StoredEvent, ...]:
        """See :meth:`~semibot.store.base.Store.read_events`."""
        return await self._readers.read(reading.read_events, session_id, after_seq, max_bytes)

    async def term_end(self, session_id: str, term: int) -> int:
        """See :meth:`~semibot.store.base.Store.term_end`."""
        return await self._readers.read(reading.term_end, session_id, term)

    async def resync_view(self, session_id: str, max_bytes: int) -> ResyncView | None:
        """See :meth:`~semibot.store.base.Store.resync_view`."""
        return await self._readers.read(reading.resync_view, session_id, max_bytes)

    # --- requests and reports -----------------------------------------------------------

    async def search_memories(self, user_id: str, query: str, top_k: int) -> tuple[MemoryHit, ...]:
        """See :meth:`~semibot.store.base.Store.search_memories`."""
        return await self._readers.read(reports.search_memories, user_id, query, top_k)

    async def list_audit(self, user_id: str, cursor: str | None, limit: int) -> Page:
        """See :meth:`~semibot.store.base.Store.list_audit`."""
        return await self._readers.read(reports.list_audit, user_id, cursor, limit)

    async def list_usage(self, user_id: str, cursor: str | None, limit: int) -> Page:
        """See :meth:`~semibot.store.base.Store.list_usage`."""
        return await self._readers.read(reports.list_usage, user_id, cursor, limit)

    async def daily_usage(self, user_id: str, days: int) -> tuple[JsonObject, ...]:
        """See :meth:`~semibot.store.base.Store.daily_usage`."""
        return await self._readers.read(reports.daily_usage, user_id, days)

    async def remember_answer(
        self, user_id: str, key: str, body_hash: str, answer: JsonValue
    ) -> JsonValue:
        """See :meth:`~semibot.store.base.Store.remember_answer`."""
        return await self._writer.write(upkeep.remember_answer, user_id, key, body_hash, answer)

    async def prune(self) -> None:
        """See :meth:`~semibot.store.base.Store.prune`."""
        await self._writer.write(upkeep.prune)


if TYPE_CHECKING:
    _checked: type[Store] = SqliteStore  # a method that differs from the protocol's is found here
