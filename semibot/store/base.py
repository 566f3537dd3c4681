"""What a host remembers, as one protocol that any database can implement.

Every method is one transaction. What it returns is committed; if it raises, nothing of it
is. Numbers are assigned, and the owner and the epoch checked, inside the transaction.
``semibot.testing.store_conformance`` is the suite that an implementation has to pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from semibot.wire.codec import JsonObject, JsonValue
from semibot.wire.frames import HeldSession

from .exchange import CancelAnswered as CancelAnswered
from .exchange import CancelAsked as CancelAsked
from .exchange import CommandsDone as CommandsDone
from .exchange import EventsIn as EventsIn
from .exchange import IntakeOp as IntakeOp
from .exchange import IntakeResult as IntakeResult
from .exchange import LinkAccepted as LinkAccepted
from .exchange import LinkClaim as LinkClaim
from .exchange import LinkRef as LinkRef
from .exchange import LinkRefused as LinkRefused
from .exchange import MemoryHit as MemoryHit
from .exchange import MessageAccepted as MessageAccepted
from .exchange import MessagesPage as MessagesPage
from .exchange import NewMessage as NewMessage
from .exchange import NewSession as NewSession
from .exchange import OnBusy as OnBusy
from .exchange import Page as Page
from .exchange import ReportIn as ReportIn
from .exchange import ResyncView as ResyncView
from .exchange import SessionHeld as SessionHeld
from .exchange import SessionLoss as SessionLoss
from .exchange import SessionsPage as SessionsPage
from .exchange import SessionWork as SessionWork
from .rows import AgentRow as AgentRow
from .rows import CommandRow as CommandRow
from .rows import MessageRow as MessageRow
from .rows import RunRow as RunRow
from .rows import SessionRow as SessionRow
from .rows import StoredEvent as StoredEvent
from .rows import UserRow as UserRow
from .rows import VmMode as VmMode
from .rows import VmRow as VmRow
from .rows import VmStatus as VmStatus


class Store(Protocol):
    """The host's memory. All methods raise ``StoreError`` when the database fails."""

    # --- health -----------------------------------------------------------------------

    @property
    def failure(self) -> str | None:
        """Why writing does not work at the moment, or None. A success clears it."""
        ...

    async def check(self) -> None:
        """Write and commit something, to learn whether that works."""
        ...

    async def late_commits(self, known: int) -> int:
        """Wait, for as long as it takes, until there are more than *known* late commits.

        A commit is late if a caller was told that it takes too long, and it was stored after
        all. Nobody has been told what it changed: compare what is in memory with the store.

        Returns:
            How many there were since the store was opened.
        """
        ...

    # --- users, agents ----------------------------------------------------------------

    async def ensure_user(self, user_id: str, org_id: str, *, vm_mode: VmMode | None) -> UserRow:
        """Return a user, made if need be.

        *vm_mode* is for an organization that is made; None leaves the schema's default.
        """
        ...

    async def get_user(self, user_id: str) -> UserRow | None:
        """Return a user."""
        ...

    async def put_agent(self, agent: AgentRow) -> None:
        """Make or replace an agent."""
        ...

    async def get_agent(self, org_id: str, agent_id: str) -> AgentRow | None:
        """Return an agent of the organization."""
        ...

    # --- VMs --------------------------------------------------------------------------

    async def newest_vm(self, user_id: str) -> VmRow | None:
        """Return the user's active VM row, else the newest one that is history."""
        ...

    async def active_vms(self) -> tuple[VmRow, ...]:
        """Return every active row."""
        ...

    async def ensure_vm(self, user_id: str, vm_id: str, mode: VmMode) -> VmRow:
        """Return the user's active row, made as ``starting`` with *vm_id* if there is none.

        ``mode="external"`` also turns an active row of another mode ``external``.
        """
        ...

    async def begin_attempt(self, vm_id: str, ticket_hash: str, expires_at: int) -> VmRow:
        """Move the row to ``starting``, count the attempt, and store its one ticket.

        The last error is cleared.
        """
        ...

    async def set_vm_status(
        self, vm_id: str, status: VmStatus, *, last_error: str | None = None
    ) -> VmRow | None:
        """Move an active row; None if it is history already. Use :meth:`lose_vm` for the end.

        A row that is ``ready`` does not become ``provisioning``: None, and nothing changes.
        """
        ...

    async def accept_link(self, claim: LinkClaim) -> LinkAccepted | LinkRefused:
        """Decide about a link: ticket, supersession, epoch + 1, ``ready`` (section 2)."""
        ...

    async def touch_vm(self, link: LinkRef) -> bool:
        """Note a heartbeat; False if the link is no longer the VM's."""
        ...

    async def link_closed(self, link: LinkRef) -> bool:
        """Move the row to ``disconnected``, if the link is still the VM's."""
        ...

    async def lose_vm(
        self, vm_id: str, *, status: VmStatus, last_error: str | None, code: str, message: str
    ) -> tuple[SessionLoss, ...]:
        """The VM is lost: epoch + 1, and for every session it held what section 4 says.

        Args:
            vm_id: The row.
            status: What the row becomes.
            last_error: Kept in the row, if not None.
            code: Of the ``execution_error`` events.
            message: Their text.
        """
        ...

    async def lose_session(self, session_id: str, *, code: str, message: str) -> SessionLoss | None:
        """One session is lost alone: term + 1, holder none, its written runs interrupted."""
        ...

    async def held_sessions(self, link: LinkRef) -> Mapping[str, SessionRow]:
        """Return the sessions that the link's process holds."""
        ...

    async def look_up_sessions(
        self, link: LinkRef, named: Mapping[str, HeldSession]
    ) -> Mapping[str, SessionRow | Literal["gone", "foreign"]]:
        """Return what the host knows of sessions that a VM names (``resume``)."""
        ...

    async def commit_intake(self, link: LinkRef, ops: Sequence[IntakeOp]) -> IntakeResult:
        """Commit what a link brought, in order, all or nothing but for refused sessions.

        A terminal event ends its run: the outcome, and the assistant's message from the
        run's text chunks (else the final response), are stored with it. An event whose
        number is committed already is skipped if its bytes are the same, else the
        session is refused as ``conflict``.

        Raises:
            LinkFenced: If the link is no longer the VM's.
            StoreError: If it could not be committed; nothing was.
        """
        ...

    # --- messages, commands -----------------------------------------------------------

    async def accept_message(self, message: NewMessage) -> MessageAccepted:
        """Store a message with its run and command; and the cancels, for ``interrupt``.

        Raises:
            NotFound: If the session is not the user's.
            SessionBusy: If *on_busy* says so, or 16 runs wait.
            IdempotencyConflict: If the key came with another body before.
        """
        ...

    async def find_accepted(self, message: NewMessage) -> MessageAccepted | None:
        """Return what an earlier message of the same idempotency key led to; stores nothing.

        Raises:
            NotFound: If its session is gone.
            IdempotencyConflict: If the key came with another body before.
        """
        ...

    async def ask_cancel(
        self, user_id: str, session_id: str, run_id: str | None, command_id: str, reason: str
    ) -> CancelAsked:
        """Store a cancel, or find that none is needed (protocol section 6).

        Raises:
            NotFound: If the session is not the user's, or *run_id* not the session's.
        """
        ...

    async def get_run(self, run_id: str) -> RunRow | None:
        """Return a run."""
        ...

    async def sessions_with_work(self, user_id: str) -> tuple[str, ...]:
        """Return the user's sessions that have commands not done."""
        ...

    async def session_work(self, session_id: str) -> SessionWork | None:
        """Return what a session still has to have done; None if it does not exist."""
        ...

    async def hold_session(self, session_id: str, link: LinkRef) -> SessionHeld:
        """Make the link's process the holder, before ``start_session`` is written to it.

        If another process held it, the session is to be lost first.

        Raises:
            LinkFenced: If the link is no longer the VM's.
        """
        ...

    async def mark_written(self, command_id: str, link: LinkRef) -> None:
        """Note that a command goes to the link's process, before its first byte does.

        Raises:
            LinkFenced: If the link is no longer the VM's.
        """
        ...

    async def finish_commands(self, command_ids: Sequence[str]) -> None:
        """Note that commands need nothing more; for level 1, which acknowledges nothing."""
        ...

    async def end_unwritten_runs(
        self, session_id: str, *, outcome: Literal["cancelled", "interrupted"]
    ) -> SessionLoss | None:
        """End the session's first open runs that no VM ever got and that want a cancel.

        The host makes both events of each; only without a holder, or towards level 1.
        ``term`` of the result is unchanged.
        """
        ...

    async def read_history(
        self, session_id: str, run_id: str, max_bytes: int
    ) -> tuple[JsonObject, ...]:
        """Return the newest ``{role, content}`` that fit, ending with the message of *run_id*."""
        ...

    # --- sessions ---------------------------------------------------------------------

    async def get_session(self, user_id: str, session_id: str) -> SessionRow | None:
        """Return a session of the user."""
        ...

    async def was_deleted(self, user_id: str, session_id: str) -> bool:
        """Return whether a session of the user was deleted in the last 30 days."""
        ...

    async def list_sessions(self, user_id: str, cursor: str | None, limit: int) -> SessionsPage:
        """Return the user's sessions, newest first.

        Raises:
            BadCursor: If *cursor* is none of ours.
        """
        ...

    async def list_messages(
        self, user_id: str, session_id: str, cursor: str | None, limit: int
    ) -> MessagesPage:
        """Return the newest *limit* messages (before *cursor*), oldest first.

        Raises:
            NotFound: If the session is not the user's.
            BadCursor: If *cursor* is none of ours.
        """
        ...

    async def delete_session(
        self, user_id: str, session_id: str, command_id: str
    ) -> tuple[SessionRow, str | None] | None:
        """Delete a session; None if it is not the user's.

        If a VM holds it, a ``stop_session`` command of id *command_id* is stored (its row
        outlives the session) and returned. A tombstone stays for 30 days.
        """
        ...

    # --- events -----------------------------------------------------------------------

    async def tail_start(self, session_id: str) -> tuple[int, int] | None:
        """Return (term, committed maximum), or None without such a session."""
        ...

    async def read_events(
        self, session_id: str, after_seq: int, max_bytes: int
    ) -> tuple[StoredEvent, ...]:
        """Return committed events after *after_seq*, as many as fit in *max_bytes*.

        At least one, if there is one.
        """
        ...

    async def term_end(self, session_id: str, term: int) -> int:
        """Return the last committed number of a term; 0 if it has none."""
        ...

    async def resync_view(self, session_id: str, max_bytes: int) -> ResyncView | None:
        """Return the state of a session, newest messages first to be kept."""
        ...

    # --- requests and reports ---------------------------------------------------------

    async def search_memories(self, user_id: str, query: str, top_k: int) -> tuple[MemoryHit, ...]:
        """Return the user's memories that match, best first (BM25)."""
        ...

    async def list_audit(self, user_id: str, cursor: str | None, limit: int) -> Page:
        """Return what the user's VMs put into the audit log."""
        ...

    async def list_usage(self, user_id: str, cursor: str | None, limit: int) -> Page:
        """Return the user's usage reports; daily totals are in :meth:`daily_usage`."""
        ...

    async def daily_usage(self, user_id: str, days: int) -> tuple[JsonObject, ...]:
        """Return the user's totals of the newest *days*, by day and model."""
        ...

    async def remember_answer(
        self, user_id: str, key: str, body_hash: str, answer: JsonValue
    ) -> JsonValue:
        """Keep the answer to a POST under its key for 24 h, or return the earlier one.

        Raises:
            IdempotencyConflict: If the key came with another body before.
        """
        ...

    async def prune(self) -> None:
        """Forget what has expired: tombstones, idempotency keys, tickets, old snapshots."""
        ...
