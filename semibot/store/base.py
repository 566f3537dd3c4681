"""What a host remembers, as one protocol that any database can implement.

Every method is one transaction. What it returns is committed; if it raises, nothing of it
is. Numbers are assigned, and the owner and the epoch checked, inside the transaction.
``semibot.testing.store_conformance`` is the suite that an implementation has to pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeAlias

import attrs

from semibot.wire.codec import JsonObject, JsonValue
from semibot.wire.frames import HeldSession
from semibot.wire.receipts import Outcome

VmMode: TypeAlias = Literal["local", "docker", "firecracker", "external"]
"""Who starts a VM; ``external``: its user."""

VmStatus: TypeAlias = Literal[
    "starting", "provisioning", "ready", "disconnected", "failed", "terminated"
]
"""Where a VM is; ``failed`` and ``terminated`` rows are history."""

OnBusy: TypeAlias = Literal["interrupt", "enqueue", "reject"]
"""What a new message does to runs that have not ended (protocol section 6)."""


# --- rows -----------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class UserRow:
    """A user."""

    id: str
    org_id: str
    vm_mode: VmMode
    """The user's own, else the organization's."""


@attrs.frozen(kw_only=True)
class AgentRow:
    """An agent that sessions may be made with."""

    id: str
    org_id: str
    name: str
    agent_config: JsonObject
    runtime_type: str
    openclaw_config: JsonObject | None


@attrs.frozen(kw_only=True)
class VmRow:
    """One life of an execution plane. Times are milliseconds since 1970."""

    id: str
    user_id: str
    org_id: str
    mode: VmMode
    status: VmStatus
    attempts: int
    """Bootstrap attempts since it was last ready."""
    attempt: int
    """Number of the newest bootstrap attempt; 0 if there never was one."""
    boot_hash: str | None
    """Of the process whose link was accepted last; None for a level 1 VM."""
    epoch: int
    level: int
    last_bootstrap_at: int | None
    last_heartbeat_at: int | None
    disconnected_at: int | None
    last_error: str | None


@attrs.frozen(kw_only=True)
class SessionRow:
    """A conversation."""

    id: str
    user_id: str
    org_id: str
    agent_id: str | None
    title: str
    runtime_type: str
    openclaw_config: JsonObject | None
    term: int
    holder_vm: str | None
    holder_boot: str | None
    """Hash of the holder's boot id; ``level1`` for a level 1 VM."""
    last_seq: int
    """Committed maximum."""
    created_at: int
    updated_at: int


@attrs.frozen(kw_only=True)
class MessageRow:
    """One message of a conversation."""

    id: str
    run_id: str
    role: Literal["user", "assistant"]
    content: str
    metadata: JsonObject
    """``outcome`` and the like for the assistant's."""
    created_at: int


@attrs.frozen(kw_only=True)
class StoredEvent:
    """A committed event."""

    term: int
    seq: int
    run_id: str
    type: str
    data: str = attrs.field(repr=False)
    """JSON text, as the session said it."""


@attrs.frozen(kw_only=True)
class RunRow:
    """One execution of one message."""

    id: str
    session_id: str
    message_id: str
    is_written: bool
    """Whether its message may have reached a VM."""
    wants_cancel: bool
    first_seq: int | None
    last_seq: int | None
    outcome: Outcome | None
    receipt: JsonObject | None
    expires_at: int | None


@attrs.frozen(kw_only=True)
class CommandRow:
    """Something that a VM is to do, in its place in the session's order."""

    id: str
    session_id: str
    kind: Literal["user_message", "cancel", "stop_session", "config_update"]
    run_id: str | None
    payload: JsonObject
    """``user_message``: ``message``, ``message_id``; ``cancel``, ``stop_session``: ``reason``;
    ``config_update``: the patch."""
    boot_hash: str | None
    """Process that it was written to, or None."""


# --- links ----------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class LinkClaim:
    """What a VM says when it dials, after its JWT was verified."""

    user_id: str
    boot_hash: str | None
    """SHA-256 of ``boot_id`` in hex; None for level 1."""
    dial: int
    level: int
    ticket_hash: str | None
    """SHA-256 of the ticket in hex, if there was one."""


@attrs.frozen(kw_only=True)
class SessionLoss:
    """A session that lost its holder, and what was said in its name."""

    session_id: str
    user_id: str
    term: int
    """The new term."""
    base_seq: int
    """Committed maximum before that; what readers saw beyond it is gone."""
    events: tuple[StoredEvent, ...]
    """What was inserted in the new term: the ends of interrupted runs."""
    ended_runs: tuple[str, ...]
    """The runs that ended by it."""


@attrs.frozen(kw_only=True)
class LinkAccepted:
    """The link is the VM's one live link; the row is ``ready``."""

    vm: VmRow
    losses: tuple[SessionLoss, ...]
    """Sessions of another process that this one replaces."""
    is_same_process: bool
    """Whether the process had a link before."""


@attrs.frozen(kw_only=True)
class LinkRefused:
    """The link may not be. ``code`` is the close code (protocol section 2)."""

    code: Literal[4001, 4003, 4004, 4009]
    reason: str
    """For the close frame: ``other_instance`` with 4009 if it is final, else a word."""
    detail: str
    """For the log only."""


@attrs.frozen(kw_only=True)
class LinkRef:
    """Which link writes; transactions of an older one are refused."""

    vm_id: str
    user_id: str
    epoch: int
    boot_hash: str | None


