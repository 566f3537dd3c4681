"""What a VM says to its host (protocol section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeAlias

import attrs
from attrs.validators import max_len, optional

from semibot.wire.codec import JsonObject

from .both_ways import ErrorFrame, ProtocolRange
from .limits import (
    COUNT,
    MAX_ID_LENGTH,
    MAX_NAMED,
    MAX_SEQ,
    MAX_STACK,
    MAX_TERM,
    NUMBER,
    TERM,
    check_id,
)


@attrs.frozen(kw_only=True)
class Auth:
    """The first frame: who the VM is."""

    type: ClassVar[str] = "auth"
    token: str = attrs.field(repr=False)
    """The VM token, a JWT."""
    protocol: ProtocolRange | None = None
    """Levels the VM speaks; None is level 1."""
    boot_id: str | None = attrs.field(default=None, validator=optional(check_id), repr=False)
    """Which process this is; a secret."""
    dial: int | None = attrs.field(default=None, validator=optional(COUNT))
    """Which connection attempt of the process."""
    features: tuple[str, ...] = ()
    """What the VM can do beyond its level."""


@attrs.frozen(kw_only=True)
class BlockReport:
    """The worst block of the VM's loop since the last heartbeat."""

    seconds: float
    """How long the loop stood still."""
    where: str
    """The function that held it up."""
    stack: tuple[str, ...] = attrs.field(default=(), validator=max_len(MAX_STACK))
    """Who called it, innermost last; file names, line numbers and functions."""


@attrs.frozen(kw_only=True)
class VmHeartbeat:
    """The VM is alive."""

    type: ClassVar[str] = "heartbeat"
    active_sessions: tuple[str, ...] = attrs.field(validator=max_len(MAX_NAMED))
    """Sessions that the VM holds."""
    lag_ms: float | None = None
    """How late the VM's loop is."""
    rss_bytes: int | None = attrs.field(default=None, validator=optional(COUNT))
    """Memory that the VM uses."""
    sent_at: float | None = None
    """The VM's monotonic clock, echoed by the host."""
    blocked: BlockReport | None = None
    """The worst block of the loop since the last heartbeat."""


@attrs.frozen(kw_only=True)
class Request:
    """The VM asks; answered once by :class:`Response`."""

    type: ClassVar[str] = "request"
    id: str = attrs.field(validator=check_id)
    """Identifier that the answer repeats."""
    session_id: str = attrs.field(validator=check_id)
    """The session, or :data:`MEMORY_SESSION`."""
    method: str
    """What is asked."""
    params: JsonObject
    """The details."""
    deadline_ms: int | None = attrs.field(default=None, validator=optional(COUNT))
    """How long the asker still waits, in milliseconds."""


@attrs.frozen(kw_only=True)
class RequestCancel:
    """Nobody waits for the answer any more."""

    type: ClassVar[str] = "request_cancel"
    id: str = attrs.field(validator=check_id)
    """The request."""


@attrs.frozen  # by position, because that is quicker, and there are many
class SseEvent:
    """A session says something."""

    type: ClassVar[str] = "sse_event"
    session_id: str
    """The session."""
    data: str
    """The event as JSON text; passed on as it is."""
    term: int | None = None
    """Level 2: fencing counter of the session."""
    seq: int | None = None
    """Level 2: number of the event."""
    run_id: str | None = None
    """Level 2: the run that says it."""

    def __attrs_post_init__(self) -> None:
        # What validators of the fields would check, in a fraction of their time: a busy link
        # makes thousands of these in a second.
        if not 0 < len(self.session_id) <= MAX_ID_LENGTH:
            raise ValueError("session_id is empty or too long")
        if self.run_id is not None and not 0 < len(self.run_id) <= MAX_ID_LENGTH:
            raise ValueError("run_id is empty or too long")
        if self.term is None or self.seq is None:
            if self.term is not self.seq:
                raise ValueError("term and seq come together or not at all")
        elif not (0 < self.term <= MAX_TERM and 0 < self.seq <= MAX_SEQ):
            raise ValueError("term or seq is out of range")


@attrs.frozen(kw_only=True)
class FireAndForget:
    """The VM reports something and wants no answer."""

    type: ClassVar[str] = "fire_and_forget"
    session_id: str = attrs.field(validator=check_id)
    """The session, or :data:`MEMORY_SESSION`."""
    method: str
    """What is reported."""
    params: JsonObject
    """The details."""
    id: str | None = attrs.field(default=None, validator=optional(check_id))
    """Level 2: unique per user, for ever; a repeat changes nothing."""


@attrs.frozen(kw_only=True)
class HeldSession:
    """What a VM still holds of a session's events."""

    term: int = attrs.field(validator=TERM)
    """Fencing counter of the session."""
    first_seq: int = attrs.field(validator=NUMBER)
    """Oldest event without an acknowledgement; ``last_seq + 1`` if there is none."""
    last_seq: int = attrs.field(validator=COUNT)
    """Newest event; one less than the next number."""

    def __attrs_post_init__(self) -> None:
        if self.first_seq > self.last_seq + 1:
            raise ValueError("first_seq is beyond last_seq + 1")


@attrs.frozen(kw_only=True)
class Resume:
    """What the VM still waits for and holds, after every ``init``."""

    type: ClassVar[str] = "resume"
    pending_ids: tuple[str, ...] = attrs.field(validator=max_len(MAX_NAMED))
    """Requests without an answer."""
    sessions: Mapping[str, HeldSession] | None = attrs.field(
        default=None, validator=optional(max_len(MAX_NAMED))
    )
    """Level 2: every session that the VM holds."""


@attrs.frozen(kw_only=True)
class CommandAck:
    """Commands that took effect; stands after the events that show the effect."""

    type: ClassVar[str] = "ack"
    commands: tuple[str, ...] = attrs.field(validator=max_len(MAX_NAMED))
    """The commands."""


@attrs.frozen(kw_only=True)
class Cancelled:
    """The answer to a cancel, or to a stop of a session."""

    type: ClassVar[str] = "cancelled"
    session_id: str = attrs.field(validator=check_id)
    """The session."""
    command_id: str = attrs.field(validator=check_id)
    """The command that is answered."""
    run_id: str | None = attrs.field(validator=optional(check_id))
    """The run that was cancelled, or None."""
    receipt: JsonObject
    """A :class:`~semibot.wire.receipts.Receipt` as JSON data."""


FromVm: TypeAlias = (
    Auth
    | VmHeartbeat
    | Request
    | RequestCancel
    | SseEvent
    | FireAndForget
    | Resume
    | CommandAck
    | Cancelled
    | ErrorFrame
)
"""Every frame that a VM sends, but batches."""
