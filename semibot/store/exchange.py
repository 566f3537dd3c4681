"""What goes into a host's store and comes out of it, beside its rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import attrs

from semibot.wire.codec import JsonObject

from .rows import (
    AgentRow,
    CommandRow,
    MessageRow,
    RunRow,
    SessionRow,
    StoredEvent,
    VmRow,
)

OnBusy: TypeAlias = Literal["interrupt", "enqueue", "reject"]
"""What a new message does to runs that have not ended (protocol section 6)."""


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