# --- what comes in from a link --------------------------------------------------------


@attrs.frozen(kw_only=True)
class EventsIn:
    """Events of one session, in order, with the numbers they are to have."""

    session_id: str
    term: int
    events: tuple[StoredEvent, ...]


@attrs.frozen(kw_only=True)
class CommandsDone:
    """Commands that took effect."""

    command_ids: tuple[str, ...]


@attrs.frozen(kw_only=True)
class CancelAnswered:
    """The receipt of a cancel or of a stop."""

    session_id: str
    command_id: str
    run_id: str | None
    receipt: JsonObject


@attrs.frozen(kw_only=True)
class ReportIn:
    """A fire-and-forget report; its effect is in protocol section 4."""

    id: str | None
    """None from a level 1 VM: not checked for repeats."""
    session_id: str
    method: str
    params: JsonObject


IntakeOp: TypeAlias = EventsIn | CommandsDone | CancelAnswered | ReportIn
"""One thing that a link brings, to be committed in order with its neighbours."""


@attrs.frozen(kw_only=True)
class IntakeResult:
    """What became of the operations of one commit."""

    committed: Mapping[str, int]
    """By session the committed maximum, for every session that had events."""
    refused: Mapping[str, str]
    """Sessions of which nothing was taken: ``gone``, ``fenced`` or ``conflict``."""
    done_ids: tuple[str, ...]
    """Reports and commands that are committed, repeats and drops included: acknowledge them."""
    dropped: tuple[tuple[str, str], ...]
    """Reports that were refused for what they are: (id or method, why); acknowledged as well."""
    ended_runs: tuple[tuple[str, str], ...]
    """(session, run) of every terminal event."""


# --- messages and commands ------------------------------------------------------------


@attrs.frozen(kw_only=True)
class NewSession:
    """What a session that does not exist yet is made with."""

    agent_id: str | None
    runtime_type: str
    openclaw_config: JsonObject | None


@attrs.frozen(kw_only=True)
class NewMessage:
    """A user's message, with the identifiers that the host made for it."""

    user_id: str
    session_id: str
    create: NewSession | None
    """Not None: the session is made in the same transaction."""
    message: str
    message_id: str
    run_id: str
    command_id: str
    cancel_ids: tuple[str, ...]
    """Fresh ids for the cancels that ``interrupt`` stores; at least 17."""
    on_busy: OnBusy
    expires_at: int | None
    idempotency: tuple[str, str] | None
    """(key, hash of the body)."""


@attrs.frozen(kw_only=True)
class MessageAccepted:
    """The message is stored."""

    session_id: str
    run_id: str
    message_id: str
    after_seq: int
    """Committed maximum when it was stored; the run's events come later than that."""
    is_repeat: bool
    """Whether the idempotency key was known: the run is the earlier one, and nothing new
    was stored; ``after_seq`` is then the one before its ``run_started`` if that exists."""


@attrs.frozen(kw_only=True)
class CancelAsked:
    """What became of a request to cancel."""

    state: Literal["idle", "ended", "not_started", "pending"]
    run_id: str | None
    receipt: JsonObject | None
    """``ended``: the receipt, or ``{run_id, outcome, already:true}``; ``idle``, ``not_started``:
    the answer. None while ``pending``: the answer is the ``receipt`` of the run, later."""
    command_id: str | None
    """``pending``: the command; of an earlier cancel of the run, if there was one."""


@attrs.frozen(kw_only=True)
class SessionWork:
    """What a session still has to have done, and what for."""

    session: SessionRow
    commands: tuple[CommandRow, ...]
    """Not done yet, in order."""
    open_runs: tuple[RunRow, ...]
    """Without a terminal event, in order."""


@attrs.frozen(kw_only=True)
class SessionHeld:
    """A session that a VM process is now the holder of."""

    session: SessionRow
    agent: AgentRow | None
    next_seq: int
    snapshot: JsonObject | None
    """``covers_seq, checkpoint, short_term_memory, conversation_state?, file_manifest?``."""


# --- reading --------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class MessagesPage:
    """Messages, oldest first, and where a reader goes on from."""

    messages: tuple[MessageRow, ...]
    next_cursor: str | None
    last_event_id: str
    """``<term>-<seq>``: with a run open, the event before its ``run_started``."""


@attrs.frozen(kw_only=True)
class SessionsPage:
    """Sessions, newest first."""

    sessions: tuple[SessionRow, ...]
    next_cursor: str | None


@attrs.frozen(kw_only=True)
class ResyncView:
    """Everything a reader needs to begin anew, from one read transaction (section 7)."""

    term: int
    last_seq: int
    messages: tuple[MessageRow, ...]
    run: JsonObject | None
    """``{run_id, message_id, text, open_calls[]}`` of the open run that has begun."""
    truncated: bool


@attrs.frozen(kw_only=True)
class Page:
    """Rows of a report, newest first, as JSON data."""

    rows: tuple[JsonObject, ...]
    next_cursor: str | None


@attrs.frozen(kw_only=True)
class MemoryHit:
    """A memory that was found."""

    content: str
    score: float
    """Higher is better; above 0."""
    metadata: JsonObject


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
        """Count a bootstrap attempt, clear the last error, and store its one ticket."""
        ...

    async def set_vm_status(
        self, vm_id: str, status: VmStatus, *, last_error: str | None = None
    ) -> VmRow | None:
        """Move an active row; None if it is history already. Use :meth:`lose_vm` for the end."""
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
